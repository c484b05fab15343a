// Tokens in, text out, as they come. Never emits part of a UTF-8 character: an incomplete but valid prefix is held
// until it completes; bytes that can never complete become one U+FFFD at once. Concatenated pieces equal Decode of all.
// Stop strings are matched on the text, across token borders: bytes that may begin one are held back, and text from the
// match on is never emitted.
// Thread: one.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace ekiben::text {

class Detokenizer {
 public:
  struct Options {
    bool skip_special = true;
    bool include_stop_text = false;  // emit the stop string itself
    std::vector<std::string> stop;   // non-empty strings
  };
  // `tokenizer` must outlive this.
  Detokenizer(const Tokenizer& tokenizer, Options options);
  ~Detokenizer();
  Detokenizer(Detokenizer&&) noexcept;
  Detokenizer& operator=(Detokenizer&&) noexcept;

  // Appends what `token` makes certain to `out`. True when a stop string has matched: nothing more comes.
  bool Push(int32_t token, std::string& out);
  // The end: what was held (an incomplete character as U+FFFD).
  void Finish(std::string& out);
  // Index into options.stop of the match; -1: none.
  int stop_index() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ekiben::text
