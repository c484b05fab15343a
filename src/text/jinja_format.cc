// "text" % arguments and "text".format(...), with the conversions that Python gives strings, integers and floats.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "text/jinja_print.h"
#include "text/jinja_strings.h"

namespace ekiben::text::jinja {
namespace {

constexpr Integer kPrecisionMax = 1000;

struct Spec {
  std::string fill = " ";
  char align = 0;   // < > = ^, or 0: by type
  char sign = '-';  // + - or space
  bool alternate = false, zero = false;
  char grouping = 0;  // , or _
  Integer width = 0;
  std::optional<Integer> precision;
  char type = 0;
};

std::string InBase(Integer value, unsigned base, bool upper) {
  auto rest = value < 0 ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
  std::string digits;
  // A pointer first: g++ 12's bounds check of (a ? "x" : "y")[i] reads an index that it has not computed.
  const char* symbols = upper ? "0123456789ABCDEF" : "0123456789abcdef";
  do {
    digits += symbols[static_cast<unsigned>(rest % base)];
    rest /= base;
  } while (rest != 0);
  std::reverse(digits.begin(), digits.end());
  return digits;
}

// snprintf's %e %f %g of |value|.
std::string FloatDigits(double value, char type, int precision, bool alternate) {
  std::string format = std::string("%") + (alternate ? "#" : "") + ".*" + type;
  int size = std::snprintf(nullptr, 0, format.c_str(), precision, value);
  std::string out(static_cast<size_t>(std::max(size, 0)) + 1, '\0');
  std::snprintf(out.data(), out.size(), format.c_str(), precision, value);
  out.pop_back();
  return out;
}

std::string Grouped(const std::string& number, char separator, size_t group) {
  size_t whole = number.find_first_not_of("0123456789abcdefABCDEF");
  if (whole == std::string::npos) whole = number.size();
  std::string out;
  for (size_t i = 0; i < whole; ++i) {
    if (i > 0 && (whole - i) % group == 0) out += separator;
    out += number[i];
  }
  return out + number.substr(whole);
}

// Pads `body` (with `prefix`, its sign and base, in front) to the width.
Result<Text> Padded(Runtime& runtime, std::string_view prefix, const Text& body, const Spec& spec, char align) {
  Integer length = static_cast<Integer>(CountCodePoints(prefix) + CountCodePoints(body.view()));
  Integer missing = std::max<Integer>(spec.width - length, 0);
  RETURN_IF_ERROR(runtime.CheckBytes(missing > kWeightMax ? missing : missing * 4));
  RETURN_IF_ERROR(runtime.Charge(static_cast<uint64_t>(missing)));
  Integer left = align == '>' ? missing : align == '^' ? missing / 2 : 0;
  std::string fill_left, fill_right, fill_inside;
  for (Integer i = 0; i < missing; ++i) (align == '=' ? fill_inside : i < left ? fill_left : fill_right) += spec.fill;
  Text out;
  out.Append(fill_left, true);
  out.Append(prefix, body.trusted());
  out.Append(fill_inside, true);
  out.Append(body);
  out.Append(fill_right, true);
  return out;
}

Result<Text> FormatString(Runtime& runtime, const Text& text, const Spec& spec) {
  if ((spec.type != 0 && spec.type != 's') || spec.sign != '-' || spec.align == '=' || spec.grouping != 0)
    return TypeProblem("invalid format specifier for a string");
  Text body = text;
  if (spec.precision.has_value()) body = text.Slice(0, ByteOffset(text.view(), static_cast<size_t>(*spec.precision)));
  return Padded(runtime, "", body, spec, spec.align == 0 ? '<' : spec.align);
}

Result<Text> FormatNumberText(Runtime& runtime, bool negative, std::string digits, const Spec& spec,
                              std::string_view base, bool trusted) {
  std::string prefix = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
  if (spec.alternate) prefix += base;
  if (spec.grouping != 0) digits = Grouped(digits, spec.grouping, base.empty() ? 3 : 4);
  char align = spec.align != 0 ? spec.align : spec.zero ? '=' : '>';
  Spec padded = spec;
  if (spec.zero && spec.align == 0) padded.fill = "0";
  return Padded(runtime, prefix, Text(std::move(digits), trusted), padded, align);
}

Result<Text> FormatFloat(Runtime& runtime, double value, Spec spec, bool trusted) {
  bool negative = std::signbit(value);
  double magnitude = std::abs(value);
  std::string digits;
  int precision = static_cast<int>(spec.precision.value_or(6));
  switch (spec.type) {
    case 0:
      if (!spec.precision.has_value()) {
        digits = FloatText(magnitude);
      } else {
        digits = FloatDigits(magnitude, 'g', std::max(precision, 1), spec.alternate);
        if (digits.find_first_not_of("0123456789") == std::string::npos) digits += ".0";
      }
      break;
    case '%': digits = FloatDigits(magnitude * 100, 'f', precision, spec.alternate) + "%"; break;
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G': digits = FloatDigits(magnitude, spec.type, precision, spec.alternate); break;
    case 'n': digits = FloatDigits(magnitude, 'g', precision, spec.alternate); break;
    default: return TypeProblem(fmt::format("Unknown format code '{}' for object of type 'float'", spec.type));
  }
  spec.alternate = false;
  return FormatNumberText(runtime, negative && !std::isnan(value), std::move(digits), spec, "", trusted);
}

Result<Text> FormatInteger(Runtime& runtime, Integer value, const Spec& spec, bool trusted) {
  if (spec.precision.has_value() && std::string_view("eEfFgG%").find(spec.type) == std::string_view::npos)
    return TypeProblem("Precision not allowed in integer format specifier");
  switch (spec.type) {
    case 0:
    case 'd':
    case 'n': return FormatNumberText(runtime, value < 0, InBase(value, 10, false), spec, "", trusted);
    case 'b': return FormatNumberText(runtime, value < 0, InBase(value, 2, false), spec, "0b", trusted);
    case 'o': return FormatNumberText(runtime, value < 0, InBase(value, 8, false), spec, "0o", trusted);
    case 'x': return FormatNumberText(runtime, value < 0, InBase(value, 16, false), spec, "0x", trusted);
    case 'X': return FormatNumberText(runtime, value < 0, InBase(value, 16, true), spec, "0X", trusted);
    case 'c': {
      if (value < 0 || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
        return TypeProblem("%c arg not in range(0x110000)");
      std::string character;
      AppendUtf8(static_cast<char32_t>(value), character);
      return Padded(runtime, "", Text(character, trusted), spec, spec.align == 0 ? '<' : spec.align);
    }
    default: return FormatFloat(runtime, static_cast<double>(value), spec, trusted);
  }
}

// A run of digits at `at`, with a bound that keeps what follows from overflowing.
Result<Integer> TakeNumber(std::string_view text, size_t& at) {
  Integer value = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    value = value * 10 + (text[at++] - '0');
    if (value > kWeightMax) return TypeProblem("Too many decimal digits in format string");
  }
  return value;
}

Result<Spec> ParseSpec(std::string_view text) {
  Spec spec;
  size_t at = 0;
  auto is_align = [&](size_t i) {
    return i < text.size() && std::string_view("<>=^").find(text[i]) != std::string_view::npos;
  };
  size_t first = text.empty() ? 0 : CodePointBytes(text, 0);
  if (first > 0 && is_align(first)) {
    spec.fill = text.substr(0, first);
    spec.align = text[first];
    at = first + 1;
  } else if (is_align(0)) {
    spec.align = text[at++];
  }
  auto take = [&](std::string_view any) {
    return at < text.size() && any.find(text[at]) != std::string_view::npos ? text[at++] : '\0';
  };
  if (char sign = take("+- ")) spec.sign = sign;
  spec.alternate = take("#") != 0;
  spec.zero = take("0") != 0;
  ASSIGN_OR_RETURN(spec.width, TakeNumber(text, at));
  spec.grouping = take(",_");
  if (take(".") != 0) {
    size_t before = at;
    ASSIGN_OR_RETURN(Integer precision, TakeNumber(text, at));
    if (at == before) return TypeProblem("Format specifier missing precision");
    if (precision > kPrecisionMax) return TypeProblem("a precision of more than 1000 is not supported");
    spec.precision = precision;
  }
  if (at < text.size()) spec.type = text[at++];
  if (at < text.size()) return TypeProblem("Invalid format specifier");
  return spec;
}

// format(value, spec)
Result<Text> FormatValue(Runtime& runtime, const Value& value, std::string_view spec_text) {
  if (spec_text.empty()) return Str(runtime, value);
  if (value.markup()) return TypeProblem("Unsupported format specification for Markup.");
  ASSIGN_OR_RETURN(Spec spec, ParseSpec(spec_text));
  if (value.Is(Kind::kString)) {
    if (spec.zero && spec.align == 0) {
      spec.fill = "0";
      spec.align = '<';
    }
    return FormatString(runtime, value.text(), spec);
  }
  if (value.IsIntegral()) return FormatInteger(runtime, value.integer(), spec, !value.untrusted());
  if (value.Is(Kind::kFloat)) return FormatFloat(runtime, value.real(), spec, !value.untrusted());
  return TypeProblem(fmt::format("unsupported format string passed to {}.__format__", TypeName(value)));
}

class BraceFormatter {
 public:
  BraceFormatter(Runtime& runtime, const Arguments& arguments, bool markup)
      : runtime_(runtime), arguments_(arguments), markup_(markup) {}

