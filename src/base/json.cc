#include "base/json.h"

#include <boost/json.hpp>
#include <cmath>

namespace ekiben {
namespace {

Error WrongKind(std::string_view key, const json::value& value, std::string_view wanted) {
  return Error(Code::kInvalid, fmt::format("{}: {} is wanted, got {}", key, wanted, KindName(value)), std::string(key));
}

// Present and not null.
const json::value* Find(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && !value->is_null() ? value : nullptr;
}

}  // namespace

Result<json::value> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.bytes_max)
    return Error(Code::kInvalid, fmt::format("JSON: {} bytes, the limit is {}", text.size(), limits.bytes_max));
  json::parse_options options;
  options.max_depth = limits.depth_max;
  json::stream_parser parser({}, options);
  boost::system::error_code code;
  size_t used = parser.write_some(text.data(), text.size(), code);
  if (!code && used < text.size()) {
    size_t rest = text.find_first_not_of(" \t\r\n", used);
    if (rest != std::string_view::npos)
      return Error(Code::kInvalid, fmt::format("JSON: unexpected text after the value at byte {}", rest));
  }
  if (!code) parser.finish(code);
  if (code) return Error(Code::kInvalid, fmt::format("JSON: {} at byte {}", code.message(), used));
  return parser.release();
}

Result<std::optional<int64_t>> GetInt(const json::object& object, std::string_view key, int64_t low, int64_t high) {
  const json::value* value = Find(object, key);
  if (value == nullptr) return std::optional<int64_t>();
  int64_t number = 0;
  if (value->is_int64()) {
    number = value->get_int64();
  } else if (value->is_uint64()) {
    return Error(Code::kInvalid, fmt::format("{}: {} is over the limit of {}", key, value->get_uint64(), high),
                 std::string(key));
  } else if (value->is_double() && std::nearbyint(value->get_double()) == value->get_double() &&
             std::abs(value->get_double()) < 9e15) {
    number = static_cast<int64_t>(value->get_double());
  } else {
    return WrongKind(key, *value, "an integer");
  }
  if (number < low || number > high)
    return Error(Code::kInvalid, fmt::format("{}: {} is outside [{}, {}]", key, number, low, high), std::string(key));
  return std::optional<int64_t>(number);
}

Result<std::optional<double>> GetNumber(const json::object& object, std::string_view key, double low, double high) {
  const json::value* value = Find(object, key);
  if (value == nullptr) return std::optional<double>();
  if (!value->is_number()) return WrongKind(key, *value, "a number");
  double number = value->to_number<double>();
  if (!(number >= low && number <= high))
    return Error(Code::kInvalid, fmt::format("{}: {} is outside [{}, {}]", key, number, low, high), std::string(key));
  return std::optional<double>(number);
}

Result<std::optional<bool>> GetBool(const json::object& object, std::string_view key) {
  const json::value* value = Find(object, key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_bool()) return WrongKind(key, *value, "a boolean");
  return std::optional<bool>(value->get_bool());
}

Result<std::optional<std::string>> GetString(const json::object& object, std::string_view key) {
  const json::value* value = Find(object, key);
  if (value == nullptr) return std::optional<std::string>();
  if (!value->is_string()) return WrongKind(key, *value, "a string");
  return std::optional<std::string>(std::string(value->get_string()));
}

Result<const json::array*> GetArray(const json::object& object, std::string_view key) {
  const json::value* value = Find(object, key);
  if (value != nullptr && !value->is_array()) return WrongKind(key, *value, "an array");
  return value == nullptr ? nullptr : &value->get_array();
}

Result<const json::object*> GetObject(const json::object& object, std::string_view key) {
  const json::value* value = Find(object, key);
  if (value != nullptr && !value->is_object()) return WrongKind(key, *value, "an object");
  return value == nullptr ? nullptr : &value->get_object();
}

std::string_view KindName(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null: return "null";
    case json::kind::bool_: return "a boolean";
    case json::kind::int64:
    case json::kind::uint64: return "an integer";
    case json::kind::double_: return "a number";
    case json::kind::string: return "a string";
    case json::kind::array: return "an array";
    case json::kind::object: return "an object";
  }
  return "unknown";
}

}  // namespace ekiben
