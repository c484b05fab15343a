// Context over the paged cache for head_dim 128 and blocks of 64 tokens, on warpgroup tensor instructions (Llama-3,
// Mistral, Qwen). ContextAttention (paged_attention.cu) serves every other shape.
//
// A work item is a tile of 128 packed queries (token * group + head in the group) of one KV head against the keys that
// its last query sees. Two consumer groups of four warps have 64 queries each, in registers; a producer runs ahead of
// them across item borders and fills a ring of tiles of 128 keys or values, in the order K0 K1 V0 K2 V1 ...: the scores
// of a tile are multiplied while the values of the tile before are, and its softmax hides behind the latter. Online
// softmax in powers of two; only tiles that reach past the first query of the item compare positions.
//
// The grid is as many clusters of two CTAs as the device holds at once. An entry of the list is a cluster's work: two
// heads of a tile, or, of a row with few tokens deep in its prompt (ContextChunks), one head with its keys cut in two.
// The parts meet in shared memory, and each CTA adds its share of the rows in the order of the keys. How a row is cut
// depends on its own position and tokens alone. Clusters of four, which cut the keys finer, lost: 32 of
// them took two rounds on an H100 (docs/gpu.md).
//
// A cache of e4m3 is multiplied as f16, which holds its values: the producer, then four warps, converts each tile.
//
// Slots of a block past a sequence's length may hold anything, NaN included: their scores are masked and their values
// cleared in shared memory. Measurements: docs/gpu.md. Long on purpose: one kernel read in order.
#include <type_traits>

#include "ops/bulk_copy.cuh"
#include "ops/cuda_launch.cuh"
#include "ops/wgmma.cuh"

