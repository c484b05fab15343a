// Generation over the paged cache for the shape that matters most: head_dim 128, four query heads a KV head, blocks of
// 64 tokens (Llama-3-8B, Mistral-7B). GenerationAttention (paged_attention.cu) serves every other shape.
//
// The four query heads of a group are columns of one tensor-core tile, so keys and values are read once; tokens and, in
// the weighted sum, dimensions are its rows, which it has more of: half the instructions and registers of the other way
// round, for one transposed register of weights each eight tokens. Blocks arrive through the bulk copy engine. Work
// items (sequence, KV head, chunk of `split` tokens) are dealt round-robin to persistent CTAs; a producer warp runs
// ahead of the consumers across item borders. Consumers hand an item's sums, through one of two buffers, to one of four
// finishing warps and go on: the merge's round trips to global memory stand neither between two items nor, up to four
// deep, behind one another. Chunks are merged, in chunk order, by the warp that arrives last. The split is a constant,
// so a sequence's result does not depend on its neighbours.
//
// The step's own token is here too, so that no kernel stands between the qkv linear and this one: the finishing warp of
// an item rotates its queries for the consumers and, when the item is its sequence's last, rotates and stores the
// token's key and value, and adds them to the sums as one more part. What the bulk copy engine reads was therefore
// written by earlier steps, and arrives while the kernels upstream still run (`early`).
//
// A cache of e4m3 is multiplied as f16, which holds its values: half the bytes, the same tensor instructions, and a
// conversion of each pair of elements in between, of which most of what a consumer does then consists.
//
// Slots of a block past a sequence's length may hold anything, NaN included: their scores and value rows are masked.
// Measured ladder: docs/gpu.md. Long on purpose: one kernel read in order.
#include "ops/bulk_copy.cuh"
#include "ops/cuda_launch.cuh"

namespace ekiben::cuda {
namespace {

constexpr int kPage = 64, kQuarter = kPage / 4, kHeadDim = 128, kGroup = 4, kWarps = 8;
constexpr int kThreads = kWarps * 32 + 32 + kGroup * 32;

template <bool kFp8>
struct Stage {
  static constexpr int kBoxes = kFp8 ? 1 : 2;  // of 128 bytes of each token
  static constexpr int kTile = kBoxes * 8192;  // one block of keys or values of one head
  static constexpr int kBytes = 2 * kTile;
  static constexpr int kBoxColumns = kFp8 ? 128 : 64;
};

struct DecodeArguments {
  const Bf16* qkv;
  Bf16* out;
  const AttentionItem* items;
  const int* item_count;
  const int* tables;
  float* partial;       // [slot][kv head][chunk][4][128] unnormalised sums, then ...
  float2* partial_ml;   // [slot][kv head][chunk][4] {maximum, sum}, in powers of two
  unsigned* arrived;    // [slot][kv head], zero between launches
  const float* rope;    // [positions][cos of 128, then signed sin of 128]
  Factors factors;      // of qkv
  void *keys, *values;  // of the layer
  float scale_log2, key_inverse, value_inverse, value_scale;
  int split, table_pitch, chunks_max, stages, q_stride, kv_heads, base_row, items_max;
  bool interleaved, early;
};

constexpr int SharedBytes(bool fp8, int stages) {
  return 1024 + stages * (fp8 ? Stage<true>::kBytes : Stage<false>::kBytes) +
         2 * kWarps * (kGroup * kHeadDim * 4 + 32) + 4 * kGroup * kHeadDim * 2 + 16 * stages + 96;
}

// Keys of an item's chunk that the cache holds, so without the step's own; a block of them is fetched a lane.
__device__ __forceinline__ int ChunkTokens(const AttentionItem& item, int split) {
  int left = item.position - item.chunk * split;
  return item.chunk + 1 < item.chunks ? split : left;
}

// Four neighbouring dimensions a lane.
__device__ __forceinline__ float4 Rotated(float4 x, float4 cosine, float4 sine, bool interleaved) {
  float4 other = make_float4(x.y, x.x, x.w, x.z);
  if (!interleaved) {
    other = make_float4(__shfl_xor_sync(~0u, x.x, 16), __shfl_xor_sync(~0u, x.y, 16), __shfl_xor_sync(~0u, x.z, 16),
                        __shfl_xor_sync(~0u, x.w, 16));
  }
  return make_float4(x.x * cosine.x + other.x * sine.x, x.y * cosine.y + other.y * sine.y,
                     x.z * cosine.z + other.z * sine.z, x.w * cosine.w + other.w * sine.w);
}
__device__ __forceinline__ float4 UnpackBf16(uint2 raw) {
  return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xFFFF0000u), __uint_as_float(raw.y << 16),
                     __uint_as_float(raw.y & 0xFFFF0000u));
}
__device__ __forceinline__ uint2 PackBf16(float4 x) {
  return make_uint2(Pack2(x.x, x.y), Pack2(x.z, x.w));
}

