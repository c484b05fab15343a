#include "text/jinja_print.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "text/jinja_unicode.h"

namespace ekiben::text::jinja {
namespace {

constexpr int kPrintDepthMax = 400;  // namespaces may contain themselves

class ReprPrinter {
 public:
  explicit ReprPrinter(Runtime& runtime) : runtime_(runtime) {}

  Result<void> Print(const Value& value, int depth = 0) {
    RETURN_IF_ERROR(runtime_.Charge(value.Is(Kind::kString) ? value.weight() : 1));
    RETURN_IF_ERROR(runtime_.CheckBytes(out_.size()));
    if (depth > kPrintDepthMax) return TypeProblem("a value contains itself, it cannot be printed");
    bool trusted = value.object() == nullptr ? !value.untrusted() : !value.object()->untrusted;
    switch (value.kind()) {
      case Kind::kUndefined: return Add("Undefined", true);
      case Kind::kNone: return Add("None", trusted);
      case Kind::kBool: return Add(value.boolean() ? "True" : "False", trusted);
      case Kind::kInt: return Add(IntegerText(value.integer()), trusted);
      case Kind::kFloat: return Add(FloatText(value.real()), trusted);
      case Kind::kString: return PrintString(value);
      case Kind::kList: return PrintItems("[", value.items(), "]", trusted, depth);
      case Kind::kTuple: return PrintItems("(", value.items(), value.items().size() == 1 ? ",)" : ")", trusted, depth);
      case Kind::kDict: return PrintDict(value.dict(), trusted, depth);
      case Kind::kDictView: return PrintView(value.As<DictViewObject>(), depth);
      case Kind::kRange: return PrintRange(value.As<RangeObject>());
      case Kind::kNamespace: return PrintNamespace(value.As<NamespaceObject>(), depth);
      case Kind::kFunction: return Add("<function " + value.As<FunctionObject>().name + ">", true);
      default: return Add("<" + std::string(TypeName(value)) + " object>", true);
    }
  }

  Text Take() { return std::move(out_); }

 private:
  Result<void> Add(std::string_view text, bool trusted) {
    out_.Append(text, trusted);
    return {};
  }

  Result<void> PrintString(const Value& value) {
    if (value.markup()) out_.Append("Markup(", true);
    const Text& text = value.text();
    bool single = text.view().find('\'') == std::string_view::npos || text.view().find('"') != std::string_view::npos;
    std::string_view quote = single ? "'" : "\"";
    bool trusted = text.trusted();
    out_.Append(quote, trusted);
    text.ForEachRun([&](std::string_view run, bool run_trusted) { PrintRun(run, quote[0], run_trusted); });
    out_.Append(quote, trusted);
    if (value.markup()) out_.Append(")", true);
    return {};
  }

  void PrintRun(std::string_view run, char quote, bool trusted) {
    std::string escaped;
    for (size_t at = 0; at < run.size();) {
      size_t length = CodePointBytes(run, at);
      char32_t code = CodePointAt(run, at);
      if (code == '\\' || code == static_cast<unsigned char>(quote))
        escaped += {'\\', static_cast<char>(code)};
      else if (code == '\n')
        escaped += "\\n";
      else if (code == '\r')
        escaped += "\\r";
      else if (code == '\t')
        escaped += "\\t";
      else if (IsPrintable(code))
        escaped.append(run, at, length);
      else
        escaped += code < 0x100     ? fmt::format("\\x{:02x}", static_cast<uint32_t>(code))
                   : code < 0x10000 ? fmt::format("\\u{:04x}", static_cast<uint32_t>(code))
                                    : fmt::format("\\U{:08x}", static_cast<uint32_t>(code));
      at += length;
    }
    out_.Append(escaped, trusted);
  }

  Result<void> PrintItems(std::string_view open, const std::vector<Value>& items, std::string_view close, bool trusted,
                          int depth) {
    out_.Append(open, trusted);
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.Append(", ", trusted);
      RETURN_IF_ERROR(Print(items[i], depth + 1));
    }
    return Add(close, trusted);
  }

  Result<void> PrintDict(const DictObject& dict, bool trusted, int depth) {
    out_.Append("{", trusted);
    for (size_t i = 0; i < dict.entries.size(); ++i) {
      if (i > 0) out_.Append(", ", trusted);
      RETURN_IF_ERROR(Print(dict.entries[i].first, depth + 1));
      out_.Append(": ", trusted);
      RETURN_IF_ERROR(Print(dict.entries[i].second, depth + 1));
    }
    return Add("}", trusted);
  }