namespace ekiben::cuda {
namespace {

constexpr int kPage = 64, kHeadDim = 128, kRows = kClusterQueryTile, kKeys = 128, kCluster = kContextCluster;
constexpr int kConsumers = 256, kThreads = kConsumers + 128, kConsumerWarps = kConsumers / 32;
constexpr int kHalfTile = kKeys * 128, kTile = 2 * kHalfTile;  // bytes; 128 of each key, then the other 128
constexpr int kPageBytes = kPage * 128;
constexpr int kQueryPitch = kHeadDim * 2 + 16;  // rows start 16 bytes further each, so that ldmatrix never collides
constexpr int kMergePitch = kHeadDim + 4;       // floats; behind a row's sums stand its maximum and its total
constexpr int kMeetConsumers = 1, kMeetGroup = 2, kMeetProducers = 4;  // named barriers; each group has its own

template <bool kFp8>
struct Layout {
  static constexpr int kStages = kFp8 ? 4 : 5;
  static constexpr int kCodeStages = kFp8 ? 3 : 0, kCodeTile = kKeys * kHeadDim;  // e4m3 on its way to the ring
  static constexpr int kCodes = kStages * kTile, kQueries = kCodes + kCodeStages * kCodeTile,
                       kBarriers = kQueries + kRows * kQueryPitch;
  static constexpr int kBytes = 1024 + kBarriers + 8 * (2 * kStages + kCodeStages + 4);
  static_assert(kRows * kMergePitch * 4 <= kStages * kTile, "the merge fits into the ring");
  static_assert(kBytes <= 227 * 1024);
};

struct ContextArguments {
  const Bf16* q;
  Bf16* out;
  const AttentionItem* items;
  const int* item_count;
  const int* tables;
  float scale_log2, value_scale;
  int q_stride, table_pitch, kv_heads, query_heads, group, base_row;
};

// One CTA's share of an entry: tiles [begin, end) of keys for one head; none when begin == end.
struct Part {
  int head = 0, chunk = 0, begin = 0, end = 0;
  int keys = 0;  // what the item's last query sees
};

__device__ __forceinline__ Part PartOf(const AttentionItem& item, int rank, const ContextArguments& p) {
  Part part;
  part.head = item.kv_head + rank / item.chunks;
  part.chunk = rank % item.chunks;
  if (part.head >= p.kv_heads) return part;
  int last = min(item.first + kRows, item.tokens * p.group) - 1;
  part.keys = item.position + last / p.group + 1;
  int tiles = (part.keys + kKeys - 1) / kKeys;
  part.begin = tiles * part.chunk / item.chunks;
  part.end = tiles * (part.chunk + 1) / item.chunks;
  return part;
}

// A cluster's entries. The next one is asked for while the one before is worked on.
struct Items {
  AttentionItem next;
  int at, count;
  __device__ __forceinline__ void Begin(const ContextArguments& p) {
    at = blockIdx.x / kCluster;
    count = *p.item_count;
    next = at < count ? p.items[at] : AttentionItem{};
  }
  __device__ __forceinline__ void Fetch(const ContextArguments& p) {
    at += gridDim.x / kCluster;
    if (at < count) next = p.items[at];
  }
};

struct Barriers {
  uint32_t full, empty;                  // of a stage of the ring
  uint32_t codes;                        // of a stage of e4m3
  uint32_t queries_full, queries_empty;  // of the item's queries
  uint32_t parts_ready, parts_read;      // of a merge, over the cluster
};

template <int kStages>
struct RingCursor {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Block ids of an item, 32 of them in the lanes of a warp.
struct Pages {
  const int* table;
  int count, base, held;
  __device__ __forceinline__ void Start(const ContextArguments& p, const AttentionItem& item, int keys) {
    table = p.tables + static_cast<size_t>(item.slot) * p.table_pitch;
    count = (keys + kPage - 1) / kPage;
    base = -1;
  }
  // By the whole warp. The first row in the cache's maps of block `page` for one head.
  __device__ __forceinline__ int Row(int page, int head, const ContextArguments& p) {
    if (base != (page & ~31)) {
      base = page & ~31;
      int mine = base + static_cast<int>(threadIdx.x) % 32;
      held = mine < count ? table[mine] : 0;
    }
    return p.base_row + (__shfl_sync(~0u, held, page % 32) * p.kv_heads + head) * kPage;
  }
};

// By one warp: the item's queries, a row at a time.
__device__ __forceinline__ void LoadQueries(const ContextArguments& p, const AttentionItem& item, int head,
                                            uint32_t queries, const Barriers& barriers, uint32_t parity) {
  int lane = threadIdx.x % 32, rows = min(kRows, item.tokens * p.group - item.first);
  BarrierWait(barriers.queries_empty, parity);
  if (lane == 0) BarrierExpect(barriers.queries_full, static_cast<uint32_t>(rows * kHeadDim * 2));
  __syncwarp();
  for (int row = lane; row < rows; row += 32) {
    int packed = item.first + row;
    const Bf16* from = p.q + static_cast<size_t>(item.token + packed / p.group) * p.q_stride +
                       (head * p.group + packed % p.group) * kHeadDim;
    BulkLoad(queries + row * kQueryPitch, from, kHeadDim * 2, barriers.queries_full);
  }
}

// bf16: one warp, everything by the copy engine.
__device__ __forceinline__ void Produce(const CUtensorMap* k_map, const CUtensorMap* v_map, const ContextArguments& p,
                                        Items items, uint32_t ring, uint32_t queries, const Barriers& barriers) {
  const uint64_t policy = EvictNormal();
  const int lane = threadIdx.x % 32, rank = blockIdx.x % kCluster;
  RingCursor<Layout<false>::kStages> to;
  uint32_t query_parity = 1, read_parity = 0;
  Pages pages;
  while (items.at < items.count) {
    const AttentionItem item = items.next;
    items.Fetch(p);
    const Part part = PartOf(item, rank, p);
    if (part.begin == part.end) continue;
    LoadQueries(p, item, part.head, queries, barriers, query_parity);
    query_parity ^= 1;
    pages.Start(p, item, part.keys);
    auto load = [&](const CUtensorMap* map, int row0, int row1, bool both) {
      if (lane == 0) {
        BarrierWait(barriers.empty + 8 * to.stage, to.parity ^ 1);
        uint32_t full = barriers.full + 8 * to.stage, at = ring + to.stage * kTile;
        BarrierExpect(full, both ? kTile : kTile / 2);
        for (int half = 0; half < 2; ++half) {
          TileLoad(at + half * kHalfTile, map, half * 64, row0, full, policy);
          if (both) TileLoad(at + half * kHalfTile + kPageBytes, map, half * 64, row1, full, policy);
        }
      }
      __syncwarp();
      to.Next();
    };
    int before0 = 0, before1 = 0;
    for (int tile = part.begin; tile <= part.end; ++tile) {
      int row0 = 0, row1 = 0;
      if (tile < part.end) {
        row0 = pages.Row(2 * tile, part.head, p);
        row1 = pages.Row(2 * tile + 1, part.head, p);
        load(k_map, row0, row1, 2 * tile + 1 < pages.count);
      }
      if (tile > part.begin) load(v_map, before0, before1, 2 * tile - 1 < pages.count);
      before0 = row0;
      before1 = row1;
    }
    if (item.chunks > 1) {  // the ring is lent to the merge
      BarrierWait(barriers.parts_read, read_parity);
      read_parity ^= 1;
      StoresBeforeAsync();
    }
  }
}

// e4m3: codes by the copy engine, three tiles ahead, then through registers into the ring as f16.
__device__ __forceinline__ void ProduceFromCodes(const CUtensorMap* k_map, const CUtensorMap* v_map,
                                                 const ContextArguments& p, Items items, uint32_t ring,
                                                 uint8_t* ring_pointer, uint32_t queries, const Barriers& barriers) {
  using L = Layout<true>;
  const uint64_t policy = EvictNormal();
  const int thread = threadIdx.x % 128, lane = thread % 32, rank = blockIdx.x % kCluster;
  const bool first_warp = thread < 32;
  RingCursor<L::kStages> to;
  RingCursor<L::kCodeStages> code_to, code_from;
  uint32_t query_parity = 1, read_parity = 0;
  Pages pages;
  while (items.at < items.count) {
    const AttentionItem item = items.next;
    items.Fetch(p);
    const Part part = PartOf(item, rank, p);
    if (part.begin == part.end) continue;
    const int loads = 2 * (part.end - part.begin);
    // The t-th load of the item: K0 K1 V0 K2 V1 ...
    auto fetch = [&](int t) {
      if (t >= loads) return;
      bool keys = t == 0 || (t % 2 == 1 && t + 1 < loads);
      int tile = part.begin + (keys ? (t + 1) / 2 : t + 1 < loads ? t / 2 - 1 : t / 2);
      int row0 = pages.Row(2 * tile, part.head, p), row1 = pages.Row(2 * tile + 1, part.head, p);
      bool both = 2 * tile + 1 < pages.count;
      if (lane == 0) {
        const CUtensorMap* map = keys ? k_map : v_map;
        uint32_t full = barriers.codes + 8 * code_to.stage, at = ring + L::kCodes + code_to.stage * L::kCodeTile;
        BarrierExpect(full, both ? L::kCodeTile : L::kCodeTile / 2);
        TileLoad(at, map, 0, row0, full, policy);
        if (both) TileLoad(at + kPageBytes, map, 0, row1, full, policy);
      }
      __syncwarp();
      code_to.Next();
    };
    if (first_warp) {
      pages.Start(p, item, part.keys);
      for (int t = 0; t < L::kCodeStages; ++t) fetch(t);
      LoadQueries(p, item, part.head, queries, barriers, query_parity);
      query_parity ^= 1;
    }
    for (int t = 0; t < loads; ++t) {
      BarrierWait(barriers.codes + 8 * code_from.stage, code_from.parity);
      BarrierWait(barriers.empty + 8 * to.stage, to.parity ^ 1);
      const uint8_t* codes = ring_pointer + L::kCodes + code_from.stage * L::kCodeTile;
      uint8_t* halves = ring_pointer + to.stage * kTile;
      // 16 codes become two pieces of 16 bytes of f16, side by side before the swizzle.
      constexpr int kPieces = L::kCodeTile / 16 / 128, kAtOnce = 4;
#pragma unroll
      for (int first = 0; first < kPieces; first += kAtOnce) {
        uint4 c[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          int at = (first + j) * 128 + thread, row = at / 8, piece = at % 8;
          c[j] = *reinterpret_cast<const uint4*>(codes + row * 128 + ((piece ^ (row & 7)) << 4));
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          int at = (first + j) * 128 + thread, row = at / 8, piece = at % 8;
          uint8_t* line = halves + (piece / 4) * kHalfTile + row * 128;
          int left = piece % 4 * 2;
          *reinterpret_cast<uint4*>(line + ((left ^ (row & 7)) << 4)) =
              make_uint4(HalfFromFp8x2(c[j].x & 0xFFFF), HalfFromFp8x2(c[j].x >> 16), HalfFromFp8x2(c[j].y & 0xFFFF),
                         HalfFromFp8x2(c[j].y >> 16));
          *reinterpret_cast<uint4*>(line + (((left + 1) ^ (row & 7)) << 4)) =
              make_uint4(HalfFromFp8x2(c[j].z & 0xFFFF), HalfFromFp8x2(c[j].z >> 16), HalfFromFp8x2(c[j].w & 0xFFFF),
                         HalfFromFp8x2(c[j].w >> 16));
        }
      }
      StoresBeforeAsync();
      NamedBarrier<kMeetProducers, 128>();
      if (thread == 0) BarrierArrive(barriers.full + 8 * to.stage);
      to.Next();
      code_from.Next();
      if (first_warp) fetch(t + L::kCodeStages);
    }
    if (item.chunks > 1) {
      BarrierWait(barriers.parts_read, read_parity);
      read_parity ^= 1;
    }
  }
}

// Operands of a product in the ring. Keys: 8 of them are 1,024 bytes, 16 of the head 32. Values: 8 keys are 1,024 bytes
// too, the other half of the head is half a tile further.
__device__ __forceinline__ uint64_t KeysDescriptor(uint32_t address) {
  return static_cast<uint64_t>((address >> 4) & 0x3FFF) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}
__device__ __forceinline__ uint64_t ValuesDescriptor(uint32_t address) {
  return static_cast<uint64_t>((address >> 4) & 0x3FFF) | (static_cast<uint64_t>(kHalfTile >> 4) << 16) |
         (64ull << 32) | (1ull << 62);
}

// Scores become weights, in place; what was summed before is to be multiplied by `shrink`. Maxima are of raw scores.
// s: rows g (positions[0]) and g + 8 of the warp's 16, keys first_key + 8n and the next.
template <bool kMasked>
__device__ __forceinline__ void Weigh(float (&s)[64], float (&maximum)[2], float (&sum)[2], float (&shrink)[2],
                                      float scale_log2, int first_key, const int (&positions)[2]) {
  if constexpr (kMasked) {
#pragma unroll
    for (int i = 0; i < 64; ++i) s[i] = first_key + i / 4 * 8 + i % 2 > positions[i / 2 % 2] ? -INFINITY : s[i];
  }
  float top[2] = {maximum[0], maximum[1]}, base[2];
#pragma unroll
  for (int i = 0; i < 64; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
    top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
    base[r] = top[r] == -INFINITY ? 0.0f : top[r] * scale_log2;  // nothing seen yet: every weight is 2^-inf
    shrink[r] = Exp2(maximum[r] * scale_log2 - base[r]);
    maximum[r] = top[r];
    sum[r] *= shrink[r];
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    s[i] = Exp2(fmaf(s[i], scale_log2, -base[i / 2 % 2]));
    sum[i / 2 % 2] += s[i];
  }
}

// The parts of a row, in the order of the keys, through the cluster's shared memory: CTA `chunk` of `chunks` writes its
// share of the item's rows. By all consumers.
__device__ __forceinline__ void MergeParts(const ContextArguments& p, const AttentionItem& item, const Part& part,
                                           uint32_t parts) {
  const int lane = threadIdx.x % 32, share = kRows / item.chunks, packed_end = item.tokens * p.group;
  const uint32_t rank0 = static_cast<uint32_t>(blockIdx.x % kCluster - part.chunk);
  for (int row = part.chunk * share + threadIdx.x / 32; row < (part.chunk + 1) * share; row += kConsumerWarps) {
    int packed = item.first + row;
    if (packed >= packed_end) break;
    uint32_t at = parts + static_cast<uint32_t>(row * kMergePitch) * 4;
    float4 sums[kCluster], ml[kCluster];
#pragma unroll
    for (int c = 0; c < kCluster; ++c) {
      uint32_t rank = rank0 + static_cast<uint32_t>(min(c, item.chunks - 1));
      ml[c] = LoadClusterFloat4(at + kHeadDim * 4, rank);
      sums[c] = LoadClusterFloat4(at + static_cast<uint32_t>(lane) * 16, rank);
    }
    float top = -INFINITY, total = 0;
    float4 value = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int c = 0; c < kCluster; ++c) top = fmaxf(top, ml[c].x);
#pragma unroll
    for (int c = 0; c < kCluster; ++c) {
      if (c >= item.chunks || ml[c].x == -INFINITY) continue;
      float factor = Exp2((ml[c].x - top) * p.scale_log2);
      total += ml[c].y * factor;
      value.x += sums[c].x * factor;
      value.y += sums[c].y * factor;
      value.z += sums[c].z * factor;
      value.w += sums[c].w * factor;
    }
    float factor = p.value_scale * (1.0f / total);
    int token = item.token + packed / p.group, head = part.head * p.group + packed % p.group;
    Bf16* to = p.out + (static_cast<size_t>(token) * p.query_heads + head) * kHeadDim + 4 * lane;
    *reinterpret_cast<uint2*>(to) =
        make_uint2(Pack2(value.x * factor, value.y * factor), Pack2(value.z * factor, value.w * factor));
  }
}

template <bool kFp8>
__device__ __forceinline__ void Consume(const ContextArguments& p, Items items, uint32_t ring, uint8_t* ring_pointer,
                                        uint32_t queries, const Barriers& barriers) {
  const int thread = threadIdx.x, lane = thread % 32, g = lane / 4, t = lane % 4;
  // Of the item's 128. From lane 0, so that the compiler sees that a warp's threads go the same way: products that it
  // believes to diverge it runs one by one.
  const int warp = __shfl_sync(~0u, thread / 32, 0), warp_row = warp * 16, group_row = warp / 4 * 64;
  const int rank = blockIdx.x % kCluster;
  RingCursor<Layout<kFp8>::kStages> from;
  uint32_t query_parity = 0, ready_parity = 0;
  auto take = [&] {
    int stage = from.stage;
    BarrierWait(barriers.full + 8 * stage, from.parity);
    from.Next();
    return stage;
  };
  auto release = [&](int stage) {
    __syncwarp();
    if (lane == 0) BarrierArrive(barriers.empty + 8 * stage);
  };
  while (items.at < items.count) {
    const AttentionItem item = items.next;
    const Part part = PartOf(item, rank, p);
    if (part.begin == part.end) {
      items.Fetch(p);
      continue;
    }
    const int packed_end = item.tokens * p.group;
    const bool busy = item.first + group_row < packed_end;
    float o[64], maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

    BarrierWait(barriers.queries_full, query_parity);
    query_parity ^= 1;
    if (!busy) {
      items.Fetch(p);
      __syncwarp();
      if (lane == 0) BarrierArrive(barriers.queries_empty);
      for (int n = 2 * (part.end - part.begin); n > 0; --n) release(take());
    } else {
      uint32_t q[8][4];
#pragma unroll
      for (int step = 0; step < 8; ++step) {
        LoadMatrices(q[step], queries + (warp_row + lane % 16) * kQueryPitch + step * 32 + lane / 16 * 16);
        if constexpr (kFp8) {
#pragma unroll
          for (uint32_t& two : q[step]) two = PackHalf2(__uint_as_float(two << 16), __uint_as_float(two & 0xFFFF0000u));
        }
      }
      __syncwarp();
      if (lane == 0) BarrierArrive(barriers.queries_empty);
      int positions[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) positions[r] = item.position + (item.first + warp_row + g + 8 * r) / p.group;
      // Every query of the item sees tiles before this one whole.
      const int mixed = min(max((item.position + item.first / p.group + 1) / kKeys, part.begin), part.end);

      float s[64], shrink[2];
      uint32_t w[8][4];
      auto multiply_keys = [&](int stage) {
        uint32_t tile = ring + stage * kTile;
        WgmmaHold(s);
        WgmmaFence();
#pragma unroll
        for (int step = 0; step < 8; ++step)
          WgmmaRows<kFp8, false>(s, q[step], KeysDescriptor(tile + step / 4 * kHalfTile + step % 4 * 32), step != 0);
        WgmmaCommit();
      };
      auto multiply_values = [&](int stage, bool add) {
        uint32_t tile = ring + stage * kTile;
        WgmmaHold(o);
        WgmmaHold(w);
        WgmmaFence();
#pragma unroll
        for (int step = 0; step < 8; ++step)
          WgmmaRows<kFp8, true>(o, w[step], ValuesDescriptor(tile + step * 16 * 128), add || step != 0);
        WgmmaCommit();
      };
      auto pack = [&] {
#pragma unroll
        for (int step = 0; step < 8; ++step) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float low = s[8 * step + 2 * j], high = s[8 * step + 2 * j + 1];
            w[step][j] = kFp8 ? PackHalf2(low, high) : Pack2(low, high);
          }
        }
      };
      int stage = take();
      multiply_keys(stage);
      WgmmaWait<0>();
      WgmmaHold(s);
      release(stage);
      Weigh<true>(s, maximum, sum, shrink, p.scale_log2, part.begin * kKeys + 2 * t, positions);
      pack();
      auto turn = [&](int tile, auto masked) {
        int keys = take();
        multiply_keys(keys);
        int values = take();
        multiply_values(values, tile - 1 > part.begin);
        WgmmaWait<1>();
        WgmmaHold(s);
        release(keys);
        Weigh<decltype(masked)::value>(s, maximum, sum, shrink, p.scale_log2, tile * kKeys + 2 * t, positions);
        WgmmaHold(s);  // the weights first, then the wait that hides behind them
        WgmmaWait<0>();
        WgmmaHold(o);
        WgmmaHold(w);
        release(values);
#pragma unroll
        for (int n = 0; n < 64; ++n) o[n] *= shrink[n / 2 % 2];
        pack();
      };
      int tile = part.begin + 1;
      for (; tile < mixed; ++tile) turn(tile, std::false_type{});
      for (; tile < part.end; ++tile) turn(tile, std::true_type{});
      items.Fetch(p);
      int values = take();
      int used = part.keys - (part.end - 1) * kKeys;  // of the last tile of all
      if (used < kKeys) {
        for (int n = used * 16 + thread % 128; n < kKeys * 16; n += 128) {
          uint8_t* row = ring_pointer + values * kTile + n % 16 / 8 * kHalfTile + n / 16 * 128;
          *reinterpret_cast<uint4*>(row + n % 8 * 16) = make_uint4(0, 0, 0, 0);
        }
        StoresBeforeAsync();
        if (warp < 4) {
          NamedBarrier<kMeetGroup, 128>();
        } else {
          NamedBarrier<kMeetGroup + 1, 128>();
        }
      }
      multiply_values(values, part.end - part.begin > 1);
      WgmmaWait<0>();
      WgmmaHold(o);
      WgmmaHold(w);
      release(values);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
      }
    }

