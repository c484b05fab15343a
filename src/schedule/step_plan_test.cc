#include "schedule/step_plan.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

namespace ekiben {
namespace {

TEST(StepPlan, CountsContextAndGenerationTokens) {
  StepPlan plan({.rows = 4, .tokens = 8, .table_edits = 4, .copies = 2});
  std::array<TokenId, 3> chunk = {5, 6, 7};
  plan.AddContextRow({1}, {0}, 0, chunk, OutputKind::kSample);
  plan.AddGenerationRow({2}, {1}, 10, OutputKind::kSample);
  EXPECT_EQ(plan.token_count(), 4);
  EXPECT_EQ(plan.context_row_count(), 1);
  EXPECT_EQ(plan.rows()[1].token_offset, -1);
  EXPECT_EQ(plan.tokens()[2], 7);
  EXPECT_TRUE(plan.HasRoom(2, 4));
  EXPECT_FALSE(plan.HasRoom(1, 5));
  EXPECT_FALSE(plan.HasRoom(3, 1));
}

TEST(StepPlan, IsOneBlockThatCanBeCopied) {
  StepPlan plan({.rows = 2, .tokens = 4, .table_edits = 2, .copies = 1});
  plan.AddGenerationRow({9}, {1}, 3, OutputKind::kSample);
  plan.AddTableEdit({1}, 0, {7});
  StepPlan other(plan.capacity());
  ASSERT_EQ(plan.bytes().size(), other.bytes().size());
  std::memcpy(const_cast<std::byte*>(other.bytes().data()), plan.bytes().data(), plan.bytes().size());
  EXPECT_EQ(other.rows()[0].sequence, SequenceId{9});
  EXPECT_EQ(other.table_edits()[0].block, BlockId{7});
}

TEST(StepPlanDeathTest, ContextAfterGenerationIsABug) {
  StepPlan plan({.rows = 2, .tokens = 4});
  plan.AddGenerationRow({1}, {0}, 3, OutputKind::kSample);
  std::array<TokenId, 1> chunk = {5};
  EXPECT_DEATH(plan.AddContextRow({2}, {1}, 0, chunk, OutputKind::kNone), "CHECK failed");
}

}  // namespace
}  // namespace ekiben
