// Attention over the paged cache for every head size and group, on the warp-level tensor instruction (m16n8k16, bf16
// in, f32 sums). One algorithm in two shapes:
//
//   context     four warps share a tile of 64 keys and have 16 packed queries (token * group + head) each; a CTA walks
//               all keys that its last query sees.
//   generation  one token: its group's heads are the rows of every warp, and each warp has 16 of the tile's 64 keys; a
//               CTA walks one chunk of `split` keys. Warps are merged in order through shared memory, chunks in order
//               by the CTA that arrives last.
//
// Keys and values arrive by 16-byte asynchronous copies, a tile ahead; of an e4m3 cache they pass through registers and
// become f16, which holds their values. What lies beyond the sequence is zero-filled, so that stale blocks never reach
// a sum. Online softmax in powers of two. Long on purpose: one kernel read in order.
#include "ops/cuda_launch.cuh"

namespace ekiben::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kKeys = 64, kStages = 2;

struct KernelArguments {
  const Bf16* q;
  const void *keys, *values;  // of the layer
  Bf16* out;
  const int32_t* tables;
  const AttentionItem* items;
  const int32_t* item_count;
  float *partial, *partial_ml;
  uint32_t* arrived;
  int32_t q_stride, query_heads, kv_heads, group, head_dim, table_pitch, block_shift, window, split, chunks_max;
  float scale_log2, value_scale;
};

template <int kD>
struct Layout {
  static constexpr int kPitch = kD + 8;  // elements; rows start 16 bytes further each, so that ldmatrix never collides
  static constexpr int kTile = kKeys * kPitch;
  static constexpr int kRing = kStages * 2 * kTile;  // elements
  static constexpr int Bytes(bool generation) { return (kRing + (generation ? 16 : 64) * kPitch) * 2; }
  // Generation hands over its sums through the ring.
  static_assert(kWarps * 16 * (kD + 2) * 4 <= kRing * 2, "the merge fits into the ring");
};

// Two probabilities in the type of the values.
template <bool kHalf>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  return kHalf ? PackHalf2(low, high) : Pack2(low, high);
}

// Adds chunk sums of one generation item in chunk order and writes the heads. Runs in the CTA that arrived last.
template <int kD>
__device__ void MergeChunks(const KernelArguments& p, const AttentionItem& item, size_t owner) {
  for (int i = threadIdx.x; i < p.group * p.head_dim; i += kThreads) {
    int head = i / p.head_dim, d = i % p.head_dim;
    float top = -INFINITY, total = 0, value = 0;
    for (int c = 0; c < item.chunks; ++c) {
      size_t at = (owner * p.chunks_max + c) * p.group + head;
      float maximum = __ldcg(p.partial_ml + 2 * at);
      if (maximum == -INFINITY) continue;
      float raised = fmaxf(top, maximum), shrink = Exp2(top - raised), factor = Exp2(maximum - raised);
      total = total * shrink + __ldcg(p.partial_ml + 2 * at + 1) * factor;
      value = value * shrink + __ldcg(p.partial + at * kD + d) * factor;
      top = raised;
    }
    size_t to = (static_cast<size_t>(item.token) * p.query_heads + item.kv_head * p.group + head) * p.head_dim + d;
    p.out[to] = static_cast<Bf16>(Pack2(value / total * p.value_scale, 0) & 0xFFFF);
  }
}

