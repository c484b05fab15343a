#include "cache/kv_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace ekiben {

BlockLease::BlockLease(KvCache& cache, size_t references_max) : cache_(&cache) {
  blocks_.reserve(references_max);
}

void BlockLease::Hold(BlockId block) {
  CHECK_LT(blocks_.size(), blocks_.capacity());
  blocks_.push_back(block);
}

void BlockLease::Return() {
  for (BlockId block : blocks_) cache_->Drop(block);
  blocks_.clear();
}

KvCache::KvCache(const KvCacheConfig& config)
    : config_(config),
      pool_(config.blocks),
      tree_(pool_, config.tokens_per_block),
      storage_(static_cast<size_t>(config.slots) * static_cast<size_t>(config.blocks_per_sequence), kNoBlock),
      tables_(static_cast<size_t>(config.slots)) {
  auto stride = static_cast<size_t>(config.blocks_per_sequence);
  for (size_t slot = 0; slot < tables_.size(); ++slot)
    tables_[slot].entries = {storage_.data() + slot * stride, stride};
}

BlockLease KvCache::MakeLease() {
  return BlockLease(*this, storage_.size() + tables_.size());
}

BlockId KvCache::Allocate() {
  if (pool_.free_count() == 0) CHECK(tree_.EvictOne(), "no block is available");
  return *pool_.Allocate();
}

void KvCache::Acquire(BlockId block) {
  bool was_idle = Idle(block);
  pool_.AddRef(block);
  if (was_idle) tree_.OnHeld(block);
}

void KvCache::Drop(BlockId block) {
  pool_.Release(block);
  if (Idle(block)) tree_.OnIdle(block);
}

void KvCache::LetGo(BlockId block, BlockLease* lease) {
  if (lease != nullptr) {
    lease->Hold(block);
  } else {
    Drop(block);
  }
}

void KvCache::Attach(SlotId slot, std::span<const BlockId> matched, bool shares) {
  BlockTable& table = mutable_table(slot);
  CHECK_EQ(table.length, 0);
  for (BlockId block : matched) {
    Acquire(block);
    table.entries[static_cast<size_t>(table.length++)] = block;
  }
  table.in_tree = table.length;
  table.released = 0;
  table.shares = shares;
}

void KvCache::Share(SlotId source, SlotId slot, int32_t count, bool shares) {
  const BlockTable& from = table(source);
  BlockTable& to = mutable_table(slot);
  CHECK_EQ(to.length, 0);
  CHECK_LE(count, from.length);
  for (BlockId block : from.blocks().first(static_cast<size_t>(count))) {
    if (block != kNoBlock) Acquire(block);
    to.entries[static_cast<size_t>(to.length++)] = block;
  }
  to.in_tree = std::min(from.in_tree, count);
  to.released = std::min(from.released, count - to.in_tree);
  to.shares = shares;
}

BlockId KvCache::Append(SlotId slot) {
  BlockTable& table = mutable_table(slot);
  CHECK_LT(table.length, config_.blocks_per_sequence);
  return table.entries[static_cast<size_t>(table.length++)] = Allocate();
}

BlockId KvCache::AppendFromTree(SlotId slot, BlockId node) {
  BlockTable& table = mutable_table(slot);
  CHECK_LT(table.length, config_.blocks_per_sequence);
  CHECK(Idle(node), "block {}", node);
  Acquire(node);
  tree_.Detach(node);
  return table.entries[static_cast<size_t>(table.length++)] = node;
}

void KvCache::Commit(SlotId slot, PrefixSalt salt, std::span<const TokenId> tokens, std::span<const BlockKey> keys,
                     int32_t full_blocks) {
  BlockTable& table = mutable_table(slot);
  auto stride = static_cast<size_t>(config_.tokens_per_block);
  while (table.shares && table.in_tree < full_blocks) {
    auto i = static_cast<size_t>(table.in_tree);
    BlockId parent = i == 0 ? kNoBlock : table.entries[i - 1];
    if (tree_.Contains(table.entries[i])) {  // shared with a sibling, which was first
      ++table.in_tree;
      continue;
    }
    // Someone else's block has the same contents: this sequence keeps its own and stops sharing, so that whoever
    // holds a node still holds all its ancestors.
    table.shares = tree_.Insert(parent, salt, keys[i], tokens.subspan(i * stride, stride), table.entries[i]);
    table.in_tree += table.shares;
  }
}

