#include <boost/json.hpp>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "text/jinja_filters.h"
#include "text/jinja_print.h"
#include "text/jinja_strings.h"
#include "text/jinja_unicode.h"

namespace ekiben::text::jinja {
namespace {

using V = const Value&;
using A = const Arguments&;

// Python reads any script's digits; whatever else is not ASCII cannot be part of a number. nullopt: not a number, or an
// underscore that is not between digits.
std::optional<std::string> PlainNumber(const Text& text) {
  std::string_view view = text.view();
  std::string out;
  for (size_t at = 0; at < view.size(); at += CodePointBytes(view, at)) {
    char32_t code = CodePointAt(view, at);
    if (IsSpace(code))
      out += ' ';
    else if (code < 0x80)
      out += static_cast<char>(code);
    else if (int digit = DecimalValue(code); digit >= 0)
      out += static_cast<char>('0' + digit);
    else
      return std::nullopt;
  }
  size_t begin = out.find_first_not_of(' '), end = out.find_last_not_of(' ');
  if (begin == std::string::npos) return std::nullopt;
  return out.substr(begin, end + 1 - begin);
}

int DigitValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'z' ? lower - 'a' + 10 : 99;
}

// int(text, base); nullopt where Python raises ValueError.
Result<std::optional<Integer>> ParseInteger(const Text& text, Integer base) {
  std::optional<Integer> none;
  std::optional<std::string> plain = PlainNumber(text);
  if (!plain.has_value() || (base != 0 && (base < 2 || base > 36))) return none;
  std::string_view digits = *plain;
  bool negative = digits[0] == '-';
  if (negative || digits[0] == '+') digits.remove_prefix(1);
  char letter = digits.size() > 2 && digits[0] == '0' ? static_cast<char>(digits[1] | 0x20) : '\0';
  int prefix = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
  bool leading_underscore = false;
  if (prefix != 0 && (base == 0 || base == prefix)) {
    digits.remove_prefix(2);
    base = prefix;
    leading_underscore = digits[0] == '_';
    if (leading_underscore) digits.remove_prefix(1);
  } else if (base == 0) {
    if (digits.size() > 1 && digits[0] == '0' && digits.find_first_not_of("0_") != std::string_view::npos) return none;
    base = 10;
  }
  Integer value = 0;
  char previous = '_';
  for (char c : digits) {
    if (c == '_' && previous != '_') {
      previous = c;
      continue;
    }
    if (c == '_' || DigitValue(c) >= base) return none;
    previous = c;
    if (__builtin_mul_overflow(value, base, &value) || __builtin_add_overflow(value, Integer{DigitValue(c)}, &value))
      return TypeProblem("an integer of more than 127 bits is not supported");
  }
  if (previous == '_') return none;
  return std::optional<Integer>(negative ? -value : value);
}

// float(text)
std::optional<double> ParseFloat(const Text& text) {
  std::optional<std::string> plain = PlainNumber(text);
  if (!plain.has_value()) return std::nullopt;
  std::string digits;
  for (size_t i = 0; i < plain->size(); ++i) {
    char c = (*plain)[i];
    bool between = i > 0 && i + 1 < plain->size() && std::isdigit((*plain)[i - 1]) && std::isdigit((*plain)[i + 1]);
    if (c == '_' && !between) return std::nullopt;
    if (c != '_') digits += c;
  }
  bool negative = digits[0] == '-';
  std::string body = MapCase(std::string_view(digits).substr(negative || digits[0] == '+' ? 1 : 0), CaseMap::kLower);
  double value = 0;
  if (body == "inf" || body == "infinity") {
    value = INFINITY;
  } else if (body == "nan") {
    value = NAN;
  } else {
    if (body.empty() || body.find_first_not_of("0123456789.e+-") != std::string::npos) return std::nullopt;
    if (body[0] == '-' || body[0] == '+') return std::nullopt;
    char* end = nullptr;
    value = std::strtod(body.c_str(), &end);
    if (end != body.c_str() + body.size()) return std::nullopt;
  }
  return negative ? -value : value;
}

Result<std::optional<Integer>> Truncated(double value) {
  if (std::isnan(value) || std::isinf(value)) return std::optional<Integer>();
  if (std::abs(value) >= 1.7e38) return TypeProblem("an integer of more than 127 bits is not supported");
  return std::optional<Integer>(static_cast<Integer>(value));
}

Result<Value> IntFilter(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("int", arguments, {"default", "base"}, 0));
  Value fallback = bound[0] == nullptr ? Value::Int(0) : *bound[0];
  if (input.Is(Kind::kUndefined)) return TypeProblem(input.undefined_message());
  if (input.IsIntegral()) return Value::Int(input.integer());
  std::optional<Integer> value;
  if (input.Is(Kind::kFloat)) {
    if (std::isinf(input.real())) return TypeProblem("cannot convert float infinity to integer");
    ASSIGN_OR_RETURN(value, Truncated(input.real()));
  } else if (input.Is(Kind::kString)) {
    RETURN_IF_ERROR(runtime.ChargeBytes(input.text().size() * 4));
    Integer base = bound[1] == nullptr ? 10 : bound[1]->IsIntegral() ? bound[1]->integer() : -1;
    ASSIGN_OR_RETURN(value, ParseInteger(input.text(), base));
    std::optional<double> real = value.has_value() ? std::nullopt : ParseFloat(input.text());
    if (real.has_value()) {
      ASSIGN_OR_RETURN(value, Truncated(*real));
    }
  }
  if (!value.has_value()) return fallback;
  Value out = Value::Int(*value);
  return out.Distrust();
}

