// Who holds which KV block: the pool, the prefix tree, one block table a slot, and the leases of the steps in flight.
//
//   free list ──Append──► block table of a slot ──Commit──► also in the prefix tree
//       ▲                        │                               │
//       └── lease returned ◄── Retire / GiveBack                 └─ idle when no table and no lease names it: evictable
//
// Blocks that a step in flight names are not released but handed to that step's lease, which lets go when the step has
// finished. available() = free + idle: what Append can hand out. Append evicts by itself.
// This is one KV group (layers of equal window and head shape); a model with several has one KvCache each.
// Nothing is allocated after construction. Thread: the executor's.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "cache/block_pool.h"
#include "cache/prefix_tree.h"
#include "request/ids.h"

namespace ekiben {

class KvCache;

// References that a step in flight still needs. RAII: they return when the lease does.
class BlockLease {
 public:
  BlockLease(KvCache& cache, size_t references_max);
  ~BlockLease() { Return(); }
  BlockLease(BlockLease&&) = default;

  // Takes over one reference of the caller's.
  void Hold(BlockId block);
  // REQUIRES: the step has finished.
  void Return();
  std::span<const BlockId> blocks() const { return blocks_; }

 private:
  KvCache* cache_;
  std::vector<BlockId> blocks_;
};

// The blocks of one sequence in order; entry i holds its tokens [i * tokens_per_block, (i + 1) * tokens_per_block).
// Entries before the attention window are given back and then kNoBlock.
struct BlockTable {
  std::span<BlockId> entries;  // storage for the longest sequence
  int32_t length = 0;
  int32_t in_tree = 0;   // leading entries that are nodes of the tree, each the parent of the next
  int32_t released = 0;  // leading own entries behind the window, from in_tree on: all kNoBlock
  bool shares = false;   // its full blocks go into the tree
  std::span<const BlockId> blocks() const { return entries.first(static_cast<size_t>(length)); }
};

struct KvCacheConfig {
  int32_t blocks = 0;
  int32_t tokens_per_block = 0;
  int32_t slots = 0;
  int32_t blocks_per_sequence = 0;
};

class KvCache {
 public:
  explicit KvCache(const KvCacheConfig& config);

  int32_t total() const { return pool_.total(); }
  int32_t available() const { return pool_.free_count() + tree_.idle_count(); }
  int32_t idle_count() const { return tree_.idle_count(); }
  int32_t tokens_per_block() const { return config_.tokens_per_block; }
  const PrefixTree& tree() const { return tree_; }
  const BlockTable& table(SlotId slot) const { return tables_[static_cast<size_t>(slot.value)]; }
  // One more lease, with room for every table at once.
  BlockLease MakeLease();

  // The slot's empty table starts with these blocks of the tree (a Match); the table takes a reference of each.
  void Attach(SlotId slot, std::span<const BlockId> matched, bool shares);
  // The slot's empty table starts with the first `count` blocks of another slot's.
  void Share(SlotId source, SlotId slot, int32_t count, bool shares);
  // Appends a block and returns it. REQUIRES: available() > 0.
  BlockId Append(SlotId slot);
  // Takes an idle node (and what hangs below it) out of the tree and appends it: its contents become the slot's own.
  BlockId AppendFromTree(SlotId slot, BlockId node);
  // All tokens of the table's first `full_blocks` blocks are computed: those not in the tree yet go there.
  void Commit(SlotId slot, PrefixSalt salt, std::span<const TokenId> tokens, std::span<const BlockKey> keys,
              int32_t full_blocks);
  // Entries before `first_needed` fell out of the attention window. To `lease`, or at once when it is null.
  void GiveBack(SlotId slot, int32_t first_needed, BlockLease* lease);
  // Empties the table. To `lease`, or at once when it is null.
  void Retire(SlotId slot, BlockLease* lease);
  // The slot's contents are not to be trusted: nobody may find them again.
  void Distrust(SlotId slot);

  // Another reference, for a lease. REQUIRES: the block is held or in the tree.
  void Acquire(BlockId block);
  void Drop(BlockId block);
  bool Idle(BlockId block) const { return tree_.Contains(block) && pool_.refs(block) == 1; }
  // Blocks that Retire would make available now.
  int32_t BlocksOfItsOwn(SlotId slot) const;
  // Blocks the slot holds outside the tree.
  int32_t BlocksOutsideTree(SlotId slot) const;

  // Recounts every holder from scratch and compares. The error names the invariant. Slow: for tests and idle moments.
  Result<void> Audit(std::span<const BlockLease* const> leases) const;

 private:
  BlockTable& mutable_table(SlotId slot) { return tables_[static_cast<size_t>(slot.value)]; }
  BlockId Allocate();
  void LetGo(BlockId block, BlockLease* lease);

  const KvCacheConfig config_;
  BlockPool pool_;
  PrefixTree tree_;
  std::vector<BlockId> storage_;  // [slot][blocks_per_sequence]
  std::vector<BlockTable> tables_;
};

}  // namespace ekiben
