// CUDA bodies of the ops that touch each value once or twice: embedding, norm, SwiGLU, bias, rope with the cache's
// write, block tables, argmax, and what loading weights needs. All are bound by memory or by their launch: 16-byte
// accesses where rows are contiguous, one token a CTA where a row is reduced.
#include "ops/cuda_launch.cuh"

namespace ekiben::cuda {
namespace {

__global__ void EmbeddingKernel(float* x, const Bf16* table, const int32_t* source, const int32_t* last_tokens,
                                int32_t columns) {
  LaunchDependents();
  WaitUpstream();
  int32_t id = source[blockIdx.x];
  if (id < 0) id = last_tokens[-1 - id];
  const Bf16* from = table + static_cast<size_t>(id) * columns;
  float* to = x + static_cast<size_t>(blockIdx.x) * columns;
  for (int i = 8 * threadIdx.x; i < columns; i += 8 * blockDim.x) {
    float v[8];
    Load8(from + i, v);
    *reinterpret_cast<float4*>(to + i) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(to + i + 4) = make_float4(v[4], v[5], v[6], v[7]);
  }
}

struct SumAndTop {
  float sum, top;
};
// Over the threads of a CTA; `top` only when asked for. scratch: 32 of them in shared memory.
template <bool kTop>
__device__ SumAndTop BlockReduce(SumAndTop value, SumAndTop* scratch) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value.sum += __shfl_xor_sync(~0u, value.sum, offset);
    if (kTop) value.top = fmaxf(value.top, __shfl_xor_sync(~0u, value.top, offset));
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  SumAndTop result = {0, 0};
  for (unsigned w = 0; w < blockDim.x / 32; ++w) {
    result.sum += scratch[w].sum;
    if (kTop) result.top = fmaxf(result.top, scratch[w].top);
  }
  return result;
}

// A row whose largest magnitude is `top`: its factor, and what its values are multiplied by to become codes. A row of
// zeros has a factor too, so that it stays zero.
struct Fp8Scale {
  float scale, inverse;
};
__device__ __forceinline__ Fp8Scale ScaleOf(float top) {
  top = fmaxf(top, 1e-20f);
  return {top / kFp8Max, kFp8Max / top};
}

__device__ __forceinline__ void LoadFloats(const float* p, float (&v)[8]) {
  *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(p);
  *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(p + 4);
}

// One token a CTA; a thread holds up to kVectors pieces of 8 columns. kScaled: there are factors.
template <int kVectors, bool kFp8, bool kScaled>
__global__ void __launch_bounds__(1024) AddRmsNormKernel(Rows y, float* residual, const Bf16* delta, Factors factors,
                                                         const float* weight, float eps, int32_t columns) {
  __shared__ SumAndTop scratch[32];
  LaunchDependents();
  // Weights and their factors depend on nothing: they are on their way before the kernel upstream has finished.
  float w[kVectors][8], missing[kVectors][8];
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    int at = 8 * (j * blockDim.x + threadIdx.x);
    if (at >= columns) continue;
    LoadFloats(weight + at, w[j]);
    if (kScaled) LoadFloats(factors.columns + at, missing[j]);
  }
  WaitUpstream();
  size_t row = static_cast<size_t>(blockIdx.x) * columns;
  float of_token = kScaled ? factors.tokens[blockIdx.x] : 1.0f;
  float v[kVectors][8];
  SumAndTop mine = {0, 0};
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    int at = 8 * (j * blockDim.x + threadIdx.x);
    if (at >= columns) continue;
    LoadFloats(residual + row + at, v[j]);
    if (delta != nullptr) {
      float d[8];
      Load8(delta + row + at, d);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[j][i] += kScaled ? d[i] * (missing[j][i] * of_token) : d[i];
      *reinterpret_cast<float4*>(residual + row + at) = make_float4(v[j][0], v[j][1], v[j][2], v[j][3]);
      *reinterpret_cast<float4*>(residual + row + at + 4) = make_float4(v[j][4], v[j][5], v[j][6], v[j][7]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      mine.sum += v[j][i] * v[j][i];
      v[j][i] *= w[j][i];
      mine.top = fmaxf(mine.top, fabsf(v[j][i]));
    }
  }
  SumAndTop all = BlockReduce<kFp8>(mine, scratch);
  float factor = rsqrtf(all.sum / static_cast<float>(columns) + eps);
  if (kFp8) {
    Fp8Scale codes = ScaleOf(all.top * factor);
    if (threadIdx.x == 0) y.scales[blockIdx.x] = codes.scale;
    factor *= codes.inverse;
  }
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    int at = 8 * (j * blockDim.x + threadIdx.x);
    if (at >= columns) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[j][i] *= factor;
    if constexpr (kFp8) {
      StoreFp8x8(y.fp8 + row + at, v[j]);
    } else {
      Store8(y.bf16 + row + at, v[j]);
    }
  }
}

