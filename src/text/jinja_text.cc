#include "text/jinja_text.h"

#include <algorithm>

namespace ekiben::text::jinja {
namespace {

// Bytes of the well-formed sequence at `at`; 0 when it is not one (overlong, surrogate, over U+10FFFF, cut short).
size_t WellFormedBytes(std::string_view text, size_t at) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  auto follows = [&](size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  unsigned lead = byte(at);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return follows(at + 1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    unsigned low = lead == 0xE0 ? 0xA0 : 0x80, high = lead == 0xED ? 0x9F : 0xBF;
    return follows(at + 1, low, high) && follows(at + 2) ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    unsigned low = lead == 0xF0 ? 0x90 : 0x80, high = lead == 0xF4 ? 0x8F : 0xBF;
    return follows(at + 1, low, high) && follows(at + 2) && follows(at + 3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

Text Text::FromUntrusted(std::string_view bytes) {
  if (IsValidUtf8(bytes)) return Text(std::string(bytes), false);
  std::string repaired;
  for (size_t at = 0; at < bytes.size();) {
    size_t length = WellFormedBytes(bytes, at);
    if (length == 0) {
      repaired += "\xEF\xBF\xBD";
      ++at;
    } else {
      repaired.append(bytes, at, length);
      at += length;
    }
  }
  return Text(std::move(repaired), false);
}

bool Text::TrustedAt(size_t byte) const {
  size_t run = std::upper_bound(cuts_.begin(), cuts_.end(), byte) - cuts_.begin();
  return first_trusted_ == (run % 2 == 0);
}

void Text::Append(std::string_view bytes, bool trusted) {
  if (bytes.empty()) return;
  if (empty())
    first_trusted_ = trusted;
  else if (LastTrusted() != trusted)
    cuts_.push_back(size());
  bytes_.append(bytes);
}

void Text::AppendSlice(const Text& other, size_t begin, size_t end) {
  if (begin >= end) return;
  if (other.cuts_.empty()) return Append(other.view().substr(begin, end - begin), other.first_trusted_);
  size_t at = 0;
  other.ForEachRun([&](std::string_view run, bool trusted) {
    size_t from = std::max(at, begin), to = std::min(at + run.size(), end);
    if (from < to) Append(other.view().substr(from, to - from), trusted);
    at += run.size();
  });
}

Text Text::Slice(size_t begin, size_t end) const {
  Text out;
  out.AppendSlice(*this, begin, end);
  return out;
}

void Text::Distrust() {
  cuts_.clear();
  first_trusted_ = false;
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

bool IsValidUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    size_t length = WellFormedBytes(text, at);
    if (length == 0) return false;
    at += length;
  }
  return true;
}

size_t CodePointBytes(std::string_view text, size_t at) {
  auto lead = static_cast<unsigned char>(text[at]);
  size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return std::min(length, text.size() - at);
}

char32_t CodePointAt(std::string_view text, size_t at) {
  auto lead = static_cast<unsigned char>(text[at]);
  if (lead < 0x80) return lead;
  size_t length = CodePointBytes(text, at);
  char32_t code = lead & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; ++i) code = code << 6 | (static_cast<unsigned char>(text[at + i]) & 0x3Fu);
  return code;
}

size_t PreviousCodePoint(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

size_t CountCodePoints(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

size_t ByteOffset(std::string_view text, size_t index) {
  size_t at = 0;
  while (index > 0 && at < text.size()) {
    at += CodePointBytes(text, at);
    --index;
  }
  return at;
}

void AppendUtf8(char32_t code, std::string& out) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    out += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

}  // namespace ekiben::text::jinja
