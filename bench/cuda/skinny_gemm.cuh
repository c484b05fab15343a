// out[m][n] = x[m][k] * w[n][k]^T for few tokens (m <= 128): the weights are streamed from memory exactly once.
//
// Weights stand on the M side of wgmma (64 rows a warpgroup) and tokens on its N side (8 to 128), so a batch of 8 wastes nothing.
// One producer warp keeps a ring of shared-memory stages full through the bulk tensor copy engine; each stage is 128 bytes of K
// (64 bf16 or 128 e4m3) of kRows weight rows and of all tokens. CTAs are persistent over row tiles.
//
// K is split over the CTAs of a cluster (`splits`); partial sums meet in distributed shared memory and are added in rank order, so
// a result depends on (n, k, splits, rows) only: never on scheduling, and not on how many other tokens are in the batch as
// long as the same configuration serves them.
//
// Programmatic dependent launch: the first ring of weights is requested before waiting for the kernel upstream, because weights
// depend on nothing; x, the scales and out are touched only after the wait.
//
// Requires k * sizeof(T) % 16 == 0 and n % 8 == 0; all pointers 16-byte aligned. Tokens past m and rows past n are zero-filled by
// the copy engine and never written.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

#include "bench_common.h"
#include "wgmma.cuh"

namespace bench {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ __forceinline__ void BarrierInit(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void BarrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void BarrierArriveRemote(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nWAIT:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra WAIT;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ uint64_t EvictFirst() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t EvictLast() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void TileLoad(uint32_t shared, const CUtensorMap* map, int x, int y, uint32_t barrier,
                                         uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], "
      "%5;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void LaunchDependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void WaitUpstream() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

struct SkinnyParams {
  __nv_bfloat16* out;
  const float* w_scale;  // n floats, or null
  const float* x_scale;  // m floats, or null
  int m, n;
  int k_chunks;  // stages that cover K
  int stages;
  float4* workspace;   // StreamGemmKernel: two partial tiles a CTA
  unsigned* counters;  // StreamGemmKernel: one a tile, zero between launches
};

// Shared memory: kRows + kTokens rows of 128 bytes a stage, the fp32 exchange tile, barriers.
template <int kTokens, int kGroups>
struct SkinnyLayout {
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kStageBytes = (kRows + kTokens) * 128;
  static constexpr int kPitch = kRows + 4;  // floats; shifts each token pair by 8 banks, so fragment stores do not collide
  static constexpr int kExchangeBytes = kTokens * kPitch * 4;
  static constexpr int kThreads = kGroups * 128 + 32;
  static constexpr int Bytes(int stages) { return 1024 + stages * kStageBytes + kExchangeBytes + 16 * stages + 32; }
  static constexpr int StagesWithin(int bytes) {
    int stages = (bytes - 1024 - 32 - kExchangeBytes) / (kStageBytes + 16);
    return stages > 24 ? 24 : stages;
  }
};

__device__ __forceinline__ uint64_t SwizzledDescriptor(uint32_t address) {
  // K-major, 128-byte swizzle: groups of 8 rows are 1,024 bytes apart; the leading offset is unused in this mode.
  return static_cast<uint64_t>((address >> 4) & 0x3FFF) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

template <bool kFp8, int kTokens, int kGroups>
__global__ void __launch_bounds__(SkinnyLayout<kTokens, kGroups>::kThreads, 1)
    SkinnyGemmKernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map,
                     SkinnyParams p) {
  using Layout = SkinnyLayout<kTokens, kGroups>;
  constexpr int kRows = Layout::kRows;
  constexpr int kConsumers = kGroups * 128;
  constexpr int kChunk = kFp8 ? 128 : 64;  // elements of K a stage
  extern __shared__ uint8_t shared_raw[];
  uint32_t ring = (SharedAddress(shared_raw) + 1023) & ~1023u;
  uint32_t exchange = ring + p.stages * Layout::kStageBytes;
  uint32_t full = exchange + Layout::kExchangeBytes;
  uint32_t empty = full + 8 * p.stages;
  uint32_t ready = empty + 8 * p.stages;  // every rank's partial tile is in its exchange buffer
  uint32_t drained = ready + 8;           // every rank has read our exchange buffer
  uint32_t rank, splits;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(splits));
  int first_tile = blockIdx.x / splits;
  int tile_step = gridDim.x / splits;
  int tiles = (p.n + kRows - 1) / kRows;
  int k_begin = p.k_chunks * static_cast<int>(rank) / static_cast<int>(splits);
  int k_count = p.k_chunks * static_cast<int>(rank + 1) / static_cast<int>(splits) - k_begin;

  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kGroups * 4);
    }
    BarrierInit(ready, splits);
    BarrierInit(drained, splits);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (splits > 1) {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
  LaunchDependents();

  // A CTA must outlive its peers' reads of its exchange buffer.
  auto leave = [&] {
    if (splits > 1) asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
  };
  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x != kConsumers) {
      leave();
      return;
    }
    uint64_t stream_once = EvictFirst(), keep = EvictLast();
    int my_tiles = first_tile < tiles ? (tiles - first_tile + tile_step - 1) / tile_step : 0;
    int total = my_tiles * k_count;
    int ahead = min(total, p.stages);
    auto load_w = [&](int i, int stage) {
      int tile = first_tile + i / k_count * tile_step;
      BarrierExpect(full + 8 * stage, Layout::kStageBytes);
      TileLoad(ring + stage * Layout::kStageBytes, &w_map, (k_begin + i % k_count) * kChunk, tile * kRows,
               full + 8 * stage, stream_once);
    };
    auto load_x = [&](int i, int stage) {
      TileLoad(ring + stage * Layout::kStageBytes + kRows * 128, &x_map, (k_begin + i % k_count) * kChunk, 0,
               full + 8 * stage, keep);
    };
    for (int i = 0; i < ahead; ++i) load_w(i, i);
    WaitUpstream();
    for (int i = 0; i < ahead; ++i) load_x(i, i);
    int stage = ahead == p.stages ? 0 : ahead;
    uint32_t parity = 0;
    for (int i = ahead; i < total; ++i) {
      BarrierWait(empty + 8 * stage, parity);
      load_w(i, stage);
      load_x(i, stage);
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    leave();
    return;
  }