// silu(gate) * up of 8 columns from `at` on; `missing` as Factors says, of gate and of up.
__device__ __forceinline__ void SwiGlu8(const Bf16* row, int32_t columns, int at, const float (&missing)[2][8],
                                        bool scaled, float of_token, float (&y)[8]) {
  float up[8];
  Load8(row + at, y);
  Load8(row + columns + at, up);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (scaled) {
      y[i] *= missing[0][i] * of_token;
      up[i] *= missing[1][i] * of_token;
    }
    y[i] *= Reciprocal(1.0f + Exp2(y[i] * -1.4426950408889634f)) * up[i];
  }
}

template <bool kScaled>
__global__ void SwiGluKernel(Bf16* y, const Bf16* gate_up, Factors factors, int32_t columns) {
  LaunchDependents();
  int at = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
  float missing[2][8];
  if (kScaled && at < columns) {
    LoadFloats(factors.columns + at, missing[0]);
    LoadFloats(factors.columns + columns + at, missing[1]);
  }
  WaitUpstream();
  if (at >= columns) return;
  float of_token = kScaled ? factors.tokens[blockIdx.x] : 1.0f, v[8];
  SwiGlu8(gate_up + static_cast<size_t>(blockIdx.x) * 2 * columns, columns, at, missing, kScaled, of_token, v);
  Store8(y + static_cast<size_t>(blockIdx.x) * columns + at, v);
}

// The same to e4m3: a token's largest magnitude must be known first. Few tokens are spread over a cluster of CTAs each
// (a lone CTA cannot have enough loads open), which tell one another their largest through shared memory. kMany: there
// are tokens for every multiprocessor, so that two whole tokens at once on each are worth more than factors that are
// there early.
constexpr int kClusterMax = 8;
constexpr int kSwiGluVectors = 2, kSwiGluThreads = 128, kSwiGluManyVectors = 4, kSwiGluManyThreads = 448;
struct SwiGluShared {
  SumAndTop scratch[32];
  float tops[kClusterMax];
};
template <bool kMany, int kVectors>
__device__ __forceinline__ void SwiGluFp8(SwiGluShared& shared, const Rows& y, const Bf16* gate_up,
                                          const Factors& factors, int32_t columns) {
  const unsigned ctas = gridDim.y, rank = blockIdx.y;  // a cluster is a token's CTAs
  LaunchDependents();
  // Said now, awaited before writing to a peer: it must have started.
  if (ctas > 1) ClusterArrive();
  const bool scaled = factors.columns != nullptr;
  float missing[kMany ? 1 : kVectors][2][8];
  auto load_factors = [&](int at, float(&to)[2][8]) {
    if (!scaled || at >= columns) return;
    LoadFloats(factors.columns + at, to[0]);
    LoadFloats(factors.columns + columns + at, to[1]);
  };
  if constexpr (!kMany) {
#pragma unroll
    for (int j = 0; j < kVectors; ++j) load_factors(8 * ((j * ctas + rank) * blockDim.x + threadIdx.x), missing[j]);
  }
  WaitUpstream();
  const Bf16* row = gate_up + static_cast<size_t>(blockIdx.x) * 2 * columns;
  float of_token = scaled ? factors.tokens[blockIdx.x] : 1.0f;
  float v[kVectors][8];
  SumAndTop mine = {0, 0};
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    int at = 8 * ((j * ctas + rank) * blockDim.x + threadIdx.x);
    if (at >= columns) continue;
    if (kMany) load_factors(at, missing[0]);
    SwiGlu8(row, columns, at, missing[kMany ? 0 : j], scaled, of_token, v[j]);
#pragma unroll
    for (int i = 0; i < 8; ++i) mine.top = fmaxf(mine.top, fabsf(v[j][i]));
  }
  float top = BlockReduce<true>(mine, shared.scratch).top;
  if (ctas > 1) {
    ClusterWait();
    if (threadIdx.x < ctas) StoreClusterFloat(SharedAddressOf(shared.tops + rank), threadIdx.x, top);
    __syncwarp();
    ClusterArrive();
    ClusterWait();
    for (unsigned i = 0; i < ctas; ++i) top = fmaxf(top, shared.tops[i]);
  }
  Fp8Scale codes = ScaleOf(top);
  if (rank == 0 && threadIdx.x == 0) y.scales[blockIdx.x] = codes.scale;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    int at = 8 * ((j * ctas + rank) * blockDim.x + threadIdx.x);
    if (at >= columns) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[j][i] *= codes.inverse;
    StoreFp8x8(y.fp8 + static_cast<size_t>(blockIdx.x) * columns + at, v[j]);
  }
}

