#include "text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "text/unicode.h"

namespace ekiben::text {

namespace {

constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr size_t kNone = std::numeric_limits<size_t>::max();
constexpr size_t kShortMax = 48;  // symbols; above, the quadratic scan costs more than the heap

uint64_t Load64(const char* p) {
  uint64_t value;
  std::memcpy(&value, p, 8);
  return value;
}
uint64_t Load32(const char* p) {
  uint32_t value;
  std::memcpy(&value, p, 4);
  return value;
}
uint64_t Fold(uint64_t a, uint64_t b) {
  __uint128_t product = static_cast<__uint128_t>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

int ByteTokenValue(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  return error == std::errc() && end == token.data() + 5 ? value : -1;
}

uint64_t Vocabulary::Hash(std::string_view bytes) {
  constexpr uint64_t kA = 0x2D358DCCAA6C78A5u, kB = 0x8BB84B93962EACC9u;
  const char* p = bytes.data();
  size_t size = bytes.size();
  uint64_t seed = size * kA;
  for (; size > 16; p += 16, size -= 16) seed = Fold(Load64(p) ^ kB ^ seed, Load64(p + 8) ^ kA);
  uint64_t a = 0, b = 0;
  if (size >= 8) {
    a = Load64(p), b = Load64(p + size - 8);
  } else if (size >= 4) {
    a = Load32(p), b = Load32(p + size - 4);
  } else if (size > 0) {
    auto byte = [p](size_t i) { return static_cast<uint64_t>(static_cast<unsigned char>(p[i])); };
    a = byte(0) << 16 | byte(size / 2) << 8 | byte(size - 1);
  }
  return Fold(a ^ kA ^ seed, b ^ kB);
}

void Vocabulary::Build(const std::vector<std::string>& tokens, const std::vector<bool>& hidden) {
  size_t total = 0;
  for (const std::string& token : tokens) total += token.size();
  arena_.reserve(total);
  offsets_.assign(1, 0);
  offsets_.reserve(tokens.size() + 1);
  slots_.assign(std::bit_ceil(std::max<size_t>(tokens.size() * 2, 16)), Slot{0, -1});
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string& token = tokens[id];
    arena_ += token;
    offsets_.push_back(arena_.size());
    if (token.empty() || hidden[id]) continue;
    uint64_t hash = Hash(token);
    if (Find(token, hash) >= 0) continue;
    size_t i = hash & (slots_.size() - 1);
    while (slots_[i].id >= 0) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = {static_cast<uint32_t>(hash >> 32), static_cast<int32_t>(id)};
    longest_ = std::max(longest_, token.size());
  }
}

int32_t Vocabulary::Find(std::string_view bytes, uint64_t hash) const {
  auto tag = static_cast<uint32_t>(hash >> 32);
  for (size_t i = hash & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
    const Slot& slot = slots_[i];
    if (slot.id < 0) return -1;
    if (slot.tag == tag && Bytes(slot.id) == bytes) return slot.id;
  }
}

void PairTable::Reserve(size_t count) {
  slots_.assign(std::bit_ceil(std::max<size_t>(count + count / 2, 16)), Entry());
  mask_ = slots_.size() - 1;
}

void PairTable::Insert(int32_t left, int32_t right, uint32_t rank, int32_t result) {
  uint64_t key = Key(left, right);
  size_t i = Mix(key) & mask_;
  while (slots_[i].key != Entry().key && slots_[i].key != key) i = (i + 1) & mask_;
  slots_[i] = {key, rank, result};
}

Result<std::unique_ptr<BpeModel>> BpeModel::Create(const TokenizerSpec& spec) {
  std::unique_ptr<BpeModel> model(new BpeModel());
  size_t count = spec.tokens.size();
  model->model_ = spec.model;
  model->whole_first_ = spec.ignore_merges || spec.model == Model::kTiktokenBpe;
  model->byte_fallback_ = spec.byte_fallback;
  model->fuse_unk_ = spec.fuse_unk;
  model->unk_ = spec.unk;
  model->by_pairs_ =
      spec.model == Model::kByteLevelBpe || (spec.model == Model::kSentencePieceBpe && spec.scores.empty());
  model->mergeable_.assign(count, !model->by_pairs_);
  if (model->by_pairs_) RETURN_IF_ERROR(model->SetMerges(spec));

  // What no merge can give is not found as a word: a special token comes from special-token parsing alone.
  std::vector<bool> hidden(count);
  for (const AddedToken& token : spec.added) {
    auto id = static_cast<size_t>(token.id);
    if (!model->by_pairs_ || !model->mergeable_[id]) hidden[id] = true;
  }
  for (size_t id = 0; id < spec.is_byte_token.size(); ++id) {
    if (spec.is_byte_token[id]) hidden[id] = true;
  }
  model->vocabulary_.Build(spec.tokens, hidden);
  if (!model->by_pairs_) {
    for (size_t id = 0; id < count; ++id) model->mergeable_[id] = !hidden[id];
  }
  if (spec.model == Model::kSentencePieceBpe && !model->by_pairs_) RETURN_IF_ERROR(model->SetScores(spec));
  model->SetBytes(spec);
  if (spec.model == Model::kTiktokenBpe) {
    for (int byte = 0; byte < 256; ++byte) {
      if (model->byte_ids_[static_cast<size_t>(byte)] >= 0) continue;
      return Error(Code::kInvalid,
                   fmt::format("tokenizer: no token for byte 0x{:02x}; tiktoken ranks hold all 256", byte));
    }
  }
  model->whole_ = std::make_unique<std::atomic<Whole>[]>(count);
  return model;
}

Result<void> BpeModel::SetMerges(const TokenizerSpec& spec) {
  pairs_.Reserve(spec.merges.size());
  auto in_range = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < spec.tokens.size(); };
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const TokenizerSpec::Merge& merge = spec.merges[rank];
    if (!in_range(merge.left) || !in_range(merge.right) || !in_range(merge.result)) {
      return Error(Code::kInvalid, fmt::format("tokenizer: merge {} ({}, {} -> {}) names an id outside 0..{}", rank,
                                               merge.left, merge.right, merge.result, spec.tokens.size()));
    }
    pairs_.Insert(merge.left, merge.right, static_cast<uint32_t>(rank), merge.result);
    mergeable_[static_cast<size_t>(merge.result)] = true;
  }
  return {};
}