  Result<Text> Format(const Text& format, int depth) {
    if (depth > 2) return TypeProblem("Max string recursion exceeded");
    Text out;
    std::string_view view = format.view();
    for (size_t at = 0; at < view.size();) {
      char c = view[at];
      bool doubled = at + 1 < view.size() && view[at + 1] == c;
      if (c != '{' && c != '}') {
        size_t end = std::min(view.find_first_of("{}", at), view.size());
        out.AppendSlice(format, at, end);
        at = end;
      } else if (doubled) {
        out.AppendSlice(format, at, at + 1);
        at += 2;
      } else if (c == '}') {
        return TypeProblem("Single '}' encountered in format string");
      } else {
        ASSIGN_OR_RETURN(size_t end, FieldEnd(view, at + 1));
        ASSIGN_OR_RETURN(Text field, FormatField(format.Slice(at + 1, end), depth));
        out.Append(field);
        at = end + 1;
      }
      RETURN_IF_ERROR(runtime_.CheckBytes(out.size()));
    }
    return out;
  }

 private:
  // The closing brace of a field that begins at `at`; specs may hold fields of their own.
  static Result<size_t> FieldEnd(std::string_view view, size_t at) {
    int open = 1;
    bool bracket = false;
    for (; at < view.size(); ++at) {
      if (view[at] == '[' && open == 1) bracket = true;
      if (view[at] == ']') bracket = false;
      if (bracket) continue;
      if (view[at] == '{') ++open;
      if (view[at] == '}' && --open == 0) return at;
    }
    return TypeProblem("expected '}' before end of string");
  }