  Result<void> PrintView(const DictViewObject& view, int depth) {
    using Part = DictViewObject::Part;
    std::string_view name = view.part == Part::kKeys ? "keys" : view.part == Part::kValues ? "values" : "items";
    out_.Append("dict_" + std::string(name) + "([", true);
    bool trusted = !view.dict.object()->untrusted;
    const auto& entries = view.dict.dict().entries;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_.Append(", ", trusted);
      if (view.part == Part::kItems) {
        RETURN_IF_ERROR(PrintItems("(", {entries[i].first, entries[i].second}, ")", trusted, depth + 1));
      } else {
        RETURN_IF_ERROR(Print(view.part == Part::kKeys ? entries[i].first : entries[i].second, depth + 1));
      }
    }
    return Add("])", true);
  }

  Result<void> PrintRange(const RangeObject& range) {
    std::string step = range.step == 1 ? "" : ", " + IntegerText(range.step);
    return Add("range(" + IntegerText(range.start) + ", " + IntegerText(range.stop) + step + ")", true);
  }

  Result<void> PrintNamespace(const NamespaceObject& object, int depth) {
    out_.Append("<Namespace {", true);
    for (size_t i = 0; i < object.attributes.size(); ++i) {
      if (i > 0) out_.Append(", ", true);
      RETURN_IF_ERROR(Print(Value::String(object.attributes[i].first), depth + 1));
      out_.Append(": ", true);
      RETURN_IF_ERROR(Print(object.attributes[i].second, depth + 1));
    }
    return Add("}>", true);
  }

  Runtime& runtime_;
  Text out_;
};

void AppendUnicodeEscape(char32_t code, std::string& out) {
  if (code < 0x10000) {
    out += fmt::format("\\u{:04x}", static_cast<uint32_t>(code));
  } else {
    uint32_t rest = static_cast<uint32_t>(code) - 0x10000;
    out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 | rest >> 10, 0xDC00 | (rest & 0x3FF));
  }
}

std::string EscapeJson(std::string_view run, bool ensure_ascii) {
  std::string out;
  for (size_t at = 0; at < run.size();) {
    size_t length = CodePointBytes(run, at);
    char32_t code = CodePointAt(run, at);
    switch (code) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      default:
        if (code < 0x20 || (ensure_ascii && code > 0x7E))
          AppendUnicodeEscape(code, out);
        else
          out.append(run, at, length);
    }
    at += length;
  }
  return out;
}

class JsonPrinter {
 public:
  JsonPrinter(Runtime& runtime, const JsonStyle& style) : runtime_(runtime), style_(style) {}

  Result<void> Print(const Value& value, int depth = 0) {
    RETURN_IF_ERROR(runtime_.Charge(value.Is(Kind::kString) ? value.weight() : 1));
    RETURN_IF_ERROR(runtime_.CheckBytes(out_.size()));
    bool trusted = value.object() == nullptr ? !value.untrusted() : !value.object()->untrusted;
    switch (value.kind()) {
      case Kind::kNone:
      case Kind::kBool:
      case Kind::kInt:
      case Kind::kFloat: return Add(Scalar(value), trusted);
      case Kind::kString: return PrintString(value.text());
      case Kind::kList:
      case Kind::kTuple: return PrintList(value.items(), trusted, depth);
      case Kind::kDict: return PrintDict(value.dict(), trusted, depth);
      default: return TypeProblem(fmt::format("Object of type {} is not JSON serializable", TypeName(value)));
    }
  }

  Text Take() { return std::move(out_); }

 private:
  static std::string Scalar(const Value& value) {
    if (value.Is(Kind::kNone)) return "null";
    if (value.Is(Kind::kBool)) return value.boolean() ? "true" : "false";
    if (value.Is(Kind::kInt)) return IntegerText(value.integer());
    double real = value.real();
    if (std::isnan(real)) return "NaN";
    if (std::isinf(real)) return real > 0 ? "Infinity" : "-Infinity";
    return FloatText(real);
  }

  Result<void> Add(std::string_view text, bool trusted) {
    out_.Append(text, trusted);
    return {};
  }

  Result<void> PrintString(const Text& text) {
    out_.Append("\"", text.trusted());
    text.ForEachRun(
        [&](std::string_view run, bool trusted) { out_.Append(EscapeJson(run, style_.ensure_ascii), trusted); });
    return Add("\"", text.trusted());
  }

  void NewLine(int depth, bool trusted) {
    if (!style_.indent.has_value()) return;
    std::string line = "\n";
    for (int i = 0; i < depth; ++i) line += *style_.indent;
    out_.Append(line, trusted);
  }

