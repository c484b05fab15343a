// JSON written straight into a string, for what is sent per token. (Whole documents that are built once use
// Boost.JSON.) Thread: pure functions.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace ekiben::api {

// Appends `text` with quotes and escapes. REQUIRES: valid UTF-8.
void AppendJsonString(std::string& out, std::string_view text);
// The inside of a string: escapes, no quotes.
void AppendJsonEscaped(std::string& out, std::string_view text);
void AppendJsonInt(std::string& out, int64_t value);
// JSON has no infinities: they become +-9999, as vLLM sends them.
void AppendJsonFloat(std::string& out, double value);

// `bytes` with every malformed sequence replaced by U+FFFD: a single token may be part of a character.
std::string ReplaceInvalidUtf8(std::string_view bytes);
// Code points in valid UTF-8.
size_t CountCodePoints(std::string_view text);

}  // namespace ekiben::api
