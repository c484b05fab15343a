#include <algorithm>
#include <unordered_map>

#include "text/jinja_filters.h"
#include "text/jinja_print.h"
#include "text/jinja_strings.h"
#include "text/jinja_unicode.h"

namespace ekiben::text::jinja {
namespace {

using V = const Value&;
using A = const Arguments&;

// The method of the same meaning, on the input as a string.
Result<Value> ByMethod(Runtime& runtime, V input, A arguments, std::string_view method) {
  ASSIGN_OR_RETURN(Value text, SoftStr(runtime, input));
  return FindStringMethod(method)(runtime, text, arguments);
}

Result<Value> Trim(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("trim", arguments, {"chars"}, 0));
  Arguments chars;
  if (bound[0] != nullptr) chars.positional = {*bound[0]};
  return ByMethod(runtime, input, chars, "strip");
}

// |title: unlike str.title, words begin after space and - ( { [ < only.
Result<Value> TitleFilter(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("title", arguments, {}, 0));
  ASSIGN_OR_RETURN(Value string, SoftStr(runtime, input));
  const Text& text = string.text();
  RETURN_IF_ERROR(runtime.Charge(1 + text.size() / 4));
  auto breaks = [&](size_t at) {
    return std::string_view("-({[<").find(text.view()[at]) != std::string_view::npos ||
           IsSpace(CodePointAt(text.view(), at));
  };
  Text out;
  for (size_t at = 0; at < text.size();) {
    size_t first = at + CodePointBytes(text.view(), at), end = at;
    if (breaks(at)) {
      out.AppendSlice(text, at, first);
      at = first;
      continue;
    }
    while (end < text.size() && !breaks(end)) end += CodePointBytes(text.view(), end);
    out.Append(MapCase(text.Slice(at, first), CaseMap::kUpper));
    out.Append(MapCase(text.Slice(first, end), CaseMap::kLower));
    at = end;
  }
  return runtime.String(std::move(out));
}

Result<Value> ReplaceFilter(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("replace", arguments, {"old", "new", "count"}, 2));
  Integer count = -1;
  if (bound[2] != nullptr && !bound[2]->Is(Kind::kNone)) {
    ASSIGN_OR_RETURN(count, AsIndex(*bound[2], "replace"));
  }
  ASSIGN_OR_RETURN(Text text, Str(runtime, input));
  ASSIGN_OR_RETURN(Text old, Str(runtime, *bound[0]));
  ASSIGN_OR_RETURN(Text fresh, Str(runtime, *bound[1]));
  return Replace(runtime, Value::String(std::move(text)), old, fresh, count);
}

Result<Value> StringFilter(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("string", arguments, {}, 0));
  return SoftStr(runtime, input);
}

Result<Value> Safe(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("safe", arguments, {}, 0));
  ASSIGN_OR_RETURN(Text text, Str(runtime, input));
  return Value::String(std::move(text), true);
}

Result<Value> EscapeFilter(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("escape", arguments, {}, 0));
  if (input.markup()) return input;
  ASSIGN_OR_RETURN(Text text, Str(runtime, input));
  return runtime.String(EscapeHtml(text), true);
}

Result<Value> ForceEscape(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("forceescape", arguments, {}, 0));
  ASSIGN_OR_RETURN(Text text, Str(runtime, input));
  return runtime.String(EscapeHtml(text), true);
}

Result<Text> Indentation(Runtime& runtime, const Value* width) {
  if (width == nullptr) return Text("    ", true);
  if (width->Is(Kind::kString)) return width->text();
  ASSIGN_OR_RETURN(Integer spaces, AsIndex(*width, "indent"));
  RETURN_IF_ERROR(runtime.CheckBytes(spaces));
  RETURN_IF_ERROR(runtime.ChargeBytes(static_cast<uint64_t>(std::max<Integer>(spaces, 0))));
  return Text(std::string(spaces > 0 ? static_cast<size_t>(spaces) : 0, ' '), true);
}