// Best score, rank 0; equal scores, equal rank.
Result<void> BpeModel::SetScores(const TokenizerSpec& spec) {
  for (size_t id = 0; id < spec.scores.size(); ++id) {
    if (!std::isnan(spec.scores[id])) continue;
    return Error(Code::kInvalid, fmt::format("tokenizer: the score of token {} is not a number", id));
  }
  std::vector<int32_t> order(spec.scores.size());
  std::iota(order.begin(), order.end(), 0);
  auto score = [&](int32_t id) { return spec.scores[static_cast<size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return score(a) > score(b); });
  rank_of_id_.assign(spec.scores.size(), 0);
  uint32_t rank = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && score(order[i]) < score(order[i - 1])) ++rank;
    rank_of_id_[static_cast<size_t>(order[i])] = rank;
  }
  return {};
}

void BpeModel::SetBytes(const TokenizerSpec& spec) {
  byte_ids_.fill(-1);
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.model != Model::kSentencePieceBpe) break;
    if (id >= spec.is_byte_token.size() || !spec.is_byte_token[id]) continue;
    if (int value = ByteTokenValue(spec.tokens[id]); value >= 0) {
      byte_ids_[static_cast<size_t>(value)] = static_cast<int32_t>(id);
    }
  }
  if (spec.model == Model::kSentencePieceBpe) return;
  for (int byte = 0; byte < 256; ++byte) {
    char c = static_cast<char>(byte);
    byte_ids_[static_cast<size_t>(byte)] = vocabulary_.Find(std::string_view(&c, 1));
  }
}

bool BpeModel::HasAllBytes() const {
  return std::all_of(byte_ids_.begin(), byte_ids_.end(), [](int32_t id) { return id >= 0; });
}