    if (item.chunks == 1) {
      if (!busy) continue;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        int packed = item.first + warp_row + g + 8 * r;
        if (packed >= packed_end) continue;
        int token = item.token + packed / p.group, head = part.head * p.group + packed % p.group;
        auto* to = reinterpret_cast<uint32_t*>(p.out + (static_cast<size_t>(token) * p.query_heads + head) * kHeadDim);
        float factor = p.value_scale * (1.0f / sum[r]);
#pragma unroll
        for (int n = 0; n < 16; ++n) to[n * 4 + t] = Pack2(o[4 * n + 2 * r] * factor, o[4 * n + 2 * r + 1] * factor);
      }
      continue;
    }
    // Both groups have left the ring, and the producer waits until the cluster has read the parts.
    NamedBarrier<kMeetConsumers, kConsumers>();
    if (busy) {
      auto* parts = reinterpret_cast<float*>(ring_pointer);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float* row = parts + (warp_row + g + 8 * r) * kMergePitch;
#pragma unroll
        for (int n = 0; n < 16; ++n)
          *reinterpret_cast<float2*>(row + n * 8 + 2 * t) = make_float2(o[4 * n + 2 * r], o[4 * n + 2 * r + 1]);
        if (t == 0) *reinterpret_cast<float2*>(row + kHeadDim) = make_float2(maximum[r], sum[r]);
      }
    }
    // Every warp arrives at each of the CTAs once.
    const auto peer = static_cast<uint32_t>(rank - part.chunk + lane % item.chunks);
    __syncwarp();
    if (lane < kCluster) BarrierArriveRemote(barriers.parts_ready, peer);
    BarrierWait(barriers.parts_ready, ready_parity);
    ready_parity ^= 1;
    MergeParts(p, item, part, ring);
    __syncwarp();
    if (lane < kCluster) BarrierArriveRemote(barriers.parts_read, peer);
  }
}