  WaitUpstream();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int group = warp / 4;
  int stage = 0;
  uint32_t parity = 0, tile_parity = 0;
  bool wrote = false;
  for (int tile = first_tile; tile < tiles; tile += tile_step) {
    float sum[kTokens / 2];
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0;
    for (int chunk = 0; chunk < k_count; ++chunk) {
      BarrierWait(full + 8 * stage, parity);
      uint32_t tile_base = ring + stage * Layout::kStageBytes;
      uint64_t w = SwizzledDescriptor(tile_base + group * 64 * 128);
      uint64_t x = SwizzledDescriptor(tile_base + kRows * 128);
      if constexpr (kFp8) {
        // The e4m3 path of the tensor cores keeps about 14 bits while accumulating, so every 128 of K is promoted to fp32.
        float part[kTokens / 2];
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) part[i] = 0;
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int step = 0; step < 4; ++step) Wgmma<true, kTokens>::Run(part, w + 2 * step, x + 2 * step, step != 0);
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) sum[i] += part[i];
      } else {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int step = 0; step < 4; ++step) Wgmma<false, kTokens>::Run(sum, w + 2 * step, x + 2 * step, 1);
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
      }
      if (lane == 0) BarrierArrive(empty + 8 * stage);
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    // Exchange: fragments to shared memory as [token][row], then coalesced sums over the ranks.
    if (wrote) {
      if (splits > 1) {
        BarrierWait(drained, tile_parity ^ 1);
      } else {
        asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
      }
    }
    wrote = true;
    int row = warp * 16 + lane / 4;
    uint32_t store = exchange + 4 * ((lane % 4) * 2 * Layout::kPitch + row);
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      uint32_t at = store + 4 * (8 * j * Layout::kPitch);
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(sum[4 * j]) : "memory");
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + 4 * Layout::kPitch), "f"(sum[4 * j + 1]) : "memory");
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + 32), "f"(sum[4 * j + 2]) : "memory");
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + 4 * Layout::kPitch + 32), "f"(sum[4 * j + 3]) : "memory");
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
    if (splits > 1) {
      if (threadIdx.x < splits) BarrierArriveRemote(ready, threadIdx.x);
      BarrierWait(ready, tile_parity);
    }
    constexpr int kQuads = kRows / 4;
    for (int i = rank * kConsumers + threadIdx.x; i < p.m * kQuads; i += splits * kConsumers) {
      int token = i / kQuads, quad = i % kQuads;
      float4 total = make_float4(0, 0, 0, 0);
      uint32_t local = exchange + 4 * (token * Layout::kPitch + 4 * quad);
      for (uint32_t r = 0; r < splits; ++r) {
        float4 part;
        asm volatile(
            "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %4, %5;\n"
            "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n}"
            : "=f"(part.x), "=f"(part.y), "=f"(part.z), "=f"(part.w)
            : "r"(local), "r"(r)
            : "memory");
        total.x += part.x;
        total.y += part.y;
        total.z += part.z;
        total.w += part.w;
      }
      int column = tile * kRows + 4 * quad;
      if (column >= p.n) continue;
      if (p.w_scale != nullptr) {
        float4 ws = *reinterpret_cast<const float4*>(p.w_scale + column);
        float xs = p.x_scale[token];
        total.x *= ws.x * xs;
        total.y *= ws.y * xs;
        total.z *= ws.z * xs;
        total.w *= ws.w * xs;
      }
      __nv_bfloat162 low = __floats2bfloat162_rn(total.x, total.y), high = __floats2bfloat162_rn(total.z, total.w);
      uint2 packed = make_uint2(*reinterpret_cast<uint32_t*>(&low), *reinterpret_cast<uint32_t*>(&high));
      *reinterpret_cast<uint2*>(p.out + static_cast<size_t>(token) * p.n + column) = packed;
    }
    if (splits > 1) {
      asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
      if (threadIdx.x < splits) BarrierArriveRemote(drained, threadIdx.x);
    }
    tile_parity ^= 1;
  }
  leave();
}