__global__ void __launch_bounds__(1024) SwiGluFp8Kernel(Rows y, const Bf16* gate_up, Factors factors, int32_t columns) {
  __shared__ SwiGluShared shared;
  SwiGluFp8<false, kSwiGluVectors>(shared, y, gate_up, factors, columns);
}
__global__ void __launch_bounds__(kSwiGluManyThreads, 2)
    SwiGluFp8ManyKernel(Rows y, const Bf16* gate_up, Factors factors, int32_t columns) {
  __shared__ SwiGluShared shared;
  SwiGluFp8<true, kSwiGluManyVectors>(shared, y, gate_up, factors, columns);
}

// One row a CTA.
template <int kVectors>
__global__ void __launch_bounds__(1024) QuantizeKernel(Rows y, const Bf16* x, int32_t columns) {
  __shared__ SumAndTop scratch[32];
  LaunchDependents();
  WaitUpstream();
  size_t row = static_cast<size_t>(blockIdx.x) * columns;
  float v[kVectors][8];
  SumAndTop mine = {0, 0};
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    int at = 8 * (j * blockDim.x + threadIdx.x);
    if (at >= columns) continue;
    Load8(x + row + at, v[j]);
#pragma unroll
    for (int i = 0; i < 8; ++i) mine.top = fmaxf(mine.top, fabsf(v[j][i]));
  }
  Fp8Scale codes = ScaleOf(BlockReduce<true>(mine, scratch).top);
  if (threadIdx.x == 0) y.scales[blockIdx.x] = codes.scale;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    int at = 8 * (j * blockDim.x + threadIdx.x);
    if (at >= columns) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[j][i] *= codes.inverse;
    StoreFp8x8(y.fp8 + row + at, v[j]);
  }
}

__global__ void AddBiasKernel(Bf16* y, Factors factors, const float* bias, int32_t columns) {
  LaunchDependents();
  WaitUpstream();
  int at = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
  if (at >= columns) return;
  Bf16* to = y + static_cast<size_t>(blockIdx.x) * columns + at;
  float v[8];
  Load8(to, v);
  float of_token = factors.tokens != nullptr ? factors.tokens[blockIdx.x] : 1.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (factors.columns != nullptr) v[i] *= factors.columns[at + i] * of_token;
    v[i] += bias[at + i];
  }
  Store8(to, v);
}

