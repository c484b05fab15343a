#include "backend/slot_sampling.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <set>

#include "base/check.h"

namespace ekiben {
namespace {

// One rule a thread of the kernel.
constexpr size_t kRulesMax = 1024;

size_t RuleWords(const Request& request) {
  const SamplingParams& s = request.sampling;
  size_t words = 2 * s.logit_bias.size() + request.stop_tokens.size();
  for (const std::vector<TokenId>& word : s.bad_words) words += 2 + word.size();
  return words;
}

bool NamesATokenTwice(const std::vector<std::pair<TokenId, float>>& bias) {
  std::set<TokenId> seen;
  return std::ranges::any_of(bias, [&](const auto& entry) { return !seen.insert(entry.first).second; });
}

}  // namespace

bool IsPenalized(const SamplingParams& s) {
  return s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
}

bool IsPlainGreedy(const Request& request) {
  const SamplingParams& s = request.sampling;
  const bool masks_ends = s.min_tokens > 0 && !request.stop_tokens.empty();
  return s.greedy() && !s.needs_history() && !masks_ends && s.logprobs < 0 && s.logit_bias.empty() &&
         s.allowed_tokens.empty() && !request.prompt_logprobs && request.constraint == nullptr;
}

bool DeviceSamples(const Request& request) {
  const SamplingParams& s = request.sampling;
  return request.constraint == nullptr && s.allowed_tokens.empty() && !request.prompt_logprobs &&
         s.logit_bias.size() <= kRulesMax && request.stop_tokens.size() <= kRulesMax &&
         s.bad_words.size() <= kRulesMax && RuleWords(request) <= static_cast<size_t>(cuda::kRuleWords) &&
         !NamesATokenTwice(s.logit_bias);
}

int32_t WriteSlotSampling(const Request& request, int32_t sequence_index, std::span<const TokenId> generated,
                          const SlotMemory& out) {
  CHECK_LE(RuleWords(request), out.rules.size());
  const SamplingParams& s = request.sampling;
  const size_t prompt = request.prompt.size(), all = prompt + generated.size();
  *out.parameters = {.seed = s.seed,
                     .sequence_index = static_cast<uint32_t>(sequence_index),
                     .inverse_temperature = s.greedy() ? 0.0f : 1.0f / s.temperature,
                     .top_k = s.top_k,
                     .top_p = s.top_p,
                     .min_p = s.min_p,
                     .repetition_penalty = s.repetition_penalty,
                     .presence_penalty = s.presence_penalty,
                     .frequency_penalty = s.frequency_penalty,
                     .penalized = IsPenalized(s),
                     .logprobs = s.logprobs,
                     .min_tokens = s.min_tokens,
                     .bias_count = static_cast<int32_t>(s.logit_bias.size()),
                     .stop_count = static_cast<int32_t>(request.stop_tokens.size()),
                     .word_count = static_cast<int32_t>(s.bad_words.size()),
                     .generated = static_cast<int32_t>(generated.size()),
                     .tail_count = static_cast<int32_t>(all)};
  int32_t* at = out.rules.data();
  for (auto [token, bias] : s.logit_bias) {
    *at++ = token;
    *at++ = std::bit_cast<int32_t>(bias);
  }
  at = std::ranges::copy(request.stop_tokens, at).out;
  int32_t* offsets = at;
  at += s.bad_words.size();
  for (const std::vector<TokenId>& word : s.bad_words) {
    *offsets++ = static_cast<int32_t>(at - out.rules.data());
    *at++ = static_cast<int32_t>(word.size());
    at = std::ranges::copy(word, at).out;
  }
  constexpr size_t kTail = cuda::kTailTokens;
  if (!s.bad_words.empty()) {
    for (size_t i = all > kTail ? all - kTail : 0; i < all; ++i)
      out.tail[i % kTail] = i < prompt ? request.prompt[i] : generated[i - prompt];
  }
  return static_cast<int32_t>(at - out.rules.data());
}

}  // namespace ekiben
