// GPT-2's byte alphabet: each byte written as one printable character, in which tokenizer.json, merges.txt and GGUF
// spell byte-level tokens ("Ġthe" is " the").
// Thread: pure functions over constant tables.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace ekiben::text {

// The bytes that `spelled` stands for; nullopt when a character is outside the alphabet or not UTF-8.
std::optional<std::string> BytesFromAlphabet(std::string_view spelled);
// The same, with `spelled` itself where it is no spelling: how the reference decodes added tokens.
std::string BytesOrLiteral(std::string_view spelled);
std::string AlphabetFromBytes(std::string_view bytes);

}  // namespace ekiben::text