// Stores four dimensions of a key or value into the cache and returns what it holds of them.
template <bool kFp8>
__device__ __forceinline__ float4 Store(void* pool, size_t element, float4 x, float inverse) {
  if constexpr (kFp8) {
    uint32_t low = PackFp8x2(x.x * inverse, x.y * inverse), high = PackFp8x2(x.z * inverse, x.w * inverse);
    static_cast<uint32_t*>(pool)[element / 4] = low | high << 16;
    float2 first = FloatsFromFp8x2(low), second = FloatsFromFp8x2(high);
    return make_float4(first.x, first.y, second.x, second.y);
  } else {
    uint2 packed = PackBf16(x);
    *reinterpret_cast<uint2*>(static_cast<Bf16*>(pool) + element) = packed;
    return UnpackBf16(packed);
  }
}

// Of the step's own token, a lane's four dimensions: each head's score in powers of two, and the value.
struct OwnToken {
  float score[kGroup];
  float4 value;
};

// By a warp: an item's queries, rotated, into `queries` ([head][128] in the type that they are multiplied in); of its
// sequence's last item also the own token's key and value, into the cache and back.
template <bool kFp8>
__device__ __forceinline__ OwnToken Prepare(const DecodeArguments& p, const AttentionItem& item, uint32_t* queries) {
  const int lane = threadIdx.x % 32, d = 4 * lane;
  const bool last = item.chunk + 1 == item.chunks;
  const int key_head = p.kv_heads * kGroup + item.kv_head, value_head = key_head + p.kv_heads;
  const float* turn = p.rope + static_cast<size_t>(item.position) * 2 * kHeadDim + d;
  const float4 cosine = *reinterpret_cast<const float4*>(turn),
               sine = *reinterpret_cast<const float4*>(turn + kHeadDim);
  const Bf16* row = p.qkv + static_cast<size_t>(item.token) * p.q_stride + d;
  const float of_token = p.factors.tokens != nullptr ? p.factors.tokens[item.token] : 1.0f;
  auto read = [&](int head) {
    float4 x = UnpackBf16(*reinterpret_cast<const uint2*>(row + head * kHeadDim));
    if (p.factors.columns != nullptr) {
      float4 f = *reinterpret_cast<const float4*>(p.factors.columns + head * kHeadDim + d);
      x = make_float4(x.x * (f.x * of_token), x.y * (f.y * of_token), x.z * (f.z * of_token), x.w * (f.w * of_token));
    }
    return x;
  };
  float4 q[kGroup], key = make_float4(0, 0, 0, 0), value = key;
#pragma unroll
  for (int h = 0; h < kGroup; ++h) q[h] = read(item.kv_head * kGroup + h);
  if (last) {
    key = read(key_head);
    value = read(value_head);
  }
#pragma unroll
  for (int h = 0; h < kGroup; ++h) {
    uint2 packed = PackBf16(Rotated(q[h], cosine, sine, p.interleaved));
    q[h] = UnpackBf16(packed);
    if (kFp8) packed = make_uint2(PackHalf2(q[h].x, q[h].y), PackHalf2(q[h].z, q[h].w));
    *reinterpret_cast<uint2*>(queries + h * (kHeadDim / 2) + 2 * lane) = packed;
  }
  OwnToken own = {};
  if (!last) return own;
  int block = p.tables[static_cast<size_t>(item.slot) * p.table_pitch + item.position / kPage];
  size_t element =
      (static_cast<size_t>(block * p.kv_heads + item.kv_head) * kPage + item.position % kPage) * kHeadDim + d;
  key = Store<kFp8>(p.keys, element, Rotated(key, cosine, sine, p.interleaved), p.key_inverse);
  own.value = Store<kFp8>(p.values, element, value, p.value_inverse);
#pragma unroll
  for (int h = 0; h < kGroup; ++h) {
    float sum = q[h].x * key.x + q[h].y * key.y + q[h].z * key.z + q[h].w * key.w;
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    own.score[h] = sum * p.scale_log2;
  }
  return own;
}

