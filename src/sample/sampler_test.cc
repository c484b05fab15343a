#include "sample/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <random>

#include "sample/logit_scan.h"

namespace ekiben {
namespace {

std::vector<float> RandomLogits(int32_t count, uint32_t seed, float spread = 4.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) x = normal(rng);
  return out;
}

// Draws `count` tokens of consecutive positions from the same logits.
std::map<TokenId, int> DrawMany(const Request& request, const std::vector<float>& logits, int count) {
  Sampler sampler(1, static_cast<int32_t>(logits.size()), BestIsa());
  sampler.Bind({0}, request, 0, {});
  std::map<TokenId, int> seen;
  for (int i = 0; i < count; ++i) {
    std::vector<float> copy = logits;
    ++seen[sampler.Sample({0}, copy.data(), nullptr).token];
  }
  return seen;
}

// Allows the tokens of `allowed` in turn; ends failing when it is told another one.
class ScriptedConstraint final : public TokenConstraint, public std::enable_shared_from_this<ScriptedConstraint> {
 public:
  explicit ScriptedConstraint(std::vector<std::vector<TokenId>> allowed) : allowed_(std::move(allowed)) {}
  std::unique_ptr<TokenMatcher> NewMatcher() const override { return std::make_unique<Matcher>(shared_from_this()); }

 private:
  class Matcher final : public TokenMatcher {
   public:
    explicit Matcher(std::shared_ptr<const ScriptedConstraint> script) : script_(std::move(script)) {}
    Mask Allowed(std::span<int32_t> bits) override {
      if (at_ == script_->allowed_.size()) return Mask::kFailed;
      std::ranges::fill(bits, 0);
      for (TokenId token : script_->allowed_[at_])
        bits[static_cast<size_t>(token) / 32] |= static_cast<int32_t>(1u << (token % 32));
      return Mask::kSome;
    }
    bool Accept(TokenId token) override {
      const std::vector<TokenId>& allowed = script_->allowed_[at_++];
      return std::ranges::find(allowed, token) != allowed.end();
    }

