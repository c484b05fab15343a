// The KV pool's blocks by number: which are free, and how many holders each has. A block is held by every sequence
// whose table names it, by the prefix tree, and by a step's lease; it is free when the last holder lets go.
//
// Invariants: refs(b) == 0 exactly when b is on the free list; free_count() + held blocks == total().
// A release without a holder is our bug (CHECK). Integers only: the memory itself is the backend's.
// Nothing is allocated after construction. Thread: the executor's.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "request/ids.h"

namespace ekiben {

inline constexpr BlockId kNoBlock{-1};

class BlockPool {
 public:
  explicit BlockPool(int32_t blocks);

  int32_t total() const { return static_cast<int32_t>(refs_.size()); }
  int32_t free_count() const { return static_cast<int32_t>(free_.size()); }
  int32_t refs(BlockId block) const { return refs_[Index(block)]; }

  // A free block, now with one holder; nullopt when none is free.
  std::optional<BlockId> Allocate();
  // REQUIRES: the block is held.
  void AddRef(BlockId block);
  // Returns the holders left; at 0 the block is free.
  int32_t Release(BlockId block);

 private:
  size_t Index(BlockId block) const;

  std::vector<int32_t> refs_;
  std::vector<BlockId> free_;  // a stack: the block freed last is the one most likely still in a cache
};

}  // namespace ekiben
