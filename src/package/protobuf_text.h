// Protobuf's text format (config.pbtxt) as a tree of names and values, without a schema: who reads it looks for the
// fields that it knows. Scalars stay text; of strings the quotes and escapes are gone and neighbours are joined.
// Errors: kInvalid with the line. Limits: kTextBytesMax, kTextDepthMax.
// Source: the published specification of the text format.
// Thread: any.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace ekiben {

inline constexpr size_t kTextBytesMax = size_t{1} << 20;
inline constexpr int kTextDepthMax = 32;

struct TextField {
  std::string name;
  std::string value;              // of a scalar
  std::vector<TextField> fields;  // of a message
};

// A list `[a, b]` comes as fields of the same name, as if it had been written one by one.
Result<std::vector<TextField>> ParseProtobufText(std::string_view text);

// The last scalar of that name, as protobuf reads a field that stands twice; empty when there is none.
std::string TextValue(const std::vector<TextField>& fields, std::string_view name);

}  // namespace ekiben