Result<Value> FloatFilter(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("float", arguments, {"default"}, 0));
  Value fallback = bound[0] == nullptr ? Value::Float(0) : *bound[0];
  if (input.Is(Kind::kUndefined)) return TypeProblem(input.undefined_message());
  if (input.IsNumber()) return Value::Float(input.real());
  if (!input.Is(Kind::kString)) return fallback;
  RETURN_IF_ERROR(runtime.ChargeBytes(input.text().size() * 4));
  std::optional<double> value = ParseFloat(input.text());
  if (!value.has_value()) return fallback;
  Value out = Value::Float(*value);
  return out.Distrust();
}

Result<Value> Abs(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("abs", arguments, {}, 0));
  if (!input.IsNumber()) return TypeProblem(fmt::format("bad operand type for abs(): '{}'", TypeName(input)));
  if (input.Is(Kind::kFloat)) return Value::Float(std::abs(input.real()));
  return input.integer() < 0 ? Binary(runtime, BinaryOp::kSub, Value::Int(0), input) : Value::Int(input.integer());
}

// round(value, digits) of a float: half to even on the exact decimal value, which is what printf rounds.
Result<Value> RoundFloat(double value, Integer digits) {
  if (!std::isfinite(value) || digits > 330) return Value::Float(value);
  if (digits < -330) return Value::Float(std::copysign(0.0, value));
  if (digits >= 0) {
    char buffer[800];
    std::snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(digits), value);
    return Value::Float(std::strtod(buffer, nullptr));
  }
  double power = std::pow(10.0, static_cast<double>(-digits));
  return Value::Float(std::nearbyint(value / power) * power);
}

Result<Value> RoundInteger(Runtime& runtime, Integer value, Integer digits) {
  if (digits >= 0) return Value::Int(value);
  if (digits < -37) return Value::Int(0);
  ASSIGN_OR_RETURN(Value power, Binary(runtime, BinaryOp::kPow, Value::Int(10), Value::Int(-digits)));
  Integer unit = power.integer(), rest = value % unit;
  if (rest < 0) rest += unit;
  Integer floor = value - rest;
  bool up = rest > unit - rest || (rest == unit - rest && (floor / unit) % 2 != 0);
  return Binary(runtime, BinaryOp::kAdd, Value::Int(floor), Value::Int(up ? unit : 0));
}