__global__ void GatherKernel(uint4* y, const uint4* x, int32_t vectors, uint4* y2, const uint4* x2, int32_t vectors2,
                             const int32_t* rows) {
  LaunchDependents();
  WaitUpstream();
  size_t from = static_cast<size_t>(rows[blockIdx.x]), to = blockIdx.x;
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) y[to * vectors + i] = x[from * vectors + i];
  for (int i = threadIdx.x; i < vectors2; i += blockDim.x) y2[to * vectors2 + i] = x2[from * vectors2 + i];
}

// One token a CTA: a few lanes share a head, each with kWidth neighbouring dimensions of either half, and take several
// heads, whose rotation is the same. Without rotation `turn` is unused.
template <int kWidth>
struct RopeLane {
  float turn[2][2][kWidth];  // [half][cosine, sine]

  __device__ __forceinline__ void Rotate(float (&x)[2][kWidth], bool interleaved) const {
    float y[2][kWidth];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        y[half][i] = x[half][i] * turn[half][0][i] + (interleaved ? x[half][i ^ 1] : x[1 - half][i]) * turn[half][1][i];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x[half][i] = y[half][i];
    }
  }
};

template <int kWidth>
__device__ __forceinline__ void LoadWide(const float* p, float (&v)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; i += 4) *reinterpret_cast<float4*>(v + i) = *reinterpret_cast<const float4*>(p + i);
}
template <int kWidth>
__device__ __forceinline__ void LoadWide(const Bf16* p, float (&v)[kWidth]) {
  if constexpr (kWidth == 8) {
    Load8(p, v);
  } else {
    uint2 two = *reinterpret_cast<const uint2*>(p);
    v[0] = __uint_as_float(two.x << 16), v[1] = __uint_as_float(two.x & 0xFFFF0000u);
    v[2] = __uint_as_float(two.y << 16), v[3] = __uint_as_float(two.y & 0xFFFF0000u);
  }
}
template <int kWidth>
__device__ __forceinline__ void StoreWide(Bf16* p, const float (&v)[kWidth]) {
  if constexpr (kWidth == 8) {
    Store8(p, v);
  } else {
    *reinterpret_cast<uint2*>(p) = make_uint2(Pack2(v[0], v[1]), Pack2(v[2], v[3]));
  }
}
template <int kWidth>
__device__ __forceinline__ void StoreWideFp8(Fp8* p, const float (&v)[kWidth]) {
  if constexpr (kWidth == 8) {
    StoreFp8x8(p, v);
  } else {
    *reinterpret_cast<uint32_t*>(p) = PackFp8x2(v[0], v[1]) | PackFp8x2(v[2], v[3]) << 16;
  }
}

