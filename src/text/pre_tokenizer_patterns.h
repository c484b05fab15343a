// The pre-tokenizer of a tokenizer.json whose patterns we have no matcher for: its regular expressions in sequence on
// PCRE2 (JIT, UTF, Unicode properties). The patterns come from a checkpoint, so matching is bounded: where PCRE2 hits
// its limit, the rest of the piece stays one word.
// \s is rewritten to Unicode White_Space, as in the reference's engine; PCRE2 10.42 knows Unicode 14, the reference 17.
// Thread: immutable after Create; Split runs on any number of threads at once.
#pragma once
#include <memory>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/pre_tokenizer.h"

namespace ekiben::text {

class PatternSplitter {
 public:
  static Result<PatternSplitter> Create(const std::vector<SplitPattern>& patterns);
  PatternSplitter(PatternSplitter&&) noexcept;
  ~PatternSplitter();

  // The words in order, none empty; what a kRemoved pattern matched lies in none. `text`: valid UTF-8.
  std::vector<WordSpan> Split(std::string_view text) const;

 private:
  struct Rule;
  PatternSplitter();
  std::vector<Rule> rules_;
};

}  // namespace ekiben::text
