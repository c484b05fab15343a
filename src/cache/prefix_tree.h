// Which full blocks hold the KV of which token prefixes: a radix tree with one block an edge, so that a request whose
// prompt begins like an earlier one takes that one's blocks instead of computing them again.
//
// A node is a block (node i is block i: no memory of its own). A child is found by the chain key of its prefix (a hash
// of salt and all tokens up to its end), and then its parent and its tokens are compared: a key alone proves nothing.
// Under different salts nothing is shared: first-level nodes carry theirs, 128 bits of SHA-256.
//
// Ownership: the tree is one holder of each of its blocks. A node is idle when the tree is its only holder. Whoever
// holds a node holds its ancestors too, so every idle node can be given up: leaves first, least recently used first.
// Invariants: idle_count() = nodes with refs == 1; the eviction list = idle nodes without children, oldest first; a
// parent goes idle after its children, so the order of the list is the order of last use.
// Method: SGLang's RadixAttention (Zheng et al. 2023), in blocks as in TensorRT-LLM's kv-cache-reuse.
// Nothing is allocated after construction. Thread: the executor's.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "cache/block_pool.h"
#include "request/ids.h"

namespace ekiben {

struct PrefixSalt {
  uint64_t high = 0, low = 0;
  bool operator==(const PrefixSalt&) const = default;
};
// Empty text: the common salt, zero.
PrefixSalt SaltOf(std::string_view text);

// Chain keys: RootKey(salt), then one step a block. Computed once a sequence, at the edge.
using BlockKey = uint64_t;
BlockKey RootKey(PrefixSalt salt);
BlockKey NextKey(BlockKey parent, std::span<const TokenId> block_tokens);

// What the tree has of a prompt. `blocks` full ones from the front, and then perhaps a block of which the first
// `partial_tokens` tokens agree: worth a copy.
struct PrefixMatch {
  int32_t blocks = 0;
  int32_t blocks_idle = 0;  // of those, how many are idle now: taking them makes the pool that much smaller
  BlockId partial_source = kNoBlock;
  int32_t partial_tokens = 0;
};

class PrefixTree {
 public:
  PrefixTree(BlockPool& pool, int32_t tokens_per_block);

  // At most `tokens_max` of `tokens` are matched. keys[i] is the chain key of block i; blocks without a key are not
  // looked up. The matched blocks go to `found` (room for keys.size()). Changes nothing.
  PrefixMatch Match(PrefixSalt salt, std::span<const TokenId> tokens, std::span<const BlockKey> keys,
                    int32_t tokens_max, std::span<BlockId> found) const;

  // Adds `block` (held by the caller, all tokens computed) below `parent` (kNoBlock: at the root) and takes a
  // reference of its own. False, and nothing happens, when the same tokens are there already or the parent is not.
  bool Insert(BlockId parent, PrefixSalt salt, BlockKey key, std::span<const TokenId> tokens, BlockId block);

  // Gives up the least recently used idle leaf; its block is free then. False when nothing is idle.
  bool EvictOne();
  // Takes `block` and all below it out of the tree; blocks without other holders become free. Used for contents that
  // must not be found again.
  void Detach(BlockId block);

  bool Contains(BlockId block) const { return nodes_[At(block)].in_tree; }
  int32_t idle_count() const { return idle_count_; }
  int32_t node_count() const { return node_count_; }

  // The pool's holders of a node changed between "the tree alone" and "others too".
  void OnHeld(BlockId block);
  void OnIdle(BlockId block);

 private:
  struct Node {
    bool in_tree = false, in_list = false;
    BlockKey key = 0;
    PrefixSalt salt;          // of first-level nodes
    uint64_t idle_since = 0;  // order of going idle
    BlockId parent = kNoBlock, first_child = kNoBlock, next_sibling = kNoBlock, previous_sibling = kNoBlock;
    BlockId next_in_bucket = kNoBlock;
    BlockId older = kNoBlock, newer = kNoBlock;  // eviction list
  };
  size_t At(BlockId block) const { return static_cast<size_t>(block.value); }
  Node& node(BlockId block) { return nodes_[At(block)]; }
  const Node& node(BlockId block) const { return nodes_[At(block)]; }
  std::span<const TokenId> TokensOf(BlockId block) const;
  BlockId Find(BlockId parent, PrefixSalt salt, BlockKey key, std::span<const TokenId> tokens) const;
  void FindPartial(BlockId parent, PrefixSalt salt, std::span<const TokenId> tokens, PrefixMatch& match) const;
  bool Belongs(const Node& candidate, BlockId parent, PrefixSalt salt) const;
  void Remove(BlockId block);
  void ListInsert(BlockId block);
  void ListRemove(BlockId block);
  BlockId& bucket(BlockKey key) { return buckets_[key & (buckets_.size() - 1)]; }
  const BlockId& bucket(BlockKey key) const { return buckets_[key & (buckets_.size() - 1)]; }

  BlockPool& pool_;
  const int32_t tokens_per_block_;
  std::vector<Node> nodes_;
  std::vector<TokenId> tokens_;  // [block][tokens_per_block]
  std::vector<BlockId> buckets_;
  std::vector<BlockId> detach_stack_;
  BlockId first_root_ = kNoBlock;
  BlockId oldest_ = kNoBlock, newest_ = kNoBlock;
  uint64_t clock_ = 0;
  int32_t idle_count_ = 0, node_count_ = 0;
};

}  // namespace ekiben
