// How the next token is chosen. Plain values, checked once at the edge (Validate), trusted after.
// Names and defaults: OpenAI's and vLLM's for the wire, TensorRT-LLM's SamplingConfig for the meaning.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "base/result.h"
#include "request/ids.h"

namespace ekiben {

struct SamplingParams {
  float temperature = 1.0f;         // >= 0; 0 is greedy
  int32_t top_k = 0;                // 0: all
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]: drop tokens under min_p x the best probability
  float repetition_penalty = 1.0f;  // > 0, multiplicative on logits, prompt and output tokens
  float presence_penalty = 0.0f;    // [-2, 2], output tokens
  float frequency_penalty = 0.0f;   // [-2, 2], per occurrence in the output
  uint64_t seed = 0;                // with the sequence index and the position it names every draw
  int32_t min_tokens = 0;           // until then end and stop tokens are masked
  int32_t logprobs = -1;            // -1: none; k: the chosen token's log-probability and the k best, k <= 20
  std::vector<std::pair<TokenId, float>> logit_bias;  // added to the logits; at most 1,024 entries
  std::vector<std::vector<TokenId>> bad_words;        // token sequences never completed; at most 256 of <= 64
  std::vector<TokenId> allowed_tokens;                // empty: all

  bool greedy() const { return temperature == 0.0f || top_k == 1; }
  bool needs_history() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f || !bad_words.empty();
  }
};

// Ranges as above, every float finite, ids inside [0, vocab_size). The error's field() is the parameter's name.
Result<void> Validate(const SamplingParams& params, int32_t vocab_size);

}  // namespace ekiben