template <int kD, bool kGeneration, bool kFp8>
__global__ void __launch_bounds__(kThreads) AttentionKernel(KernelArguments p) {
  using L = Layout<kD>;
  constexpr int kWarpKeys = kGeneration ? 16 : kKeys;  // of a tile, for one warp
  constexpr int kTilesN = kWarpKeys / 8, kSteps = kD / 16, kOut = kD / 8;
  auto* shared = DynamicShared<Bf16>();
  __shared__ bool last;
  LaunchDependents();
  WaitUpstream();
  if (static_cast<int>(blockIdx.x) >= *p.item_count) return;
  const AttentionItem item = p.items[blockIdx.x];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  Bf16* ring = shared;
  Bf16* queries = shared + L::kRing;

  // Packed queries to shared memory, zero where there is none and beyond the head.
  constexpr int kRows = kGeneration ? 16 : 64;
  const int packed_end = item.tokens * p.group;
  for (int i = thread; i < kRows * (kD / 8); i += kThreads) {
    int row = i / (kD / 8), column = i % (kD / 8) * 8, packed = item.first + row;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (packed < packed_end && column < p.head_dim) {
      int token = item.token + packed / p.group, head = item.kv_head * p.group + packed % p.group;
      value =
          *reinterpret_cast<const uint4*>(p.q + static_cast<size_t>(token) * p.q_stride + head * p.head_dim + column);
      if constexpr (kFp8) {
        for (uint32_t* two : {&value.x, &value.y, &value.z, &value.w})
          *two = PackHalf2(__uint_as_float(*two << 16), __uint_as_float(*two & 0xFFFF0000u));
      }
    }
    *reinterpret_cast<uint4*>(queries + row * L::kPitch + column) = value;
  }

  // Keys [begin, end): what any of these queries sees.
  int first_position = item.position + item.first / p.group;
  int last_packed = min(item.first + kRows, packed_end) - 1;
  int end = item.position + last_packed / p.group + 1;
  int begin = p.window > 0 ? max(0, first_position - p.window + 1) : 0;
  if (kGeneration) {
    begin = max(begin, item.chunk * p.split);
    if (item.chunk + 1 < item.chunks) end = min(end, (item.chunk + 1) * p.split);
  }
  const int low = begin;  // a window's older blocks may be another sequence's by now
  begin = begin / kKeys * kKeys;
  const int32_t* table = p.tables + static_cast<size_t>(item.slot) * p.table_pitch;
  const int tiles = end > begin ? (end - begin + kKeys - 1) / kKeys : 0;
  auto element_of = [&](int block, int key, int column) {
    return (((static_cast<size_t>(block) * p.kv_heads + item.kv_head) << p.block_shift) +
            (key & ((1 << p.block_shift) - 1))) *
               kD +
           column;
  };
  auto load = [&](int tile) {
    Bf16* to = ring + tile % kStages * 2 * L::kTile;
    int base = begin + tile * kKeys;
#pragma unroll
    for (int i = thread; i < kKeys * (kD / 8); i += kThreads) {
      int row = i / (kD / 8), column = i % (kD / 8) * 8, key = base + row;
      bool valid = key >= low && key < end;
      int block = valid ? table[key >> p.block_shift] : 0;
      size_t at = element_of(block, key, column);
      if (!valid) at = 0;
      uint32_t shared_at = SharedAddressOf(to + row * L::kPitch + column);
      CopyAsync(shared_at, static_cast<const Bf16*>(p.keys) + at, valid);
      CopyAsync(shared_at + L::kTile * 2, static_cast<const Bf16*>(p.values) + at, valid);
    }
  };
  // e4m3: 16 codes of a key and of a value at a time, fetched while the tile before is computed.
  constexpr int kPieces = kKeys * (kD / 16) / kThreads;
  uint4 codes[2][kFp8 ? kPieces : 1];
  auto fetch = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      int at = i * kThreads + thread, column = at % (kD / 16) * 16, key = begin + tile * kKeys + at / (kD / 16);
      codes[0][i] = codes[1][i] = make_uint4(0, 0, 0, 0);
      if (key < low || key >= end) continue;
      size_t from = element_of(table[key >> p.block_shift], key, column);
      codes[0][i] = *reinterpret_cast<const uint4*>(static_cast<const Fp8*>(p.keys) + from);
      codes[1][i] = *reinterpret_cast<const uint4*>(static_cast<const Fp8*>(p.values) + from);
    }
  };
  auto place = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      int at = i * kThreads + thread, column = at % (kD / 16) * 16, row = at / (kD / 16);
      Bf16* to = ring + tile % kStages * 2 * L::kTile + row * L::kPitch + column;
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const uint4 c = codes[which][i];
        auto* halves = reinterpret_cast<uint4*>(to + which * L::kTile);
        halves[0] = make_uint4(HalfFromFp8x2(c.x & 0xFFFF), HalfFromFp8x2(c.x >> 16), HalfFromFp8x2(c.y & 0xFFFF),
                               HalfFromFp8x2(c.y >> 16));
        halves[1] = make_uint4(HalfFromFp8x2(c.z & 0xFFFF), HalfFromFp8x2(c.z >> 16), HalfFromFp8x2(c.w & 0xFFFF),
                               HalfFromFp8x2(c.w >> 16));
      }
    }
  };

  float o[kOut][4];
