// The one form of an error about a file's content: "<file>: byte <offset>: <field>: <what is wrong>".
// Thread: pure functions.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace ekiben {

// Names come from the file: cut to 80 bytes of printable ASCII, so that a message stays one clean line.
inline std::string PrintableName(std::string_view name) {
  std::string out(name.substr(0, 80));
  for (char& c : out)
    if (c < 32 || c == 127) c = '?';
  if (name.size() > out.size()) out += "...";
  return out;
}

inline Error FileError(std::string_view label, uint64_t offset, std::string_view field, std::string_view message,
                       Code code = Code::kInvalid) {
  return Error(code, fmt::format("{}: byte {}: {}: {}", label, offset, field, message), std::string(field));
}

}  // namespace ekiben