template <bool kFp8>
__global__ void __launch_bounds__(kThreads, 1)
    ContextKernel(const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                  ContextArguments p) {
  using L = Layout<kFp8>;
  auto* shared_raw = DynamicShared<uint8_t>();
  const uint32_t ring = (SharedAddressOf(shared_raw) + 1023) & ~1023u;
  uint8_t* ring_pointer = shared_raw + (ring - SharedAddressOf(shared_raw));
  Barriers barriers;
  barriers.full = ring + L::kBarriers;
  barriers.empty = barriers.full + 8 * L::kStages;
  barriers.codes = barriers.empty + 8 * L::kStages;
  barriers.queries_full = barriers.codes + 8 * L::kCodeStages;
  barriers.queries_empty = barriers.queries_full + 8;
  barriers.parts_ready = barriers.queries_full + 16;
  barriers.parts_read = barriers.queries_full + 24;
  if (threadIdx.x == 0) {
    for (int s = 0; s < L::kStages; ++s) {
      BarrierInit(barriers.full + 8 * s, 1);
      BarrierInit(barriers.empty + 8 * s, kConsumerWarps);
    }
    for (int s = 0; s < L::kCodeStages; ++s) BarrierInit(barriers.codes + 8 * s, 1);
    BarrierInit(barriers.queries_full, 1);
    BarrierInit(barriers.queries_empty, kConsumerWarps);
    BarrierInit(barriers.parts_ready, kCluster * kConsumerWarps);
    BarrierInit(barriers.parts_read, kCluster * kConsumerWarps);
    BarrierInitDone();
  }
  ClusterMeet();
  LaunchDependents();
  // The items were copied before the step's first kernel; block tables and queries come from kernels of the step.
  Items items;
  items.Begin(p);
  WaitUpstream();
  if (threadIdx.x >= kConsumers) {
    GiveRegisters<kFp8 ? 56 : 40>();
    if constexpr (kFp8) {
      ProduceFromCodes(&k_map, &v_map, p, items, ring, ring_pointer, ring + L::kQueries, barriers);
    } else if (threadIdx.x < kConsumers + 32) {
      Produce(&k_map, &v_map, p, items, ring, ring + L::kQueries, barriers);
    }
  } else {
    TakeRegisters<kFp8 ? 224 : 232>();
    Consume<kFp8>(p, items, ring, ring_pointer, ring + L::kQueries, barriers);
  }
}

}  // namespace

