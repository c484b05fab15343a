#include "cache/block_pool.h"

#include "base/check.h"

namespace ekiben {

BlockPool::BlockPool(int32_t blocks) : refs_(static_cast<size_t>(blocks), 0) {
  CHECK_GT(blocks, 0);
  free_.reserve(refs_.size());
  for (int32_t i = blocks - 1; i >= 0; --i) free_.push_back({i});
}

size_t BlockPool::Index(BlockId block) const {
  auto index = static_cast<size_t>(block.value);
  CHECK_LT(index, refs_.size());  // a negative id wraps to a huge one
  return index;
}

std::optional<BlockId> BlockPool::Allocate() {
  if (free_.empty()) return std::nullopt;
  BlockId block = free_.back();
  free_.pop_back();
  CHECK_EQ(refs_[Index(block)], 0);
  refs_[Index(block)] = 1;
  return block;
}

void BlockPool::AddRef(BlockId block) {
  int32_t& refs = refs_[Index(block)];
  CHECK_GT(refs, 0);
  ++refs;
}

int32_t BlockPool::Release(BlockId block) {
  int32_t& refs = refs_[Index(block)];
  CHECK(refs > 0, "block {} freed twice", block);
  if (--refs == 0) free_.push_back(block);
  return refs;
}

}  // namespace ekiben
