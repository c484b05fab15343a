#include "schedule/context_budget.h"

#include <gtest/gtest.h>

namespace ekiben {
namespace {

using std::chrono::milliseconds;

const StepCost kTable[] = {
    {64, milliseconds(5)}, {128, milliseconds(5)}, {1128, milliseconds(25)}, {2128, milliseconds(45)}};

// Flat to 128 tokens, then 20 us a token; what attention of context costs is not measured, and learnt as 2 ns a pair.
StepCosts Table() {
  StepCosts costs{kTable};
  ContextWork chunk = costs.With({}, 4096, 512);
  Nanos time(static_cast<int64_t>(costs.Linears(512) + 2 * chunk.pairs));
  for (int i = 0; i < 200; ++i) costs.Observe(0, chunk, time);
  return costs;
}

// The same linears; attention in stairs of 256 tokens, 250 ns a key each.
StepCosts Stairs() {
  AttentionCosts attention;
  for (int32_t tokens = 64; tokens <= 512; tokens += 64)
    attention.chunks.push_back({tokens, tokens <= 256 ? 250.0 : 500.0});
  attention.nanos_a_step = 3e5;
  return StepCosts(kTable, attention);
}

TEST(StepCosts, AreOnTheLinesBetweenMeasuredSizes) {
  StepCosts costs = Table();
  EXPECT_EQ(costs.Linears(1), 5e6);
  EXPECT_EQ(costs.Linears(100), 5e6);
  EXPECT_EQ(costs.Linears(628), 15e6);
  EXPECT_EQ(costs.Linears(2128), 45e6);
  EXPECT_EQ(costs.Linears(4256), 90e6);
  EXPECT_FALSE(StepCosts().known());
}

TEST(StepCosts, MoreTokensAreNeverFasterWhateverWasMeasured) {
  const StepCost table[] = {{64, milliseconds(6)}, {128, milliseconds(5)}};
  EXPECT_EQ(StepCosts(table).Linears(128), 6e6);
}

TEST(StepCosts, LearnWhatARowAndAPairCost) {
  StepCosts costs = Table();
  for (int i = 0; i < 100; ++i) costs.Observe(64, {}, milliseconds(7));
  EXPECT_NEAR(costs.Generation(64), 7e6, 1e3);
  EXPECT_NEAR(costs.Generation(32), 6e6, 1e3);
  StepCosts slow = costs;
  const double a_pair = slow.attention_scale();
  EXPECT_NEAR(a_pair, 2, 1e-6);
  slow.Observe(64, slow.With({}, 0, 90), milliseconds(20));
  EXPECT_EQ(slow.attention_scale(), a_pair) << "a short prompt says nothing about pairs";
  EXPECT_GT(slow.Linears(628), costs.Linears(628)) << "but what linears take now";
  for (int i = 0; i < 100; ++i) slow.Observe(0, slow.With({}, 0, 90), milliseconds(1000));
  EXPECT_LT(slow.Linears(628), 31e6) << "within reason";
  // 64 + 564 tokens: 15 ms and 2 ms of rows; 564 tokens at 8,000 add 4.67 million pairs, here 10 ms.
  ContextWork chunk = costs.With({}, 8000, 564);
  for (int i = 0; i < 100; ++i) costs.Observe(64, chunk, milliseconds(27));
  EXPECT_NEAR(costs.attention_scale() * chunk.pairs, 10e6, 1e4);
}

TEST(StepCosts, BelieveWhatWasMeasuredOfAttentionAndCorrectIt) {
  StepCosts costs = Stairs();
  EXPECT_EQ(costs.Mixed(0, costs.With({}, 0, 128)), 5e6 + 3e5 + 250 * 64.5);
  auto attention = [&](int32_t position, int32_t tokens) { return costs.With({}, position, tokens).attention; };
  EXPECT_EQ(attention(8000, 200), 250 * 8100.5) << "a step of the stairs for every size up to it";
  EXPECT_EQ(attention(8000, 257), 500 * 8129.0);
  EXPECT_EQ(attention(8000, 1024), 1000 * 8512.5) << "in proportion beyond the last";
  ContextWork two = costs.With(costs.With({}, 8000, 200), 0, 100);
  EXPECT_EQ(two.tokens, 300);
  EXPECT_EQ(two.attention, attention(8000, 200) + attention(0, 100));
  ContextWork deep = costs.With({}, 8000, 256);
  Nanos predicted(static_cast<int64_t>(costs.Mixed(0, deep)));
  costs.Observe(0, deep, predicted);
  EXPECT_NEAR(costs.attention_scale(), 1, 1e-3);
  const double generation = costs.Generation(64);
  for (int i = 0; i < 100; ++i) costs.Observe(0, deep, predicted + milliseconds(1));
  EXPECT_NEAR(costs.Mixed(0, deep), static_cast<double>(predicted.count()) + 1e6, 1e4);
  EXPECT_GT(costs.Linears(256), 1.09 * 7.56e6) << "the larger part has most of the error";
  EXPECT_LT(costs.attention_scale(), 1.1);
  EXPECT_EQ(costs.Generation(64), generation) << "a bound in generation steps does not grow with it";
  for (int i = 0; i < 1000; ++i) costs.Observe(0, deep, milliseconds(1000));
  EXPECT_LE(costs.attention_scale(), 2) << "within reason";
}

TEST(ContextAllowance, FillsTheStepUpToItsBound) {
  StepCosts costs = Table();
  ContextAllowance limit{&costs, 10e6};
  const ContextWork none{};
  // 5 ms of room are 250 tokens beyond the 128 that cost nothing, less what their pairs take.
  EXPECT_EQ((ContextAllowance{&costs, 5e6}.TokensAt(0, 1000, 28, none)), 0);
  int32_t at_start = limit.TokensAt(0, 1000, 28, none), late = limit.TokensAt(8000, 1000, 28, none);
  EXPECT_NEAR(at_start, 347, 5);
  EXPECT_LT(late, at_start);
  EXPECT_LE(costs.Mixed(28, costs.With(none, 8000, late)), 10e6);
  EXPECT_GT(costs.Mixed(28, costs.With(none, 8000, late + 1)), 10e6);
  EXPECT_EQ(limit.TokensAt(0, 100, 28, none), 100) << "no more than wanted";
  EXPECT_NEAR(limit.TokensAt(0, 1000, 28, costs.With(none, 0, 100)), at_start - 100, 30) << "what is planned counts";
  EXPECT_EQ(ContextAllowance{}.TokensAt(0, 1000, 28, none), 1000);
}

TEST(ContextAllowance, StopsBelowAStepOfTheStairs) {
  StepCosts costs = Stairs();
  // 64 rows and 256 tokens take 8.84 ms, and 2.03 ms at 8,000 keys; one token more adds two milliseconds.
  EXPECT_EQ((ContextAllowance{&costs, 12e6}.TokensAt(7872, 1000, 64, {})), 256);
  EXPECT_GT((ContextAllowance{&costs, 14e6}.TokensAt(7872, 1000, 64, {})), 256);
}

TEST(AllowanceFor, IsAHalfMoreThanAGenerationStepUnlessABoundIsGiven) {
  StepCosts costs = Table();
  EXPECT_EQ(AllowanceFor(costs, 64, Nanos(0), {}).nanos_max, 7.5e6);
  EXPECT_EQ(AllowanceFor(costs, 64, milliseconds(30), {}).nanos_max, 30e6);
  EXPECT_EQ(AllowanceFor(costs, 0, milliseconds(30), {}).costs, nullptr) << "nobody waits for a next token";
  EXPECT_EQ(AllowanceFor(StepCosts(), 64, milliseconds(30), {}).costs, nullptr) << "nothing is known";
}

TEST(AllowanceFor, WidensWhileTheOldestPromptHasLong) {
  StepCosts costs = Table();
  auto bound = [&](Nanos waited, int32_t tokens, Nanos given) {
    return AllowanceFor(costs, 64, given, {waited, 0, tokens, tokens}).nanos_max;
  };
  EXPECT_EQ(bound(milliseconds(0), 100, Nanos(0)), 7.5e6);
  EXPECT_EQ(bound(milliseconds(200), 100, Nanos(0)), 9.25e6) << "it has waited";
  EXPECT_EQ(bound(milliseconds(0), 8192, Nanos(0)), 9.25e6) << "it is long";
  EXPECT_EQ(bound(milliseconds(0), 8192, milliseconds(6)), 6e6) << "a bound that was given stays";
}

TEST(AllowanceFor, GivesWayWhenTheOldestPromptWouldBeLate) {
  StepCosts costs = Table();
  auto limited = [&](Nanos waited, int32_t tokens) {
    return AllowanceFor(costs, 64, Nanos(0), {waited, 0, tokens, tokens}).costs != nullptr;
  };
  EXPECT_TRUE(limited(milliseconds(0), 100));
  EXPECT_TRUE(limited(milliseconds(400), 100));
  EXPECT_FALSE(limited(milliseconds(600), 100));
  EXPECT_TRUE(limited(milliseconds(0), 8192)) << "a long prompt has longer";
  EXPECT_FALSE(limited(milliseconds(900), 8192));
}

}  // namespace
}  // namespace ekiben