  Result<Text> FormatField(const Text& field, int depth) {
    RETURN_IF_ERROR(runtime_.Charge(4));
    std::string_view view = field.view();
    size_t name_end = 0;
    for (bool bracket = false; name_end < view.size(); ++name_end) {
      if (view[name_end] == '[') bracket = true;
      if (view[name_end] == ']') bracket = false;
      if (!bracket && (view[name_end] == ':' || view[name_end] == '!')) break;
    }
    ASSIGN_OR_RETURN(Value value, Lookup(view.substr(0, name_end)));
    size_t at = name_end;
    if (at < view.size() && view[at] == '!') {
      char conversion = at + 1 < view.size() ? view[at + 1] : '\0';
      if (conversion != 's' && conversion != 'r') return TypeProblem("only !s and !r conversions are supported");
      ASSIGN_OR_RETURN(Text text, conversion == 's' ? Str(runtime_, value) : Repr(runtime_, value));
      value = Value::String(std::move(text));
      at += 2;
      if (at < view.size() && view[at] != ':') return TypeProblem("expected ':' after conversion specifier");
    }
    Text spec = at < view.size() ? field.Slice(at + 1, field.size()) : Text();
    ASSIGN_OR_RETURN(spec, Format(spec, depth + 1));
    ASSIGN_OR_RETURN(Text text, FormatValue(runtime_, value, spec.view()));
    return markup_ && !value.markup() ? EscapeHtml(text) : text;
  }

