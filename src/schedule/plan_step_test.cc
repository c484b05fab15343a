// Policies over tables: views in, decision out. No device, no cache.
#include "schedule/plan_step.h"

#include <gtest/gtest.h>

#include <array>

namespace ekiben {
namespace {

SequenceView Generation(int32_t cached, int32_t blocks_next = 0, int32_t blocks_to_end = 0) {
  return {.generation = true,
          .tokens_left = 1,
          .tokens_cached = cached,
          .blocks_next = blocks_next,
          .blocks_context = blocks_next,
          .blocks_to_end = blocks_to_end};
}

// `blocks` for the context, `to_end` in all.
SequenceView Context(int32_t tokens_left, int32_t blocks = 0, int32_t to_end = 0, int32_t cached = 0) {
  return {.tokens_left = tokens_left,
          .tokens_cached = cached,
          .blocks_next = blocks,
          .blocks_context = blocks,
          .blocks_to_end = to_end};
}

StepLimits Limits() {
  return {.max_batch_size = 8,
          .max_num_tokens = 64,
          .tokens_per_block = 16,
          .blocks_available = 100,
          .slots_free = 8,
          .may_pause = true};
}

// "r0:5" a chunk of 5 of running sequence 0, "w1:16" the second waiting one starts with 16, "g2" a generation row,
// "p3" paused.
std::string Plan(std::vector<SequenceView> running, std::vector<SequenceView> waiting, StepLimits limits) {
  StepDecision decision(limits.max_batch_size);
  WaitingSpan views(waiting);
  limits.any_running = !running.empty();
  PlanStep(running, views, limits, decision);
  std::string out;
  auto add = [&out](const std::string& text) { out += (out.empty() ? "" : " ") + text; };
  for (const auto& c : decision.contexts) {
    add((c.admitted ? "w" : "r") + std::to_string(c.index) + ":" + std::to_string(c.token_count));
  }
  for (int32_t index : decision.generations) add("g" + std::to_string(index));
  for (int32_t index : decision.paused) add("p" + std::to_string(index));
  if (decision.short_of_blocks) add("short");
  return out;
}

// A step of 10 tokens takes 10 ms, every other one more 1 ms more; keys are free.
const StepCosts& OneMsAToken() {
  static const StepCost table[] = {{10, std::chrono::milliseconds(10)}, {110, std::chrono::milliseconds(110)}};
  static const StepCosts costs(table);
  return costs;
}

TEST(TimeBudget, ContextsShareWhatTheBoundLeavesButTheFirstHasABlock) {
  StepLimits limits = Limits();
  limits.context = {&OneMsAToken(), 50e6};
  EXPECT_EQ(Plan({Generation(5), Generation(9)}, {Context(64, 4), Context(64, 4)}, limits), "w0:48 g0 g1");
  EXPECT_EQ(Plan({Generation(5), Generation(9)}, {Context(20, 2), Context(64, 4)}, limits), "w0:20 w1:16 g0 g1");
  EXPECT_EQ(Plan({Generation(5), Context(64, 4), Context(8, 1)}, {}, limits), "r1:48 g0");
  limits.context.nanos_max = 1;  // no time at all
  EXPECT_EQ(Plan({Generation(5), Generation(9)}, {Context(64, 4), Context(64, 4)}, limits), "w0:16 g0 g1");
  limits.enable_chunked_context = false;
  EXPECT_EQ(Plan({Generation(5)}, {Context(40, 4), Context(10, 4)}, limits), "w0:40 g0") << "whole or not at all";
}

TEST(TimeBudget, EqualProgressGoesRoundWithinTheBound) {
  StepLimits limits = Limits();
  limits.chunking = ChunkingPolicy::kEqualProgress;
  limits.context = {&OneMsAToken(), 50e6};
  EXPECT_EQ(Plan({Generation(5), Context(64, 4), Context(64, 4)}, {}, limits), "r1:32 r2:16 g0");
}

TEST(MicroBatch, GenerationsFirstThenContextsShareTheRest) {
  EXPECT_EQ(Plan({Generation(40), Context(100), Generation(9)}, {}, Limits()), "r1:48 g0 g2");
  EXPECT_EQ(Plan({}, {Context(10), Context(20), Context(30)}, Limits()), "w0:10 w1:20 w2:30");
}

TEST(MicroBatch, BudgetsAreNeverExceeded) {
  StepLimits limits = Limits();
  limits.max_batch_size = 2;
  EXPECT_EQ(Plan({Generation(1), Generation(2), Generation(3)}, {Context(4)}, limits), "g0 g1");
  limits.max_batch_size = 8;
  limits.max_num_tokens = 2;
  EXPECT_EQ(Plan({Generation(1), Generation(2), Generation(3)}, {Context(4)}, limits), "g0 g1");
  limits = Limits();
  limits.slots_free = 1;
  EXPECT_EQ(Plan({}, {Context(4), Context(4)}, limits), "w0:4");
}

TEST(MicroBatch, LongStartsAreLimitedShortOnesAreNot) {
  StepLimits limits = Limits();
  limits.long_starts_max = 1;
  EXPECT_EQ(Plan({Generation(1)}, {Context(20), Context(20)}, limits), "w0:20 g0");
  EXPECT_EQ(Plan({Generation(1)}, {Context(16), Context(20), Context(16), Context(20)}, limits),
            "w0:16 w1:20 w2:16 g0");
  limits.long_starts_max = 0;
  EXPECT_EQ(Plan({Generation(1)}, {Context(20)}, limits), "g0");
  EXPECT_EQ(Plan({Generation(1)}, {Context(20), Context(3)}, limits), "g0");  // nobody overtakes
  EXPECT_EQ(Plan({Context(30)}, {Context(20)}, limits), "r0:30");
  EXPECT_EQ(Plan({}, {Context(20), Context(20)}, limits), "w0:20");  // no step stays empty for it
  limits.batching = BatchingStrategy::kV1;
  EXPECT_EQ(Plan({}, {Context(20), Context(20)}, limits), "w0:20 w1:20");
}

TEST(ContextPace, HalfOfTheWaitingAndARestForTheLone) {
  ContextPace pace;
  EXPECT_EQ(pace.StartsMax(0), 1);
  EXPECT_EQ(pace.StartsMax(1), 1);
  EXPECT_EQ(pace.StartsMax(2), 1);
  EXPECT_EQ(pace.StartsMax(7), 4);
  pace.Count(true);
  EXPECT_EQ(pace.StartsMax(1), 0);
  EXPECT_EQ(pace.StartsMax(2), 1);
  pace.Count(false);
  EXPECT_EQ(pace.StartsMax(1), 1);
  for (int i = 0; i < 20; ++i) pace.Count(true);  // under load nobody rests
  EXPECT_EQ(pace.StartsMax(1), 1);
  for (int i = 0; i < 20; ++i) pace.Count(i % 3 == 0);
  pace.Count(true);
  EXPECT_EQ(pace.StartsMax(1), 0);
}

TEST(MicroBatch, FinishedInFlightTakesNoRow) {
  SequenceView done = Generation(12);
  done.tokens_left = 0;
  EXPECT_EQ(Plan({done, Generation(3)}, {}, Limits()), "g1");
}

TEST(Chunking, FirstComeFirstServedCutsAtBlockBorders) {
  EXPECT_EQ(Plan({}, {Context(100)}, Limits()), "w0:64");
  EXPECT_EQ(Plan({Generation(1)}, {Context(100)}, Limits()), "w0:48 g0");
  // From position 5 the chunk ends at 64, so that the next one begins with a whole block.
  EXPECT_EQ(Plan({Context(200, 0, 0, 5)}, {}, Limits()), "r0:59");
  EXPECT_EQ(Plan({}, {Context(50), Context(100)}, Limits()), "w0:50");  // 14 are left: less than a block
  EXPECT_EQ(Plan({}, {Context(30), Context(100)}, Limits()), "w0:30 w1:32");
}

TEST(Chunking, TinyBudgetsStillMakeProgress) {
  StepLimits limits = Limits();
  limits.max_num_tokens = 5;
  EXPECT_EQ(Plan({}, {Context(100)}, limits), "w0:5");
  EXPECT_EQ(Plan({Generation(1)}, {Context(100)}, limits), "w0:4 g0");
}

TEST(Chunking, EqualProgressGoesRoundByUnits) {
  StepLimits limits = Limits();
  limits.chunking = ChunkingPolicy::kEqualProgress;
  EXPECT_EQ(Plan({}, {Context(100), Context(100)}, limits), "w0:32 w1:32");
  EXPECT_EQ(Plan({}, {Context(100), Context(20), Context(100)}, limits), "w0:32 w1:16 w2:16");
  EXPECT_EQ(Plan({}, {Context(100), Context(3), Context(100)}, limits), "w0:32 w1:3 w2:16");  // 13 left: no unit
  EXPECT_EQ(Plan({Context(40, 0, 0, 5)}, {Context(10)}, limits), "r0:40 w0:10");              // all fit: nothing is cut
  EXPECT_EQ(Plan({Context(100), Context(100), Context(100)}, {Context(100), Context(100)}, limits),
            "r0:16 r1:16 r2:16 w0:16");
}

TEST(Chunking, OffMeansWholeOrNotNow) {
  StepLimits limits = Limits();
  limits.enable_chunked_context = false;
  EXPECT_EQ(Plan({Generation(1)}, {Context(63), Context(1)}, limits), "w0:63 g0");
  EXPECT_EQ(Plan({Generation(1)}, {Context(64), Context(1)}, limits), "g0");  // the scan ends there
  // What was paused and has outgrown the budget could never run whole.
  EXPECT_EQ(Plan({}, {Context(70)}, limits), "w0:64");
}

TEST(Capacity, NoEvictKeepsBlocksForEveryoneToTheEnd) {
  StepLimits limits = Limits();
  limits.blocks_available = 10;
  EXPECT_EQ(Plan({Generation(16, 1, 4)}, {Context(16, 1, 6)}, limits), "w0:16 g0");
  EXPECT_EQ(Plan({Generation(16, 1, 5)}, {Context(16, 1, 6)}, limits), "g0");
  // The first that does not fit ends the scan, so a large one is not overtaken for ever.
  EXPECT_EQ(Plan({}, {Context(16, 1, 11), Context(16, 1, 1)}, limits), "");
  EXPECT_EQ(Plan({}, {Context(16, 1, 6), Context(16, 1, 4), Context(1, 1, 1)}, limits), "w0:16 w1:16");
}

TEST(Capacity, MaxUtilizationKeepsOnlyTheNextStep) {
  StepLimits limits = Limits();
  limits.capacity = CapacityPolicy::kMaxUtilization;
  limits.blocks_available = 3;
  EXPECT_EQ(Plan({Generation(16, 1, 50)}, {Context(16, 1, 60)}, limits), "w0:16 g0");
}

TEST(Capacity, MaxUtilizationLeavesABlockForEachThatRuns) {
  StepLimits limits = Limits();
  limits.capacity = CapacityPolicy::kMaxUtilization;
  limits.blocks_available = 2;
  EXPECT_EQ(Plan({Generation(16, 1, 50)}, {Context(16, 1, 60)}, limits), "g0");
  limits.blocks_available = 5;  // one for g0 now; w0's and two to grow; then w1's would leave one for three
  EXPECT_EQ(Plan({Generation(16, 1, 50)}, {Context(16, 1, 60), Context(16, 1, 60)}, limits), "w0:16 w1:16 g0");
  limits.blocks_available = 4;
  EXPECT_EQ(Plan({Generation(16, 1, 50)}, {Context(16, 1, 60), Context(16, 1, 60)}, limits), "w0:16 g0");
  limits.blocks_available = 1;
  EXPECT_EQ(Plan({}, {Context(16, 1, 60)}, limits), "w0:16") << "alone it may have all";
}

TEST(Capacity, MaxUtilizationPausesTheLastStarted) {
  StepLimits limits = Limits();
  limits.capacity = CapacityPolicy::kMaxUtilization;
  limits.blocks_available = 1;
  SequenceView first = Generation(16, 1), second = Generation(5, 0), third = Generation(32, 1);
  third.blocks_if_paused = 2;
  // Two blocks are needed and one is there; what the paused one gives back is for the others, not for who waits.
  EXPECT_EQ(Plan({first, second, third}, {Context(1, 1, 1)}, limits), "g0 g1 p2");
  limits.blocks_available = 0;
  EXPECT_EQ(Plan({first, second, third}, {}, limits), "g0 g1 p2");
  third.blocks_if_paused = 0;  // all shared
  second.blocks_if_paused = 1;
  EXPECT_EQ(Plan({first, second, third}, {}, limits), "g0 p2 p1");
}

TEST(Capacity, NothingIsPausedWhileAStepIsInFlight) {
  StepLimits limits = Limits();
  limits.capacity = CapacityPolicy::kMaxUtilization;
  limits.blocks_available = 0;
  limits.may_pause = false;
  EXPECT_EQ(Plan({Generation(16, 1), Generation(16, 1)}, {Context(1)}, limits), "short");
}

TEST(StaticBatch, AdmitsOnlyWhenNothingRuns) {
  StepLimits limits = Limits();
  limits.batching = BatchingStrategy::kV1;
  EXPECT_EQ(Plan({Generation(1)}, {Context(4)}, limits), "g0");
  // The batch forms at once; whose context does not fit this step's tokens has its row later.
  EXPECT_EQ(Plan({}, {Context(60), Context(30), Context(4)}, limits), "w0:60 w1:0 w2:0");
}

TEST(Reuse, WaitsForWhoComputesItsNextBlock) {
  std::array<uint64_t, 2> trunk = {11, 22}, other = {11, 33};
  SequenceView computing = Context(32, 2, 2), same = Context(40, 3, 3), different = Context(40, 3, 3);
  computing.block_keys = same.block_keys = trunk;
  different.block_keys = other;
  // Both wait for the common first block; the stranger does not.
  EXPECT_EQ(Plan({computing}, {same, different, Context(5)}, Limits()), "r0:32 w2:5");
  // The first block is computed (and matched): only `same` still has a block in common with what is to come.
  computing.blocks_computed = 1;
  computing.tokens_cached = same.tokens_cached = different.tokens_cached = 16;
  computing.tokens_left = 16;
  EXPECT_EQ(Plan({computing}, {same, different}, Limits()), "r0:16 w1:40");
  // Among the waiting ones the first goes and the second is held back.
  EXPECT_EQ(Plan({}, {same, same}, Limits()), "w0:40");
}

TEST(Reuse, SiblingsWaitForThePrompt) {
  SequenceView leader = Context(10), sibling = Context(10);
  leader.group = sibling.group = 7;
  EXPECT_EQ(Plan({}, {leader, sibling, Context(3)}, Limits()), "w0:10 w2:3");
}

TEST(Reuse, TableEntriesAreBounded) {
  StepLimits limits = Limits();
  limits.entries_max = 10;
  SequenceView one = Context(4), two = Context(4);
  one.entries_reused = 6;
  two.entries_reused = 5;
  EXPECT_EQ(Plan({}, {one, two}, limits), "w0:4");
}

}  // namespace
}  // namespace ekiben
