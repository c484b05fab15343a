// JSON with limits, over Boost.JSON. Parsing bounds depth and size before it trusts a byte; the typed getters answer
// with an error that names the field, what it holds and what was wanted, so that callers write no messages.
// Thread: pure functions.
#pragma once
#include <boost/json/fwd.hpp>
#include <boost/json/value.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace ekiben {

namespace json = boost::json;

struct JsonLimits {
  size_t depth_max = 64;
  size_t bytes_max = size_t{64} << 20;
};

// Rejects trailing bytes, depth or size over the limit and invalid UTF-8. The message carries the byte offset.
Result<json::value> ParseJson(std::string_view text, const JsonLimits& limits = {});

// Field getters. nullopt: absent or null. Error: present with another type or out of [low, high]; its field() is `key`.
Result<std::optional<int64_t>> GetInt(const json::object& object, std::string_view key, int64_t low, int64_t high);
Result<std::optional<double>> GetNumber(const json::object& object, std::string_view key, double low, double high);
Result<std::optional<bool>> GetBool(const json::object& object, std::string_view key);
Result<std::optional<std::string>> GetString(const json::object& object, std::string_view key);
// nullptr: absent or null. Error: not of the kind.
Result<const json::array*> GetArray(const json::object& object, std::string_view key);
Result<const json::object*> GetObject(const json::object& object, std::string_view key);

// "a string", "an array", ...: for messages.
std::string_view KindName(const json::value& value);

}  // namespace ekiben