constexpr int kRopeThreads = 128;
template <int kWidth, bool kScaled>
__global__ void __launch_bounds__(kRopeThreads)
    RopeKernel(Bf16* qkv, Factors factors, const float* table, bool interleaved, int32_t query_heads,
               const int32_t* slots, const int32_t* positions, KvLayout kv, size_t layer_offset) {
  LaunchDependents();
  const int token = blockIdx.x, heads = query_heads + 2 * kv.kv_heads, half = kv.head_dim / 2, lanes = half / kWidth;
  const int head_step = kRopeThreads / lanes, d = threadIdx.x % lanes * kWidth;
  // Where the step's tokens stand was copied before its first kernel, and neither the table nor factors of weights ever
  // change: they may be read before the kernel upstream has finished. Block tables may not: that first kernel edits
  // them.
  const int slot = slots[token], position = positions[token];
  RopeLane<kWidth> lane;
  const float* cosine = table + static_cast<size_t>(position) * 2 * kv.head_dim + d;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    LoadWide(cosine + h * half, lane.turn[h][0]);
    LoadWide(cosine + kv.head_dim + h * half, lane.turn[h][1]);
  }
  WaitUpstream();
  if (slot < 0) return;
  const float of_token = kScaled ? factors.tokens[token] : 1.0f;
  const int block = kv.tables[static_cast<size_t>(slot) * kv.table_pitch + position / kv.tokens_per_block];
  if (static_cast<int>(threadIdx.x) >= head_step * lanes) return;
  for (int head = threadIdx.x / lanes; head < heads; head += head_step) {
    Bf16* row = qkv + (static_cast<size_t>(token) * heads + head) * kv.head_dim + d;
    float x[2][kWidth];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      LoadWide(row + h * half, x[h]);
      if (!kScaled) continue;
      float missing[kWidth];
      LoadWide(factors.columns + head * kv.head_dim + d + h * half, missing);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x[h][i] *= missing[i] * of_token;
    }
    if (head < query_heads + kv.kv_heads) lane.Rotate(x, interleaved);
    if (head < query_heads) {
#pragma unroll
      for (int h = 0; h < 2; ++h) StoreWide(row + h * half, x[h]);
      continue;
    }
    const bool is_key = head < query_heads + kv.kv_heads;
    const int kv_head = (head - query_heads) % kv.kv_heads;
    size_t at =
        layer_offset + d +
        ((static_cast<size_t>(block) * kv.kv_heads + kv_head) * kv.tokens_per_block + position % kv.tokens_per_block) *
            kv.head_stride;
    void* pool = is_key ? kv.keys : kv.values;
    const float inverse = 1.0f / (is_key ? kv.key_scale : kv.value_scale);
#pragma unroll
    for (int h = 0; h < 2; ++h, at += half) {
      if (kv.fp8) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) x[h][i] *= inverse;
        StoreWideFp8(static_cast<Fp8*>(pool) + at, x[h]);
      } else {
        StoreWide(static_cast<Bf16*>(pool) + at, x[h]);
      }
    }
  }
}

// One warp, in order: of edits that name the same entry the last one counts.
__global__ void TableEditKernel(int32_t* tables, const TableEdit* edits, const int32_t* count) {
  LaunchDependents();
  WaitUpstream();
  int total = *count, lane = threadIdx.x;
  for (int begin = 0; begin < total; begin += 32) {
    bool mine = begin + lane < total;
    TableEdit edit = mine ? edits[begin + lane] : TableEdit{-1 - lane, 0};
    unsigned same = __match_any_sync(~0u, edit.index);
    if (mine && 31 - __clz(same) == lane) tables[edit.index] = edit.block;
    __syncwarp();
  }
}

// 16-byte vectors throughout.
__global__ void CopyBlockKernel(KvLayout kv, size_t layer_vectors, size_t head_vectors, int32_t vectors, int32_t source,
                                int32_t target) {
  LaunchDependents();
  WaitUpstream();
  int head = blockIdx.x, layer = blockIdx.y;
  size_t from = layer * layer_vectors + (static_cast<size_t>(source) * kv.kv_heads + head) * head_vectors;
  size_t to = layer * layer_vectors + (static_cast<size_t>(target) * kv.kv_heads + head) * head_vectors;
  uint4* pool = static_cast<uint4*>(blockIdx.z == 0 ? kv.keys : kv.values);
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) pool[to + i] = pool[from + i];
}

