// A UTF-8 string that remembers which of its bytes came from the template and which from a request's inputs, through
// every slice and concatenation. Bytes are always valid UTF-8: FromUntrusted repairs what comes in, and cuts are made
// at code points only. Runs of equal trust alternate, so an unmixed string stores no marks.
// Thread: plain values.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace ekiben::text::jinja {

class Text {
 public:
  Text() = default;
  Text(std::string bytes, bool trusted) : bytes_(std::move(bytes)), first_trusted_(trusted) {}
  // Text of a request; invalid UTF-8 becomes U+FFFD.
  static Text FromUntrusted(std::string_view bytes);

  const std::string& bytes() const { return bytes_; }
  std::string_view view() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  // No byte of it came from a request.
  bool trusted() const { return empty() || (cuts_.empty() && first_trusted_); }
  bool TrustedAt(size_t byte) const;

  void Append(const Text& other) { AppendSlice(other, 0, other.size()); }
  void Append(std::string_view bytes, bool trusted);
  void AppendSlice(const Text& other, size_t begin, size_t end);
  Text Slice(size_t begin, size_t end) const;
  // The same bytes, none of them trusted.
  void Distrust();

  // visit(std::string_view run, bool trusted), in order.
  template <class Visit>
  void ForEachRun(Visit visit) const {
    size_t begin = 0;
    bool trusted = first_trusted_;
    for (size_t cut : cuts_) {
      visit(view().substr(begin, cut - begin), trusted);
      begin = cut;
      trusted = !trusted;
    }
    if (begin < size()) visit(view().substr(begin), trusted);
  }

 private:
  bool LastTrusted() const { return first_trusted_ == (cuts_.size() % 2 == 0); }

  std::string bytes_;
  std::vector<size_t> cuts_;  // ascending, inside (0, size): where trust changes
  bool first_trusted_ = true;
};

bool IsAscii(std::string_view text);
bool IsValidUtf8(std::string_view text);
// Bytes of the code point at `at`; REQUIRES: valid UTF-8, at < size.
size_t CodePointBytes(std::string_view text, size_t at);
char32_t CodePointAt(std::string_view text, size_t at);
// Start of the code point that ends at `end`; REQUIRES: end > 0.
size_t PreviousCodePoint(std::string_view text, size_t end);
size_t CountCodePoints(std::string_view text);
// Byte offset of code point `index`; size when there are fewer.
size_t ByteOffset(std::string_view text, size_t index);
void AppendUtf8(char32_t code, std::string& out);

}  // namespace ekiben::text::jinja