Result<Value> Indent(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("indent", arguments, {"width", "first", "blank"}, 0));
  ASSIGN_OR_RETURN(Text indent, Indentation(runtime, bound[0]));
  if (!input.Is(Kind::kString)) {
    if (input.Is(Kind::kUndefined)) return TypeProblem(input.undefined_message());
    return TypeProblem(fmt::format("indent: a string is wanted, got '{}'", TypeName(input)));
  }
  bool first = bound[1] != nullptr && Truth(*bound[1]), blank = bound[2] != nullptr && Truth(*bound[2]);
  Text text = input.text();
  text.Append("\n", true);
  RETURN_IF_ERROR(runtime.ChargeBytes(text.size() * 4));
  std::vector<Text> lines = SplitLines(text, false);
  Text out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n", true);
    if (i == 0 ? first : blank || !lines[i].empty()) out.Append(indent);
    out.Append(lines[i]);
    RETURN_IF_ERROR(runtime.CheckBytes(out.size()));
  }
  return runtime.String(std::move(out), input.markup());
}

Result<Value> Center(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("center", arguments, {"width"}, 0));
  ASSIGN_OR_RETURN(Value text, SoftStr(runtime, input));
  Integer width = 80;
  if (bound[0] != nullptr) {
    ASSIGN_OR_RETURN(width, AsIndex(*bound[0], "center"));
  }
  return Pad(runtime, text, width, Text(" ", true), Align::kCenter);
}

Result<Value> Format(Runtime& runtime, V input, A arguments) {
  if (!arguments.positional.empty() && !arguments.keyword.empty())
    return TypeProblem("can't handle positional and keyword arguments at the same time");
  ASSIGN_OR_RETURN(Value format, SoftStr(runtime, input));
  if (arguments.keyword.empty()) {
    ASSIGN_OR_RETURN(Value tuple, runtime.Sequence(Kind::kTuple, arguments.positional));
    return FormatPercent(runtime, format, tuple);
  }
  auto dict = std::make_shared<DictObject>();
  for (const auto& [name, value] : arguments.keyword) dict->Set(Value::String(name), value);
  ASSIGN_OR_RETURN(Value mapping, runtime.Dict(std::move(dict)));
  return FormatPercent(runtime, format, mapping);
}

Result<Value> JoinFilter(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("join", arguments, {"d", "attribute"}, 0));
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(input));
  if (bound[1] != nullptr && !bound[1]->Is(Kind::kNone)) {
    ASSIGN_OR_RETURN(AttributePath path, AttributePath::Parse(bound[1]));
    for (Value& item : items) {
      ASSIGN_OR_RETURN(item, path.Get(runtime, item));
    }
  }
  Text separator;
  if (bound[0] != nullptr) {
    ASSIGN_OR_RETURN(separator, Str(runtime, *bound[0]));
  }
  return Join(runtime, Value::String(std::move(separator)), items, true);
}

Result<Value> Truncate(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("truncate", arguments, {"length", "killwords", "end", "leeway"}, 0));
  Integer length = 255, leeway = 5;
  if (bound[0] != nullptr) {
    ASSIGN_OR_RETURN(length, AsIndex(*bound[0], "truncate"));
  }
  if (bound[3] != nullptr && !bound[3]->Is(Kind::kNone)) {
    ASSIGN_OR_RETURN(leeway, AsIndex(*bound[3], "truncate"));
  }
  Text ellipsis("...", true);
  if (bound[2] != nullptr) {
    ASSIGN_OR_RETURN(const Text* given, AsText(*bound[2], "truncate"));
    ellipsis = *given;
  }
  Integer end_length = static_cast<Integer>(CountCodePoints(ellipsis.view()));
  if (length < end_length || leeway < 0 || length > kWeightMax || leeway > kWeightMax)
    return TypeProblem("truncate: length or leeway out of range");
  if (input.Is(Kind::kString)) RETURN_IF_ERROR(runtime.ChargeBytes(input.text().size()));
  ASSIGN_OR_RETURN(Integer input_length, Length(input));
  if (input_length <= length + leeway) return input;  // whatever it is
  if (!input.Is(Kind::kString)) return TypeProblem("truncate: a string is wanted");
  const Text& text = input.text();
  Text out = text.Slice(0, ByteOffset(text.view(), static_cast<size_t>(length - end_length)));
  if (bound[1] == nullptr || !Truth(*bound[1])) {
    size_t space = out.view().rfind(' ');
    if (space != std::string_view::npos) out = out.Slice(0, space);
  }
  out.Append(ellipsis);
  return runtime.String(std::move(out), input.markup());
}

