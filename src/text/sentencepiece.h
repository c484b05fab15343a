// What SentencePiece does to a text before merging: spaces become U+2581, one is put before the text, and the text is
// one word. Here it is cut wherever no merge can cross, so that words stay short and cacheable; the ids are the same.
// Thread: immutable after construction.
#pragma once
#include <bitset>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_spec.h"

namespace ekiben::text {

inline constexpr std::string_view kSpaceMark = "\u2581";

// Appends `text` with U+2581 for each U+0020.
void AppendSpaceMarked(std::string_view text, std::string& out);
// Back again: a token as text.
std::string SpaceUnmarked(std::string_view token);

// A merge across a border between two characters gives a token that holds both, so a pair of bytes (the last of one
// character, the first of the next) that no token holds marks a border that nothing crosses.
class BorderCutter {
 public:
  BorderCutter() = default;
  // `mergeable`: the tokens that a merge can produce. `everywhere`: cut at any such border; else only before U+2581, so
  // that characters without a token, which fuse into one unk, stay in one word.
  BorderCutter(const std::vector<std::string>& tokens, const std::vector<bool>& mergeable, bool everywhere);

  // Calls word(std::string_view) for each word of a marked text in order. `text`: valid UTF-8.
  template <class OnWord>
  void ForEachWord(std::string_view text, OnWord&& word) const {
    size_t begin = 0;
    for (size_t i = 1; i < text.size(); ++i) {
      if (joins_[Pair(text[i - 1], text[i])]) continue;
      if (!everywhere_ && !text.substr(i).starts_with(kSpaceMark)) continue;
      word(text.substr(begin, i - begin));
      begin = i;
    }
    if (begin < text.size()) word(text.substr(begin));
  }

 private:
  static size_t Pair(char before, char after) {
    return size_t{static_cast<unsigned char>(before)} << 8 | static_cast<unsigned char>(after);
  }
  std::bitset<65536> joins_;  // pairs of bytes in some token, and all pairs within a character
  bool everywhere_ = false;
};

}  // namespace ekiben::text
