#include "api/bento_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>

#include "api/json_text.h"
#include "base/json.h"
#include "http/request.h"

namespace ekiben::api {
namespace {

std::string_view Trim(std::string_view text) {
  size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::string FormDecode(std::string_view text) {
  std::string plain(text);
  std::replace(plain.begin(), plain.end(), '+', ' ');
  return http::DecodePercent(plain);
}

// Each field is JSON when it reads as such, else a string.
json::object ParseForm(std::string_view body) {
  json::object out;
  while (!body.empty()) {
    size_t end = body.find('&');
    std::string_view pair = body.substr(0, end);
    body = end == std::string_view::npos ? std::string_view() : body.substr(end + 1);
    size_t equals = pair.find('=');
    if (equals == std::string_view::npos) continue;
    std::string value = ReplaceInvalidUtf8(FormDecode(pair.substr(equals + 1)));
    auto parsed = ParseJson(value, {.depth_max = 16});
    out[ReplaceInvalidUtf8(FormDecode(pair.substr(0, equals)))] = parsed.ok() ? *std::move(parsed) : json::value(value);
  }
  return out;
}

class Checker {
 public:
  explicit Checker(const json::object& body) : body_(body) {}

  void String(const char* field, std::string& out, bool null_is_default) {
    const json::value* value = body_.if_contains(field);
    if (value == nullptr || (value->is_null() && null_is_default)) return;
    if (!value->is_string()) return Add("string_type", field, "Input should be a valid string");
    out = std::string(value->get_string());
  }

  void Int(const char* field, int64_t low, int64_t high, int32_t& out) {
    const json::value* value = body_.if_contains(field);
    if (value == nullptr) return;
    double number = 0;
    if (value->is_bool()) {
      number = value->get_bool() ? 1 : 0;
    } else if (value->is_number()) {
      number = value->to_number<double>();
      if (!std::isfinite(number)) return Add("finite_number", field, "Input should be a finite number");
      if (number != std::floor(number))
        return Add("int_from_float", field, "Input should be a valid integer, got a number with a fractional part");
    } else if (value->is_string()) {
      std::string_view text = Trim(value->get_string());
      auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
      if (code != std::errc() || end != text.data() + text.size() || number != std::floor(number))
        return Add("int_parsing", field, "Input should be a valid integer, unable to parse string as an integer");
    } else {
      return Add("int_type", field, "Input should be a valid integer");
    }
    if (number < static_cast<double>(low))
      return Add("greater_than_equal", field, fmt::format("Input should be greater than or equal to {}", low));
    if (number > static_cast<double>(high))
      return Add("less_than_equal", field, fmt::format("Input should be less than or equal to {}", high));
    out = static_cast<int32_t>(number);
  }

  void Add(std::string type, std::string field, std::string message) {
    problems.push_back({std::move(type), std::move(field), std::move(message)});
  }

  std::vector<FieldProblem> problems;

 private:
  const json::object& body_;
};

}  // namespace

GenerateParse ParseGenerateBody(std::string_view body, std::string_view content_type,
                                const GenerateDefaults& defaults) {
  GenerateParse out;
  out.input = {defaults.prompt, defaults.system_prompt, static_cast<int32_t>(defaults.max_tokens)};
  json::object fields;
  if (content_type.starts_with("application/x-www-form-urlencoded")) {
    fields = ParseForm(body);
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
    fields = std::move(parsed->get_object());
  }
  Checker check(fields);
  check.String("prompt", out.input.prompt, /*null_is_default=*/false);
  check.String("system_prompt", out.input.system_prompt, /*null_is_default=*/true);
  check.Int("max_tokens", defaults.max_tokens_min, defaults.max_tokens_max, out.input.max_tokens);
  out.problems = std::move(check.problems);
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