   private:
    const std::shared_ptr<const ScriptedConstraint> script_;
    size_t at_ = 0;
  };
  const std::vector<std::vector<TokenId>> allowed_;
};

Request Constrained(std::vector<std::vector<TokenId>> allowed) {
  Request request;
  request.prompt = {1};
  request.max_tokens = 8;
  request.sampling.temperature = 0;
  request.constraint = std::make_shared<ScriptedConstraint>(std::move(allowed));
  return request;
}

TEST(Grammar, OnlyAllowedTokensAreChosenGreedyOrDrawn) {
  for (float temperature : {0.0f, 1.0f}) {
    Request request = Constrained({{3, 77}, {40}, {98, 99}});
    request.sampling.temperature = temperature;
    Sampler sampler(1, 100, BestIsa());
    sampler.Bind({0}, request, 0, {});
    for (const std::vector<TokenId>& allowed : {std::vector<TokenId>{3, 77}, {40}, {98, 99}}) {
      std::vector<float> logits = RandomLogits(100, 5);
      Sampler::Choice choice = sampler.Sample({0}, logits.data(), nullptr);
      EXPECT_TRUE(choice.finite);
      EXPECT_NE(std::ranges::find(allowed, choice.token), allowed.end()) << choice.token;
    }
    std::vector<float> logits = RandomLogits(100, 5);
    EXPECT_FALSE(sampler.Sample({0}, logits.data(), nullptr).finite) << "a matcher that failed ends the sequence";
  }
}

TEST(Grammar, WalksWhatWasGeneratedBeforeAPreemption) {
  Request request = Constrained({{3}, {40}, {98}});
  Sampler sampler(1, 100, BestIsa());
  sampler.Bind({0}, request, 0, std::vector<TokenId>{3, 40});
  std::vector<float> logits = RandomLogits(100, 5);
  EXPECT_EQ(sampler.Sample({0}, logits.data(), nullptr).token, 98);
}

TEST(Grammar, OutranksBansThatLeaveNothing) {
  Request request = Constrained({{3, 4}, {5}});
  request.sampling.logit_bias = {{3, -100.0f}};
  request.sampling.min_tokens = 4;
  request.stop_tokens = {5};
  Sampler sampler(1, 100, BestIsa());
  sampler.Bind({0}, request, 0, {});
  std::vector<float> logits = RandomLogits(100, 5);
  EXPECT_EQ(sampler.Sample({0}, logits.data(), nullptr).token, 4) << "a ban that leaves a choice holds";
  logits = RandomLogits(100, 5);
  EXPECT_EQ(sampler.Sample({0}, logits.data(), nullptr).token, 5) << "min_tokens cannot forbid the only way on";
}

TEST(Grammar, LogProbsAreTheModelsOwn) {
  Request request = Constrained({{3}});
  request.sampling.logprobs = 1;
  std::vector<float> logits = RandomLogits(100, 5), copy = logits;
  Sampler sampler(1, 100, BestIsa());
  sampler.Bind({0}, request, 0, {});
  PositionLogProbs got, wanted;
  EXPECT_EQ(sampler.Sample({0}, copy.data(), &got).token, 3);
  sampler.LogProbs(logits.data(), 3, 1, &wanted);
  EXPECT_EQ(got.chosen, wanted.chosen);
  EXPECT_EQ(got.best[0].token, wanted.best[0].token);
}

TEST(LogitScan, EveryInstructionSetGivesTheSameBits) {
  for (int32_t count : {1, 15, 64, 65, 1000, 49152}) {
    std::vector<float> logits = RandomLogits(count, 7);
    auto blocks = static_cast<size_t>((count + 63) / 64);
    std::vector<float> expected_blocks(blocks), blocks_out(blocks);
    RowSummary expected = SummarizeRow(Isa::kReference, logits.data(), count, expected_blocks.data());
    std::vector<float> expected_weights(logits.size()), weights(logits.size());
    std::vector<uint64_t> expected_sums(blocks), sums(blocks);
    uint64_t sum = ExpRow(Isa::kReference, logits.data(), count, expected.max, 0.7f, 1e-3f, expected_weights.data(),
                          expected_sums.data());
    for (int isa = 1; isa <= static_cast<int>(BestIsa()); ++isa) {
      RowSummary row = SummarizeRow(static_cast<Isa>(isa), logits.data(), count, blocks_out.data());
      EXPECT_EQ(row.max, expected.max);
      EXPECT_EQ(row.argmax, expected.argmax);
      EXPECT_EQ(blocks_out, expected_blocks);
      EXPECT_EQ(
          ExpRow(static_cast<Isa>(isa), logits.data(), count, expected.max, 0.7f, 1e-3f, weights.data(), sums.data()),
          sum);
      EXPECT_EQ(weights, expected_weights);
      EXPECT_EQ(sums, expected_sums);
    }
  }
}

TEST(LogitScan, ExpIsAccurate) {
  for (int i = 0; i <= 6313; ++i) {
    float x = -86.5f + 0.0137f * static_cast<float>(i);
    EXPECT_NEAR(ExpNonPositive(x) / std::exp(static_cast<double>(x)), 1.0, 3e-7);
  }
  EXPECT_EQ(ExpNonPositive(-100.0f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-std::numeric_limits<float>::infinity()), 0.0f);
}

TEST(Sampler, GreedyTakesTheLowestIndexOfTheMaximum) {
  Request request;
  request.sampling.temperature = 0;
  std::vector<float> logits = {1, 5, 3, 5};
  EXPECT_EQ(DrawMany(request, logits, 1).begin()->first, 1);
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  Request request;
  request.sampling.temperature = 0.8f;
  request.sampling.seed = 42;
  std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f};
  const int draws = 20000;
  auto seen = DrawMany(request, logits, draws);
  double total = 0;
  for (float l : logits) total += std::exp(l / 0.8);
  for (size_t i = 0; i < logits.size(); ++i) {
    double p = std::exp(logits[i] / 0.8) / total;
    EXPECT_NEAR(seen[static_cast<TokenId>(i)] / static_cast<double>(draws), p, 4 * std::sqrt(p * (1 - p) / draws));
  }
}

