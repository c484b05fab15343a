#include "backend/attention_costs.h"

#include <gtest/gtest.h>

#include "backend/fake_backend.h"

namespace ekiben {
namespace {

FakeBackendOptions Limits(int32_t tokens, int32_t seq_len, int32_t blocks) {
  FakeBackendOptions options;
  options.max_num_tokens = tokens;
  options.max_seq_len = seq_len;
  options.blocks = blocks;
  options.knows_step_costs = true;
  options.abort_on_violation = false;
  return options;
}

TEST(MeasureAttention, FindsTheStairs) {
  FakeBackendOptions options = Limits(2048, 8192, 512);
  options.step_time = std::chrono::milliseconds(5);
  options.step_time_per_token = std::chrono::microseconds(10);
  options.context_tile = 256;
  options.tile_nanos_a_key = 300;
  FakeBackend backend(options);
  Result<AttentionCosts> costs = MeasureAttention(backend, backend.info().step_costs);
  ASSERT_TRUE(costs.ok()) << costs.error().message();
  ASSERT_EQ(costs->chunks.size(), 8u);
  for (const ChunkCost& chunk : costs->chunks)
    EXPECT_NEAR(chunk.nanos_a_key, chunk.tokens <= 256 ? 300 : 600, 1) << chunk.tokens;
  EXPECT_NEAR(costs->nanos_a_step, 0, 1e3);
  EXPECT_TRUE(backend.violations().empty()) << backend.violations().front();
}

TEST(MeasureAttention, KeepsTheContractUnderAnyLimits) {
  for (const FakeBackendOptions& options :
       {Limits(2048, 2048, 1024), Limits(128, 8192, 512), Limits(1, 1, 1), Limits(16, 2, 1), Limits(512, 256, 4),
        Limits(4096, 300, 19), Limits(64, 256, 16)}) {
    FakeBackend backend(options);
    Result<AttentionCosts> costs = MeasureAttention(backend, backend.info().step_costs);
    ASSERT_TRUE(costs.ok()) << costs.error().message();
    EXPECT_TRUE(backend.violations().empty()) << backend.violations().front();
    for (size_t i = 1; i < costs->chunks.size(); ++i) EXPECT_LT(costs->chunks[i - 1].tokens, costs->chunks[i].tokens);
  }
}

TEST(MeasureAttention, ReportsADeviceFault) {
  FakeBackendOptions options = Limits(2048, 2048, 1024);
  options.finish_fails_at = 3;
  FakeBackend backend(options);
  EXPECT_FALSE(MeasureAttention(backend, backend.info().step_costs).ok());
}

}  // namespace
}  // namespace ekiben
