#include "request/sampling_params.h"

#include <cmath>

namespace ekiben {
namespace {

Result<void> InRange(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return {};
  return Error(Code::kInvalid, fmt::format("{}: {} is outside [{}, {}]", name, value, low, high), name);
}

Result<void> TokenInRange(const char* name, TokenId token, int32_t vocab_size) {
  if (token >= 0 && token < vocab_size) return {};
  return Error(Code::kInvalid, fmt::format("{}: token id {} is outside [0, {})", name, token, vocab_size), name);
}

Result<void> CountAtMost(const char* name, size_t count, size_t limit) {
  if (count <= limit) return {};
  return Error(Code::kInvalid, fmt::format("{}: {} entries, the limit is {}", name, count, limit), name);
}

}  // namespace

Result<void> Validate(const SamplingParams& p, int32_t vocab_size) {
  RETURN_IF_ERROR(InRange("temperature", p.temperature, 0, 100));
  RETURN_IF_ERROR(InRange("top_k", p.top_k, 0, vocab_size));
  RETURN_IF_ERROR(InRange("top_p", p.top_p, 0, 1));
  if (p.top_p == 0) return Error(Code::kInvalid, "top_p: 0 keeps no token; use a value in (0, 1]", "top_p");
  RETURN_IF_ERROR(InRange("min_p", p.min_p, 0, 1));
  RETURN_IF_ERROR(InRange("repetition_penalty", p.repetition_penalty, 1e-3, 100));
  RETURN_IF_ERROR(InRange("presence_penalty", p.presence_penalty, -2, 2));
  RETURN_IF_ERROR(InRange("frequency_penalty", p.frequency_penalty, -2, 2));
  RETURN_IF_ERROR(InRange("min_tokens", p.min_tokens, 0, 1 << 24));
  RETURN_IF_ERROR(InRange("logprobs", p.logprobs, -1, 20));
  RETURN_IF_ERROR(CountAtMost("logit_bias", p.logit_bias.size(), 1024));
  for (const auto& [token, bias] : p.logit_bias) {
    RETURN_IF_ERROR(TokenInRange("logit_bias", token, vocab_size));
    RETURN_IF_ERROR(InRange("logit_bias", bias, -100, 100));
  }
  RETURN_IF_ERROR(CountAtMost("bad_words", p.bad_words.size(), 256));
  for (const auto& word : p.bad_words) {
    RETURN_IF_ERROR(CountAtMost("bad_words", word.size(), 64));
    if (word.empty()) return Error(Code::kInvalid, "bad_words: an empty word", "bad_words");
    for (TokenId token : word) RETURN_IF_ERROR(TokenInRange("bad_words", token, vocab_size));
  }
  RETURN_IF_ERROR(CountAtMost("allowed_token_ids", p.allowed_tokens.size(), static_cast<size_t>(vocab_size)));
  for (TokenId token : p.allowed_tokens) RETURN_IF_ERROR(TokenInRange("allowed_token_ids", token, vocab_size));
  return {};
}

}  // namespace ekiben
