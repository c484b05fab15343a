#include "cache/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace ekiben {
namespace {

TEST(BlockPool, HandsOutEveryBlockOnce) {
  BlockPool pool(5);
  std::vector<bool> seen(5);
  for (int i = 0; i < 5; ++i) {
    std::optional<BlockId> block = pool.Allocate();
    ASSERT_TRUE(block);
    EXPECT_FALSE(seen[static_cast<size_t>(block->value)]);
    seen[static_cast<size_t>(block->value)] = true;
  }
  EXPECT_EQ(pool.free_count(), 0);
  EXPECT_FALSE(pool.Allocate());
}

TEST(BlockPool, BlockIsFreeWhenTheLastHolderLetsGo) {
  BlockPool pool(2);
  BlockId block = *pool.Allocate();
  pool.AddRef(block);
  EXPECT_EQ(pool.Release(block), 1);
  EXPECT_EQ(pool.free_count(), 1);
  EXPECT_EQ(pool.Release(block), 0);
  EXPECT_EQ(pool.free_count(), 2);
  EXPECT_EQ(*pool.Allocate(), block);
}

TEST(BlockPool, RandomOperationsAgreeWithAModel) {
  std::mt19937 random(7);
  BlockPool pool(32);
  std::vector<int> model(32, 0);
  for (int i = 0; i < 20'000; ++i) {
    auto at = static_cast<size_t>(random() % 32);
    BlockId block{static_cast<int32_t>(at)};
    switch (random() % 3) {
      case 0:
        if (std::optional<BlockId> taken = pool.Allocate()) {
          EXPECT_EQ(model[static_cast<size_t>(taken->value)]++, 0);
        } else {
          EXPECT_EQ(std::count(model.begin(), model.end(), 0), 0);
        }
        break;
      case 1:
        if (model[at] > 0) pool.AddRef(block), ++model[at];
        break;
      default:
        if (model[at] > 0) {
          --model[at];
          EXPECT_EQ(pool.Release(block), model[at]);
        }
    }
    EXPECT_EQ(pool.free_count(), std::count(model.begin(), model.end(), 0));
  }
}

TEST(BlockPoolDeathTest, MisuseIsABug) {
  BlockPool pool(2);
  BlockId block = *pool.Allocate();
  pool.Release(block);
  EXPECT_DEATH(pool.Release(block), "freed twice");
  EXPECT_DEATH(pool.AddRef(block), "CHECK failed");
  EXPECT_DEATH(pool.Release(kNoBlock), "CHECK failed");
  EXPECT_DEATH(pool.Release({2}), "CHECK failed");
}

}  // namespace
}  // namespace ekiben