// A float whose order is that of an unsigned integer; NaN and infinity are told apart before.
__device__ __forceinline__ uint32_t Ordered(float x) {
  uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
constexpr unsigned long long kNotFinite = ~0ull;

template <int kWidth>
struct LogitsOf;
template <>
struct LogitsOf<4> {
  using Type = float4;
};
template <>
struct LogitsOf<1> {
  using Type = float;
};
// kWidth logits a load; blockIdx.y is a part of a row, the last one first: the linear upstream wrote it last, so that
// what the L2 still holds of the logits is read before the rest displaces it.
template <int kWidth>
__global__ void __launch_bounds__(256)
    ArgMaxPartKernel(const float* logits, int32_t vocab_size, unsigned long long* best) {
  using Loaded = typename LogitsOf<kWidth>::Type;
  constexpr int kAhead = 4;
  __shared__ unsigned long long parts[32];
  LaunchDependents();
  WaitUpstream();
  const auto* row = reinterpret_cast<const Loaded*>(logits + static_cast<size_t>(blockIdx.x) * vocab_size);
  const long long loads = vocab_size / kWidth, part = gridDim.y - 1 - blockIdx.y;
  const int begin = static_cast<int>(loads * part / gridDim.y), end = static_cast<int>(loads * (part + 1) / gridDim.y);
  float top = -INFINITY;
  int token = 0;
  bool finite = true;
  for (int first = begin + threadIdx.x; first < end; first += kAhead * blockDim.x) {
    Loaded loaded[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      int at = first + j * blockDim.x;
      if (at < end) loaded[j] = __ldcs(row + at);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      int at = first + j * blockDim.x;
      if (at >= end) continue;
      const float* x = reinterpret_cast<const float*>(loaded + j);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        finite = finite && isfinite(x[i]);
        if (x[i] <= top) continue;  // a thread's tokens ascend, so the lowest of equals stays
        top = x[i];
        token = at * kWidth + i;
      }
    }
  }
  // The lowest id wins among equals: its complement is the larger key. Zeros are equal whatever their sign.
  unsigned long long mine = static_cast<unsigned long long>(Ordered(top + 0.0f)) << 32 | static_cast<uint32_t>(~token);
  if (!finite) mine = kNotFinite;
  for (int offset = 16; offset > 0; offset /= 2) {
    unsigned long long other = __shfl_xor_sync(~0u, mine, offset);
    mine = other > mine ? other : mine;
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < blockDim.x / 32; ++w) mine = parts[w] > mine ? parts[w] : mine;
    atomicMax(best + blockIdx.x, mine);
  }
}

__global__ void ArgMaxFinishKernel(int32_t* result, int32_t* last_tokens, const int32_t* slots, int32_t rows,
                                   unsigned long long* best) {
  LaunchDependents();
  WaitUpstream();
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  unsigned long long key = best[row];
  best[row] = 0;
  int32_t token = static_cast<int32_t>(~static_cast<uint32_t>(key));
  result[row] = key == kNotFinite ? -1 : token;
  int slot = slots[row];
  if (slot >= 0) last_tokens[slot] = key == kNotFinite ? 0 : token;
}

__global__ void UnpackBf16Kernel(Bf16* out, const uint32_t* packed, int64_t rows, int64_t columns) {
  // packed: [group of 16 rows][column pair][16 rows] of two columns.
  int64_t pairs = (columns + 1) / 2;
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * pairs; i += stride) {
    int64_t row = i / pairs, pair = i % pairs;
    uint32_t two = packed[(row / 16 * pairs + pair) * 16 + row % 16];
    out[row * columns + 2 * pair] = static_cast<Bf16>(two & 0xFFFF);
    if (2 * pair + 1 < columns) out[row * columns + 2 * pair + 1] = static_cast<Bf16>(two >> 16);
  }
}

__device__ uint32_t Hash(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>(x >> 32);
}

__global__ void FillNormalKernel(Bf16* out, int64_t count, uint64_t seed, float deviation) {
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    uint64_t key = seed * 0x100000001B3ull + 2 * static_cast<uint64_t>(i);
    float u = (static_cast<float>(Hash(key)) + 1.0f) * 2.3283064e-10f,
          v = static_cast<float>(Hash(key + 1)) * 2.3283064e-10f;
    float normal = sqrtf(-2.0f * __logf(fminf(u, 1.0f))) * __cosf(6.2831853f * v);
    out[i] = static_cast<Bf16>(Pack2(normal * deviation, 0) & 0xFFFF);
  }
}

__global__ void FillConstantKernel(float* out, int64_t count, float value) {
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) out[i] = value;
}

int Threads(int32_t columns, int max) {
  int threads = (columns / 8 + 31) / 32 * 32;
  return threads > max ? max : threads;
}
dim3 Grid(int32_t x, int32_t y = 1, int32_t z = 1) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

}  // namespace

