// Text to token ids and back, exactly as the model's reference tokenizer does it.
// Thread: immutable after Create; Encode and Decode run on any number of threads at once.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer_spec.h"

namespace ekiben::text {

class Tokenizer {
 public:
  static Result<std::unique_ptr<Tokenizer>> Create(TokenizerSpec spec);
  virtual ~Tokenizer() = default;

  struct EncodeOptions {
    bool add_special = true;    // bos / eos as the model wants
    bool parse_special = true;  // special tokens written in the text become their ids; false for a user's own text
  };
  // Invalid UTF-8 is replaced by U+FFFD, as the reference does. Linear in the text's length.
  virtual std::vector<int32_t> Encode(std::string_view text, const EncodeOptions& options) const = 0;
  // A text in spans, some of them trusted (template) and some not (a user's words): special tokens are parsed only in
  // trusted spans, and the cut between spans does not change the tokens of plain text around it.
  struct Span {
    std::string_view text;
    bool trusted;
  };
  virtual std::vector<int32_t> EncodeSpans(const std::vector<Span>& spans, bool add_special) const = 0;

  struct DecodeOptions {
    bool skip_special = true;
  };
  // Incomplete UTF-8 becomes U+FFFD.
  virtual std::string Decode(const std::vector<int32_t>& tokens, const DecodeOptions& options) const = 0;

  // The bytes that a token contributes inside a text (before UTF-8 repair); empty for an unmapped id.
  virtual std::string_view Bytes(int32_t token) const = 0;
  virtual bool IsSpecial(int32_t token) const = 0;
  // -1 when the text is no single token.
  virtual int32_t TokenOf(std::string_view text) const = 0;

  virtual const TokenizerSpec& spec() const = 0;
  virtual int32_t vocab_size() const = 0;  // ids are 0..vocab_size-1
};

}  // namespace ekiben::text