// Byte `column` (0..255) of token row `row` in a page tile, as the copy engine's 128-byte swizzle places it.
__device__ __forceinline__ uint32_t PageAddress(uint32_t tile, int row, int column) {
  return tile + (column >> 7) * 8192 + row * 128 + ((column & 127) ^ ((row & 7) << 4));
}

template <bool kFp8>
__global__ void __launch_bounds__(kThreads, 1)
    DecodeKernel(const __grid_constant__ CacheMaps maps, const __grid_constant__ CacheMaps parts, DecodeArguments p) {
  constexpr int kTile = Stage<kFp8>::kTile, kStageBytes = Stage<kFp8>::kBytes;
  auto* shared_raw = DynamicShared<uint8_t>();
  uint32_t ring = (SharedAddressOf(shared_raw) + 1023) & ~1023u;
  uint8_t* ring_pointer = shared_raw + (ring - SharedAddressOf(shared_raw));
  float* merge = reinterpret_cast<float*>(ring_pointer + p.stages * kStageBytes);        // [buffer][warp][head][d]
  float2* merge_ml = reinterpret_cast<float2*>(merge + 2 * kWarps * kGroup * kHeadDim);  // [buffer][warp][head]
  constexpr int kQueryWords = kGroup * kHeadDim / 2;
  uint32_t* queries = reinterpret_cast<uint32_t*>(merge_ml + 2 * kWarps * kGroup);  // [turn % 4][head][128]
  uint32_t full = SharedAddressOf(queries + 4 * kQueryWords);
  uint32_t empty = full + 8 * p.stages;
  // All by turn % 4, one a finishing warp; turn n uses sums' buffer n % 2.
  uint32_t handed = empty + 8 * p.stages;  // the consumers' sums of the turn are in its buffer
  uint32_t taken = handed + 32;            // the turn's buffer has been read
  uint32_t ready = taken + 32;             // the turn's queries are there
  // What the first copies wait for is asked for before the barriers are set up. The items were copied before the step's
  // first kernel, which edits block tables; qkv comes from the kernel upstream. items_max of them can be read, so that
  // the first is asked for with their count, not after it.
  const int items = *p.item_count;
  const AttentionItem first_item = p.items[min(static_cast<int>(blockIdx.x), p.items_max - 1)];
  if (threadIdx.x == kWarps * 32) {
    for (const CUtensorMap* map : {&maps.keys, &maps.values, &parts.keys, &parts.values}) PrefetchMap(map);
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kWarps);
    }
    for (int finisher = 0; finisher < 4; ++finisher) {
      BarrierInit(handed + 8 * finisher, kWarps * 32);
      BarrierInit(taken + 8 * finisher, 32);
      BarrierInit(ready + 8 * finisher, 32);
    }
    BarrierInitDone();
  }
  __syncthreads();
  LaunchDependents();
  if (!p.early) WaitUpstream();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int chunk_pages = p.split / kPage;

  if (warp == kWarps) {
    uint64_t once = EvictFirst();
    int stage = 0;
    uint32_t parity = 1;  // a fresh barrier's previous phase counts as complete
    AttentionItem item = {};
    int page = 0;
    auto fetch = [&](int i) {
      if (i >= items) return;
      item = i == static_cast<int>(blockIdx.x) ? first_item : p.items[i];
      int first = item.chunk * chunk_pages + lane;
      bool mine = lane * kPage < ChunkTokens(item, p.split);
      page = mine ? p.tables[static_cast<size_t>(item.slot) * p.table_pitch + first] : 0;
    };
    fetch(blockIdx.x);
    for (int i = blockIdx.x; i < items; i += gridDim.x) {
      AttentionItem now = item;
      int pages_now = page;
      fetch(i + gridDim.x);
      int tokens = ChunkTokens(now, p.split);
      int count = (tokens + kPage - 1) / kPage;
      for (int j = 0; j < count; ++j) {
        int page_id = __shfl_sync(~0u, pages_now, j);
        if (lane == 0) {
          BarrierWait(empty + 8 * stage, parity);
          uint32_t base = ring + stage * kStageBytes;
          const int row = p.base_row + (page_id * p.kv_heads + now.kv_head) * kPage, left = tokens - j * kPage;
          // Of the last block what holds tokens, in quarters.
          const int quarters = left > 3 * kQuarter ? 4 : (left + kQuarter - 1) / kQuarter;
          BarrierExpect(full + 8 * stage, kStageBytes / 4 * quarters);
          constexpr int kBoxes = Stage<kFp8>::kBoxes, kColumns = Stage<kFp8>::kBoxColumns;
          auto load = [&](const CacheMaps& from, int box, int rows) {
            uint32_t to = base + box * 8192 + rows * 128;
            TileLoad(to, &from.keys, box * kColumns, row + rows, full + 8 * stage, once);
            TileLoad(to + kTile, &from.values, box * kColumns, row + rows, full + 8 * stage, once);
          };
          for (int box = 0; box < kBoxes; ++box) {
            if (quarters == 4) {
              load(maps, box, 0);
            } else {
              for (int q = 0; q < quarters; ++q) load(parts, box, q * kQuarter);
            }
          }
        }
        __syncwarp();
        if (++stage == p.stages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
    return;
  }

  if (warp > kWarps) {
    int finisher = warp - kWarps - 1, d = 4 * lane;
    uint32_t handed_parity = 0;
    const int stride = 4 * gridDim.x;
    auto item_at = [&](int i) { return i < items ? p.items[i] : AttentionItem{}; };
    int i = blockIdx.x + finisher * gridDim.x;
    AttentionItem next = item_at(i);
    WaitUpstream();
    for (; i < items; i += stride) {
      const AttentionItem item = next;
      next = item_at(i + stride);
      // Its consumers have left the queries of four turns ago: they handed over their sums.
      const OwnToken own = Prepare<kFp8>(p, item, queries + finisher * kQueryWords);
      BarrierArrive(ready + 8 * finisher);
      const bool last = item.chunk + 1 == item.chunks;
      float top[kGroup], total[kGroup];
      float4 value[kGroup];
#pragma unroll
      for (int h = 0; h < kGroup; ++h) {
        top[h] = last ? own.score[h] : -INFINITY;
        total[h] = 0;
        value[h] = make_float4(0, 0, 0, 0);
      }
      // Adds a part of head h whose maximum is ml.x <= top[h]; parts come in a fixed order, so rounding does too.
      auto add = [&](int h, float4 part, float2 ml) {
        if (ml.x == -INFINITY) return;  // no tokens: nothing, and nothing stale either
        float factor = Exp2(ml.x - top[h]);
        total[h] += ml.y * factor;
        value[h].x += part.x * factor;
        value[h].y += part.y * factor;
        value[h].z += part.z * factor;
        value[h].w += part.w * factor;
      };
      auto store = [&] {
#pragma unroll
        for (int h = 0; h < kGroup; ++h) {
          float factor = p.value_scale * (1.0f / total[h]);
          uint2 packed = make_uint2(Pack2(value[h].x * factor, value[h].y * factor),
                                    Pack2(value[h].z * factor, value[h].w * factor));
          size_t head = (static_cast<size_t>(item.token) * p.kv_heads + item.kv_head) * kGroup + h;
          *reinterpret_cast<uint2*>(p.out + head * kHeadDim + d) = packed;
        }
      };
      BarrierWait(handed + 8 * finisher, handed_parity);
      handed_parity ^= 1;
      const float* sums = merge + (finisher & 1) * kWarps * kGroup * kHeadDim + d;
      const float2* sums_ml = merge_ml + (finisher & 1) * kWarps * kGroup;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
#pragma unroll
        for (int h = 0; h < kGroup; ++h) top[h] = fmaxf(top[h], sums_ml[w * kGroup + h].x);
      }
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
#pragma unroll
        for (int h = 0; h < kGroup; ++h) {
          add(h, *reinterpret_cast<const float4*>(sums + (w * kGroup + h) * kHeadDim), sums_ml[w * kGroup + h]);
        }
      }
      if (last) {
#pragma unroll
        for (int h = 0; h < kGroup; ++h) add(h, own.value, make_float2(own.score[h], 1));
      }
      BarrierArrive(taken + 8 * finisher);
      int chunks = item.chunks;
      if (chunks == 1) {
        store();
        continue;
      }
      size_t owner = static_cast<size_t>(item.slot) * p.kv_heads + item.kv_head;
      size_t slot = (owner * p.chunks_max + item.chunk) * kGroup;
#pragma unroll
      for (int h = 0; h < kGroup; ++h) {
        __stcg(reinterpret_cast<float4*>(p.partial + (slot + h) * kHeadDim + d), value[h]);
        if (lane == 0) __stcg(p.partial_ml + slot + h, make_float2(top[h], total[h]));
      }
      __threadfence();
      __syncwarp();
      unsigned before = 0;
      if (lane == 0) before = atomicAdd(p.arrived + owner, 1);
      before = __shfl_sync(~0u, before, 0);
      if (before != static_cast<unsigned>(chunks - 1)) continue;
      __threadfence();
#pragma unroll
      for (int h = 0; h < kGroup; ++h) {
        top[h] = -INFINITY;
        total[h] = 0;
        value[h] = make_float4(0, 0, 0, 0);
      }
      for (int c = 0; c < chunks; ++c) {
#pragma unroll
        for (int h = 0; h < kGroup; ++h) {
          top[h] = fmaxf(top[h], __ldcg(p.partial_ml + (owner * p.chunks_max + c) * kGroup + h).x);
        }
      }
      for (int c = 0; c < chunks; ++c) {
        size_t part = (owner * p.chunks_max + c) * kGroup;
#pragma unroll
        for (int h = 0; h < kGroup; ++h) {
          add(h, __ldcg(reinterpret_cast<const float4*>(p.partial + (part + h) * kHeadDim + d)),
              __ldcg(p.partial_ml + part + h));
        }
      }
      store();
      if (lane == 0) p.arrived[owner] = 0;
    }
    return;
  }

  constexpr int kPhases = kWarps / 4;  // warps of one phase share a page, 16 tokens each
  int sub = warp % 4, phase = warp / 4;
  int g = lane / 4, t = lane % 4;
  int stage = 0, turn = 0;
  uint32_t parity = 0;
  // Of an item a consumer needs only where its chunk begins and ends.
  auto tokens_of = [&](int i) { return i < items ? ChunkTokens(p.items[i], p.split) : 0; };
  int tokens_next = static_cast<int>(blockIdx.x) < items ? ChunkTokens(first_item, p.split) : 0;
  for (int i = blockIdx.x; i < items; i += gridDim.x) {
    int tokens = tokens_next;
    tokens_next = tokens_of(i + gridDim.x);
    int count = (tokens + kPage - 1) / kPage;
    uint32_t q[8][2];
    BarrierWait(ready + 8 * (turn & 3), turn >> 2 & 1);
    const uint32_t* head = queries + (turn & 3) * kQueryWords + (g < kGroup ? g * 64 : 0);
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      // e4m3 arrives as 4 neighbouring elements a thread, so K's order within 16 is permuted; queries follow it.
      int low = kFp8 ? step * 8 + 2 * t : step * 8 + t, high = kFp8 ? low + 1 : low + 4;
      q[step][0] = g < kGroup ? head[low] : 0;
      q[step][1] = g < kGroup ? head[high] : 0;
    }
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of heads 2t and 2t + 1
    float o[8][4] = {};  // [16 dimensions][dimension g: heads 2t, 2t + 1; dimension g + 8: the same]
    for (int j = 0; j < count; ++j) {
      int left = tokens - j * kPage - sub * 16;  // valid tokens from this warp's first on
      // Every warp waits for and releases every stage, its own or not: a warp that skipped one could be a lap off,
      // where the parity of the barrier means the wrong fill.
      BarrierWait(full + 8 * stage, parity);
      if (j % kPhases == phase && left > 0) {
        uint32_t k_tile = ring + stage * kStageBytes, v_tile = k_tile + kTile;
        const int row = sub * 16 + ((lane / 8) & 1) * 8 + lane % 8;
        float part[2][4] = {};
#pragma unroll
        for (int step = 0; step < 8; step += kFp8 ? 2 : 1) {
          uint32_t r[4];
          LoadMatrices(r, PageAddress(k_tile, row, (kFp8 ? step + lane / 16 : 2 * step + lane / 16) * 16));
          if constexpr (kFp8) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              uint32_t k[4];
              HalvesFromFp8x4(r[2 * h], k[0], k[2]);
              HalvesFromFp8x4(r[2 * h + 1], k[1], k[3]);
              Multiply<true>(part[h], k, q[step + h][0], q[step + h][1]);
            }
          } else {
            Multiply<false>(part[step % 2], r, q[step][0], q[step][1]);
          }
        }
        // Scores of tokens g (heads 2t, 2t + 1) and g + 8.
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = (part[0][i] + part[1][i]) * p.scale_log2;
        const bool tail = left < 16;
        if (tail) {
          if (g >= left) x[0] = x[1] = -INFINITY;
          if (g + 8 >= left) x[2] = x[3] = -INFINITY;
        }
        float raised[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          raised[h] = fmaxf(x[h], x[h + 2]);
          for (int lanes = 4; lanes < 32; lanes *= 2)
            raised[h] = fmaxf(raised[h], __shfl_xor_sync(~0u, raised[h], lanes));
          raised[h] = fmaxf(raised[h], maximum[h]);
        }
        // Sums are of the greatest score so far, which soon rises no more.
        if (__any_sync(~0u, raised[0] > maximum[0] || raised[1] > maximum[1])) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float shrink = Exp2(maximum[h] - raised[h]);
            maximum[h] = raised[h];
            sum[h] *= shrink;
#pragma unroll
            for (int c = 0; c < 8; ++c) {
              o[c][h] *= shrink;
              o[c][h + 2] *= shrink;
            }
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = Exp2(x[i] - maximum[i % 2]);
        sum[0] += x[0] + x[2];
        sum[1] += x[1] + x[3];
        // As tokens 2t, 2t + 1 of head g, and 2t + 8, 2t + 9.
        const uint32_t weights[2] = {TransposeMatrix(kFp8 ? PackHalf2(x[0], x[1]) : Pack2(x[0], x[1])),
                                     TransposeMatrix(kFp8 ? PackHalf2(x[2], x[3]) : Pack2(x[2], x[3]))};
        uint32_t keep[2] = {~0u, ~0u};
        if (tail) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            int token = 2 * t + 8 * h;
            keep[h] = (token < left ? 0xFFFFu : 0) | (token + 1 < left ? 0xFFFF0000u : 0);
          }
        }
        const int v_row = kFp8 ? row : sub * 16 + (lane / 16) * 8 + lane % 8;
