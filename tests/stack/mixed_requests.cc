#include "stack/mixed_requests.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace ekiben {
namespace {

constexpr int32_t kPrefixes = 4;

class Mixer {
 public:
  Mixer(const MixedRequestLimits& limits, std::span<const TokenId> text, uint64_t seed)
      : limits_(limits), text_(text), rng_(seed) {
    for (int32_t i = 0; i < kPrefixes; ++i) prefixes_.push_back(Cut(limits_.prompt_tokens_max * (i + 1) / 8));
  }

  std::vector<TokenId> Prompt() {
    int32_t length = Length(limits_.prompt_tokens_max);
    if (Chance(0.4)) {
      std::vector<TokenId> prompt = prefixes_[Below(kPrefixes)];
      std::vector<TokenId> own = Cut(std::max(1, std::min(length, limits_.prompt_tokens_max - Size(prompt))));
      prompt.insert(prompt.end(), own.begin(), own.end());
      return prompt;
    }
    return Chance(0.25) ? Noise(length) : Cut(length);
  }

  SamplingParams Sampling(int32_t max_tokens) {
    SamplingParams s;
    s.seed = rng_();
    if (Chance(0.4)) {
      s.temperature = 0;
    } else {
      s.temperature = Uniform(0.3f, 1.4f);
      if (Chance(0.5)) s.top_k = 1 + static_cast<int32_t>(Below(60));
      if (Chance(0.5)) s.top_p = Uniform(0.5f, 1.0f);
      if (Chance(0.2)) s.min_p = Uniform(0.0f, 0.2f);
    }
    if (Chance(0.3)) s.repetition_penalty = Uniform(0.9f, 1.4f);
    if (Chance(0.2)) s.presence_penalty = Uniform(-0.5f, 1.5f);
    if (Chance(0.2)) s.frequency_penalty = Uniform(-0.2f, 1.0f);
    if (Chance(0.2)) s.min_tokens = static_cast<int32_t>(Below(static_cast<size_t>(max_tokens) + 1));
    if (Chance(0.25)) s.logprobs = static_cast<int32_t>(Below(6));
    if (Chance(0.1)) s.logit_bias = {{Token(), 3.0f}, {Token(), -50.0f}};
    if (Chance(0.1)) s.bad_words = {{Token()}, {Token(), Token()}};
    return s;
  }

  int32_t Length(int32_t max) {  // each doubling as likely as the next
    return std::clamp(static_cast<int32_t>(std::exp2(Uniform(0, std::log2(static_cast<float>(max) + 1)))), 1, max);
  }
  bool Chance(double p) { return std::uniform_real_distribution<>(0, 1)(rng_) < p; }
  size_t Below(size_t n) { return rng_() % n; }

 private:
  static int32_t Size(const std::vector<TokenId>& tokens) { return static_cast<int32_t>(tokens.size()); }
  float Uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(rng_); }
  TokenId Token() { return static_cast<TokenId>(Below(static_cast<size_t>(limits_.vocab_size))); }
  std::vector<TokenId> Cut(int32_t length) {
    auto count = static_cast<size_t>(length);
    auto from = text_.subspan(Below(text_.size() - count + 1), count);
    return {from.begin(), from.end()};
  }
  std::vector<TokenId> Noise(int32_t length) {
    std::vector<TokenId> out(static_cast<size_t>(length));
    for (TokenId& token : out) token = Token();
    return out;
  }

  const MixedRequestLimits limits_;
  std::span<const TokenId> text_;
  std::mt19937_64 rng_;
  std::vector<std::vector<TokenId>> prefixes_;
};

}  // namespace

std::vector<std::shared_ptr<const Request>> MixedRequests(const MixedRequestLimits& limits,
                                                          std::span<const TokenId> text,
                                                          const std::vector<TokenId>& end_tokens, uint64_t seed) {
  Mixer mixer(limits, text, seed);
  std::vector<std::shared_ptr<const Request>> out;
  for (int32_t i = 0; i < limits.count; ++i) {
    auto request = std::make_shared<Request>();
    request->id = {static_cast<uint64_t>(i) + 1};
    request->prompt = mixer.Prompt();
    request->max_tokens = mixer.Length(limits.output_tokens_max);
    request->n = mixer.Chance(0.1) ? 2 + static_cast<int32_t>(mixer.Below(2)) : 1;
    request->sampling = mixer.Sampling(request->max_tokens);
    request->prompt_logprobs = mixer.Chance(0.05);
    request->stop_tokens = end_tokens;
    request->ignore_eos = mixer.Chance(0.5);
    request->priority = static_cast<int32_t>(mixer.Below(3));
    out.push_back(std::move(request));
  }
  return out;
}

}  // namespace ekiben