  Result<Value> Lookup(std::string_view name) {
    size_t end = std::min(name.find_first_of(".["), name.size());
    ASSIGN_OR_RETURN(Value value, First(name.substr(0, end)));
    while (end < name.size()) {
      size_t begin = end + 1;
      if (name[end] == '.') {
        end = std::min(name.find_first_of(".[", begin), name.size());
        ASSIGN_OR_RETURN(value, GetAttribute(runtime_, value, name.substr(begin, end - begin)));
        continue;
      }
      end = name.find(']', begin);
      if (end == std::string_view::npos) return TypeProblem("Missing ']' in format string");
      std::string_view key = name.substr(begin, end - begin);
      size_t digits = 0;
      ASSIGN_OR_RETURN(Integer index, TakeNumber(key, digits));
      bool number = !key.empty() && digits == key.size();
      ASSIGN_OR_RETURN(value, GetItem(runtime_, value, number ? Value::Int(index) : Value::String(key)));
      ++end;
    }
    return value;
  }

  Result<Value> First(std::string_view name) {
    size_t digits = 0;
    ASSIGN_OR_RETURN(Integer index, TakeNumber(name, digits));
    if (name.empty() || digits == name.size()) {
      int numbering = name.empty() ? 1 : 2;
      if (numbering_ != 0 && numbering_ != numbering)
        return TypeProblem("cannot switch between manual field specification and automatic field numbering");
      numbering_ = numbering;
      if (name.empty()) index = next_++;
      if (index >= static_cast<Integer>(arguments_.positional.size()))
        return TypeProblem("Replacement index out of range for positional args tuple");
      return arguments_.positional[static_cast<size_t>(index)];
    }
    for (const auto& [key, value] : arguments_.keyword)
      if (key == name) return value;
    return TypeProblem(fmt::format("format has no argument '{}'", name));
  }

  Runtime& runtime_;
  const Arguments& arguments_;
  bool markup_;
  int numbering_ = 0;  // 1: automatic, 2: by number
  Integer next_ = 0;
};

class PercentFormatter {
 public:
  PercentFormatter(Runtime& runtime, const Value& arguments, bool markup) : runtime_(runtime), markup_(markup) {
    if (arguments.Is(Kind::kTuple))
      positional_ = arguments.items();
    else
      positional_ = {arguments};
    // Anything that can be indexed counts as a mapping, whose surplus is no error.
    mapping_ = arguments.Is(Kind::kDict) || arguments.Is(Kind::kList) || arguments.Is(Kind::kUndefined) ||
               arguments.Is(Kind::kRange);
    if (mapping_) mapped_ = arguments;
  }

  Result<Text> Format(const Text& format) {
    Text out;
    std::string_view view = format.view();
    for (size_t at = 0; at < view.size();) {
      size_t percent = std::min(view.find('%', at), view.size());
      out.AppendSlice(format, at, percent);
      if (percent == view.size()) break;
      at = percent + 1;
      RETURN_IF_ERROR(Conversion(view, at, out));
      RETURN_IF_ERROR(runtime_.CheckBytes(out.size()));
      RETURN_IF_ERROR(runtime_.Charge(2));
    }
    if (next_ < positional_.size() && !mapping_)
      return TypeProblem("not all arguments converted during string formatting");
    return out;
  }