  Result<void> PrintList(const std::vector<Value>& items, bool trusted, int depth) {
    if (items.empty()) return Add("[]", trusted);
    out_.Append("[", trusted);
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.Append(style_.item_separator, trusted);
      NewLine(depth + 1, trusted);
      RETURN_IF_ERROR(Print(items[i], depth + 1));
    }
    NewLine(depth, trusted);
    return Add("]", trusted);
  }

  // In the order to print.
  Result<std::vector<const std::pair<Value, Value>*>> Entries(const DictObject& dict) {
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (!style_.sort_keys) return entries;
    RETURN_IF_ERROR(runtime_.Charge(entries.size() * 20));
    std::optional<Error> failed;
    std::stable_sort(entries.begin(), entries.end(), [&](const auto* a, const auto* b) {
      Result<bool> less = Less(a->first, b->first);
      if (!less.ok()) failed = less.error();
      return less.ok() && *less;
    });
    if (failed.has_value()) return *std::move(failed);
    return entries;
  }

  Result<void> PrintDict(const DictObject& dict, bool trusted, int depth) {
    if (dict.entries.empty()) return Add("{}", trusted);
    ASSIGN_OR_RETURN(auto entries, Entries(dict));
    out_.Append("{", trusted);
    for (size_t i = 0; i < entries.size(); ++i) {
      const auto& [key, value] = *entries[i];
      if (i > 0) out_.Append(style_.item_separator, trusted);
      NewLine(depth + 1, trusted);
      if (key.Is(Kind::kString)) {
        RETURN_IF_ERROR(PrintString(key.text()));
      } else if (key.IsNumber() || key.Is(Kind::kNone)) {
        out_.Append("\"" + Scalar(key) + "\"", trusted);
      } else {
        return TypeProblem(fmt::format("keys must be str, int, float, bool or None, not {}", TypeName(key)));
      }
      out_.Append(style_.key_separator, trusted);
      RETURN_IF_ERROR(Print(value, depth + 1));
    }
    NewLine(depth, trusted);
    return Add("}", trusted);
  }

  Runtime& runtime_;
  const JsonStyle& style_;
  Text out_;
};

}  // namespace

std::string IntegerText(Integer value) {
  bool negative = value < 0;
  auto rest = negative ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
  std::string out;
  do {
    out += static_cast<char>('0' + static_cast<int>(rest % 10));
    rest /= 10;
  } while (rest != 0);
  if (negative) out += '-';
  std::reverse(out.begin(), out.end());
  return out;
}

std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[40];
  auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  std::string_view text(buffer, end - buffer);
  std::string out = text[0] == '-' ? "-" : "";
  if (text[0] == '-') text.remove_prefix(1);
  size_t e = text.find('e');
  int exponent = 0;
  std::from_chars(text.data() + e + (text[e + 1] == '+' ? 2 : 1), text.data() + text.size(), exponent);
  std::string digits(1, text[0]);
  if (e > 2) digits += text.substr(2, e - 2);
  int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits.substr(0, 1);
    if (count > 1) out += "." + digits.substr(1);
    return out + fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return out + "0." + std::string(-exponent - 1, '0') + digits;
  if (count <= exponent + 1) return out + digits + std::string(exponent + 1 - count, '0') + ".0";
  return out + digits.substr(0, exponent + 1) + "." + digits.substr(exponent + 1);
}

Result<Text> Str(Runtime& runtime, const Value& value) {
  if (value.Is(Kind::kString)) {
    RETURN_IF_ERROR(runtime.ChargeBytes(value.text().size()));
    return value.text();
  }
  if (value.Is(Kind::kUndefined)) return Text();
  return Repr(runtime, value);
}

Result<Text> Repr(Runtime& runtime, const Value& value) {
  ReprPrinter printer(runtime);
  RETURN_IF_ERROR(printer.Print(value));
  return printer.Take();
}

Result<Text> ToJson(Runtime& runtime, const Value& value, const JsonStyle& style) {
  JsonPrinter printer(runtime, style);
  RETURN_IF_ERROR(printer.Print(value));
  return printer.Take();
}

Text EscapeHtml(const Text& text) {
  Text out;
  text.ForEachRun([&](std::string_view run, bool trusted) {
    std::string escaped;
    for (char c : run) {
      switch (c) {
        case '&': escaped += "&amp;"; break;
        case '<': escaped += "&lt;"; break;
        case '>': escaped += "&gt;"; break;
        case '"': escaped += "&#34;"; break;
        case '\'': escaped += "&#39;"; break;
        default: escaped += c;
      }
    }
    out.Append(escaped, trusted);
  });
  return out;
}

}  // namespace ekiben::text::jinja