Result<Value> Round(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("round", arguments, {"precision", "method"}, 0));
  std::string method = "common";
  if (bound[1] != nullptr) {
    ASSIGN_OR_RETURN(const Text* given, AsText(*bound[1], "round"));
    method = given->bytes();
  }
  if (method != "common" && method != "ceil" && method != "floor")
    return TypeProblem("method must be common, ceil or floor");
  Integer digits = 0;
  bool whole = method == "common" && bound[0] != nullptr && bound[0]->Is(Kind::kNone);  // round(x, None)
  if (bound[0] != nullptr && !whole) {
    ASSIGN_OR_RETURN(digits, AsIndex(*bound[0], "round"));
  }
  if (input.Is(Kind::kUndefined)) return TypeProblem(input.undefined_message());
  if (!input.IsNumber()) return TypeProblem(fmt::format("type {} cannot be rounded", TypeName(input)));
  if (method == "common") {
    if (input.IsIntegral()) return RoundInteger(runtime, input.integer(), digits);
    if (!whole) return RoundFloat(input.real(), digits);
    ASSIGN_OR_RETURN(auto value, Truncated(std::nearbyint(input.real())));
    if (!value.has_value()) return TypeProblem("cannot convert float to integer");
    return Value::Int(*value);
  }
  ASSIGN_OR_RETURN(Value power, Binary(runtime, BinaryOp::kPow, Value::Int(10), Value::Int(digits)));
  ASSIGN_OR_RETURN(Value scaled, Binary(runtime, BinaryOp::kMul, input, power));
  if (scaled.Is(Kind::kFloat)) {
    ASSIGN_OR_RETURN(auto cut, Truncated(method == "ceil" ? std::ceil(scaled.real()) : std::floor(scaled.real())));
    if (!cut.has_value()) return TypeProblem("cannot convert float to integer");
    scaled = Value::Int(*cut);
  }
  return Binary(runtime, BinaryOp::kDiv, scaled, power);
}

Result<Value> LengthFilter(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("length", arguments, {}, 0));
  if (input.Is(Kind::kString)) RETURN_IF_ERROR(runtime.ChargeBytes(input.text().size()));
  ASSIGN_OR_RETURN(Integer length, Length(input));
  return Value::Int(length);
}

Result<Value> Default(Runtime&, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("default", arguments, {"default_value", "boolean"}, 0));
  bool replace = input.Is(Kind::kUndefined) || (bound[1] != nullptr && Truth(*bound[1]) && !Truth(input));
  if (!replace) return input;
  return bound[0] == nullptr ? Value::String("") : *bound[0];
}

Result<Value> ToJsonFilter(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0));
  JsonStyle style;
  style.ensure_ascii = bound[0] != nullptr && Truth(*bound[0]);
  style.sort_keys = bound[3] != nullptr && Truth(*bound[3]);
  if (bound[1] != nullptr && !bound[1]->Is(Kind::kNone)) {
    style.item_separator = ",";
    if (bound[1]->Is(Kind::kString)) {
      style.indent = bound[1]->text().bytes();
    } else {
      ASSIGN_OR_RETURN(Integer spaces, AsIndex(*bound[1], "tojson indent"));
      if (spaces > 1000) return TypeProblem("tojson: an indent of more than 1000 is not supported");
      style.indent = std::string(spaces > 0 ? static_cast<size_t>(spaces) : 0, ' ');
    }
  }
  if (bound[2] != nullptr && !bound[2]->Is(Kind::kNone)) {
    ASSIGN_OR_RETURN(std::vector<Value> pair, runtime.IterateAll(*bound[2]));
    if (pair.size() != 2) return TypeProblem("tojson: separators are two strings");
    ASSIGN_OR_RETURN(const Text* item, AsText(pair[0], "tojson"));
    ASSIGN_OR_RETURN(const Text* key, AsText(pair[1], "tojson"));
    style.item_separator = item->bytes();
    style.key_separator = key->bytes();
  }
  ASSIGN_OR_RETURN(Text text, ToJson(runtime, input, style));
  return runtime.String(std::move(text));
}

// Not in jinja2 itself; templates that serve tool calls expect it beside tojson.
Result<Value> FromJsonFilter(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("from_json", arguments, {}, 0));
  ASSIGN_OR_RETURN(const Text* text, AsText(input, "from_json"));
  RETURN_IF_ERROR(runtime.Charge(1 + text->size() / 8));
  ASSIGN_OR_RETURN(json::value parsed, ParseJson(text->view()));
  ASSIGN_OR_RETURN(Value value, FromJson(parsed, runtime.limits().depth_max));
  return value;
}

}  // namespace

Filter FindNumberFilter(std::string_view name) {
  static const std::unordered_map<std::string_view, Filter> kFilters = {
      {"int", IntFilter},       {"float", FloatFilter},        {"abs", Abs},         {"round", Round},
      {"length", LengthFilter}, {"count", LengthFilter},       {"default", Default}, {"d", Default},
      {"tojson", ToJsonFilter}, {"from_json", FromJsonFilter},
  };
  auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace ekiben::text::jinja