#pragma unroll
        for (int c = 0; c < 8; c += kFp8 ? 2 : 1) {
          uint32_t r[4];
          LoadMatricesTransposed(r, PageAddress(v_tile, v_row, (kFp8 ? c + lane / 16 : 2 * c + ((lane / 8) & 1)) * 16));
          if (tail) {
#pragma unroll
            for (int i = 0; i < 4; ++i) r[i] &= keep[kFp8 ? i % 2 : i / 2];
          }
          if constexpr (kFp8) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              // Bytes (k0 d0)(k0 d1)(k1 d0)(k1 d1) become pairs of tokens, of d0 in the low half, of d1 in the high:
              // rows g and g + 8 are dimensions 2g and 2g + 1.
              uint32_t v[4];
              HalvesFromFp8x4(__byte_perm(r[2 * h], 0, 0x3120), v[0], v[1]);
              HalvesFromFp8x4(__byte_perm(r[2 * h + 1], 0, 0x3120), v[2], v[3]);
              Multiply<true>(o[c + h], v, weights[0], weights[1]);
            }
          } else {
            Multiply<false>(o[c], r, weights[0], weights[1]);
          }
        }
      }
      __syncwarp();
      if (lane == 0) BarrierArrive(empty + 8 * stage);
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      for (int lanes = 4; lanes < 32; lanes *= 2) sum[h] += __shfl_xor_sync(~0u, sum[h], lanes);
    }
    int buffer = turn & 1;
    if (turn >= 2) BarrierWait(taken + 8 * ((turn - 2) & 3), ((turn - 2) >> 2) & 1);
    if (2 * t < kGroup) {
      const int first_head = (buffer * kWarps + warp) * kGroup + 2 * t;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float* mine = merge + (first_head + h) * kHeadDim;
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          if constexpr (kFp8) {
            *reinterpret_cast<float2*>(mine + c * 16 + 2 * g) = make_float2(o[c][h], o[c][h + 2]);
          } else {
            mine[c * 16 + g] = o[c][h];
            mine[c * 16 + g + 8] = o[c][h + 2];
          }
        }
        if (g == 0) merge_ml[first_head + h] = make_float2(maximum[h], sum[h]);
      }
    }
    BarrierArrive(handed + 8 * (turn & 3));
    ++turn;
  }
}

}  // namespace

