#include "text/unicode.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

namespace ekiben::text {

namespace {

constexpr uint32_t kRuns[] = {
#include "text/unicode_runs.inc"
};
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

}  // namespace

const CharTable& CharTable::Get() {
  static const CharTable table;
  return table;
}

CharTable::CharTable() {
  std::vector<std::array<uint8_t, 256>> blocks;
  std::map<std::array<uint8_t, 256>, uint16_t> known;
  std::array<uint8_t, 256> block;
  size_t run = 0;
  for (uint32_t code = 0; code < 0x110000; ++code) {
    if (run + 1 < std::size(kRuns) && kRuns[run + 1] >> 8 == code) ++run;
    block[code & 255] = kRuns[run] & 255;
    if ((code & 255) != 255) continue;
    auto [at, fresh] = known.try_emplace(block, static_cast<uint16_t>(blocks.size()));
    if (fresh) blocks.push_back(block);
    index_[code >> 8] = at->second;
  }
  blocks_ = std::make_unique<uint8_t[]>(blocks.size() * 256);
  for (size_t i = 0; i < blocks.size(); ++i) std::copy(blocks[i].begin(), blocks[i].end(), &blocks_[i * 256]);
}

void AppendUtf8(char32_t code, std::string& out) {
  auto tail = [&](int shift) { out.push_back(static_cast<char>(0x80 | (code >> shift & 0x3F))); };
  if (code < 0x80) {
    out.push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out.push_back(static_cast<char>(0xC0 | code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | code >> 12));
    tail(6), tail(0);
  } else {
    out.push_back(static_cast<char>(0xF0 | code >> 18));
    tail(12), tail(6), tail(0);
  }
}

namespace {

// Length of the ASCII prefix.
size_t AsciiPrefix(std::string_view text) {
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80) ++i;
  return i;
}

}  // namespace

bool IsAscii(std::string_view text) {
  return AsciiPrefix(text) == text.size();
}

bool IsValidUtf8(std::string_view text) {
  while (true) {
    text.remove_prefix(AsciiPrefix(text));
    if (text.empty()) return true;
    auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    unsigned char lead = byte(0);
    if (lead < 0xC2 || lead > 0xF4) return false;
    size_t length = Utf8Length(lead);
    if (length > text.size()) return false;
    for (size_t i = 1; i < length; ++i) {
      if (!IsContinuation(text[i])) return false;
    }
    if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F) || (lead == 0xF0 && byte(1) < 0x90) ||
        (lead == 0xF4 && byte(1) > 0x8F)) {
      return false;
    }
    text.remove_prefix(length);
  }
}

void Utf8Repair::Break(std::string& out) {
  int count = unit_ == Unit::kByte ? held_size_ : 1;
  for (int i = 0; i < count; ++i) out += kReplacement;
  held_size_ = missing_ = 0;
}

bool Utf8Repair::Begin(unsigned char lead) {
  if (lead < 0xC2 || lead > 0xF4) return false;
  held_[0] = static_cast<char>(lead);
  held_size_ = 1;
  missing_ = static_cast<uint8_t>(Utf8Length(lead) - 1);
  low_ = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  high_ = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  return true;
}

bool Utf8Repair::Continue(unsigned char byte, std::string& out) {
  if (byte < low_ || byte > high_) return false;
  held_[held_size_++] = static_cast<char>(byte);
  low_ = 0x80, high_ = 0xBF;
  if (--missing_ == 0) {
    out.append(held_.data(), held_size_);
    held_size_ = 0;
  }
  return true;
}

void Utf8Repair::Feed(std::string_view bytes, std::string& out) {
  while (!bytes.empty()) {
    auto byte = static_cast<unsigned char>(bytes[0]);
    if (held_size_ > 0) {
      if (Continue(byte, out)) {
        bytes.remove_prefix(1);
      } else {
        Break(out);  // and the byte is looked at again, as a first one
      }
      continue;
    }
    size_t plain = AsciiPrefix(bytes);
    out.append(bytes.substr(0, plain));
    bytes.remove_prefix(plain);
    if (bytes.empty()) return;
    if (!Begin(static_cast<unsigned char>(bytes[0]))) out += kReplacement;
    bytes.remove_prefix(1);
  }
}

void Utf8Repair::Finish(std::string& out) {
  if (held_size_ > 0) Break(out);
}

std::string RepairUtf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  Utf8Repair repair;
  repair.Feed(bytes, out);
  repair.Finish(out);
  return out;
}

}  // namespace ekiben::text