// The same product with the work cut evenly: the (row tile, K stage) pairs, in that order, are dealt in equal runs to exactly gridDim.x
// CTAs. A tile that a border cuts is finished by the last of its CTAs to arrive, which adds the fp32 fragments of all of them from
// global memory in CTA order: the sum depends on the shape and the grid alone. Equal runs on every SM are also what keeps two
// kernels of a dependent chain side by side on each SM instead of piling one kernel's CTAs onto the SMs that finish first.
template <bool kFp8, int kTokens, int kGroups>
__global__ void __launch_bounds__(SkinnyLayout<kTokens, kGroups>::kThreads, 1)
    StreamGemmKernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map,
                     SkinnyParams p) {
  using Layout = SkinnyLayout<kTokens, kGroups>;
  constexpr int kRows = Layout::kRows;
  constexpr int kConsumers = kGroups * 128;
  constexpr int kChunk = kFp8 ? 128 : 64;
  extern __shared__ uint8_t shared_raw[];
  __shared__ unsigned arrival;
  uint32_t ring = (SharedAddress(shared_raw) + 1023) & ~1023u;
  uint32_t exchange = ring + p.stages * Layout::kStageBytes;
  uint32_t full = exchange + Layout::kExchangeBytes;
  uint32_t empty = full + 8 * p.stages;
  int tiles = (p.n + kRows - 1) / kRows;
  long long units = static_cast<long long>(tiles) * p.k_chunks;
  int begin = static_cast<int>(units * blockIdx.x / gridDim.x);
  int end = static_cast<int>(units * (blockIdx.x + 1) / gridDim.x);
  auto owner = [&](int unit) { return static_cast<int>(((unit + 1ll) * gridDim.x - 1) / units); };

  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kGroups * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  LaunchDependents();

  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x != kConsumers) return;
    uint64_t stream_once = EvictFirst(), keep = EvictLast();
    int ahead = min(end - begin, p.stages);
    auto load_w = [&](int unit, int stage) {
      BarrierExpect(full + 8 * stage, Layout::kStageBytes);
      TileLoad(ring + stage * Layout::kStageBytes, &w_map, unit % p.k_chunks * kChunk, unit / p.k_chunks * kRows,
               full + 8 * stage, stream_once);
    };
    auto load_x = [&](int unit, int stage) {
      TileLoad(ring + stage * Layout::kStageBytes + kRows * 128, &x_map, unit % p.k_chunks * kChunk, 0, full + 8 * stage, keep);
    };
    for (int i = 0; i < ahead; ++i) load_w(begin + i, i);
    WaitUpstream();
    for (int i = 0; i < ahead; ++i) load_x(begin + i, i);
    int stage = ahead == p.stages ? 0 : ahead;
    uint32_t parity = 0;
    for (int unit = begin + ahead; unit < end; ++unit) {
      BarrierWait(empty + 8 * stage, parity);
      load_w(unit, stage);
      load_x(unit, stage);
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    return;
  }

  WaitUpstream();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int group = warp / 4;
  int stage = 0;
  uint32_t parity = 0;
  int next = 0;
  for (int unit = begin; unit < end; unit = next) {
    int tile = unit / p.k_chunks;
    next = min(end, (tile + 1) * p.k_chunks);
    float sum[kTokens / 2];
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0;
    for (int u = unit; u < next; ++u) {
      BarrierWait(full + 8 * stage, parity);
      uint32_t tile_base = ring + stage * Layout::kStageBytes;
      uint64_t w = SwizzledDescriptor(tile_base + group * 64 * 128);
      uint64_t x = SwizzledDescriptor(tile_base + kRows * 128);
      if constexpr (kFp8) {
        float part[kTokens / 2];
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) part[i] = 0;
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int step = 0; step < 4; ++step) Wgmma<true, kTokens>::Run(part, w + 2 * step, x + 2 * step, step != 0);
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) sum[i] += part[i];
      } else {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int step = 0; step < 4; ++step) Wgmma<false, kTokens>::Run(sum, w + 2 * step, x + 2 * step, 1);
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
      }
      if (lane == 0) BarrierArrive(empty + 8 * stage);
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    if (next - unit < p.k_chunks) {
      // A CTA has at most one run that enters a tile midway (slot 0) and one that starts a tile and leaves it (slot 1).
      int first = owner(tile * p.k_chunks), last = owner((tile + 1) * p.k_chunks - 1);
      auto slot = [&](int cta, int i) {
        return p.workspace + ((2ll * cta + (cta == first)) * (kTokens / 8) + i) * kConsumers + threadIdx.x;
      };
#pragma unroll
      for (int i = 0; i < kTokens / 8; ++i) {
        if (8 * i < p.m) __stcg(slot(blockIdx.x, i), make_float4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]));
      }
      __threadfence();
      asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
      if (threadIdx.x == 0) arrival = atomicAdd(p.counters + tile, 1);
      asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
      if (arrival != static_cast<unsigned>(last - first)) continue;
      __threadfence();
      if (threadIdx.x == 0) p.counters[tile] = 0;
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0;
      for (int cta = first; cta <= last; ++cta) {
#pragma unroll
        for (int i = 0; i < kTokens / 8; ++i) {
          if (8 * i >= p.m) continue;
          float4 part = __ldcg(slot(cta, i));
          sum[4 * i] += part.x;
          sum[4 * i + 1] += part.y;
          sum[4 * i + 2] += part.z;
          sum[4 * i + 3] += part.w;
        }
      }
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
    int row = warp * 16 + lane / 4;
    uint32_t store = exchange + 4 * ((lane % 4) * 2 * Layout::kPitch + row);
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      uint32_t at = store + 4 * (8 * j * Layout::kPitch);
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(sum[4 * j]) : "memory");
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + 4 * Layout::kPitch), "f"(sum[4 * j + 1]) : "memory");
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + 32), "f"(sum[4 * j + 2]) : "memory");
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(at + 4 * Layout::kPitch + 32), "f"(sum[4 * j + 3]) : "memory");
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
    constexpr int kQuads = kRows / 4;
    for (int i = threadIdx.x; i < p.m * kQuads; i += kConsumers) {
      int token = i / kQuads, quad = i % kQuads;
      float4 total;
      asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(total.x), "=f"(total.y), "=f"(total.z), "=f"(total.w)
                   : "r"(exchange + 4 * (token * Layout::kPitch + 4 * quad))
                   : "memory");
      int column = tile * kRows + 4 * quad;
      if (column >= p.n) continue;
      if (p.w_scale != nullptr) {
        float4 ws = *reinterpret_cast<const float4*>(p.w_scale + column);
        float xs = p.x_scale[token];
        total = make_float4(total.x * (ws.x * xs), total.y * (ws.y * xs), total.z * (ws.z * xs), total.w * (ws.w * xs));
      }
      __nv_bfloat162 low = __floats2bfloat162_rn(total.x, total.y), high = __floats2bfloat162_rn(total.z, total.w);
      uint2 packed = make_uint2(*reinterpret_cast<uint32_t*>(&low), *reinterpret_cast<uint32_t*>(&high));
      *reinterpret_cast<uint2*>(p.out + static_cast<size_t>(token) * p.n + column) = packed;
    }
  }
}

