#include "cache/prefix_tree.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/sha256.h"
#include "cache/planted_bug.h"

namespace ekiben {
namespace {

// Children looked at for a partial match: the newest ones. A bound, because the root may have one child a request.
constexpr int kPartialCandidatesMax = 32;

// The finaliser of SplitMix64: every input bit reaches every output bit.
constexpr uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xBF58476D1CE4E5B9u;
  x ^= x >> 27;
  x *= 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

PrefixSalt SaltOf(std::string_view text) {
  PrefixSalt salt;
  if (text.empty()) return salt;
  Digest digest = Sha256Of(std::as_bytes(std::span(text.data(), text.size())));
  std::memcpy(&salt.high, digest.data(), 8);
  std::memcpy(&salt.low, digest.data() + 8, 8);
  return salt;
}

BlockKey RootKey(PrefixSalt salt) {
  return Mix(salt.high + 0x9E3779B97F4A7C15u) ^ Mix(salt.low + 0x2545F4914F6CDD1Du);
}

BlockKey NextKey(BlockKey parent, std::span<const TokenId> block_tokens) {
  uint64_t key = parent;
  for (TokenId token : block_tokens) key = Mix(key + static_cast<uint32_t>(token) + 0x9E3779B97F4A7C15u);
  return key;
}

PrefixTree::PrefixTree(BlockPool& pool, int32_t tokens_per_block)
    : pool_(pool),
      tokens_per_block_(tokens_per_block),
      nodes_(static_cast<size_t>(pool.total())),
      tokens_(nodes_.size() * static_cast<size_t>(tokens_per_block)),
      buckets_(std::bit_ceil(nodes_.size() * 2), kNoBlock) {
  CHECK_GT(tokens_per_block, 0);
  detach_stack_.reserve(nodes_.size());
}

std::span<const TokenId> PrefixTree::TokensOf(BlockId block) const {
  auto stride = static_cast<size_t>(tokens_per_block_);
  return {tokens_.data() + At(block) * stride, stride};
}

bool PrefixTree::Belongs(const Node& candidate, BlockId parent, PrefixSalt salt) const {
  return candidate.parent == parent && (parent != kNoBlock || candidate.salt == salt);
}

BlockId PrefixTree::Find(BlockId parent, PrefixSalt salt, BlockKey key, std::span<const TokenId> tokens) const {
  for (BlockId at = bucket(key); at != kNoBlock; at = node(at).next_in_bucket) {
    const Node& candidate = node(at);
    if (candidate.key != key || !Belongs(candidate, parent, salt)) continue;
    if (std::ranges::equal(TokensOf(at), tokens)) return at;
  }
  return kNoBlock;
}

PrefixMatch PrefixTree::Match(PrefixSalt salt, std::span<const TokenId> tokens, std::span<const BlockKey> keys,
                              int32_t tokens_max, std::span<BlockId> found) const {
  PrefixMatch match;
  tokens = tokens.first(std::min(tokens.size(), static_cast<size_t>(std::max(tokens_max, 0))));
  auto stride = static_cast<size_t>(tokens_per_block_);
  BlockId parent = kNoBlock;
  for (size_t i = 0; i < keys.size() && (i + 1) * stride <= tokens.size(); ++i) {
    BlockId block = Find(parent, salt, keys[i], tokens.subspan(i * stride, stride));
    if (block == kNoBlock) break;
    found[i] = parent = block;
    ++match.blocks;
    match.blocks_idle += pool_.refs(block) == 1;
  }
  FindPartial(parent, salt, tokens.subspan(static_cast<size_t>(match.blocks) * stride), match);
  return match;
}

void PrefixTree::FindPartial(BlockId parent, PrefixSalt salt, std::span<const TokenId> tokens,
                             PrefixMatch& match) const {
  if (tokens.empty()) return;
  BlockId at = parent == kNoBlock ? first_root_ : node(parent).first_child;
  for (int seen = 0; at != kNoBlock && seen < kPartialCandidatesMax; at = node(at).next_sibling, ++seen) {
    if (!Belongs(node(at), parent, salt)) continue;
    std::span<const TokenId> have = TokensOf(at);
    auto same = std::mismatch(have.begin(), have.end(), tokens.begin(), tokens.end()).first - have.begin();
    if (Planted(PlantedBug::kStalePrefix) && same > 0 && have.size() > static_cast<size_t>(same) &&
        tokens.size() > static_cast<size_t>(same)) {
      ++same;
    }
    if (same <= match.partial_tokens) continue;
    match.partial_tokens = static_cast<int32_t>(same);
    match.partial_source = at;
  }
}

bool PrefixTree::Insert(BlockId parent, PrefixSalt salt, BlockKey key, std::span<const TokenId> tokens, BlockId block) {
  CHECK_EQ(static_cast<int32_t>(tokens.size()), tokens_per_block_);
  CHECK(!Contains(block), "block {} is in the tree already", block);
  if (parent != kNoBlock && !Contains(parent)) return false;
  if (Find(parent, salt, key, tokens) != kNoBlock) return false;
  pool_.AddRef(block);
  ++node_count_;
  std::ranges::copy(tokens, tokens_.begin() + static_cast<ptrdiff_t>(At(block) * tokens.size()));
  BlockId& first = parent == kNoBlock ? first_root_ : node(parent).first_child;
  Node& made = node(block);
  made = Node{.in_tree = true, .key = key, .salt = salt, .parent = parent, .next_sibling = first};
  if (first != kNoBlock) node(first).previous_sibling = block;
  first = block;
  made.next_in_bucket = bucket(key);
  bucket(key) = block;
  if (parent != kNoBlock && node(parent).in_list) ListRemove(parent);
  return true;
}

// Unlinks one node without children and drops the tree's reference.
void PrefixTree::Remove(BlockId block) {
  Node& gone = node(block);
  CHECK(gone.in_tree && gone.first_child == kNoBlock, "block {}", block);
  if (gone.in_list) ListRemove(block);
  BlockId* link = &bucket(gone.key);
  while (*link != block) link = &node(*link).next_in_bucket;
  *link = gone.next_in_bucket;
  BlockId parent = gone.parent;
  if (gone.previous_sibling != kNoBlock) {
    node(gone.previous_sibling).next_sibling = gone.next_sibling;
  } else {
    (parent == kNoBlock ? first_root_ : node(parent).first_child) = gone.next_sibling;
  }
  if (gone.next_sibling != kNoBlock) node(gone.next_sibling).previous_sibling = gone.previous_sibling;
  if (pool_.refs(block) == 1) --idle_count_;
  gone = Node{};
  --node_count_;
  pool_.Release(block);
  if (parent != kNoBlock && node(parent).first_child == kNoBlock && pool_.refs(parent) == 1) ListInsert(parent);
}

bool PrefixTree::EvictOne() {
  if (oldest_ == kNoBlock) return false;
  Remove(oldest_);
  return true;
}

void PrefixTree::Detach(BlockId block) {
  if (!Contains(block)) return;
  detach_stack_.push_back(block);
  while (!detach_stack_.empty()) {  // children before their parents
    BlockId at = detach_stack_.back();
    if (node(at).first_child != kNoBlock) {
      detach_stack_.push_back(node(at).first_child);
    } else {
      detach_stack_.pop_back();
      Remove(at);
    }
  }
}

void PrefixTree::OnHeld(BlockId block) {
  --idle_count_;
  if (node(block).in_list) ListRemove(block);
}

void PrefixTree::OnIdle(BlockId block) {
  ++idle_count_;
  node(block).idle_since = ++clock_;
  if (node(block).first_child == kNoBlock) ListInsert(block);
}

// By age. A leaf that just went idle is the newest; a parent whose last child was just evicted is nearly the oldest:
// so look from both ends at once.
void PrefixTree::ListInsert(BlockId block) {
  Node& entry = node(block);
  BlockId above = newest_, below = oldest_;  // the neighbours looked for: older.idle_since < entry < newer.idle_since
  BlockId older = kNoBlock, newer = kNoBlock;
  while (true) {
    if (above == kNoBlock || node(above).idle_since < entry.idle_since) {
      older = above;
      newer = above == kNoBlock ? oldest_ : node(above).newer;
      break;
    }
    if (node(below).idle_since > entry.idle_since) {
      newer = below;
      older = node(below).older;
      break;
    }
    above = node(above).older;
    below = node(below).newer;
  }
  entry.in_list = true;
  entry.older = older;
  entry.newer = newer;
  (older == kNoBlock ? oldest_ : node(older).newer) = block;
  (newer == kNoBlock ? newest_ : node(newer).older) = block;
}

void PrefixTree::ListRemove(BlockId block) {
  Node& entry = node(block);
  (entry.older == kNoBlock ? oldest_ : node(entry.older).newer) = entry.newer;
  (entry.newer == kNoBlock ? newest_ : node(entry.newer).older) = entry.older;
  entry.older = entry.newer = kNoBlock;
  entry.in_list = false;
}

}  // namespace ekiben