TEST(Sampler, FiltersKeepTheRightSet) {
  std::vector<float> logits = {std::log(0.5f), std::log(0.25f), std::log(0.15f), std::log(0.1f)};
  Request request;
  auto kept = [&] {
    std::vector<TokenId> out;
    for (auto [token, count] : DrawMany(request, logits, 2000)) out.push_back(token);
    return out;
  };
  request.sampling.top_k = 2;
  EXPECT_EQ(kept(), (std::vector<TokenId>{0, 1}));
  request.sampling = {};
  request.sampling.top_p = 0.7f;
  EXPECT_EQ(kept(), (std::vector<TokenId>{0, 1}));
  request.sampling.top_p = 0.76f;
  EXPECT_EQ(kept(), (std::vector<TokenId>{0, 1, 2}));
  request.sampling.top_p = 0.01f;
  EXPECT_EQ(kept(), (std::vector<TokenId>{0}));
  request.sampling = {};
  request.sampling.min_p = 0.25f;
  EXPECT_EQ(kept(), (std::vector<TokenId>{0, 1, 2}));
  request.sampling.top_k = 3;
  request.sampling.min_p = 0.4f;
  EXPECT_EQ(kept(), (std::vector<TokenId>{0, 1}));
  // top_p counts after top_k: 0.5 / 0.75 of the two is 0.667.
  request.sampling = {};
  request.sampling.top_k = 2;
  request.sampling.top_p = 0.66f;
  EXPECT_EQ(kept(), (std::vector<TokenId>{0}));
}

// The filtered draw against a full sort, on rows as large as a vocabulary.
TEST(Sampler, TopPAgreesWithAFullSort) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::vector<float> logits = RandomLogits(49152, seed, seed % 2 == 0 ? 0.5f : 3.0f);
    Request request;
    request.sampling.top_p = 0.9f;
    request.sampling.seed = seed;
    std::vector<std::pair<double, TokenId>> sorted;
    double total = 0, max = *std::max_element(logits.begin(), logits.end());
    for (size_t i = 0; i < logits.size(); ++i) {
      double p = std::exp(logits[i] - max);
      total += p;
      sorted.emplace_back(-p, static_cast<TokenId>(i));
    }
    std::sort(sorted.begin(), sorted.end());
    std::map<TokenId, bool> allowed;
    double sum = 0;
    for (auto [p, token] : sorted) {
      allowed[token] = true;
      sum -= p;
      if (sum >= 0.9001 * total) break;
    }
    for (auto [token, count] : DrawMany(request, logits, 50)) EXPECT_TRUE(allowed.contains(token)) << token;
  }
}

TEST(Sampler, SameSeedSameTokensAndPreemptionChangesNothing) {
  Request request;
  request.sampling.seed = 9;
  request.sampling.repetition_penalty = 1.3f;
  request.sampling.frequency_penalty = 0.4f;
  request.prompt = {3, 4};
  request.max_tokens = 32;
  auto logits = [](int position) { return RandomLogits(256, static_cast<uint32_t>(position), 1.5f); };
  Sampler sampler(2, 256, BestIsa());
  sampler.Bind({0}, request, 0, {});
  std::vector<TokenId> straight;
  for (int i = 0; i < 32; ++i) {
    auto row = logits(i);
    straight.push_back(sampler.Sample({0}, row.data(), nullptr).token);
  }
  std::vector<TokenId> resumed(straight.begin(), straight.begin() + 11);
  sampler.Bind({1}, request, 0, resumed);
  for (int i = 11; i < 32; ++i) {
    auto row = logits(i);
    resumed.push_back(sampler.Sample({1}, row.data(), nullptr).token);
  }
  EXPECT_EQ(resumed, straight);
  sampler.Bind({1}, request, 1, {});
  std::vector<TokenId> sibling;
  for (int i = 0; i < 32; ++i) {
    auto row = logits(i);
    sibling.push_back(sampler.Sample({1}, row.data(), nullptr).token);
  }
  EXPECT_NE(sibling, straight);
}