struct DecodeAttention::Maps {
  CacheMaps cache, parts;
  int stages = 2, multiprocessors = 132;
};

DecodeAttention::DecodeAttention() : maps_(std::make_unique<Maps>()) {}
DecodeAttention::~DecodeAttention() = default;

bool DecodeAttention::Serves(const KvLayout& kv, int32_t query_heads, int32_t window) {
  return kv.head_dim == kHeadDim && kv.head_stride == kHeadDim && kv.tokens_per_block == kPage &&
         query_heads == kGroup * kv.kv_heads && window == 0;
}

int DecodeAttention::Prepare(const KvLayout& kv) {
  int stages = 2;
  while (stages < 16 && SharedBytes(kv.fp8, stages + 1) <= 227 * 1024) ++stages;
  maps_->stages = stages;
  cudaError_t status = cudaFuncSetAttribute(kv.fp8 ? DecodeKernel<true> : DecodeKernel<false>,
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, SharedBytes(kv.fp8, stages));
  if (status != cudaSuccess) return static_cast<int>(status);
  status = EncodeCache(&maps_->cache, kv);
  if (status != cudaSuccess) return static_cast<int>(status);
  status = EncodeCache(&maps_->parts, kv, kQuarter);
  if (status != cudaSuccess) return static_cast<int>(status);
  return static_cast<int>(cudaDeviceGetAttribute(&maps_->multiprocessors, cudaDevAttrMultiProcessorCount, 0));
}

