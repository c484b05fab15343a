// Doubles for tests: a tokenizer whose tokens are bytes, and the chat template that goes with it.
#pragma once
#include <memory>

#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace ekiben::serve::testing {

// Ids 0..255 are bytes; then the special tokens below.
class ByteTokenizer final : public text::Tokenizer {
 public:
  static constexpr int32_t kEnd = 256, kBegin = 257, kUser = 258, kAssistant = 259, kVocabulary = 260;

  ByteTokenizer();
  std::vector<int32_t> Encode(std::string_view text, const EncodeOptions& options) const override;
  std::vector<int32_t> EncodeSpans(const std::vector<Span>& spans, bool add_special) const override;
  std::string Decode(const std::vector<int32_t>& tokens, const DecodeOptions& options) const override;
  std::string_view Bytes(int32_t token) const override;
  bool IsSpecial(int32_t token) const override { return token >= kEnd; }
  int32_t TokenOf(std::string_view text) const override;
  const text::TokenizerSpec& spec() const override { return spec_; }
  int32_t vocab_size() const override { return kVocabulary; }

 private:
  text::TokenizerSpec spec_;
};

// "<user>text<assistant>": what the tests expect of a rendered chat.
const char* ByteChatTemplate();

}  // namespace ekiben::serve::testing