 private:
  Result<Value> Next() {
    if (keyed_.has_value()) return *keyed_;
    if (next_ >= positional_.size()) return TypeProblem("not enough arguments for format string");
    return positional_[next_++];
  }

  Result<void> TakeKey(std::string_view view, size_t& at) {
    keyed_.reset();
    if (at >= view.size() || view[at] != '(') return {};
    size_t begin = ++at;
    for (int open = 1; open > 0; ++at) {
      if (at >= view.size()) return TypeProblem("incomplete format key");
      open += view[at] == '(' ? 1 : view[at] == ')' ? -1 : 0;
    }
    if (!mapped_.Is(Kind::kDict)) return TypeProblem("format requires a mapping");
    const Value* value = mapped_.dict().Find(view.substr(begin, at - 1 - begin));
    if (value == nullptr) return TypeProblem("the format's key is not in the mapping");
    keyed_ = *value;
    return {};
  }

  Result<Integer> TakeSize(std::string_view view, size_t& at) {
    if (at >= view.size() || view[at] != '*') return TakeNumber(view, at);
    ++at;
    ASSIGN_OR_RETURN(Value value, Next());
    return AsIndex(value, "* in a format");
  }

  Result<void> Conversion(std::string_view view, size_t& at, Text& out) {
    RETURN_IF_ERROR(TakeKey(view, at));
    Spec spec;
    bool left = false;
    for (; at < view.size(); ++at) {
      if (view[at] == '-')
        left = true;
      else if (view[at] == '+' || (view[at] == ' ' && spec.sign != '+'))
        spec.sign = view[at];
      else if (view[at] == '0')
        spec.zero = true;
      else if (view[at] == '#')
        spec.alternate = true;
      else if (view[at] != ' ')
        break;
    }
    ASSIGN_OR_RETURN(spec.width, TakeSize(view, at));
    if (spec.width < 0) {
      left = true;
      spec.width = spec.width < -kWeightMax ? Integer{kWeightMax} : -spec.width;
    }
    if (at < view.size() && view[at] == '.') {
      ASSIGN_OR_RETURN(Integer precision, TakeSize(view, ++at));
      if (precision > kPrecisionMax) return TypeProblem("a precision of more than 1000 is not supported");
      spec.precision = std::max<Integer>(precision, 0);
    }
    while (at < view.size() && std::string_view("hlL").find(view[at]) != std::string_view::npos) ++at;
    if (at >= view.size()) return TypeProblem("incomplete format");
    char type = view[at++];
    if (type == '%') {
      out.Append("%", true);
      return {};
    }
    spec.align = left ? '<' : 0;
    ASSIGN_OR_RETURN(Value value, Next());
    ASSIGN_OR_RETURN(Text text, Convert(value, type, spec));
    out.Append(text);
    return {};
  }

  Result<Text> Convert(const Value& value, char type, Spec spec) {
    if (type == 's' || type == 'r' || type == 'a') {
      ASSIGN_OR_RETURN(Text text, type == 's' ? Str(runtime_, value) : Repr(runtime_, value));
      if (markup_ && !value.markup()) text = EscapeHtml(text);
      spec.sign = '-';
      if (spec.align == 0) spec.align = '>';
      return FormatString(runtime_, text, spec);
    }
    if (type == 'c' && value.Is(Kind::kString)) {
      if (CountCodePoints(value.text().view()) != 1) return TypeProblem("%c requires int or char");
      spec.align = spec.align == 0 ? '>' : spec.align;
      spec.precision.reset();
      return FormatString(runtime_, value.text(), spec);
    }
    bool trusted = !value.untrusted();
    if (std::string_view("diuxXoc").find(type) != std::string_view::npos)
      return ConvertInteger(value, type, spec, trusted);
    if (std::string_view("eEfFgG").find(type) == std::string_view::npos)
      return TypeProblem(fmt::format("unsupported format character '{}'", type));
    if (!value.IsNumber()) return TypeProblem(fmt::format("must be real number, not {}", TypeName(value)));
    spec.type = type;
    if (spec.align == '<') spec.zero = false;
    return FormatFloat(runtime_, value.real(), spec, trusted);
  }

