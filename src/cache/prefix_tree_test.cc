#include "cache/prefix_tree.h"

#include <gtest/gtest.h>

namespace ekiben {
namespace {

constexpr int32_t kTokensPerBlock = 4;

// A tree with helpers that play the part of a sequence: allocate, insert, let go.
class PrefixTreeTest : public testing::Test {
 protected:
  static std::vector<BlockKey> Keys(const std::vector<TokenId>& tokens, PrefixSalt salt = {}) {
    std::vector<BlockKey> keys;
    BlockKey key = RootKey(salt);
    for (size_t i = 0; i + kTokensPerBlock <= tokens.size(); i += kTokensPerBlock) {
      keys.push_back(key = NextKey(key, std::span(tokens).subspan(i, kTokensPerBlock)));
    }
    return keys;
  }
  // As a sequence would: takes what is there, inserts the rest, then lets go of all, leaves first. Returns the blocks.
  std::vector<BlockId> Put(const std::vector<TokenId>& tokens, PrefixSalt salt = {}) {
    std::vector<BlockKey> keys = Keys(tokens, salt);
    std::vector<BlockId> blocks(keys.size());
    auto matched = static_cast<size_t>(tree_.Match(salt, tokens, keys, 1000, blocks).blocks);
    blocks.resize(matched);
    for (BlockId block : blocks) Hold(block);
    for (size_t i = matched; i < keys.size(); ++i) {
      BlockId block = *pool_.Allocate();
      BlockId parent = i == 0 ? kNoBlock : blocks[i - 1];
      EXPECT_TRUE(tree_.Insert(parent, salt, keys[i], std::span(tokens).subspan(i * 4, 4), block));
      blocks.push_back(block);
    }
    for (size_t i = blocks.size(); i-- > 0;) LetGo(blocks[i]);
    return blocks;
  }
  void LetGo(BlockId block) {
    if (pool_.Release(block) == 1 && tree_.Contains(block)) tree_.OnIdle(block);
  }
  void Hold(BlockId block) {
    pool_.AddRef(block);
    if (pool_.refs(block) == 2) tree_.OnHeld(block);
  }
  PrefixMatch Match(const std::vector<TokenId>& tokens, int32_t tokens_max = 1000, PrefixSalt salt = {}) {
    found_.assign(16, kNoBlock);
    return tree_.Match(salt, tokens, Keys(tokens, salt), tokens_max, found_);
  }