void DecodeAttention::Run(Queue& queue, const AttentionArguments& a, const Factors& factors, const RopeTableView& rope,
                          const KvLayout& kv, int32_t layer, bool early) {
  const size_t before = kv.layer_bytes() * static_cast<size_t>(layer);
  DecodeArguments p = {a.q,
                       a.out,
                       a.items,
                       a.item_count,
                       kv.tables,
                       a.partial,
                       reinterpret_cast<float2*>(a.partial_ml),
                       a.arrived,
                       rope.table,
                       factors,
                       static_cast<uint8_t*>(kv.keys) + before,
                       static_cast<uint8_t*>(kv.values) + before,
                       kv.key_scale * 1.4426950408889634f / sqrtf(static_cast<float>(kHeadDim)),
                       1.0f / kv.key_scale,
                       1.0f / kv.value_scale,
                       kv.value_scale,
                       a.split,
                       kv.table_pitch,
                       a.chunks_max,
                       maps_->stages,
                       a.q_stride,
                       kv.kv_heads,
                       static_cast<int>(kv.layer_elements() / kHeadDim * static_cast<size_t>(layer)),
                       a.items_max,
                       rope.interleaved,
                       early};
  Launch(queue, kv.fp8 ? DecodeKernel<true> : DecodeKernel<false>, dim3(static_cast<unsigned>(maps_->multiprocessors)),
         kThreads, static_cast<size_t>(SharedBytes(kv.fp8, maps_->stages)), maps_->cache, maps_->parts, p);
}

}  // namespace ekiben::cuda
