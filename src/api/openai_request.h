// Bodies of POST /v1/chat/completions, /v1/completions, /tokenize and /detokenize -> requests for serve/.
// Fields are OpenAI's plus vLLM's extras; unknown fields are ignored, a known field with a value that cannot be
// honoured is an error that names field, value and limit. Untrusted input: counts are bounded before anything is built
// from them. Thread: pure functions. Knows nothing of HTTP, so that it is fuzzed alone.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/tool_choice.h"
#include "base/json.h"
#include "base/result.h"
#include "serve/service.h"

namespace ekiben::api {

struct OpenAiLimits {
  int64_t n_max = 128;
  size_t prompts_max = 512;     // of one /v1/completions body
  size_t sequences_max = 1024;  // prompts x n
  size_t messages_max = 16'384;
  size_t token_ids_max = size_t{1} << 20;  // of one prompt
};

struct CompletionRequest {
  bool chat = false;
  std::string model;                        // empty: not given
  std::vector<serve::TextRequest> prompts;  // chat: one
  int32_t n = 1;                            // choices of a prompt
  int32_t best_of = 1;                      // sequences of a prompt, >= n
  ToolChoice tools;
  int32_t logprobs = -1;         // alternatives that were asked for; -1: none
  int32_t prompt_logprobs = -1;  // the same of the prompt's tokens
  bool stream = false;
  bool include_usage = false;           // one more chunk with the usage
  bool continuous_usage_stats = false;  // usage on every chunk
  bool echo = false;
  bool return_token_ids = false;
  std::string request_id;
};

// `seed_if_absent` names the draws of a request that names no seed.
Result<CompletionRequest> ParseChatRequest(const json::object& body, uint64_t seed_if_absent,
                                           const OpenAiLimits& limits = {});
Result<CompletionRequest> ParseCompletionRequest(const json::object& body, uint64_t seed_if_absent,
                                                 const OpenAiLimits& limits = {});

using PromptInput = decltype(serve::TextRequest::input);
// A string, an array of strings, token ids, or an array of these, under `key`.
Result<std::vector<PromptInput>> ParsePrompts(const json::object& body, const char* key, const OpenAiLimits& limits);

struct TokenizeRequest {
  std::string model;
  serve::TextRequest input;
  bool return_token_strs = false;
};
Result<TokenizeRequest> ParseTokenizeRequest(const json::object& body, const OpenAiLimits& limits = {});
// The ids of a /detokenize body, each in [0, vocab_size).
Result<std::vector<TokenId>> ParseDetokenizeRequest(const json::object& body, int32_t vocab_size,
                                                    const OpenAiLimits& limits = {});

// Text -> object with the JSON limits of a request body.
Result<json::object> ParseBody(std::string_view body, size_t bytes_max);

}  // namespace ekiben::api
