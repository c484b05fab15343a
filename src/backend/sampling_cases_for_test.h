// Rows of logits and requests that together reach every rule, filter and shape of a distribution: for comparing
// samplers.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "request/request.h"

namespace ekiben {

inline Request Plain(float temperature) {
  Request request;
  request.prompt = {1, 2, 3};
  request.max_tokens = 64;
  request.sampling.temperature = temperature;
  return request;
}

// Rows as models make them and as they do not: any spread, with equal logits, nearly one peak, all the same.
inline std::vector<float> RowOfLogits(int32_t vocab, int32_t kind, uint32_t seed) {
  std::mt19937 random(seed);
  const float spreads[] = {1.3f, 0.02f, 4.0f, 12.0f, 2.0f, 1.0f, 0.5f};
  std::normal_distribution<float> normal(0, spreads[kind % 7]);
  std::vector<float> out(static_cast<size_t>(vocab));
  for (float& x : out) {
    x = normal(random);
    if (kind % 7 == 4) x = std::round(x * 4) / 4;
    if (kind % 7 == 5) x = 3.5f;
  }
  if (kind % 7 == 6) out[random() % out.size()] = 15.0f;
  return out;
}

inline Request RandomRequest(int32_t kind, int32_t vocab, std::mt19937& random) {
  auto token = [&] { return static_cast<TokenId>(random() % static_cast<unsigned>(vocab)); };
  Request request = Plain(std::array{1.0f, 0.7f, 0.0f, 1.5f, 100.0f, 0.05f}[static_cast<size_t>(kind) % 6]);
  SamplingParams& s = request.sampling;
  s.seed = random() * uint64_t{0x100000001};
  for (int i = 0; i < 40; ++i) request.prompt.push_back(token() % 50);
  if (kind % 2 == 1) s.top_k = std::array{1, 5, 50, 900, 40000, 3}[static_cast<size_t>(kind / 2) % 6];
  if (kind % 3 == 1) s.top_p = std::array{0.9f, 0.95f, 0.1f, 0.999f, 0.5f}[static_cast<size_t>(kind / 3) % 5];
  if (kind % 5 == 1) s.min_p = 0.02f;
  if (kind % 4 == 2) s.repetition_penalty = 1.3f;
  if (kind % 7 == 3) s.presence_penalty = 0.7f, s.frequency_penalty = 0.31f;
  if (kind % 3 == 2) s.logprobs = kind % 21;
  if (kind % 6 == 4) {
    for (int i = 0; i < 20; ++i)
      s.logit_bias.emplace_back((token() / 32 * 32 + i) % vocab, i % 3 == 0 ? -100.0f : 1.7f);
    std::sort(s.logit_bias.begin(), s.logit_bias.end());
    auto twice = [](const auto& a, const auto& b) { return a.first == b.first; };
    s.logit_bias.erase(std::unique(s.logit_bias.begin(), s.logit_bias.end(), twice), s.logit_bias.end());
  }
  if (kind % 5 == 2) {
    s.min_tokens = 5;
    for (int i = 0; i < 4; ++i) request.stop_tokens.push_back(token());
  }
  if (kind % 4 == 3)
    for (int i = 0; i < 30; ++i)
      s.bad_words.push_back(i % 2 == 0 ? std::vector{token()} : std::vector{i % 50, token()});
  return request;
}

inline void ExpectSameLogProbs(const PositionLogProbs& a, const PositionLogProbs& b) {
  EXPECT_NEAR(a.chosen, b.chosen, 1e-5);
  ASSERT_EQ(a.count, b.count);
  for (int i = 0; i < a.count; ++i) {
    EXPECT_EQ(a.best[i].token, b.best[i].token) << i;
    EXPECT_NEAR(a.best[i].logprob, b.best[i].logprob, 1e-5) << i;
  }
}

}  // namespace ekiben
