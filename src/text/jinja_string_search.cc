#include <algorithm>
#include <unordered_map>

#include "text/jinja_print.h"
#include "text/jinja_strings.h"
#include "text/jinja_unicode.h"

namespace ekiben::text::jinja {
namespace {

// str.splitlines breaks at more than \n.
bool IsLineBreak(char32_t code) {
  return (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) || code == 0x85 || code == 0x2028 ||
         code == 0x2029;
}

std::vector<Text> SplitSpace(const Text& text, Integer most, bool right) {
  std::vector<Text> pieces;
  std::string_view view = text.view();
  auto space = [&](size_t at) { return IsSpace(CodePointAt(view, at)); };
  size_t begin = 0, end = view.size();
  while (true) {
    while (!right && begin < end && space(begin)) begin += CodePointBytes(view, begin);
    while (right && end > begin && space(PreviousCodePoint(view, end))) end = PreviousCodePoint(view, end);
    if (begin >= end) break;
    if (most >= 0 && static_cast<Integer>(pieces.size()) >= most) {
      pieces.push_back(text.Slice(begin, end));
      break;
    }
    size_t cut = right ? end : begin;
    while (!right && cut < end && !space(cut)) cut += CodePointBytes(view, cut);
    while (right && cut > begin && !space(PreviousCodePoint(view, cut))) cut = PreviousCodePoint(view, cut);
    pieces.push_back(right ? text.Slice(cut, end) : text.Slice(begin, cut));
    (right ? end : begin) = cut;
  }
  if (right) std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

std::vector<Text> SplitAt(const Text& text, std::string_view separator, Integer most, bool right) {
  std::vector<Text> pieces;
  std::string_view view = text.view();
  size_t begin = 0, end = view.size();
  while (most < 0 || static_cast<Integer>(pieces.size()) < most) {
    size_t found = right ? view.substr(0, end).rfind(separator) : view.find(separator, begin);
    if (found == std::string_view::npos) break;
    pieces.push_back(right ? text.Slice(found + separator.size(), end) : text.Slice(begin, found));
    (right ? end : begin) = right ? found : found + separator.size();
  }
  pieces.push_back(text.Slice(begin, end));
  if (right) std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

Result<Value> AsList(Runtime& runtime, const Value& self, std::vector<Text> pieces) {
  std::vector<Value> items;
  items.reserve(pieces.size());
  for (Text& piece : pieces) items.push_back(Value::String(std::move(piece), self.markup()));
  return runtime.List(std::move(items));
}

Result<Value> SplitMethod(Runtime& runtime, const Value& self, const Arguments& arguments, bool right) {
  ASSIGN_OR_RETURN(auto bound, Bind("split", arguments, {"sep", "maxsplit"}, 0));
  const Text* separator = nullptr;
  if (bound[0] != nullptr && !bound[0]->Is(Kind::kNone)) {
    ASSIGN_OR_RETURN(separator, AsText(*bound[0], "split"));
    if (separator->empty()) return TypeProblem("empty separator");
  }
  Integer most = -1;
  if (bound[1] != nullptr) {
    ASSIGN_OR_RETURN(most, AsIndex(*bound[1], "split"));
  }
  ASSIGN_OR_RETURN(std::vector<Text> pieces, Split(runtime, self.text(), separator, most, right));
  return AsList(runtime, self, std::move(pieces));
}

Result<Value> SplitLinesMethod(Runtime& runtime, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("splitlines", arguments, {"keepends"}, 0));
  RETURN_IF_ERROR(runtime.ChargeBytes(self.text().size() * 4));
  return AsList(runtime, self, SplitLines(self.text(), bound[0] != nullptr && Truth(*bound[0])));
}

Result<Value> Partition(Runtime& runtime, const Value& self, const Arguments& arguments, bool right) {
  ASSIGN_OR_RETURN(auto bound, Bind("partition", arguments, {"sep"}, 1, 1));
  ASSIGN_OR_RETURN(const Text* separator, AsText(*bound[0], "partition"));
  if (separator->empty()) return TypeProblem("empty separator");
  const Text& text = self.text();
  RETURN_IF_ERROR(runtime.ChargeSearch(text.size(), separator->size()));
  size_t found = right ? text.view().rfind(separator->view()) : text.view().find(separator->view());
  Text parts[3];
  if (found == std::string_view::npos) {
    parts[right ? 2 : 0] = text;
  } else {
    parts[0] = text.Slice(0, found);
    parts[1] = text.Slice(found, found + separator->size());
    parts[2] = text.Slice(found + separator->size(), text.size());
  }
  std::vector<Value> items;
  for (Text& part : parts) items.push_back(Value::String(std::move(part), self.markup()));
  return runtime.Sequence(Kind::kTuple, std::move(items));
}

// [begin, end) of the optional start and end arguments in bytes; begin > end where nothing can match.
struct Range {
  size_t begin, end;
  size_t skipped;  // code points before begin
};

Result<Range> SearchRange(const Text& text, const Value* start, const Value* stop) {
  Integer length = static_cast<Integer>(CountCodePoints(text.view()));
  auto read = [&](const Value* value, Integer absent) -> Result<Integer> {
    if (value == nullptr || value->Is(Kind::kNone)) return absent;
    ASSIGN_OR_RETURN(Integer at, AsIndex(*value, "a slice index"));
    return at < 0 ? std::max<Integer>(at + length, 0) : at;
  };
  ASSIGN_OR_RETURN(Integer from, read(start, 0));
  ASSIGN_OR_RETURN(Integer to, read(stop, length));
  to = std::min(to, length);
  if (from > to) return Range{1, 0, 0};
  size_t begin = ByteOffset(text.view(), static_cast<size_t>(from));
  return Range{begin, ByteOffset(text.view(), static_cast<size_t>(to)), static_cast<size_t>(from)};
}

// Code point index of the first (or last) match in the range, or -1.
Result<Integer> FindIndex(Runtime& runtime, const Value& self, const Arguments& arguments, bool last) {
  ASSIGN_OR_RETURN(auto bound, Bind("find", arguments, {"sub", "start", "end"}, 1, 3));
  ASSIGN_OR_RETURN(const Text* wanted, AsText(*bound[0], "find"));
  RETURN_IF_ERROR(runtime.ChargeSearch(self.text().size(), wanted->size()));
  ASSIGN_OR_RETURN(Range range, SearchRange(self.text(), bound[1], bound[2]));
  if (range.begin > range.end) return Integer{-1};
  std::string_view part = self.text().view().substr(range.begin, range.end - range.begin);
  size_t found = last ? part.rfind(wanted->view()) : part.find(wanted->view());
  if (found == std::string_view::npos) return Integer{-1};
  return static_cast<Integer>(range.skipped + CountCodePoints(part.substr(0, found)));
}

Result<Value> Find(Runtime& runtime, const Value& self, const Arguments& arguments, bool last, bool must) {
  ASSIGN_OR_RETURN(Integer index, FindIndex(runtime, self, arguments, last));
  if (index < 0 && must) return TypeProblem("substring not found");
  return Value::Int(index);
}

Result<Value> Count(Runtime& runtime, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("count", arguments, {"sub", "start", "end"}, 1, 3));
  ASSIGN_OR_RETURN(const Text* wanted, AsText(*bound[0], "count"));
  RETURN_IF_ERROR(runtime.ChargeSearch(self.text().size(), wanted->size()));
  ASSIGN_OR_RETURN(Range range, SearchRange(self.text(), bound[1], bound[2]));
  if (range.begin > range.end) return Value::Int(0);
  std::string_view part = self.text().view().substr(range.begin, range.end - range.begin);
  if (wanted->empty()) return Value::Int(static_cast<Integer>(CountCodePoints(part)) + 1);
  Integer count = 0;
  for (size_t at = part.find(wanted->view()); at != std::string_view::npos;
       at = part.find(wanted->view(), at + wanted->size()))
    ++count;
  return Value::Int(count);
}

Result<Value> Affix(Runtime& runtime, const Value& self, const Arguments& arguments, bool suffix) {
  ASSIGN_OR_RETURN(auto bound, Bind(suffix ? "endswith" : "startswith", arguments, {"affix", "start", "end"}, 1, 3));
  std::vector<Value> candidates = {*bound[0]};
  if (bound[0]->Is(Kind::kTuple)) candidates = bound[0]->items();
  RETURN_IF_ERROR(runtime.ChargeBytes(self.text().size()));
  ASSIGN_OR_RETURN(Range range, SearchRange(self.text(), bound[1], bound[2]));
  for (const Value& candidate : candidates) {
    ASSIGN_OR_RETURN(const Text* affix, AsText(candidate, suffix ? "endswith" : "startswith"));
    if (range.begin > range.end) continue;
    std::string_view part = self.text().view().substr(range.begin, range.end - range.begin);
    if (suffix ? part.ends_with(affix->view()) : part.starts_with(affix->view())) return Value::Bool(true);
  }
  return Value::Bool(false);
}

Result<Value> RemoveAffix(Runtime& runtime, const Value& self, const Arguments& arguments, bool suffix) {
  ASSIGN_OR_RETURN(auto bound, Bind("removeprefix", arguments, {"affix"}, 1, 1));
  ASSIGN_OR_RETURN(const Text* affix, AsText(*bound[0], "removeprefix"));
  const Text& text = self.text();
  size_t begin = !suffix && text.view().starts_with(affix->view()) ? affix->size() : 0;
  size_t end = suffix && text.view().ends_with(affix->view()) ? text.size() - affix->size() : text.size();
  return runtime.String(text.Slice(begin, end), self.markup());
}

Result<Value> ReplaceMethod(Runtime& runtime, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("replace", arguments, {"old", "new", "count"}, 2, 3));
  ASSIGN_OR_RETURN(const Text* old, AsText(*bound[0], "replace"));
  Integer count = -1;
  if (bound[2] != nullptr) {
    ASSIGN_OR_RETURN(count, AsIndex(*bound[2], "replace"));
  }
  if (self.markup()) {
    ASSIGN_OR_RETURN(Value fresh, SoftStr(runtime, *bound[1]));
    return Replace(runtime, self, *old, fresh.markup() ? fresh.text() : EscapeHtml(fresh.text()), count);
  }
  ASSIGN_OR_RETURN(const Text* fresh, AsText(*bound[1], "replace"));
  return Replace(runtime, self, *old, *fresh, count);
}

Result<Value> JoinMethod(Runtime& runtime, const Value& self, const Arguments& arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("join", arguments, {"iterable"}, 1, 1));
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(*bound[0]));
  return Join(runtime, self, items, false);
}

}  // namespace