TEST(Sampler, RulesMaskAndBias) {
  std::vector<float> logits = {0, 1, 2, 3};
  Request request;
  request.sampling.temperature = 0;
  request.sampling.logit_bias = {{3, -100.0f}};
  EXPECT_EQ(DrawMany(request, logits, 1).begin()->first, 2);
  request.sampling = {};
  request.sampling.temperature = 0;
  request.sampling.allowed_tokens = {0, 1};
  EXPECT_EQ(DrawMany(request, logits, 1).begin()->first, 1);
  request.sampling = {};
  request.sampling.temperature = 0;
  request.sampling.min_tokens = 1;
  request.stop_tokens = {3};
  auto seen = DrawMany(request, logits, 2);  // first without, then with the stop token
  EXPECT_EQ(seen[2], 1);
  EXPECT_EQ(seen[3], 1);
  request.sampling = {};
  request.sampling.temperature = 0;
  request.sampling.bad_words = {{3, 3}};
  seen = DrawMany(request, logits, 3);  // 3, then not 3, then 3 again
  EXPECT_EQ(seen[3], 2);
  EXPECT_EQ(seen[2], 1);
}

TEST(Sampler, PenaltiesAreThePublishedFormulas) {
  Request request;
  request.sampling.temperature = 0;
  request.sampling.repetition_penalty = 2.0f;
  request.prompt = {0};
  EXPECT_EQ(DrawMany(request, {3.0f, 2.0f}, 1).begin()->first, 1);    // 3 / 2 < 2
  EXPECT_EQ(DrawMany(request, {-1.0f, -1.5f}, 1).begin()->first, 1);  // -1 * 2 < -1.5
  request.sampling = {};
  request.sampling.temperature = 0;
  request.sampling.presence_penalty = 1.5f;
  EXPECT_EQ(DrawMany(request, {3.0f, 2.0f}, 1).begin()->first, 0);  // the prompt does not count for presence
}

TEST(Sampler, LogProbsAreOfTheRawLogits) {
  Request request;
  request.sampling.temperature = 0;
  request.sampling.logprobs = 2;
  request.sampling.logit_bias = {{0, 50.0f}};
  Sampler sampler(1, 4, BestIsa());
  sampler.Bind({0}, request, 0, {});
  std::vector<float> logits = {0, 1, 2, 3};
  PositionLogProbs out;
  EXPECT_EQ(sampler.Sample({0}, logits.data(), &out).token, 0);
  double total = 1 + std::exp(1.0) + std::exp(2.0) + std::exp(3.0);
  EXPECT_NEAR(out.chosen, -std::log(total), 1e-5);
  ASSERT_EQ(out.count, 2);
  EXPECT_EQ(out.best[0].token, 3);
  EXPECT_NEAR(out.best[0].logprob, 3 - std::log(total), 1e-5);
  EXPECT_EQ(out.best[1].token, 2);
}

TEST(Sampler, NotFiniteIsTheRowsFailure) {
  Request request;
  Sampler sampler(1, 4, BestIsa());
  sampler.Bind({0}, request, 0, {});
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits = {0, bad, 2, 3};
    EXPECT_FALSE(sampler.Sample({0}, logits.data(), nullptr).finite);
  }
  EXPECT_EQ(sampler.generated_count({0}), 0);
}

}  // namespace
}  // namespace ekiben