// --- Host side ---

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                                 const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver function through the runtime, so that nothing links against libcuda.
inline EncodeTiled TensorMapEncoder() {
  static EncodeTiled encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    CUDA_OK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    Require(found == cudaDriverEntryPointSuccess, "cuTensorMapEncodeTiled not found");
    return reinterpret_cast<EncodeTiled>(function);
  }();
  return encode;
}

// A row-major [rows][columns] matrix read in boxes of box_rows x 128 bytes, swizzled.
inline CUtensorMap RowMajorMap(const void* data, int element_bytes, uint64_t rows, uint64_t columns, int box_rows) {
  CUtensorMap map;
  cuuint64_t sizes[2] = {columns, rows};
  cuuint64_t strides[1] = {columns * element_bytes};
  cuuint32_t box[2] = {static_cast<cuuint32_t>(128 / element_bytes), static_cast<cuuint32_t>(box_rows)};
  cuuint32_t steps[2] = {1, 1};
  CUresult result = TensorMapEncoder()(
      &map, element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  Require(result == CUDA_SUCCESS, "tensor map: %d", static_cast<int>(result));
  return map;
}

struct SkinnyConfig {
  int groups = 2;      // 64 weight rows each
  int splits = 1;      // cluster size along K
  bool half = false;   // at most half of an SM's shared memory, so that the next kernel's CTA fits beside this one
  int stream = 0;      // CTAs an SM of StreamGemmKernel (splits is then 1); 0: SkinnyGemmKernel
};

// Scratch that every StreamGemmKernel launch of one stream may share: each touches it only after the kernel before has finished.
struct StreamScratch {
  Buffer<float4> partials{static_cast<size_t>(2 * 264) * (128 / 8) * 512};
  Buffer<unsigned> counters{4096};
  StreamScratch() { counters.FillBytes(0); }
};
inline StreamScratch& Scratch() {
  static StreamScratch& scratch = *new StreamScratch;
  return scratch;
}

// Everything one launch needs; built once, launched many times.
struct SkinnyLaunch {
  const void* function = nullptr;
  CUtensorMap w_map, x_map;
  SkinnyParams params;
  int grid = 0, block = 0, shared = 0, splits = 1;
};

template <bool kFp8, int kTokens, int kGroups>
bool PrepareSkinnyFor(SkinnyLaunch& launch, const SkinnyConfig& config) {
  using Layout = SkinnyLayout<kTokens, kGroups>;
  auto kernel = SkinnyGemmKernel<kFp8, kTokens, kGroups>;
  int stages = Layout::StagesWithin((config.half ? 112 : 226) * 1024);
  if (stages < 3) return false;
  launch.params.stages = stages;
  launch.shared = Layout::Bytes(stages);
  launch.block = Layout::kThreads;
  launch.function = reinterpret_cast<const void*>(kernel);
  // The attribute belongs to the function, not to the launch: it must cover every configuration prepared so far.
  CUDA_OK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 226 * 1024));
  int tiles = (launch.params.n + Layout::kRows - 1) / Layout::kRows;
  if (config.stream > 0) {
    auto stream_kernel = StreamGemmKernel<kFp8, kTokens, kGroups>;
    launch.function = reinterpret_cast<const void*>(stream_kernel);
    CUDA_OK(cudaFuncSetAttribute(stream_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 226 * 1024));
    int resident = 0, multiprocessors = 0;
    CUDA_OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, stream_kernel, launch.block, launch.shared));
    if (resident < config.stream || tiles > 4096) return false;
    CUDA_OK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
    launch.grid = std::min(config.stream * multiprocessors, tiles * launch.params.k_chunks);
    launch.splits = 1;
    return true;
  }
  cudaLaunchConfig_t query = {};
  query.gridDim = config.splits * tiles;
  query.blockDim = launch.block;
  query.dynamicSmemBytes = launch.shared;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(config.splits), 1, 1};
  query.attrs = &cluster;
  query.numAttrs = 1;
  int clusters = 0;
  CUDA_OK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &query));
  if (clusters < 1) return false;
  launch.grid = config.splits * std::min(tiles, clusters);
  launch.splits = config.splits;
  return true;
}