Result<Value> Replace(Runtime& runtime, const Value& string, const Text& old, const Text& fresh, Integer count) {
  const Text& text = string.text();
  RETURN_IF_ERROR(runtime.ChargeSearch(text.size(), old.size()));
  Text out;
  size_t begin = 0;
  for (size_t at = 0; count != 0; --count) {
    size_t found = old.empty() ? at : text.view().find(old.view(), begin);
    if (found == std::string_view::npos || found > text.size()) break;
    out.AppendSlice(text, begin, found);
    out.Append(fresh);
    RETURN_IF_ERROR(runtime.CheckBytes(out.size()));
    RETURN_IF_ERROR(runtime.Charge(1));
    begin = found + old.size();
    if (!old.empty()) continue;
    // Between characters, before the first and after the last.
    if (at >= text.size()) {
      at = text.size() + 1;
    } else {
      at += CodePointBytes(text.view(), at);
    }
  }
  out.AppendSlice(text, begin, text.size());
  return runtime.String(std::move(out), string.markup());
}

std::vector<Text> SplitLines(const Text& text, bool keep_ends) {
  std::vector<Text> lines;
  std::string_view view = text.view();
  size_t begin = 0;
  for (size_t at = 0; at < view.size();) {
    char32_t code = CodePointAt(view, at);
    size_t next = at + CodePointBytes(view, at);
    if (IsLineBreak(code)) {
      if (code == '\r' && next < view.size() && view[next] == '\n') ++next;
      lines.push_back(text.Slice(begin, keep_ends ? next : at));
      begin = next;
    }
    at = next;
  }
  if (begin < view.size()) lines.push_back(text.Slice(begin, view.size()));
  return lines;
}

