#include "cache/kv_cache.h"

#include <gtest/gtest.h>

#include <numeric>

namespace ekiben {
namespace {

constexpr int32_t kTokensPerBlock = 4;
constexpr SlotId kA{0}, kB{1};

class KvCacheTest : public testing::Test {
 protected:
  KvCacheTest() {
    std::iota(tokens_.begin(), tokens_.end(), 1);
    BlockKey key = RootKey({});
    for (size_t i = 0; i < tokens_.size(); i += 4)
      keys_.push_back(key = NextKey(key, std::span(tokens_).subspan(i, 4)));
  }
  // The slot's sequence computes the first `blocks` blocks of tokens_.
  void Compute(SlotId slot, int32_t blocks) {
    cache_.Attach(slot, {}, true);
    for (int32_t i = 0; i < blocks; ++i) cache_.Append(slot);
    cache_.Commit(slot, {}, tokens_, keys_, blocks);
  }
  int32_t MatchedBlocks() {
    std::vector<BlockId> found(keys_.size());
    return cache_.tree().Match({}, tokens_, keys_, static_cast<int32_t>(tokens_.size()), found).blocks;
  }
  void ExpectSound(std::vector<const BlockLease*> leases = {}) {
    Result<void> audit = cache_.Audit(leases);
    EXPECT_TRUE(audit.ok()) << audit.error().message();
  }

  KvCache cache_{{.blocks = 8, .tokens_per_block = kTokensPerBlock, .slots = 3, .blocks_per_sequence = 8}};
  std::vector<TokenId> tokens_ = std::vector<TokenId>(32);
  std::vector<BlockKey> keys_;
};

TEST_F(KvCacheTest, RetiredBlocksStayCachedUntilTheyAreNeeded) {
  Compute(kA, 5);
  EXPECT_EQ(cache_.available(), 3);
  cache_.Retire(kA, nullptr);
  EXPECT_EQ(cache_.available(), 8);
  EXPECT_EQ(cache_.idle_count(), 5);
  EXPECT_EQ(MatchedBlocks(), 5);
  cache_.Attach(kB, {}, false);
  for (int i = 0; i < 6; ++i) cache_.Append(kB);
  EXPECT_EQ(MatchedBlocks(), 2);  // the deepest went first
  ExpectSound();
}

TEST_F(KvCacheTest, LeaseKeepsBlocksUntilItsStepHasFinished) {
  BlockLease lease = cache_.MakeLease();
  cache_.Attach(kA, {}, false);
  for (int i = 0; i < 8; ++i) cache_.Append(kA);
  cache_.Retire(kA, &lease);
  EXPECT_EQ(cache_.available(), 0);
  ExpectSound({&lease});
  lease.Return();
  EXPECT_EQ(cache_.available(), 8);
  ExpectSound({&lease});
}

TEST_F(KvCacheTest, SharedBlocksAreHeldByBoth) {
  Compute(kA, 3);
  cache_.Share(kA, kB, 2, true);
  cache_.Append(kB);
  EXPECT_EQ(cache_.available(), 4);
  EXPECT_EQ(cache_.BlocksOfItsOwn(kB), 1);
  cache_.Retire(kA, nullptr);
  EXPECT_EQ(cache_.available(), 5);
  ExpectSound();
  cache_.Retire(kB, nullptr);
  EXPECT_EQ(cache_.available(), 8);
  ExpectSound();
}

TEST_F(KvCacheTest, SecondComputerOfTheSameTokensKeepsItsOwnBlocks) {
  Compute(kA, 2);
  Compute(kB, 3);
  EXPECT_EQ(cache_.table(kB).in_tree, 0);
  EXPECT_FALSE(cache_.table(kB).shares);
  EXPECT_EQ(MatchedBlocks(), 2);
  cache_.Retire(kB, nullptr);
  EXPECT_EQ(cache_.idle_count(), 0);
  EXPECT_EQ(cache_.available(), 6);
  ExpectSound();
}

TEST_F(KvCacheTest, IdleTailBlockIsTakenOverWithWhatHangsBelowIt) {
  Compute(kA, 4);
  BlockId second = cache_.table(kA).blocks()[1];
  cache_.Retire(kA, nullptr);
  std::vector<BlockId> found(keys_.size());
  ASSERT_EQ(cache_.tree().Match({}, tokens_, keys_, 7, found).blocks, 1);
  cache_.Attach(kB, std::span(found).first(1), true);
  EXPECT_EQ(cache_.AppendFromTree(kB, second), second);
  EXPECT_EQ(MatchedBlocks(), 1);
  EXPECT_EQ(cache_.available(), 6);
  ExpectSound();
}

TEST_F(KvCacheTest, BlocksBehindTheWindowComeBackAndTreeNodesTogether) {
  Compute(kA, 2);
  cache_.Append(kA);
  cache_.Append(kA);
  cache_.GiveBack(kA, 1, nullptr);  // its node has a child that is still needed
  EXPECT_EQ(cache_.available(), 4);
  cache_.GiveBack(kA, 3, nullptr);
  EXPECT_EQ(cache_.available(), 7);
  EXPECT_EQ(cache_.idle_count(), 2);
  EXPECT_EQ(cache_.table(kA).blocks()[2], kNoBlock);
  EXPECT_NE(cache_.table(kA).blocks()[3], kNoBlock);
  EXPECT_EQ(cache_.BlocksOutsideTree(kA), 1);
  ExpectSound();
  cache_.Retire(kA, nullptr);
  EXPECT_EQ(cache_.available(), 8);
  ExpectSound();
}

TEST_F(KvCacheTest, DistrustedContentsAreNotFoundAgain) {
  Compute(kA, 3);
  cache_.Share(kA, kB, 2, true);
  cache_.Distrust(kA);
  EXPECT_EQ(MatchedBlocks(), 0);
  cache_.Append(kB);
  cache_.Commit(kB, {}, tokens_, keys_, 3);  // its parent is gone: it stops sharing
  EXPECT_EQ(MatchedBlocks(), 0);
  ExpectSound();
  cache_.Retire(kA, nullptr);
  cache_.Retire(kB, nullptr);
  EXPECT_EQ(cache_.available(), 8);
  ExpectSound();
}

TEST_F(KvCacheTest, AuditNamesTheBrokenInvariant) {
  Compute(kA, 2);
  BlockId block = cache_.table(kA).blocks()[0];
  cache_.Acquire(block);
  Result<void> lost = cache_.Audit({});
  ASSERT_FALSE(lost.ok());
  EXPECT_NE(lost.error().message().find("no block is lost"), std::string::npos);
  cache_.Drop(block);
  ExpectSound();
  cache_.Drop(block);
  Result<void> twice = cache_.Audit({});
  ASSERT_FALSE(twice.ok());
  EXPECT_NE(twice.error().message().find("no block is freed twice"), std::string::npos);
  cache_.Acquire(block);
}

TEST_F(KvCacheTest, EmptyPoolIsABugOfTheCaller) {
  cache_.Attach(kA, {}, false);
  for (int i = 0; i < 8; ++i) cache_.Append(kA);
  cache_.Attach(kB, {}, false);
  EXPECT_DEATH(cache_.Append(kB), "no block is available");
}

}  // namespace
}  // namespace ekiben