template <bool kFp8, int kTokens>
bool PrepareSkinnyGroups(SkinnyLaunch& launch, const SkinnyConfig& config) {
  switch (config.groups) {
    case 1: return PrepareSkinnyFor<kFp8, kTokens, 1>(launch, config);
    case 2: return PrepareSkinnyFor<kFp8, kTokens, 2>(launch, config);
    case 4:
      if constexpr (kTokens <= 64) return PrepareSkinnyFor<kFp8, kTokens, 4>(launch, config);
  }
  return false;
}

inline int SkinnyTokens(int m) { return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : m <= 64 ? 64 : 128; }

// False when the configuration does not fit (too few stages, no such cluster). T is __nv_bfloat16 or __nv_fp8_e4m3.
template <typename T>
bool PrepareSkinny(SkinnyLaunch& launch, const SkinnyConfig& config, const T* w, const T* x, __nv_bfloat16* out,
                   const float* w_scale, const float* x_scale, int m, int n, int k) {
  constexpr bool kFp8 = sizeof(T) == 1;
  Require(m >= 1 && m <= 128 && n % 8 == 0 && k * sizeof(T) % 16 == 0, "skinny shape %d x %d x %d", m, n, k);
  int tokens = SkinnyTokens(m);
  launch.params = {out, w_scale, x_scale, m, n, static_cast<int>((k * sizeof(T) + 127) / 128), 0, Scratch().partials.data(),
                   Scratch().counters.data()};
  if (launch.params.k_chunks < config.splits) return false;
  launch.w_map = RowMajorMap(w, sizeof(T), n, k, 64 * config.groups);
  launch.x_map = RowMajorMap(x, sizeof(T), m, k, tokens);
  switch (tokens) {
    case 8: return PrepareSkinnyGroups<kFp8, 8>(launch, config);
    case 16: return PrepareSkinnyGroups<kFp8, 16>(launch, config);
    case 32: return PrepareSkinnyGroups<kFp8, 32>(launch, config);
    case 64: return PrepareSkinnyGroups<kFp8, 64>(launch, config);
    default: return PrepareSkinnyGroups<kFp8, 128>(launch, config);
  }
}

// `dependent`: may start before the kernel upstream has finished (programmatic dependent launch).
inline void RunSkinny(const SkinnyLaunch& launch, cudaStream_t stream, bool dependent) {
  cudaLaunchConfig_t config = {};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(launch.splits), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = dependent ? 2 : 1;
  void* arguments[] = {const_cast<CUtensorMap*>(&launch.w_map), const_cast<CUtensorMap*>(&launch.x_map),
                       const_cast<SkinnyParams*>(&launch.params)};
  CUDA_OK(cudaLaunchKernelExC(&config, launch.function, arguments));
}

}  // namespace bench
