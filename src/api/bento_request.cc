#include "api/bento_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>

#include "api/json_text.h"
#include "base/json.h"
#include "http/form.h"
#include "http/request.h"

namespace ekiben::api {
namespace {

std::string_view Trim(std::string_view text) {
  size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

constexpr size_t kFormFieldsMax = 1000;  // starlette's

// Each field is JSON when it reads as such, else a string.
json::object FieldsOf(const std::vector<std::pair<std::string, std::string>>& form) {
  json::object out;
  for (const auto& [name, bytes] : form) {
    std::string value = ReplaceInvalidUtf8(bytes);
    auto parsed = ParseJson(value, {.depth_max = 16});
    out[ReplaceInvalidUtf8(name)] = parsed.ok() ? *std::move(parsed) : json::value(value);
  }
  return out;
}

// pydantic's checks of one value; `value` becomes what they make of it.
class Checker {
 public:
  Checker(const ServiceField& field, json::value& value, std::vector<FieldProblem>& problems)
      : field_(field), value_(value), problems_(problems) {}

  bool Check() {
    switch (field_.type) {
      case FieldType::kString: return String();
      case FieldType::kInteger: return Integer() && InRange();
      case FieldType::kNumber: return Number() && InRange();
      case FieldType::kBoolean: return Boolean();
    }
    return false;
  }

 private:
  bool Bad(const char* type, std::string message) {
    problems_.push_back({type, field_.name, std::move(message)});
    return false;
  }

  bool String() {
    if (!value_.is_string()) return Bad("string_type", "Input should be a valid string");
    std::string_view text = value_.get_string();
    if (field_.max_length && CountCodePoints(text) > static_cast<size_t>(*field_.max_length))
      return Bad("string_too_long", fmt::format("String should have at most {} character{}", *field_.max_length,
                                                *field_.max_length == 1 ? "" : "s"));
    if (field_.choices.empty()) return true;
    std::string names;
    for (size_t i = 0; i < field_.choices.size(); ++i) {
      if (field_.choices[i] == text) return true;
      if (i > 0) names += i + 1 == field_.choices.size() ? " or " : ", ";
      names += "'" + field_.choices[i] + "'";
    }
    return Bad("literal_error", "Input should be " + names);
  }

  // From a string, with blanks around it.
  bool Parse(double& number) const {
    std::string_view text = Trim(value_.get_string());
    if (text.starts_with('+')) text.remove_prefix(1);
    auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
    return code == std::errc() && end == text.data() + text.size() && std::isfinite(number);
  }

  bool Integer() {
    double number = 0;
    if (value_.is_int64()) return true;
    if (value_.is_bool()) {
      number = value_.get_bool() ? 1 : 0;
    } else if (value_.is_number()) {
      number = value_.to_number<double>();
      if (!std::isfinite(number)) return Bad("finite_number", "Input should be a finite number");
      if (number != std::floor(number))
        return Bad("int_from_float", "Input should be a valid integer, got a number with a fractional part");
    } else if (value_.is_string()) {
      bool whole = Parse(number) && number == std::floor(number) &&
                   value_.get_string().find_first_of("eE") == json::string::npos;
      if (!whole) return Bad("int_parsing", "Input should be a valid integer, unable to parse string as an integer");
    } else {
      return Bad("int_type", "Input should be a valid integer");
    }
    constexpr double kExact = 9007199254740992.0;  // 2^53: beyond it doubles are not every integer
    if (number > kExact) return Bad("less_than_equal", "Input should be less than or equal to 9007199254740992");
    if (number < -kExact)
      return Bad("greater_than_equal", "Input should be greater than or equal to -9007199254740992");
    value_ = static_cast<int64_t>(number);
    return true;
  }

  bool Number() {
    double number = 0;
    if (value_.is_number()) {
      number = value_.to_number<double>();
      if (!std::isfinite(number)) return Bad("finite_number", "Input should be a finite number");
    } else if (value_.is_bool()) {
      number = value_.get_bool() ? 1 : 0;
    } else if (value_.is_string()) {
      if (!Parse(number))
        return Bad("float_parsing", "Input should be a valid number, unable to parse string as a number");
    } else {
      return Bad("float_type", "Input should be a valid number");
    }
    value_ = number;
    return true;
  }

  bool InRange() {
    double number = value_.to_number<double>();
    if (field_.minimum && number < *field_.minimum)
      return Bad("greater_than_equal", fmt::format("Input should be greater than or equal to {:g}", *field_.minimum));
    if (field_.maximum && number > *field_.maximum)
      return Bad("less_than_equal", fmt::format("Input should be less than or equal to {:g}", *field_.maximum));
    return true;
  }

  bool Boolean() {
    if (value_.is_bool()) return true;
    if (value_.is_number()) {
      double number = value_.to_number<double>();
      if (number != 0 && number != 1)
        return Bad("bool_parsing", "Input should be a valid boolean, unable to interpret input");
      value_ = number == 1;
      return true;
    }
    if (!value_.is_string()) return Bad("bool_type", "Input should be a valid boolean");
    std::string_view text = value_.get_string();
    for (std::string_view word : {"true", "t", "yes", "y", "on", "1"})
      if (http::EqualsIgnoreCase(text, word)) return value_ = true, true;
    for (std::string_view word : {"false", "f", "no", "n", "off", "0"})
      if (http::EqualsIgnoreCase(text, word)) return value_ = false, true;
    return Bad("bool_parsing", "Input should be a valid boolean, unable to interpret input");
  }

  const ServiceField& field_;
  json::value& value_;
  std::vector<FieldProblem>& problems_;
};

}  // namespace

bool CheckField(const ServiceField& field, json::value& value, std::vector<FieldProblem>& problems) {
  return Checker(field, value, problems).Check();
}

BentoParse ParseBentoBody(std::string_view body, std::string_view content_type,
                          const std::vector<ServiceField>& fields) {
  BentoParse out;
  json::object given;
  if (http::IsForm(content_type)) {
    auto form = http::ParseForm(body, content_type, kFormFieldsMax);
    if (!form.ok()) {
      out.problems.push_back({"value_error", "", "Value error, " + form.error().message()});
      return out;
    }
    given = FieldsOf(*form);
  } else if (!Trim(body).empty()) {
    auto parsed = ParseJson(body, {.depth_max = 64});
    if (!parsed.ok()) {
      out.problems.push_back({"json_invalid", "", "Invalid JSON: " + parsed.error().message()});
      return out;
    }
    if (!parsed->is_object()) {
      out.problems.push_back({"model_type", "", "Input should be an object"});
      return out;
    }
    given = std::move(parsed->get_object());
  }
  for (const ServiceField& field : fields) {
    json::value* value = given.if_contains(field.name);
    bool absent = value == nullptr || (value->is_null() && field.nullable);
    if (absent && value == nullptr && !field.default_value) {
      out.problems.push_back({"missing", field.name, "Field required"});
    } else if (absent) {
      out.values[field.name] = field.default_value.value_or(nullptr);
    } else if (CheckField(field, *value, out.problems)) {
      out.values[field.name] = std::move(*value);
    }
  }
  return out;
}

std::string ProblemsJson(const std::vector<FieldProblem>& problems) {
  std::string out = fmt::format("{{\"error\":\"{} validation error for Input\",\"detail\":[", problems.size());
  for (size_t i = 0; i < problems.size(); ++i) {
    const FieldProblem& problem = problems[i];
    if (i > 0) out.push_back(',');
    out.append("{\"type\":");
    AppendJsonString(out, problem.type);
    out.append(",\"loc\":[");
    if (!problem.field.empty()) AppendJsonString(out, problem.field);
    out.append("],\"msg\":");
    AppendJsonString(out, ReplaceInvalidUtf8(problem.message));
    out.append(",\"url\":\"https://errors.pydantic.dev/2.13/v/").append(problem.type).append("\"}");
  }
  out.append("]}");
  return out;
}

}  // namespace ekiben::api