#pragma unroll
  for (int n = 0; n < kOut; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  // Rows g and g + 8 of the warp's 16 and where they stand in the sequence.
  int row_position[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int packed = item.first + (kGeneration ? 0 : warp * 16) + g + 8 * r;
    row_position[r] = packed < packed_end ? item.position + packed / p.group : -1;
  }
  if constexpr (kFp8) {
    if (tiles > 0) {
      fetch(0);
      place(0);
    }
  } else {
    if (tiles > 0) load(0);
    CopyAsyncCommit();
  }
  for (int tile = 0; tile < tiles; ++tile) {
    if constexpr (kFp8) {
      if (tile + 1 < tiles) fetch(tile + 1);
    } else {
      if (tile + 1 < tiles) load(tile + 1);
      CopyAsyncCommit();
      CopyAsyncWait<1>();
    }
    __syncthreads();
    const Bf16* keys = ring + tile % kStages * 2 * L::kTile;
    const Bf16* values = keys + L::kTile;
    const int key_row = kGeneration ? warp * 16 : 0;  // the warp's first key of the tile
    const int key_base = begin + tile * kKeys + key_row;

    float s[kTilesN][4];
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t a[4];
      LoadMatrices(a, SharedAddressOf(queries + ((kGeneration ? 0 : warp * 16) + lane % 16) * L::kPitch + step * 16 +
                                      lane / 16 * 8));
#pragma unroll
      for (int n = 0; n < kTilesN; n += 2) {
        uint32_t b[4];
        LoadMatrices(b, SharedAddressOf(keys + (key_row + n * 8 + lane / 16 * 8 + lane % 8) * L::kPitch + step * 16 +
                                        (lane / 8 & 1) * 8));
        Multiply<kFp8>(s[n], a, b[0], b[1]);
        Multiply<kFp8>(s[n + 1], a, b[2], b[3]);
      }
    }

    float top[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int key = key_base + n * 8 + 2 * t + i % 2, r = i / 2;
        bool seen = key <= row_position[r] && key < end && (p.window == 0 || key > row_position[r] - p.window);
        s[n][i] = seen ? s[n][i] * p.scale_log2 : -INFINITY;
        top[r] = fmaxf(top[r], s[n][i]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
    }
    float base[2], shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      base[r] = top[r] == -INFINITY ? 0.0f : top[r];  // nothing seen yet: every weight is 2^-inf
      shrink[r] = Exp2(maximum[r] - base[r]);
      maximum[r] = top[r];
      sum[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = Exp2(s[n][i] - base[i / 2]);
        sum[i / 2] += s[n][i];
      }
    }
#pragma unroll
    for (int n = 0; n < kOut; ++n) {
      o[n][0] *= shrink[0];
      o[n][1] *= shrink[0];
      o[n][2] *= shrink[1];
      o[n][3] *= shrink[1];
    }
#pragma unroll
    for (int step = 0; step < kTilesN / 2; ++step) {
      const uint32_t a[4] = {PackPair<kFp8>(s[2 * step][0], s[2 * step][1]),
                             PackPair<kFp8>(s[2 * step][2], s[2 * step][3]),
                             PackPair<kFp8>(s[2 * step + 1][0], s[2 * step + 1][1]),
                             PackPair<kFp8>(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
      for (int n = 0; n < kOut; n += 2) {
        uint32_t b[4];
        LoadMatricesTransposed(
            b, SharedAddressOf(values + (key_row + step * 16 + (lane / 8 & 1) * 8 + lane % 8) * L::kPitch + n * 8 +
                               lane / 16 * 8));
        Multiply<kFp8>(o[n], a, b[0], b[1]);
        Multiply<kFp8>(o[n + 1], a, b[2], b[3]);
      }
    }
    if constexpr (kFp8) {
      if (tile + 1 < tiles) place(tile + 1);  // over the tile that all had left at this turn's barrier
    } else {
      __syncthreads();  // the tile after next overwrites this one
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
  }

  if constexpr (!kGeneration) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int packed = item.first + warp * 16 + g + 8 * r;
      if (packed >= packed_end) continue;
      int token = item.token + packed / p.group, head = item.kv_head * p.group + packed % p.group;
      uint32_t* to =
          reinterpret_cast<uint32_t*>(p.out + (static_cast<size_t>(token) * p.query_heads + head) * p.head_dim);
      float factor = p.value_scale * (1.0f / sum[r]);
#pragma unroll
      for (int n = 0; n < kOut; ++n) {
        int d = n * 8 + 2 * t;
        if (d < p.head_dim) to[d / 2] = Pack2(o[n][2 * r] * factor, o[n][2 * r + 1] * factor);
      }
    }
    return;
  }

  // Generation: the warps' sums, in warp order.
  CopyAsyncWait<0>();
  __syncthreads();
  float* merge = reinterpret_cast<float*>(shared);  // [warp][16][kD]
  float* merge_ml = merge + kWarps * 16 * kD;       // [warp][16][2]
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int row = warp * 16 + g + 8 * r;
#pragma unroll
    for (int n = 0; n < kOut; ++n) {
      merge[row * kD + n * 8 + 2 * t] = o[n][2 * r];
      merge[row * kD + n * 8 + 2 * t + 1] = o[n][2 * r + 1];
    }
    if (t == 0) {
      merge_ml[2 * row] = maximum[r];
      merge_ml[2 * row + 1] = sum[r];
    }
  }
  __syncthreads();
  size_t owner = static_cast<size_t>(item.slot) * p.kv_heads + item.kv_head;
  for (int i = thread; i < p.group * p.head_dim; i += kThreads) {
    int head = i / p.head_dim, d = i % p.head_dim;
    float best = -INFINITY, total = 0, value = 0;
    for (int w = 0; w < kWarps; ++w) best = fmaxf(best, merge_ml[2 * (w * 16 + head)]);
    for (int w = 0; w < kWarps; ++w) {
      int row = w * 16 + head;
      float factor = merge_ml[2 * row] == -INFINITY ? 0.0f : Exp2(merge_ml[2 * row] - best);
      total += merge_ml[2 * row + 1] * factor;
      value += merge[row * kD + d] * factor;
    }
    if (item.chunks == 1) {
      size_t to = (static_cast<size_t>(item.token) * p.query_heads + item.kv_head * p.group + head) * p.head_dim + d;
      p.out[to] = static_cast<Bf16>(Pack2(value / total * p.value_scale, 0) & 0xFFFF);
    } else {
      size_t at = (owner * p.chunks_max + item.chunk) * p.group + head;
      __stcg(p.partial + at * kD + d, value);
      if (d == 0) {
        __stcg(p.partial_ml + 2 * at, best);
        __stcg(p.partial_ml + 2 * at + 1, total);
      }
    }
  }
  if (item.chunks == 1) return;
  __threadfence();
  __syncthreads();
  if (thread == 0) last = atomicAdd(p.arrived + owner, 1u) == static_cast<unsigned>(item.chunks - 1);
  __syncthreads();
  if (!last) return;
  __threadfence();
  MergeChunks<kD>(p, item, owner);
  if (thread == 0) p.arrived[owner] = 0;
}

