#include "backend/slot_sampling.h"

#include <gtest/gtest.h>

#include "backend/sampling_cases_for_test.h"

namespace ekiben {
namespace {

TEST(SlotSampling, KnowsWhatTheDeviceServes) {
  EXPECT_TRUE(IsPlainGreedy(Plain(0)));
  EXPECT_FALSE(IsPlainGreedy(Plain(1)));
  Request request = Plain(0);
  request.sampling.logprobs = 0;
  EXPECT_FALSE(IsPlainGreedy(request));
  EXPECT_TRUE(DeviceSamples(request));
  request.sampling.allowed_tokens = {1};
  EXPECT_FALSE(DeviceSamples(request));
  request = Plain(1);
  request.prompt_logprobs = true;
  EXPECT_FALSE(DeviceSamples(request));
  request = Plain(1);
  request.sampling.logit_bias = {{5, 1.0f}, {6, 2.0f}};
  EXPECT_TRUE(DeviceSamples(request));
  request.sampling.logit_bias.push_back({5, 3.0f});
  EXPECT_FALSE(DeviceSamples(request)) << "which comes first would count";
  request = Plain(1);
  request.sampling.bad_words.assign(256, std::vector<TokenId>(64, 7));
  EXPECT_FALSE(DeviceSamples(request)) << "more words than a slot has room for";
  request.sampling.bad_words.assign(200, std::vector<TokenId>(4, 7));
  EXPECT_TRUE(DeviceSamples(request));
}

TEST(SlotSampling, ListsStandOneAfterTheOtherAndTheTailIsARing) {
  Request request = Plain(1);
  request.prompt.assign(70, 9);
  request.stop_tokens = {7, 8};
  request.sampling.logit_bias = {{5, 1.5f}};
  request.sampling.bad_words = {{1, 2, 3}, {4}};
  cuda::SlotSampling p;
  std::vector<int32_t> rules(cuda::kRuleWords, -1), tail(cuda::kTailTokens, -1);
  const std::vector<TokenId> generated = {11, 12};
  int32_t words = WriteSlotSampling(request, 2, generated, {&p, rules, tail});
  ASSERT_EQ(words, 2 + 2 + 2 + 4 + 2);
  EXPECT_EQ(rules[0], 5);
  EXPECT_EQ(rules[2], 7);
  EXPECT_EQ(rules[3], 8);
  EXPECT_EQ(rules[4], 6) << "where the first word's length stands";
  EXPECT_EQ(rules[6], 3);
  EXPECT_EQ(rules[9], 3) << "its last token";
  EXPECT_EQ(rules[5], 10);
  EXPECT_EQ(rules[10], 1);
  EXPECT_EQ(p.tail_count, 72);
  EXPECT_EQ(p.generated, 2);
  EXPECT_EQ(tail[70 % cuda::kTailTokens], 11);
  EXPECT_EQ(tail[71 % cuda::kTailTokens], 12);
  EXPECT_EQ(tail[69 % cuda::kTailTokens], 9);
}

}  // namespace
}  // namespace ekiben
