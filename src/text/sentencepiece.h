// What SentencePiece does to a text before merging: spaces become U+2581, one is put before the text, and the text is
// one word. Here it is cut before each U+2581 that no merge can cross, so that words stay short and cacheable; the ids
// are the same.
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

class SpaceMarkCutter {
 public:
  // `mergeable`: the tokens that a merge can produce.
  SpaceMarkCutter() = default;
  SpaceMarkCutter(const std::vector<std::string>& tokens, const std::vector<bool>& mergeable);

  // Calls word(std::string_view) for each word of a marked text in order.
  template <class OnWord>
  void ForEachWord(std::string_view text, OnWord&& word) const {
    size_t begin = 0;
    for (size_t i = text.find(kSpaceMark, 1); i < text.size(); i = text.find(kSpaceMark, i + kSpaceMark.size())) {
      if (joins_after_[static_cast<unsigned char>(text[i - 1])]) continue;
      word(text.substr(begin, i - begin));
      begin = i;
    }
    if (begin < text.size()) word(text.substr(begin));
  }

 private:
  std::bitset<256> joins_after_;  // last byte of what stands before a U+2581 inside some token
};

}  // namespace ekiben::text
