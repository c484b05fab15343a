// UTF-8 and the few Unicode properties that tokenizers ask about. The tables come from the reference tokenizer's own
// regular-expression engine (tests/oracles/tokenizer/make_unicode_runs.py), so their Unicode version is its version.
// Thread: pure functions over constant tables.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace ekiben::text {

// Bits of one code point; letters of neither case (Lm, Lo) have kLetter alone.
enum CharClass : uint8_t {
  kLetter = 1,   // \p{L}
  kNumber = 2,   // \p{N}
  kSpace = 4,    // \s
  kMark = 8,     // \p{M}
  kSymbol = 16,  // \p{P} and \p{S}
  kUpper = 32,   // \p{Lu} and \p{Lt}
  kLower = 64,   // \p{Ll}
  kWord = 128,   // \w around added tokens
};

class CharTable {
 public:
  // Built once, at the first call.
  static const CharTable& Get();
  uint8_t Ascii(unsigned char c) const { return blocks_[c]; }
  // REQUIRES: c <= 0x10FFFF.
  uint8_t operator[](char32_t c) const { return blocks_[size_t{index_[c >> 8]} << 8 | (c & 255)]; }

 private:
  CharTable();
  std::array<uint16_t, 0x1100> index_;
  std::unique_ptr<uint8_t[]> blocks_;  // of 256 code points each; block 0 is Latin-1
};

// Bytes of the character that starts with `lead`. REQUIRES: valid UTF-8.
inline size_t Utf8Length(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}
// REQUIRES: valid UTF-8 at p.
inline char32_t DecodeUtf8(const char* p) {
  auto byte = [p](int i) { return static_cast<char32_t>(static_cast<unsigned char>(p[i])); };
  char32_t lead = byte(0);
  if (lead < 0x80) return lead;
  if (lead < 0xE0) return (lead & 0x1F) << 6 | (byte(1) & 0x3F);
  if (lead < 0xF0) return (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  return (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
}
inline bool IsContinuation(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// REQUIRES: code <= 0x10FFFF, no surrogate.
void AppendUtf8(char32_t code, std::string& out);

bool IsAscii(std::string_view text);
bool IsValidUtf8(std::string_view text);

// Turns bytes into valid UTF-8 as they come: an incomplete character is held, a broken one becomes U+FFFD.
class Utf8Repair {
 public:
  // What one U+FFFD stands for: a longest prefix of some character (the WHATWG decoder, Rust, Python), or one byte
  // (SentencePiece).
  enum class Unit : uint8_t { kMaximalSubpart, kByte };
  explicit Utf8Repair(Unit unit = Unit::kMaximalSubpart) : unit_(unit) {}

  void Feed(std::string_view bytes, std::string& out);
  // The end: a held prefix can no longer complete.
  void Finish(std::string& out);

 private:
  void Break(std::string& out);
  // Takes a byte that continues the held prefix; false: it cannot.
  bool Continue(unsigned char byte, std::string& out);
  bool Begin(unsigned char lead);

  Unit unit_;
  uint8_t held_size_ = 0;
  uint8_t missing_ = 0;         // bytes that the held character still needs
  uint8_t low_ = 0, high_ = 0;  // what the next byte must lie in
  std::array<char, 4> held_ = {};
};

std::string RepairUtf8(std::string_view bytes);

}  // namespace ekiben::text
