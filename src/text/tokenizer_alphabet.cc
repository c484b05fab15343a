#include "text/tokenizer_alphabet.h"

#include <array>

#include "text/unicode.h"

namespace ekiben::text {

namespace {

constexpr char32_t kCodes = 0x144;  // code points that the alphabet uses lie below

struct Alphabet {
  std::array<char32_t, 256> code_of_byte;
  std::array<int, kCodes> byte_of_code;

  Alphabet() {
    byte_of_code.fill(-1);
    char32_t next = 256;
    for (size_t byte = 0; byte < 256; ++byte) {
      bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      code_of_byte[byte] = printable ? static_cast<char32_t>(byte) : next++;
      byte_of_code[code_of_byte[byte]] = static_cast<int>(byte);
    }
  }
};

const Alphabet& TheAlphabet() {
  static const Alphabet alphabet;
  return alphabet;
}

}  // namespace

std::optional<std::string> BytesFromAlphabet(std::string_view spelled) {
  if (!IsValidUtf8(spelled)) return std::nullopt;
  std::string out;
  for (size_t i = 0; i < spelled.size(); i += Utf8Length(static_cast<unsigned char>(spelled[i]))) {
    char32_t code = DecodeUtf8(spelled.data() + i);
    int byte = code < kCodes ? TheAlphabet().byte_of_code[code] : -1;
    if (byte < 0) return std::nullopt;
    out.push_back(static_cast<char>(byte));
  }
  return out;
}

std::string BytesOrLiteral(std::string_view spelled) {
  return BytesFromAlphabet(spelled).value_or(std::string(spelled));
}

std::string AlphabetFromBytes(std::string_view bytes) {
  std::string out;
  for (char c : bytes) AppendUtf8(TheAlphabet().code_of_byte[static_cast<unsigned char>(c)], out);
  return out;
}

}  // namespace ekiben::text