Result<std::vector<Text>> Split(Runtime& runtime, const Text& text, const Text* separator, Integer most, bool right) {
  RETURN_IF_ERROR(runtime.ChargeSearch(text.size() * 4, separator == nullptr ? 1 : separator->size()));
  return separator == nullptr ? SplitSpace(text, most, right) : SplitAt(text, separator->view(), most, right);
}

Result<Value> Join(Runtime& runtime, const Value& separator, const std::vector<Value>& items, bool soft) {
  Text out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.Append(separator.text());
    const Value& item = items[i];
    if (!soft && !separator.markup() && !item.Is(Kind::kString))
      return TypeProblem(fmt::format("sequence item {}: expected str instance, {} found", i, TypeName(item)));
    ASSIGN_OR_RETURN(Text text, Str(runtime, item));
    out.Append(separator.markup() && !item.markup() ? EscapeHtml(text) : text);
    RETURN_IF_ERROR(runtime.CheckBytes(out.size()));
  }
  return runtime.String(std::move(out), separator.markup());
}

Method FindSearchMethod(std::string_view name) {
  using V = const Value&;
  using A = const Arguments&;
  static const std::unordered_map<std::string_view, Method> kMethods = {
      {"split", [](Runtime& r, V s, A a) { return SplitMethod(r, s, a, false); }},
      {"rsplit", [](Runtime& r, V s, A a) { return SplitMethod(r, s, a, true); }},
      {"splitlines", SplitLinesMethod},
      {"partition", [](Runtime& r, V s, A a) { return Partition(r, s, a, false); }},
      {"rpartition", [](Runtime& r, V s, A a) { return Partition(r, s, a, true); }},
      {"find", [](Runtime& r, V s, A a) { return Find(r, s, a, false, false); }},
      {"rfind", [](Runtime& r, V s, A a) { return Find(r, s, a, true, false); }},
      {"index", [](Runtime& r, V s, A a) { return Find(r, s, a, false, true); }},
      {"rindex", [](Runtime& r, V s, A a) { return Find(r, s, a, true, true); }},
      {"count", Count},
      {"startswith", [](Runtime& r, V s, A a) { return Affix(r, s, a, false); }},
      {"endswith", [](Runtime& r, V s, A a) { return Affix(r, s, a, true); }},
      {"removeprefix", [](Runtime& r, V s, A a) { return RemoveAffix(r, s, a, false); }},
      {"removesuffix", [](Runtime& r, V s, A a) { return RemoveAffix(r, s, a, true); }},
      {"replace", ReplaceMethod},
      {"join", JoinMethod},
  };
  auto found = kMethods.find(name);
  return found == kMethods.end() ? nullptr : found->second;
}

}  // namespace ekiben::text::jinja