void BpeModel::Encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const {
  uint64_t hash = Vocabulary::Hash(word);
  int32_t id = word.size() <= vocabulary_.longest() ? vocabulary_.Find(word, hash) : -1;
  if (id >= 0) {
    std::atomic<Whole>& whole = whole_[static_cast<size_t>(id)];
    Whole known = whole_first_ ? Whole::kYes : whole.load(std::memory_order_relaxed);
    if (known == Whole::kYes) {
      out.push_back(id);
      return;
    }
    if (known == Whole::kUnknown) {
      size_t before = out.size();
      Merge(word, scratch, out);
      bool yes = out.size() == before + 1 && out.back() == id;
      whole.store(yes ? Whole::kYes : Whole::kNo, std::memory_order_relaxed);
      return;
    }
  }
  if (word.empty() || word.size() > BpeScratch::kCachedBytes) return Merge(word, scratch, out);
  BpeScratch::CacheEntry& entry = scratch.cache[hash >> 20 & (BpeScratch::kCacheEntries - 1)];
  if (entry.size == word.size() && std::memcmp(entry.word.data(), word.data(), word.size()) == 0) {
    out.insert(out.end(), entry.ids.begin(), entry.ids.begin() + entry.count);
    return;
  }
  size_t before = out.size();
  Merge(word, scratch, out);
  if (out.size() - before > BpeScratch::kCachedIds) return;
  entry.size = static_cast<uint8_t>(word.size());
  entry.count = static_cast<uint8_t>(out.size() - before);
  std::copy(word.begin(), word.end(), entry.word.begin());
  std::copy(out.begin() + static_cast<ptrdiff_t>(before), out.end(), entry.ids.begin());
}

// A character that is no token: byte tokens when the vocabulary has them all, else unk, else nothing. Where scores
// decide, the bytes themselves can still become part of a token, so the symbol stays and Emit falls back.
void BpeModel::BeginUnknown(std::string_view word, size_t begin, size_t end, std::vector<Symbol>& symbols) const {
  auto push = [&](size_t from, size_t to, int32_t id) { symbols.push_back({from, to, id, kNoRank, -1, 0, 0}); };
  if (!by_pairs_) return push(begin, end, -1);
  bool all = byte_fallback_;
  for (size_t i = begin; i < end && all; ++i) all = byte_ids_[static_cast<unsigned char>(word[i])] >= 0;
  if (all && model_ == Model::kSentencePieceBpe) {
    for (size_t i = begin; i < end; ++i) push(i, i + 1, byte_ids_[static_cast<unsigned char>(word[i])]);
  } else if (unk_ >= 0) {
    if (fuse_unk_ && !symbols.empty() && symbols.back().id == unk_) {
      symbols.back().end = end;
    } else {
      push(begin, end, unk_);
    }
  }
}

void BpeModel::Begin(std::string_view word, std::vector<Symbol>& symbols) const {
  symbols.clear();
  if (model_ != Model::kSentencePieceBpe) {
    for (size_t i = 0; i < word.size(); ++i) {
      int32_t id = byte_ids_[static_cast<unsigned char>(word[i])];
      if (id >= 0) {
        symbols.push_back({i, i + 1, id, kNoRank, -1, 0, 0});
      } else {
        BeginUnknown(word, i, i + 1, symbols);
      }
    }
    return;
  }
  for (size_t i = 0; i < word.size();) {
    size_t end = i + Utf8Length(static_cast<unsigned char>(word[i]));
    int32_t id = vocabulary_.Find(word.substr(i, end - i));
    if (id >= 0) {
      symbols.push_back({i, end, id, kNoRank, -1, 0, 0});
    } else {
      BeginUnknown(word, i, end, symbols);
    }
    i = end;
  }
}