  Result<Text> ConvertInteger(const Value& value, char type, Spec spec, bool trusted) {
    bool decimal = type == 'd' || type == 'i' || type == 'u';
    bool fits = value.IsIntegral() || (decimal && value.Is(Kind::kFloat) && std::abs(value.real()) < 1e37);
    if (!fits) return TypeProblem(fmt::format("%{} format: a number is required, not {}", type, TypeName(value)));
    Integer integer = value.IsIntegral() ? value.integer() : static_cast<Integer>(value.real());
    if (type == 'c') {
      spec.type = 'c';
      spec.precision.reset();
      if (spec.align == 0) spec.align = '>';
      return FormatInteger(runtime_, integer, spec, trusted);
    }
    unsigned base = decimal ? 10 : type == 'o' ? 8 : 16;
    std::string digits = InBase(integer, base, type == 'X');
    size_t least = static_cast<size_t>(spec.precision.value_or(0));
    if (digits.size() < least) digits.insert(0, least - digits.size(), '0');
    if (spec.align == '<') spec.zero = false;
    std::string_view prefix = decimal ? "" : type == 'o' ? "0o" : type == 'X' ? "0X" : "0x";
    return FormatNumberText(runtime_, integer < 0, std::move(digits), spec, prefix, trusted);
  }

  Runtime& runtime_;
  bool markup_;
  bool mapping_ = false;
  Value mapped_;
  std::vector<Value> positional_;
  size_t next_ = 0;
  std::optional<Value> keyed_;
};

}  // namespace

Result<Value> FormatPercent(Runtime& runtime, const Value& format, const Value& arguments) {
  RETURN_IF_ERROR(runtime.ChargeBytes(format.text().size()));
  PercentFormatter formatter(runtime, arguments, format.markup());
  ASSIGN_OR_RETURN(Text text, formatter.Format(format.text()));
  return runtime.String(std::move(text), format.markup());
}

Result<Value> FormatBraces(Runtime& runtime, const Value& format, const Arguments& arguments) {
  RETURN_IF_ERROR(runtime.ChargeBytes(format.text().size()));
  BraceFormatter formatter(runtime, arguments, format.markup());
  ASSIGN_OR_RETURN(Text text, formatter.Format(format.text(), 0));
  return runtime.String(std::move(text), format.markup());
}

Result<std::string> FormatTime(std::string_view format, int64_t wall_seconds) {
  std::time_t seconds = wall_seconds;
  std::tm parts{};
  if (gmtime_r(&seconds, &parts) == nullptr) return TypeProblem("strftime_now: the time is out of range");
  // A trailing letter tells an empty result from one that does not fit.
  std::string pattern;
  for (size_t i = 0; i < format.size(); ++i) {
    char next = format[i] == '%' && i + 1 < format.size() ? format[i + 1] : '\0';
    if (next == 'z' || next == 'Z' || next == 'f') {  // Python's own, for a time without a zone
      if (next == 'f') pattern += "000000";
      ++i;
    } else {
      pattern += format[i];
      if (next != '\0') pattern += format[++i];
    }
  }
  pattern += '.';
  std::string out(pattern.size() * 8 + 4096, '\0');
  size_t size = std::strftime(out.data(), out.size(), pattern.c_str(), &parts);
  if (size == 0) return TypeProblem("strftime_now: the format is too long");
  out.resize(size - 1);
  return out;
}

}  // namespace ekiben::text::jinja