int32_t HeadStride(int32_t head_dim) {
  for (int32_t stride : {32, 64, 96, 128, 256}) {
    if (head_dim <= stride) return head_dim % 8 == 0 && head_dim > 0 ? stride : 0;
  }
  return 0;
}

void EmbeddingLookup(Queue& queue, float* x, const Bf16* table, const int32_t* source, const int32_t* last_tokens,
                     int32_t tokens, int32_t columns) {
  Launch(queue, EmbeddingKernel, Grid(tokens), Threads(columns, 512), 0, x, table, source, last_tokens, columns);
}

void AddRmsNorm(Queue& queue, const Rows& y, float* residual, const Bf16* delta, const Factors& factors,
                const float* weight, float eps, int32_t tokens, int32_t columns) {
  const bool fp8 = y.bf16 == nullptr;
  auto pick = [&](auto* plain, auto* plain_fp8, auto* scaled, auto* scaled_fp8) {
    return factors.columns == nullptr ? (fp8 ? plain_fp8 : plain) : (fp8 ? scaled_fp8 : scaled);
  };
  auto* kernel = columns <= 8 * 1024 ? pick(AddRmsNormKernel<1, false, false>, AddRmsNormKernel<1, true, false>,
                                            AddRmsNormKernel<1, false, true>, AddRmsNormKernel<1, true, true>)
                                     : pick(AddRmsNormKernel<2, false, false>, AddRmsNormKernel<2, true, false>,
                                            AddRmsNormKernel<2, false, true>, AddRmsNormKernel<2, true, true>);
  Launch(queue, kernel, Grid(tokens), Threads(columns, 1024), 0, y, residual, delta, factors, weight, eps, columns);
}

void SwiGlu(Queue& queue, const Rows& y, const Bf16* gate_up, const Factors& factors, int32_t tokens, int32_t columns) {
  if (y.bf16 != nullptr) {
    int threads = Threads(columns, 256);
    Launch(queue, factors.columns == nullptr ? SwiGluKernel<false> : SwiGluKernel<true>,
           Grid(tokens, (columns / 8 + threads - 1) / threads), threads, 0, y.bf16, gate_up, factors, columns);
    return;
  }
  // At most kClusterMax CTAs hold a token; those of a very wide one have up to 1,024 threads.
  const bool many = tokens > 64 && columns <= 8 * kSwiGluManyVectors * kClusterMax * kSwiGluManyThreads;
  const int vectors = many ? kSwiGluManyVectors : kSwiGluVectors, a_cta = many ? kSwiGluManyThreads : kSwiGluThreads;
  int all_threads = (columns / 8 + vectors - 1) / vectors, ctas = (all_threads + a_cta - 1) / a_cta;
  ctas = ctas > kClusterMax ? kClusterMax : ctas;
  int threads = ((all_threads + ctas - 1) / ctas + 31) / 32 * 32;
  if (threads > 1024) return Note(queue, cudaErrorInvalidValue);
  LaunchCluster(queue, many ? SwiGluFp8ManyKernel : SwiGluFp8Kernel, Grid(tokens, ctas),
                dim3(1, static_cast<unsigned>(ctas)), threads, 0, y, gate_up, factors, columns);
}

void AddBias(Queue& queue, Bf16* y, const Factors& factors, const float* bias, int32_t tokens, int32_t columns) {
  int threads = Threads(columns, 256);
  Launch(queue, AddBiasKernel, Grid(tokens, (columns / 8 + threads - 1) / threads), threads, 0, y, factors, bias,
         columns);
}

void Quantize(Queue& queue, const Rows& y, const Bf16* x, int32_t rows, int32_t columns) {
  if (columns > kQuantizeColumnsMax) return Note(queue, cudaErrorInvalidValue);
  auto* kernel = columns <= 8 * 1024 ? QuantizeKernel<1> : QuantizeKernel<4>;
  Launch(queue, kernel, Grid(rows), Threads(columns, 1024), 0, y, x, columns);
}

