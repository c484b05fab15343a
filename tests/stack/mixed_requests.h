// A crowd of different requests from a seed: what people send, side by side.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "request/request.h"

namespace ekiben {

struct MixedRequestLimits {
  int32_t count = 200;
  int32_t prompt_tokens_max = 600, output_tokens_max = 96;
  int32_t vocab_size = 0;
};

// Greedy and seeded ones, with filters, penalties, biases and bad words; prompts of one token to the limit, two in five
// of them behind one of a few shared prefixes; some with n > 1, some with log-probabilities, of the prompt too.
// `text`: real tokens that prompts are cut from, at least prompt_tokens_max of them; every fourth is of random ids.
std::vector<std::shared_ptr<const Request>> MixedRequests(const MixedRequestLimits& limits,
                                                          std::span<const TokenId> text,
                                                          const std::vector<TokenId>& end_tokens, uint64_t seed);

}  // namespace ekiben
