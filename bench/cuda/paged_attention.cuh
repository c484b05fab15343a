// Decode attention over a paged KV cache: 4 query heads a KV head, head dimension 128, pages of 64 tokens, bf16 or e4m3 KV.
//
// A page holds one KV head's 64 tokens contiguously: pool[page][kv_head][64][128], one pool for K and one for V, found through
// block_table[sequence][page index]. The four query heads of a group are rows of one tensor-core tile, so K and V are read once.
//
// The KV axis is cut at a fixed number of tokens (`split`), independent of the batch, so a sequence's result does not depend on its
// neighbours. Work items (sequence, kv head, chunk) are dealt round-robin to persistent CTAs; a producer warp runs ahead of the
// consumers across item borders. Consumers hand an item's sums, through one of two buffers, to one of four finishing warps and go
// on: the merge's round trips to global memory stand neither between two items nor, up to four deep, behind one another. Chunks of one
// sequence and KV head are merged, in chunk order, by the warp that arrives last.
//
// Slots past a sequence's length may hold anything, NaN included: their scores and their V rows are masked.
#pragma once

#include "skinny_gemm.cuh"

namespace bench {

constexpr int kPage = 64, kHeadDim = 128, kKvHeads = 8, kGroup = 4, kQHeads = kKvHeads * kGroup;

struct AttentionParams {
  const __nv_bfloat16* q;   // [sequences][32][128]
  __nv_bfloat16* out;       // [sequences][32][128]
  const int4* items;        // {sequence, kv head, chunk, sequence length}
  const int* item_count;    // in device memory, so that one captured graph serves any batch
  const int* block_table;   // [sequences][table_pitch]
  float* partial;           // [sequence][kv head][chunk][4][128] unnormalised sums, then ...
  float2* partial_ml;       // [sequence][kv head][chunk][4] {maximum, sum}, in powers of two
  unsigned* arrived;        // [sequence][kv head], zero between launches
  float scale_log2;         // softmax scale x log2(e) x K scale
  float v_scale;
  int split, table_pitch, max_chunks, stages;
};

template <bool kFp8>
struct AttentionLayout {
  static constexpr int kBoxes = kFp8 ? 1 : 2;           // 128-byte columns of a head
  static constexpr int kTile = kBoxes * 8192;           // one page of K or V of one head
  static constexpr int kStageBytes = 2 * kTile + 1024;  // K, V, the group's queries
  static constexpr int Bytes(int stages, int warps) {
    return 1024 + stages * kStageBytes + 2 * warps * (kGroup * kHeadDim * 4 + 32) + 16 * stages + 64;
  }
};

template <bool kHalf>
__device__ __forceinline__ void MmaHeads(float (&c)[4], uint32_t a0, uint32_t a2, uint32_t b0, uint32_t b1) {
  // Rows 8..15 of A are padding: the registers that would hold them are zero.
  if constexpr (kHalf) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%5}, {%7,%8}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(0), "r"(a2), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%5}, {%7,%8}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(0), "r"(a2), "r"(b0), "r"(b1));
  }
}
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ uint32_t HalfFromE4m3(uint32_t two_bytes) {
  uint32_t result;
  asm("{\n.reg .b16 low;\ncvt.u16.u32 low, %1;\ncvt.rn.f16x2.e4m3x2 %0, low;\n}" : "=r"(result) : "r"(two_bytes));
  return result;
}
// Byte `column` (0..255) of token row `row` in a page tile, as the copy engine's 128-byte swizzle places it.
__device__ __forceinline__ uint32_t PageAddress(uint32_t tile, int row, int column) {
  return tile + (column >> 7) * 8192 + row * 128 + ((column & 127) ^ ((row & 7) << 4));
}
__device__ __forceinline__ uint32_t PackHeads(bool half, float x, float y) {
  uint32_t packed;
  if (half) {
    asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(x), "f"(y));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(packed) : "f"(x), "f"(y));
  }
  return packed;
}
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <bool kFp8, int kWarps>
__global__ void __launch_bounds__(kWarps * 32 + 32 + kGroup * 32, 1)
    PagedDecodeKernel(const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                      AttentionParams p) {
  using Layout = AttentionLayout<kFp8>;
  extern __shared__ uint8_t shared_raw[];
  uint32_t ring = (SharedAddress(shared_raw) + 1023) & ~1023u;
  uint8_t* ring_pointer = shared_raw + (ring - SharedAddress(shared_raw));
  float* merge = reinterpret_cast<float*>(ring_pointer + p.stages * Layout::kStageBytes);  // [buffer][warp][head][d]
  float2* merge_ml = reinterpret_cast<float2*>(merge + 2 * kWarps * kGroup * kHeadDim);    // [buffer][warp][head]
  uint32_t full = SharedAddress(merge_ml + 2 * kWarps * kGroup);
  uint32_t empty = full + 8 * p.stages;
  // Both by turn % 4, one a finishing warp; turn n uses buffer n % 2.
  uint32_t handed = empty + 8 * p.stages;  // the consumers' sums of the turn are in its buffer
  uint32_t taken = handed + 32;            // the turn's buffer has been read
  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kWarps);
    }
    for (int finisher = 0; finisher < 4; ++finisher) {
      BarrierInit(handed + 8 * finisher, kWarps * 32);
      BarrierInit(taken + 8 * finisher, 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  LaunchDependents();
  WaitUpstream();
  int items = *p.item_count;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int chunk_pages = p.split / kPage;

  if (warp == kWarps) {
    uint64_t once = EvictFirst();
    int stage = 0;
    uint32_t parity = 1;  // a fresh barrier's previous phase counts as complete
    int4 item = {};
    int page = 0;
    auto fetch = [&](int i) {
      if (i >= items) return;
      item = p.items[i];
      int first = item.z * chunk_pages + lane;
      bool mine = lane < chunk_pages && first * kPage < item.w;
      page = mine ? p.block_table[static_cast<size_t>(item.x) * p.table_pitch + first] : 0;
    };
    fetch(blockIdx.x);
    for (int i = blockIdx.x; i < items; i += gridDim.x) {
      int4 now = item;
      int pages_now = page;
      fetch(i + gridDim.x);
      int tokens = min(p.split, now.w - now.z * p.split);
      int count = (tokens + kPage - 1) / kPage;
      for (int j = 0; j < count; ++j) {
        int page_id = __shfl_sync(~0u, pages_now, j);
        if (lane == 0) {
          BarrierWait(empty + 8 * stage, parity);
          uint32_t base = ring + stage * Layout::kStageBytes;
          BarrierExpect(full + 8 * stage, Layout::kStageBytes);
          int row = (page_id * kKvHeads + now.y) * kPage;
          for (int box = 0; box < Layout::kBoxes; ++box) {
            TileLoad(base + box * 8192, &k_map, box * 64, row, full + 8 * stage, once);
          }
          for (int box = 0; box < Layout::kBoxes; ++box) {
            TileLoad(base + Layout::kTile + box * 8192, &v_map, box * 64, row, full + 8 * stage, once);
          }
          const __nv_bfloat16* q = p.q + (static_cast<size_t>(now.x) * kQHeads + now.y * kGroup) * kHeadDim;
          asm volatile(
              "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                  base + 2 * Layout::kTile),
              "l"(q), "r"(1024), "r"(full + 8 * stage)
              : "memory");
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
    for (int i = blockIdx.x + finisher * gridDim.x; i < items; i += 4 * gridDim.x) {
      int4 item = p.items[i];
      float top[kGroup], total[kGroup];
      float4 value[kGroup];
#pragma unroll
      for (int h = 0; h < kGroup; ++h) {
        top[h] = -INFINITY;
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
          float factor = p.v_scale / total[h];
          uint2 packed = make_uint2(PackHeads(false, value[h].x * factor, value[h].y * factor),
                                    PackHeads(false, value[h].z * factor, value[h].w * factor));
          *reinterpret_cast<uint2*>(p.out + (static_cast<size_t>(item.x) * kQHeads + item.y * kGroup + h) * kHeadDim + d) = packed;
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
      BarrierArrive(taken + 8 * finisher);
      int chunks = (item.w + p.split - 1) / p.split;
      if (chunks == 1) {
        store();
        continue;
      }
      size_t owner = static_cast<size_t>(item.x) * kKvHeads + item.y;
      size_t slot = (owner * p.max_chunks + item.z) * kGroup;
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
          top[h] = fmaxf(top[h], __ldcg(p.partial_ml + (owner * p.max_chunks + c) * kGroup + h).x);
        }
      }
      for (int c = 0; c < chunks; ++c) {
        size_t part = (owner * p.max_chunks + c) * kGroup;
#pragma unroll
        for (int h = 0; h < kGroup; ++h) {
          add(h, __ldcg(reinterpret_cast<const float4*>(p.partial + (part + h) * kHeadDim + d)), __ldcg(p.partial_ml + part + h));
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
  int4 next = blockIdx.x < items ? p.items[blockIdx.x] : int4{};
  for (int i = blockIdx.x; i < items; i += gridDim.x) {
    int4 item = next;
    if (i + gridDim.x < items) next = p.items[i + gridDim.x];
    int tokens = min(p.split, item.w - item.z * p.split);
    int count = (tokens + kPage - 1) / kPage;
    uint32_t qa[8][2];
    bool have_q = false;
    float maximum = -INFINITY, sum = 0;
    float o[16][4];
#pragma unroll
    for (int n = 0; n < 16; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    for (int j = 0; j < count; ++j) {
      int left = tokens - j * kPage - sub * 16;  // valid tokens from this warp's first on
      // Every warp waits for and releases every stage, its own or not: a warp that skipped one could be a lap off, where the
      // parity of the barrier means the wrong fill.
      BarrierWait(full + 8 * stage, parity);
      if (j % kPhases == phase) {
        uint32_t k_tile = ring + stage * Layout::kStageBytes, v_tile = k_tile + Layout::kTile;
        if (left > 0) {
          if (!have_q) {
            have_q = true;
            const uint32_t* q =
                reinterpret_cast<const uint32_t*>(ring_pointer + stage * Layout::kStageBytes + 2 * Layout::kTile);
#pragma unroll
            for (int s = 0; s < 8; ++s) {
              // e4m3 fragments arrive as 4 neighbouring elements a thread, so K's order within 16 is permuted; Q follows it.
              int low = kFp8 ? s * 8 + 2 * t : s * 8 + t, high = kFp8 ? low + 1 : low + 4;
              qa[s][0] = g < kGroup ? q[g * 64 + low] : 0;
              qa[s][1] = g < kGroup ? q[g * 64 + high] : 0;
              if constexpr (kFp8) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                  qa[s][h] = PackHeads(true, __uint_as_float(qa[s][h] << 16), __uint_as_float(qa[s][h] & 0xFFFF0000u));
                }
              }
            }
          }
          float s[2][4] = {};
          if constexpr (kFp8) {
            int row = sub * 16 + ((lane / 8) & 1) * 8 + lane % 8;
#pragma unroll
            for (int step = 0; step < 8; step += 2) {
              uint32_t r[4];
              LoadMatrices(r, PageAddress(k_tile, row, (step + lane / 16) * 16));
#pragma unroll
              for (int h = 0; h < 4; ++h) {
                MmaHeads<true>(s[h % 2], qa[step + h / 2][0], qa[step + h / 2][1], HalfFromE4m3(r[h] & 0xFFFF),
                               HalfFromE4m3(r[h] >> 16));
              }
            }
          } else {
            int row = sub * 16 + (lane / 16) * 8 + lane % 8;
#pragma unroll
            for (int step = 0; step < 8; ++step) {
              uint32_t r[4];
              LoadMatrices(r, PageAddress(k_tile, row, (2 * step + ((lane / 8) & 1)) * 16));
              MmaHeads<false>(s[0], qa[step][0], qa[step][1], r[0], r[1]);
              MmaHeads<false>(s[1], qa[step][0], qa[step][1], r[2], r[3]);
            }
          }
          // Scores of head g, tokens 2t, 2t+1 (s[0]) and 8+2t, 9+2t (s[1]).
          float x[4] = {s[0][0] * p.scale_log2, s[0][1] * p.scale_log2, s[1][0] * p.scale_log2, s[1][1] * p.scale_log2};
          bool tail = left < 16;
          if (tail) {
            if (2 * t >= left) x[0] = -INFINITY;
            if (2 * t + 1 >= left) x[1] = -INFINITY;
            if (2 * t + 8 >= left) x[2] = -INFINITY;
            if (2 * t + 9 >= left) x[3] = -INFINITY;
          }
          float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
          top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
          top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
          float raised = fmaxf(maximum, top);
          float shrink = Exp2(maximum - raised);
          maximum = raised;
#pragma unroll
          for (float& value : x) value = Exp2(value - raised);
          sum = sum * shrink + (x[0] + x[1] + x[2] + x[3]);
#pragma unroll
          for (int n = 0; n < 16; ++n) {
            o[n][0] *= shrink;
            o[n][1] *= shrink;
          }
          uint32_t p0 = PackHeads(kFp8, x[0], x[1]), p1 = PackHeads(kFp8, x[2], x[3]);
          uint32_t keep0 = ~0u, keep1 = ~0u;
          if (tail) {
            keep0 = (2 * t < left ? 0xFFFFu : 0) | (2 * t + 1 < left ? 0xFFFF0000u : 0);
            keep1 = (2 * t + 8 < left ? 0xFFFFu : 0) | (2 * t + 9 < left ? 0xFFFF0000u : 0);
          }
          int v_row = sub * 16 + ((lane / 8) & 1) * 8 + lane % 8;
#pragma unroll
          for (int c = 0; c < (kFp8 ? 8 : 16); c += 2) {
            uint32_t r[4];
            LoadMatricesTransposed(r, PageAddress(v_tile, v_row, (c + lane / 16) * 16));
            if (tail) {
              r[0] &= keep0;
              r[1] &= keep1;
              r[2] &= keep0;
              r[3] &= keep1;
            }
            if constexpr (kFp8) {
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                // Bytes (k0 d0)(k0 d1)(k1 d0)(k1 d1) -> token pairs of d0 in the low half, of d1 in the high half.
                uint32_t first = __byte_perm(r[2 * h], 0, 0x3120), second = __byte_perm(r[2 * h + 1], 0, 0x3120);
                MmaHeads<true>(o[2 * (c + h)], p0, p1, HalfFromE4m3(first & 0xFFFF), HalfFromE4m3(second & 0xFFFF));
                MmaHeads<true>(o[2 * (c + h) + 1], p0, p1, HalfFromE4m3(first >> 16), HalfFromE4m3(second >> 16));
              }
            } else {
              MmaHeads<false>(o[c], p0, p1, r[0], r[1]);
              MmaHeads<false>(o[c + 1], p0, p1, r[2], r[3]);
            }
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
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    int buffer = turn & 1;
    if (turn >= 2) BarrierWait(taken + 8 * ((turn - 2) & 3), ((turn - 2) >> 2) & 1);
    if (g < kGroup) {
      float* mine = merge + ((buffer * kWarps + warp) * kGroup + g) * kHeadDim;
      if constexpr (kFp8) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          *reinterpret_cast<float4*>(mine + c * 16 + 4 * t) = make_float4(o[2 * c][0], o[2 * c + 1][0], o[2 * c][1], o[2 * c + 1][1]);
        }
      } else {
#pragma unroll
        for (int n = 0; n < 16; ++n) *reinterpret_cast<float2*>(mine + n * 8 + 2 * t) = make_float2(o[n][0], o[n][1]);
      }
      if (t == 0) merge_ml[(buffer * kWarps + warp) * kGroup + g] = make_float2(maximum, sum);
    }
    BarrierArrive(handed + 8 * (turn & 3));
    ++turn;
  }
}

struct AttentionLaunch {
  const void* function = nullptr;
  CUtensorMap k_map, v_map;
  AttentionParams params;
  int grid = 0, block = 0, shared = 0;
};

// KV is __nv_bfloat16 or __nv_fp8_e4m3; `pages` is the pools' size. params holds everything but `stages`.
template <typename KV>
void PrepareAttention(AttentionLaunch& launch, const KV* k_pool, const KV* v_pool, size_t pages, int warps,
                      const AttentionParams& params) {
  constexpr bool kFp8 = sizeof(KV) == 1;
  using Layout = AttentionLayout<kFp8>;
  launch.params = params;
  int stages = 2;
  while (stages < 16 && Layout::Bytes(stages + 1, warps) <= 227 * 1024) ++stages;
  launch.params.stages = stages;
  launch.shared = Layout::Bytes(stages, warps);
  launch.block = warps * 32 + 32 + kGroup * 32;
  launch.function = warps == 4 ? reinterpret_cast<const void*>(PagedDecodeKernel<kFp8, 4>)
                               : reinterpret_cast<const void*>(PagedDecodeKernel<kFp8, 8>);
  CUDA_OK(cudaFuncSetAttribute(launch.function, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared));
  launch.k_map = RowMajorMap(k_pool, sizeof(KV), pages * kKvHeads * kPage, kHeadDim, kPage);
  launch.v_map = RowMajorMap(v_pool, sizeof(KV), pages * kKvHeads * kPage, kHeadDim, kPage);
  cudaDeviceProp device;
  CUDA_OK(cudaGetDeviceProperties(&device, 0));
  launch.grid = device.multiProcessorCount;
}

inline void RunAttention(const AttentionLaunch& launch, cudaStream_t stream, bool dependent) {
  cudaLaunchConfig_t config = {};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared;
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  void* arguments[] = {const_cast<CUtensorMap*>(&launch.k_map), const_cast<CUtensorMap*>(&launch.v_map),
                       const_cast<AttentionParams*>(&launch.params)};
  CUDA_OK(cudaLaunchKernelExC(&config, launch.function, arguments));
}

}  // namespace bench