Result<Value> WordCount(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("wordcount", arguments, {}, 0));
  ASSIGN_OR_RETURN(Text text, Str(runtime, input));
  Integer count = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size(); at += CodePointBytes(text.view(), at)) {
    bool word = IsWord(CodePointAt(text.view(), at));
    count += word && !inside ? 1 : 0;
    inside = word;
  }
  return Value::Int(count);
}

// urllib.parse.quote; in a query string "/" is quoted too and a space is "+".
Text Quote(const Text& text, bool query) {
  Text out;
  text.ForEachRun([&](std::string_view run, bool trusted) {
    std::string quoted;
    for (char c : run) {
      bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
      if (letter || c == '_' || c == '.' || c == '-' || c == '~' || (c == '/' && !query))
        quoted += c;
      else if (c == ' ' && query)
        quoted += '+';
      else
        quoted += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
    out.Append(quoted, trusted);
  });
  return out;
}

Result<Value> UrlEncode(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("urlencode", arguments, {}, 0));
  bool iterable = input.Is(Kind::kUndefined) || input.Is(Kind::kList) || input.Is(Kind::kTuple) ||
                  input.Is(Kind::kDict) || input.Is(Kind::kDictView) || input.Is(Kind::kRange) ||
                  input.Is(Kind::kIterator);
  if (!iterable) {
    ASSIGN_OR_RETURN(Text text, Str(runtime, input));
    return runtime.String(Quote(text, false));
  }
  std::vector<Value> pairs;
  if (input.Is(Kind::kDict)) {
    ASSIGN_OR_RETURN(Value view, FindContainerMethod(input, "items")(runtime, input, {}));
    ASSIGN_OR_RETURN(pairs, runtime.IterateAll(view));
  } else {
    ASSIGN_OR_RETURN(pairs, runtime.IterateAll(input));
  }
  Text out;
  for (const Value& pair : pairs) {
    ASSIGN_OR_RETURN(std::vector<Value> parts, runtime.IterateAll(pair));
    if (parts.size() != 2) return TypeProblem("urlencode: pairs are wanted");
    ASSIGN_OR_RETURN(Text key, Str(runtime, parts[0]));
    ASSIGN_OR_RETURN(Text value, Str(runtime, parts[1]));
    if (&pair != &pairs.front()) out.Append("&", true);
    out.Append(Quote(key, true));
    out.Append("=", true);
    out.Append(Quote(value, true));
  }
  return runtime.String(std::move(out));
}

}  // namespace

Filter FindTextFilter(std::string_view name) {
  static const std::unordered_map<std::string_view, Filter> kFilters = {
      {"upper", [](Runtime& r, V v, A a) { return ByMethod(r, v, a, "upper"); }},
      {"lower", [](Runtime& r, V v, A a) { return ByMethod(r, v, a, "lower"); }},
      {"capitalize", [](Runtime& r, V v, A a) { return ByMethod(r, v, a, "capitalize"); }},
      {"title", TitleFilter},
      {"trim", Trim},
      {"replace", ReplaceFilter},
      {"string", StringFilter},
      {"safe", Safe},
      {"e", EscapeFilter},
      {"escape", EscapeFilter},
      {"forceescape", ForceEscape},
      {"indent", Indent},
      {"center", Center},
      {"format", Format},
      {"join", JoinFilter},
      {"truncate", Truncate},
      {"wordcount", WordCount},
      {"urlencode", UrlEncode},
  };
  auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace ekiben::text::jinja
