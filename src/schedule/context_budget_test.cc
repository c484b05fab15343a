#include "schedule/context_budget.h"

#include <gtest/gtest.h>

namespace ekiben {
namespace {

using std::chrono::milliseconds;

// Flat to 128 tokens, then 20 us a token; a pair costs 2 ns.
StepCosts Table() {
  const StepCost table[] = {
      {64, milliseconds(5)}, {128, milliseconds(5)}, {1128, milliseconds(25)}, {2128, milliseconds(45)}};
  return {table, 2.0};
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
  EXPECT_EQ(StepCosts(table, 0).Linears(128), 6e6);
}

TEST(StepCosts, LearnWhatARowAndAPairCost) {
  StepCosts costs = Table();
  for (int i = 0; i < 100; ++i) costs.Observe(64, 0, 0, milliseconds(7));
  EXPECT_NEAR(costs.Generation(64), 7e6, 1e3);
  EXPECT_NEAR(costs.Generation(32), 6e6, 1e3);
  StepCosts slow = costs;
  slow.Observe(64, 90, ContextPairs(0, 90), milliseconds(20));
  EXPECT_EQ(slow.pair_nanos(), 2.0) << "a short prompt says nothing about pairs";
  EXPECT_GT(slow.Linears(628), costs.Linears(628)) << "but what linears take now";
  for (int i = 0; i < 100; ++i) slow.Observe(0, 628, ContextPairs(0, 90), milliseconds(1000));
  EXPECT_LT(slow.Linears(628), 31e6) << "within reason";
  // 64 + 564 tokens: 15 ms and 2 ms of rows; 564 tokens at 8,000 add 4.67 million pairs, here 10 ms.
  double pairs = ContextPairs(8000, 564);
  for (int i = 0; i < 100; ++i) costs.Observe(64, 564, pairs, milliseconds(27));
  EXPECT_NEAR(costs.pair_nanos() * pairs, 10e6, 1e4);
}

TEST(ContextAllowance, FillsTheStepUpToItsBound) {
  StepCosts costs = Table();
  ContextAllowance limit{&costs, 10e6};
  // 5 ms of room are 250 tokens beyond the 128 that cost nothing, less what their pairs take.
  EXPECT_EQ((ContextAllowance{&costs, 5e6}.TokensAt(0, 1000, 28, 0, 0)), 0);
  int32_t at_start = limit.TokensAt(0, 1000, 28, 0, 0), late = limit.TokensAt(8000, 1000, 28, 0, 0);
  EXPECT_NEAR(at_start, 347, 5);
  EXPECT_LT(late, at_start);
  EXPECT_LE(costs.Mixed(28, late, ContextPairs(8000, late)), 10e6);
  EXPECT_GT(costs.Mixed(28, late + 1, ContextPairs(8000, late + 1)), 10e6);
  EXPECT_EQ(limit.TokensAt(0, 100, 28, 0, 0), 100) << "no more than wanted";
  EXPECT_NEAR(limit.TokensAt(0, 1000, 28, 100, ContextPairs(0, 100)), at_start - 100, 30) << "what is planned counts";
  EXPECT_EQ(ContextAllowance{}.TokensAt(0, 1000, 28, 0, 0), 1000);
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
  EXPECT_EQ(bound(milliseconds(200), 100, Nanos(0)), 9.5e6) << "it has waited";
  EXPECT_EQ(bound(milliseconds(0), 8192, Nanos(0)), 9.5e6) << "it is long";
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
