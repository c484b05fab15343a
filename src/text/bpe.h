// Byte pair encoding of one word: the pair with the lowest rank is merged first, the leftmost of equals, until none is
// left. Ranks come from a merge list over ids, or from the vocabulary itself: the rank (tiktoken) or score
// (SentencePiece) of the joined bytes.
// Short words run on a flat array; words over kShortMax symbols on a linked list with a heap, O(n log n), so that a
// megabyte without a space costs no more per byte than prose with many spaces.
// Thread: BpeModel is immutable after Create (its lazily filled flags are atomics whose races are harmless); a
// BpeScratch belongs to one thread at a time.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer_spec.h"

namespace ekiben::text {

// Bytes to id and back. Lookups never allocate.
class Vocabulary {
 public:
  // Tokens that are empty or `hidden` are not found; of equal ones the first is.
  void Build(const std::vector<std::string>& tokens, const std::vector<bool>& hidden);
  static uint64_t Hash(std::string_view bytes);
  int32_t Find(std::string_view bytes, uint64_t hash) const;  // -1: no such token
  int32_t Find(std::string_view bytes) const { return Find(bytes, Hash(bytes)); }
  std::string_view Bytes(int32_t id) const {
    return std::string_view(arena_).substr(offsets_[static_cast<size_t>(id)],
                                           offsets_[static_cast<size_t>(id) + 1] - offsets_[static_cast<size_t>(id)]);
  }
  size_t longest() const { return longest_; }

 private:
  struct Slot {
    uint32_t tag;  // high half of the hash
    int32_t id;    // -1: free
  };
  std::string arena_;
  std::vector<size_t> offsets_;
  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t longest_ = 0;
};

// The byte that "<0x0A>" stands for; -1 for any other text.
int ByteTokenValue(std::string_view token);

// (left, right) to (rank, result), open addressing.
class PairTable {
 public:
  struct Entry {
    uint64_t key = ~uint64_t{0};
    uint32_t rank = 0;
    int32_t result = 0;
  };
  void Reserve(size_t count);
  // A later entry for the same pair replaces the earlier one. REQUIRES: at most `count` entries, left and right >= 0.
  void Insert(int32_t left, int32_t right, uint32_t rank, int32_t result);
  const Entry* Find(int32_t left, int32_t right) const {
    if (slots_.empty() || (left | right) < 0) return nullptr;
    uint64_t key = Key(left, right);
    for (size_t i = Mix(key) & mask_;; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return &slots_[i];
      if (slots_[i].key == Entry().key) return nullptr;
    }
  }

 private:
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  static size_t Mix(uint64_t key) {
    key *= 0x9E3779B97F4A7C15u;
    return static_cast<size_t>(key ^ key >> 32);
  }
  std::vector<Entry> slots_;
  size_t mask_ = 0;
};

// Working memory and a bounded cache of words that take several tokens; results do not depend on what it holds.
struct BpeScratch {
  struct Symbol {
    size_t begin, end;      // bytes of the word
    int32_t id;             // -1: no token (SentencePiece, before byte fallback)
    uint32_t rank;          // of the merge with the next symbol; kNoRank: none
    int32_t merged;         // what that merge gives
    size_t previous, next;  // long words only
  };
  struct HeapItem {
    uint32_t rank;
    size_t left, right_end;
  };
  static constexpr size_t kCachedBytes = 30, kCachedIds = 8, kCacheEntries = 4096;
  struct alignas(64) CacheEntry {
    uint8_t size = 0;  // 0: free
    uint8_t count = 0;
    std::array<char, kCachedBytes> word;
    std::array<int32_t, kCachedIds> ids;
  };
  static_assert(sizeof(CacheEntry) == 64);

  std::vector<Symbol> symbols;
  std::vector<HeapItem> heap;
  std::vector<CacheEntry> cache = std::vector<CacheEntry>(kCacheEntries);
};

class BpeModel {
 public:
  static Result<std::unique_ptr<BpeModel>> Create(const TokenizerSpec& spec);

  // Appends the ids of `word` (valid UTF-8).
  void Encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  // By id: whether some merge can produce the token.
  const std::vector<bool>& mergeable() const { return mergeable_; }
  // A token for each byte: no character is unknown.
  bool HasAllBytes() const;

 private:
  enum class Whole : uint8_t { kUnknown, kYes, kNo };  // a token's own bytes encode to that token alone
  using Symbol = BpeScratch::Symbol;

  BpeModel() = default;
  Result<void> SetMerges(const TokenizerSpec& spec);
  Result<void> SetScores(const TokenizerSpec& spec);
  void SetBytes(const TokenizerSpec& spec);
  void Begin(std::string_view word, std::vector<Symbol>& symbols) const;
  void BeginUnknown(std::string_view word, size_t begin, size_t end, std::vector<Symbol>& symbols) const;
  void Merge(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const;
  template <class FindPair>
  void MergeShort(std::vector<Symbol>& symbols, const FindPair& find) const;
  template <class FindPair>
  void MergeLong(BpeScratch& scratch, const FindPair& find) const;
  void Emit(std::string_view word, const Symbol& symbol, std::vector<int32_t>& out) const;

  Model model_ = Model::kByteLevelBpe;
  bool by_pairs_ = false;     // pairs_ decides; else the joined bytes do
  bool whole_first_ = false;  // a word that is a token is that token
  bool byte_fallback_ = false, fuse_unk_ = false;
  int32_t unk_ = -1;
  Vocabulary vocabulary_;
  PairTable pairs_;
  std::vector<uint32_t> rank_of_id_;  // by score; empty: the id is the rank
  std::vector<bool> mergeable_;
  std::array<int32_t, 256> byte_ids_;  // the token of one byte; -1: none
  std::unique_ptr<std::atomic<Whole>[]> whole_;
};

}  // namespace ekiben::text