void GatherRows(Queue& queue, float* y, const float* x, int32_t columns, Bf16* y2, const Bf16* x2, int32_t columns2,
                const int32_t* rows, int32_t count) {
  Launch(queue, GatherKernel, Grid(count), 256, 0, reinterpret_cast<uint4*>(y), reinterpret_cast<const uint4*>(x),
         columns / 4, reinterpret_cast<uint4*>(y2), reinterpret_cast<const uint4*>(x2), columns2 / 8, rows);
}

void RopeAndStoreKv(Queue& queue, Bf16* qkv, const Factors& factors, const RopeTableView& rope, int32_t query_heads,
                    const int32_t* slots, const int32_t* positions, int32_t tokens, const KvLayout& kv, int32_t layer) {
  auto pick = [&](auto* plain, auto* scaled) { return factors.columns == nullptr ? plain : scaled; };
  auto* kernel = kv.head_dim % 16 == 0 ? pick(RopeKernel<8, false>, RopeKernel<8, true>)
                                       : pick(RopeKernel<4, false>, RopeKernel<4, true>);
  Launch(queue, kernel, Grid(tokens), kRopeThreads, 0, qkv, factors, rope.table, rope.interleaved, query_heads, slots,
         positions, kv, static_cast<size_t>(layer) * kv.layer_elements());
}

void ApplyTableEdits(Queue& queue, int32_t* tables, const TableEdit* edits, const int32_t* count) {
  Launch(queue, TableEditKernel, Grid(1), 32, 0, tables, edits, count);
}

void CopyBlock(Queue& queue, const KvLayout& kv, int32_t source, int32_t target, int32_t tokens) {
  size_t token_bytes = static_cast<size_t>(kv.head_stride) * kv.element_bytes();
  Launch(queue, CopyBlockKernel, Grid(kv.kv_heads, kv.layers, 2), 128, 0, kv, kv.layer_bytes() / 16,
         static_cast<size_t>(kv.tokens_per_block) * token_bytes / 16,
         static_cast<int32_t>(static_cast<size_t>(tokens) * token_bytes / 16), source, target);
}

void ArgMax(Queue& queue, int32_t* result, int32_t* last_tokens, const float* logits, const int32_t* slots,
            int32_t rows, int32_t vocab_size, unsigned long long* best) {
  int parts = rows >= 128 ? 8 : rows >= 16 ? 16 : 64;
  if (parts > (vocab_size + 255) / 256) parts = (vocab_size + 255) / 256;
  auto* kernel = vocab_size % 4 == 0 ? ArgMaxPartKernel<4> : ArgMaxPartKernel<1>;
  Launch(queue, kernel, Grid(rows, parts), 256, 0, logits, vocab_size, best);
  Launch(queue, ArgMaxFinishKernel, Grid((rows + 127) / 128), 128, 0, result, last_tokens, slots, rows, best);
}

void UnpackBf16(Queue& queue, Bf16* rows_out, const Bf16* packed, int64_t rows, int64_t columns) {
  Queue serial{queue.stream, false, 0};
  Launch(serial, UnpackBf16Kernel, Grid(1056), 256, 0, rows_out, reinterpret_cast<const uint32_t*>(packed), rows,
         columns);
  Note(queue, static_cast<cudaError_t>(serial.error));
}

void FillNormal(Queue& queue, Bf16* out, int64_t count, uint64_t seed, float deviation) {
  Queue serial{queue.stream, false, 0};
  Launch(serial, FillNormalKernel, Grid(1056), 256, 0, out, count, seed, deviation);
  Note(queue, static_cast<cudaError_t>(serial.error));
}

void FillConstant(Queue& queue, float* out, int64_t count, float value) {
  Queue serial{queue.stream, false, 0};
  Launch(serial, FillConstantKernel, Grid(64), 256, 0, out, count, value);
  Note(queue, static_cast<cudaError_t>(serial.error));
}

}  // namespace ekiben::cuda
