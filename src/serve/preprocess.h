// The first stage: a TextRequest becomes a Request in tokens, or an Error that names field, value and limit.
// Thread: immutable; any number of threads at once.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "request/request.h"
#include "serve/service.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace ekiben::serve {

inline constexpr size_t kStopStringsMax = 16;
inline constexpr size_t kStopBytesMax = 1024;

class Preprocessor {
 public:
  Preprocessor(const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template, const Clock& clock,
               const ServiceConfig& config);

  Result<std::vector<TokenId>> Tokenize(const TextRequest& request) const;
  // `arrival`: Clock::Now() at the edge. `constraint`: what `request.grammar` was compiled to.
  Result<std::shared_ptr<const Request>> Build(RequestId id, const TextRequest& request, Nanos arrival,
                                               std::shared_ptr<const TokenConstraint> constraint) const;

 private:
  // What needs no tokenizer, before anything is spent on the text.
  Result<void> CheckCheap(const TextRequest& request) const;
  Result<void> CheckBytes(const char* field, size_t bytes) const;
  Result<std::vector<TokenId>> TokenizeChat(const ChatInput& chat) const;
  Result<void> CheckLengths(const TextRequest& request, Request& out) const;
  Result<void> AddLogits(const TextRequest& request, Request& out) const;
  void AddBadWords(const std::vector<std::string>& words, SamplingParams& sampling) const;
  std::string TextOfSpecial(TokenId id) const;

  const text::Tokenizer& tokenizer_;
  const text::ChatTemplate* const chat_template_;
  const Clock& clock_;
  const ServiceConfig config_;
  const std::string bos_text_, eos_text_;
  const std::shared_ptr<LogitsBytes> logits_held_ = std::make_shared<LogitsBytes>(0);
};

}  // namespace ekiben::serve