void BpeModel::Merge(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  Begin(word, symbols);
  auto by_pair = [this](Symbol& left, const Symbol& right) {
    const PairTable::Entry* entry = pairs_.Find(left.id, right.id);
    left.rank = entry != nullptr ? entry->rank : kNoRank;
    left.merged = entry != nullptr ? entry->result : -1;
  };
  auto by_bytes = [this, word](Symbol& left, const Symbol& right) {
    left.rank = kNoRank;
    if (right.end - left.begin > vocabulary_.longest()) return;
    left.merged = vocabulary_.Find(word.substr(left.begin, right.end - left.begin));
    if (left.merged < 0) return;
    left.rank =
        rank_of_id_.empty() ? static_cast<uint32_t>(left.merged) : rank_of_id_[static_cast<size_t>(left.merged)];
  };
  bool is_long = symbols.size() > kShortMax;
  if (by_pairs_) {
    is_long ? MergeLong(scratch, by_pair) : MergeShort(symbols, by_pair);
  } else {
    is_long ? MergeLong(scratch, by_bytes) : MergeShort(symbols, by_bytes);
  }
  for (size_t i = 0; i < symbols.size(); i = is_long ? symbols[i].next : i + 1) Emit(word, symbols[i], out);
  if (symbols.capacity() > (size_t{1} << 16)) {  // one hostile word must not keep megabytes for ever
    std::vector<Symbol>().swap(symbols);
    std::vector<BpeScratch::HeapItem>().swap(scratch.heap);
  }
}

void BpeModel::Emit(std::string_view word, const Symbol& symbol, std::vector<int32_t>& out) const {
  if (symbol.id >= 0) {
    out.push_back(symbol.id);
    return;
  }
  bool all = byte_fallback_;
  for (size_t i = symbol.begin; i < symbol.end && all; ++i) all = byte_ids_[static_cast<unsigned char>(word[i])] >= 0;
  if (all) {
    for (size_t i = symbol.begin; i < symbol.end; ++i) out.push_back(byte_ids_[static_cast<unsigned char>(word[i])]);
  } else if (unk_ >= 0 && !(fuse_unk_ && !out.empty() && out.back() == unk_)) {
    out.push_back(unk_);
  }
}

template <class FindPair>
void BpeModel::MergeShort(std::vector<Symbol>& symbols, const FindPair& find) const {
  for (size_t i = 0; i + 1 < symbols.size(); ++i) find(symbols[i], symbols[i + 1]);
  while (symbols.size() > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < symbols.size(); ++i) {
      if (symbols[i].rank < symbols[best].rank) best = i;
    }
    if (symbols[best].rank == kNoRank) return;
    symbols[best].id = symbols[best].merged;
    symbols[best].end = symbols[best + 1].end;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    symbols[best].rank = kNoRank;
    if (best + 1 < symbols.size()) find(symbols[best], symbols[best + 1]);
    if (best > 0) find(symbols[best - 1], symbols[best]);
  }
}

template <class FindPair>
void BpeModel::MergeLong(BpeScratch& scratch, const FindPair& find) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<BpeScratch::HeapItem>& heap = scratch.heap;
  heap.clear();
  auto later = [](const BpeScratch::HeapItem& a, const BpeScratch::HeapItem& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  };
  auto look = [&](size_t left) {
    size_t right = symbols[left].next;
    if (right >= symbols.size()) return false;
    find(symbols[left], symbols[right]);
    if (symbols[left].rank == kNoRank) return false;
    heap.push_back({symbols[left].rank, left, symbols[right].end});
    return true;
  };
  for (size_t i = 0; i < symbols.size(); ++i) {
    symbols[i].previous = i == 0 ? kNone : i - 1;
    symbols[i].next = i + 1;
  }
  for (size_t i = 0; i < symbols.size(); ++i) look(i);
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    BpeScratch::HeapItem item = heap.back();
    heap.pop_back();
    Symbol& left = symbols[item.left];
    // Stale: the left symbol is gone (end 0), or its right neighbour is no longer the one that was looked at.
    if (left.end == 0 || left.rank != item.rank || left.next >= symbols.size() ||
        symbols[left.next].end != item.right_end) {
      continue;
    }
    Symbol& right = symbols[left.next];
    left.id = left.merged;
    left.end = right.end;
    left.next = right.next;
    right.end = 0;
    left.rank = kNoRank;
    if (left.next < symbols.size()) symbols[left.next].previous = item.left;
    if (look(item.left)) std::push_heap(heap.begin(), heap.end(), later);
    if (left.previous != kNone && look(left.previous)) std::push_heap(heap.begin(), heap.end(), later);
  }
}

}  // namespace ekiben::text
