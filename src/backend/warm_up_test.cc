#include "backend/warm_up.h"

#include <gtest/gtest.h>

#include "backend/fake_backend.h"

namespace ekiben {
namespace {

FakeBackendOptions Limits(int32_t batch, int32_t tokens, int32_t seq_len, int32_t blocks) {
  FakeBackendOptions options;
  options.max_batch_size = batch;
  options.max_num_tokens = tokens;
  options.max_seq_len = seq_len;
  options.tokens_per_block = 16;
  options.blocks = blocks;
  options.abort_on_violation = false;
  return options;
}

// The fake backend holds every plan against the contract: blocks, budgets, positions.
TEST(WarmUpTest, KeepsTheContractUnderAnyLimits) {
  for (const FakeBackendOptions& options :
       {Limits(64, 2048, 2048, 1024), Limits(128, 128, 8192, 512), Limits(1, 1, 1, 1), Limits(4, 16, 2, 1),
        Limits(32, 512, 64, 4), Limits(8, 4096, 100, 7)}) {
    FakeBackend backend(options);
    Result<std::vector<StepCost>> result = WarmUp(backend);
    ASSERT_TRUE(result.ok()) << result.error().message();
    ASSERT_FALSE(result->empty());
    for (size_t i = 1; i < result->size(); ++i) EXPECT_LT((*result)[i - 1].tokens, (*result)[i].tokens);
    EXPECT_TRUE(backend.violations().empty()) << backend.violations().front();
    EXPECT_GE(backend.launches(), 2);
  }
}

TEST(WarmUpTest, ReportsADeviceFault) {
  FakeBackendOptions options = Limits(4, 64, 64, 16);
  options.finish_fails_at = 1;
  FakeBackend backend(options);
  EXPECT_FALSE(WarmUp(backend).ok());
}

}  // namespace
}  // namespace ekiben
