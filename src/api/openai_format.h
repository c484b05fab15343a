// Pieces of OpenAI answers as JSON text. Thread: pure functions.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "request/request.h"

namespace ekiben::text {
class Tokenizer;
}

namespace ekiben::api {

// {"prompt_tokens","total_tokens","completion_tokens","prompt_tokens_details":{"cached_tokens"}}
void AppendUsage(std::string& out, int64_t prompt_tokens, int64_t output_tokens, int64_t cached_tokens);

// {"content":[{"token","logprob","bytes","top_logprobs"}],"refusal":null}
void AppendChatLogprobs(std::string& out, const text::Tokenizer& tokenizer, const std::vector<TokenId>& tokens,
                        const std::vector<PositionLogProbs>& positions);

// {"text_offset","token_logprobs","tokens","top_logprobs"}. A null position is the first prompt token, which nothing
// came before. `offset` is the code points of text before these tokens, and is moved on.
struct ScoredToken {
  TokenId token = 0;
  const PositionLogProbs* position = nullptr;
};
void AppendCompletionLogprobs(std::string& out, const text::Tokenizer& tokenizer,
                              const std::vector<ScoredToken>& tokens, size_t& offset);

// vLLM's: [null, {"<id>":{"logprob","rank","decoded_token"}, ...}, ...], at most `alternatives` and the prompt's own.
void AppendPromptLogprobs(std::string& out, const text::Tokenizer& tokenizer, const std::vector<ScoredToken>& prompt,
                          int32_t alternatives);

void AppendTokenIds(std::string& out, const std::vector<TokenId>& tokens);

}  // namespace ekiben::api