  BlockPool pool_{16};
  PrefixTree tree_{pool_, kTokensPerBlock};
  std::vector<BlockId> found_;
};

TEST_F(PrefixTreeTest, MatchesFullBlocksFromTheFront) {
  std::vector<BlockId> blocks = Put({1, 2, 3, 4, 5, 6, 7, 8});
  PrefixMatch match = Match({1, 2, 3, 4, 5, 6, 7, 8, 9});
  EXPECT_EQ(match.blocks, 2);
  EXPECT_EQ(match.blocks_idle, 2);
  EXPECT_EQ(found_[0], blocks[0]);
  EXPECT_EQ(found_[1], blocks[1]);
  EXPECT_EQ(match.partial_tokens, 0);
  EXPECT_EQ(Match({5, 6, 7, 8}).blocks, 0);  // a block is a child of its prefix, not of its tokens
}

TEST_F(PrefixTreeTest, MatchesPartOfABlockWhereTokensDiverge) {
  std::vector<BlockId> blocks = Put({1, 2, 3, 4, 5, 6, 7, 8});
  Put({1, 2, 3, 4, 5, 9, 9, 9});
  PrefixMatch match = Match({1, 2, 3, 4, 5, 6, 0, 0, 0});
  EXPECT_EQ(match.blocks, 1);
  EXPECT_EQ(match.partial_source, blocks[1]);
  EXPECT_EQ(match.partial_tokens, 2);
  match = Match({1, 2, 0});
  EXPECT_EQ(match.blocks, 0);
  EXPECT_EQ(match.partial_source, blocks[0]);
  EXPECT_EQ(match.partial_tokens, 2);
}

TEST_F(PrefixTreeTest, NeverMatchesMoreThanAsked) {
  Put({1, 2, 3, 4, 5, 6, 7, 8});
  PrefixMatch match = Match({1, 2, 3, 4, 5, 6, 7, 8}, 7);
  EXPECT_EQ(match.blocks, 1);
  EXPECT_EQ(match.partial_tokens, 3);
  EXPECT_EQ(Match({1, 2, 3, 4}, 0).partial_tokens, 0);
}

TEST_F(PrefixTreeTest, EqualKeysOfOtherTokensDoNotMatch) {
  std::vector<TokenId> tokens = {1, 2, 3, 4}, others = {4, 3, 2, 1};
  std::vector<BlockKey> forged = Keys(tokens);
  Put(tokens);
  found_.assign(4, kNoBlock);
  EXPECT_EQ(tree_.Match({}, others, forged, 4, found_).blocks, 0);
}

TEST_F(PrefixTreeTest, SaltsDoNotShare) {
  PrefixSalt a = SaltOf("a"), b = SaltOf("b");
  EXPECT_EQ(SaltOf(""), PrefixSalt{});
  EXPECT_FALSE(a == b);
  Put({1, 2, 3, 4}, a);
  EXPECT_EQ(Match({1, 2, 3, 4}, 4, a).blocks, 1);
  for (PrefixSalt salt : {b, PrefixSalt{}}) {
    PrefixMatch match = Match({1, 2, 3, 4}, 4, salt);
    EXPECT_EQ(match.blocks, 0);
    EXPECT_EQ(match.partial_tokens, 0);
  }
}

TEST_F(PrefixTreeTest, RefusesWhatIsThereAlreadyAndOrphans) {
  Put({1, 2, 3, 4});
  std::vector<TokenId> tokens = {1, 2, 3, 4};
  BlockId block = *pool_.Allocate(), stranger = *pool_.Allocate();
  EXPECT_FALSE(tree_.Insert(kNoBlock, {}, Keys(tokens)[0], tokens, block));
  EXPECT_FALSE(tree_.Insert(stranger, {}, 123, tokens, block));
  EXPECT_EQ(pool_.refs(block), 1);
}

TEST_F(PrefixTreeTest, EvictsLeavesLeastRecentlyUsedFirst) {
  std::vector<BlockId> first = Put({1, 2, 3, 4, 5, 6, 7, 8});
  std::vector<BlockId> second = Put({1, 2, 3, 4, 9, 9, 9, 9});  // only its second block is new
  std::vector<BlockId> third = Put({7, 7, 7, 7});
  EXPECT_EQ(tree_.idle_count(), 4);
  Hold(first[1]);  // used again: now the newest
  LetGo(first[1]);
  std::vector<BlockId> order;
  for (int i = 0; i < 4; ++i) {
    std::vector<bool> before(16), after(16);
    for (int32_t b = 0; b < 16; ++b) before[static_cast<size_t>(b)] = tree_.Contains({b});
    ASSERT_TRUE(tree_.EvictOne());
    for (int32_t b = 0; b < 16; ++b) {
      if (before[static_cast<size_t>(b)] && !tree_.Contains({b})) order.push_back({b});
    }
  }
  // The common first block is older than the third chain, but has a child until the end.
  EXPECT_EQ(order, (std::vector<BlockId>{second[1], third[0], first[1], first[0]}));
  EXPECT_FALSE(tree_.EvictOne());
  EXPECT_EQ(pool_.free_count(), 16);
}

TEST_F(PrefixTreeTest, HeldNodesAreNotEvicted) {
  std::vector<BlockId> blocks = Put({1, 2, 3, 4, 5, 6, 7, 8});
  Hold(blocks[0]);
  EXPECT_EQ(tree_.idle_count(), 1);
  EXPECT_TRUE(tree_.EvictOne());
  EXPECT_FALSE(tree_.EvictOne());
  EXPECT_TRUE(tree_.Contains(blocks[0]));
  LetGo(blocks[0]);
  EXPECT_TRUE(tree_.EvictOne());
  EXPECT_EQ(pool_.free_count(), 16);
}

TEST_F(PrefixTreeTest, DetachTakesTheSubtree) {
  std::vector<BlockId> blocks = Put({1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9});
  Hold(blocks[0]);
  Hold(blocks[1]);
  tree_.Detach(blocks[1]);
  EXPECT_TRUE(tree_.Contains(blocks[0]));
  EXPECT_FALSE(tree_.Contains(blocks[1]));
  EXPECT_EQ(pool_.refs(blocks[1]), 1);  // its other holder
  EXPECT_EQ(pool_.refs(blocks[2]), 0);
  EXPECT_EQ(Match({1, 2, 3, 4, 5, 6, 7, 8}).blocks, 1);
  EXPECT_EQ(tree_.idle_count(), 0);
}

}  // namespace
}  // namespace ekiben