template <int kD, bool kGeneration, bool kFp8>
void RunFor(Queue& queue, const KernelArguments& p, int32_t items) {
  constexpr int kBytes = Layout<kD>::Bytes(kGeneration);
  static const cudaError_t allowed =
      cudaFuncSetAttribute(AttentionKernel<kD, kGeneration, kFp8>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  Note(queue, allowed);
  Launch(queue, AttentionKernel<kD, kGeneration, kFp8>, dim3(static_cast<unsigned>(items)), kThreads, kBytes, p);
}

template <int kD, bool kGeneration>
void RunFor(Queue& queue, const KernelArguments& p, bool fp8, int32_t items) {
  return fp8 ? RunFor<kD, kGeneration, true>(queue, p, items) : RunFor<kD, kGeneration, false>(queue, p, items);
}

template <bool kGeneration>
void Run(Queue& queue, const AttentionArguments& a, const KvLayout& kv, int32_t layer) {
  if (a.items_max == 0) return;
  size_t offset = static_cast<size_t>(layer) * kv.layer_bytes();
  int shift = 0;
  while ((1 << shift) < kv.tokens_per_block) ++shift;
  KernelArguments p = {a.q,
                       static_cast<const std::byte*>(kv.keys) + offset,
                       static_cast<const std::byte*>(kv.values) + offset,
                       a.out,
                       kv.tables,
                       a.items,
                       a.item_count,
                       a.partial,
                       a.partial_ml,
                       a.arrived,
                       a.q_stride,
                       a.query_heads,
                       kv.kv_heads,
                       a.query_heads / kv.kv_heads,
                       kv.head_dim,
                       kv.table_pitch,
                       shift,
                       a.window,
                       a.split,
                       a.chunks_max,
                       kv.key_scale * 1.4426950408889634f / sqrtf(static_cast<float>(kv.head_dim)),
                       kv.value_scale};
  switch (kv.head_stride) {
    case 32: return RunFor<32, kGeneration>(queue, p, kv.fp8, a.items_max);
    case 64: return RunFor<64, kGeneration>(queue, p, kv.fp8, a.items_max);
    case 96: return RunFor<96, kGeneration>(queue, p, kv.fp8, a.items_max);
    case 128: return RunFor<128, kGeneration>(queue, p, kv.fp8, a.items_max);
    case 256: return RunFor<256, kGeneration>(queue, p, kv.fp8, a.items_max);
    default: Note(queue, cudaErrorInvalidValue);
  }
}

}  // namespace

AttentionScratchSize AttentionScratch(int32_t slots, int32_t query_heads, int32_t kv_heads, int32_t head_stride,
                                      int32_t chunks_max) {
  size_t rows = static_cast<size_t>(slots) * static_cast<size_t>(query_heads) * static_cast<size_t>(chunks_max);
  return {rows * static_cast<size_t>(head_stride), rows * 2,
          static_cast<size_t>(slots) * static_cast<size_t>(kv_heads)};
}

void ContextAttention(Queue& queue, const AttentionArguments& a, const KvLayout& kv, int32_t layer) {
  Run<false>(queue, a, kv, layer);
}

void GenerationAttention(Queue& queue, const AttentionArguments& a, const KvLayout& kv, int32_t layer) {
  Run<true>(queue, a, kv, layer);
}

}  // namespace ekiben::cuda