void KvCache::GiveBack(SlotId slot, int32_t first_needed, BlockLease* lease) {
  BlockTable& table = mutable_table(slot);
  first_needed = std::min(first_needed, table.length);
  // Nodes of the tree go together, deepest first: a node is never held without its ancestors.
  if (first_needed >= table.in_tree && table.in_tree > 0 && table.entries[0] != kNoBlock) {
    for (int32_t i = table.in_tree - 1; i >= 0; --i) {
      LetGo(std::exchange(table.entries[static_cast<size_t>(i)], kNoBlock), lease);
    }
  }
  for (int32_t i = table.in_tree + table.released; i < first_needed; ++i, ++table.released) {
    LetGo(std::exchange(table.entries[static_cast<size_t>(i)], kNoBlock), lease);
  }
}

void KvCache::Retire(SlotId slot, BlockLease* lease) {
  BlockTable& table = mutable_table(slot);
  for (int32_t i = table.length - 1; i >= 0; --i) {  // leaves first: they are evicted before their parents
    BlockId block = std::exchange(table.entries[static_cast<size_t>(i)], kNoBlock);
    if (block != kNoBlock) LetGo(block, lease);
  }
  table.length = table.in_tree = table.released = 0;
  table.shares = false;
}

void KvCache::Distrust(SlotId slot) {
  BlockTable& table = mutable_table(slot);
  table.shares = false;
  if (table.in_tree > 0 && table.entries[0] != kNoBlock) tree_.Detach(table.entries[0]);
}

int32_t KvCache::BlocksOfItsOwn(SlotId slot) const {
  int32_t count = 0;
  for (BlockId block : table(slot).blocks()) {
    if (block != kNoBlock) count += pool_.refs(block) == 1 + tree_.Contains(block);
  }
  return count;
}

int32_t KvCache::BlocksOutsideTree(SlotId slot) const {
  const BlockTable& t = table(slot);
  return t.length - t.in_tree - t.released;
}

Result<void> KvCache::Audit(std::span<const BlockLease* const> leases) const {
  auto broken = [](std::string what) { return Error(Code::kInternal, std::move(what)); };
  std::vector<int32_t> holders(static_cast<size_t>(total()), 0);
  for (const BlockTable& table : tables_) {
    for (BlockId block : table.blocks()) {
      if (block != kNoBlock) ++holders[static_cast<size_t>(block.value)];
    }
  }
  for (const BlockLease* lease : leases) {
    for (BlockId block : lease->blocks()) ++holders[static_cast<size_t>(block.value)];
  }
  int32_t free_blocks = 0, idle = 0;
  for (int32_t i = 0; i < total(); ++i) {
    BlockId block{i};
    bool in_tree = tree_.Contains(block);
    int32_t expected = holders[static_cast<size_t>(i)] + in_tree;
    if (pool_.refs(block) > expected) {
      return broken(
          fmt::format("no block is lost: block {} has {} references, {} holders", i, pool_.refs(block), expected));
    }
    if (pool_.refs(block) < expected) {
      return broken(fmt::format("no block is freed twice: block {} has {} references, {} holders", i, pool_.refs(block),
                                expected));
    }
    free_blocks += expected == 0;
    idle += in_tree && expected == 1;
  }
  if (free_blocks != pool_.free_count()) {
    return broken(fmt::format("free + used + cached = total: {} blocks without a holder, {} on the free list",
                              free_blocks, pool_.free_count()));
  }
  if (idle != tree_.idle_count()) {
    return broken(fmt::format("every idle node is evictable: {} idle, {} counted", idle, tree_.idle_count()));
  }
  return {};
}

}  // namespace ekiben
