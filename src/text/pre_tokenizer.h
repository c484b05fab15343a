// Cuts a text into the words that BPE merges inside. The patterns of the published families are hand-written matchers
// (pre_tokenizer.cc), each equal to its regular expression and linear in the text whatever the text is; any other
// pattern runs on PCRE2 (pre_tokenizer_patterns.h).
// Thread: immutable after Create; Cut runs on any number of threads at once.
#pragma once
#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer_spec.h"

namespace ekiben::text {

class PatternSplitter;

struct WordSpan {
  size_t begin, end;
};

class WordCutter {
 public:
  static Result<WordCutter> Create(PreTokenizer kind, const std::vector<SplitPattern>& patterns);
  WordCutter(WordCutter&&) noexcept;
  WordCutter& operator=(WordCutter&&) noexcept;
  ~WordCutter();

  // Calls word(std::string_view) for each word in order. `text`: valid UTF-8.
  template <class OnWord>
  void ForEachWord(std::string_view text, OnWord&& word) const {
    if (next_ == nullptr) {
      for (const WordSpan& span : SplitByPatterns(text)) word(text.substr(span.begin, span.end - span.begin));
      return;
    }
    std::array<size_t, kBatch> ends;
    for (size_t begin = 0; begin < text.size();) {
      size_t count = next_(text, begin, ends);
      for (size_t i = 0; i < count; ++i) {
        word(text.substr(begin, ends[i] - begin));
        begin = ends[i];
      }
    }
  }

 private:
  static constexpr size_t kBatch = 128;
  // Fills `ends` with the ends of the words from `begin` (the start of one) on, until it is full or the text ends;
  // their number. No word is empty.
  using NextWords = size_t (*)(std::string_view text, size_t begin, std::span<size_t, kBatch> ends);
  template <class Matcher>
  static size_t Next(std::string_view text, size_t begin, std::span<size_t, kBatch> ends);
  WordCutter();
  std::vector<WordSpan> SplitByPatterns(std::string_view text) const;

  NextWords next_ = nullptr;  // null: by patterns_
  std::unique_ptr<PatternSplitter> patterns_;
};

// The family whose matcher is equal to these patterns in sequence; kPatterns when there is none, kNone when empty.
// Only Split(Isolated) rules can be equal.
PreTokenizer FamilyOf(const std::vector<SplitPattern>& patterns);

// The regular expressions that the matchers are equal to, as published: for comparing and for tests.
std::vector<std::string_view> PatternsOf(PreTokenizer kind);

}  // namespace ekiben::text