struct ClusterAttention::Maps {
  CacheMaps cache;
  int clusters = 0;
};

ClusterAttention::ClusterAttention() : maps_(std::make_unique<Maps>()) {}
ClusterAttention::~ClusterAttention() = default;

bool ClusterAttention::Serves(const KvLayout& kv, int32_t window) {
  return kv.head_dim == kHeadDim && kv.head_stride == kHeadDim && kv.tokens_per_block == kPage && window == 0;
}

int32_t ClusterAttention::clusters() const {
  return maps_->clusters;
}

int ClusterAttention::Prepare(const KvLayout& kv) {
  auto* kernel = kv.fp8 ? ContextKernel<true> : ContextKernel<false>;
  int bytes = kv.fp8 ? Layout<true>::kBytes : Layout<false>::kBytes;
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status != cudaSuccess) return static_cast<int>(status);
  status = EncodeCache(&maps_->cache, kv);
  if (status != cudaSuccess) return static_cast<int>(status);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kCluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.attrs = &cluster;
  config.numAttrs = 1;
  return static_cast<int>(cudaOccupancyMaxActiveClusters(&maps_->clusters, kernel, &config));
}

void ClusterAttention::Run(Queue& queue, const AttentionArguments& a, const KvLayout& kv, int32_t layer) {
  if (a.items_max == 0) return;
  ContextArguments p = {a.q,
                        a.out,
                        a.items,
                        a.item_count,
                        kv.tables,
                        kv.key_scale * 1.4426950408889634f / sqrtf(static_cast<float>(kHeadDim)),
                        kv.value_scale,
                        a.q_stride,
                        kv.table_pitch,
                        kv.kv_heads,
                        a.query_heads,
                        a.query_heads / kv.kv_heads,
                        static_cast<int>(kv.layer_elements() / kHeadDim * static_cast<size_t>(layer))};
  auto clusters = static_cast<unsigned>(maps_->clusters < a.items_max ? maps_->clusters : a.items_max);
  LaunchCluster(queue, kv.fp8 ? ContextKernel<true> : ContextKernel<false>, dim3(clusters * kCluster), dim3(kCluster),
                kThreads, static_cast<size_t>(kv.fp8 ? Layout<true>::kBytes : Layout<false>::kBytes), maps_->cache.keys,
                maps_->cache.values, p);
}

}  // namespace ekiben::cuda
