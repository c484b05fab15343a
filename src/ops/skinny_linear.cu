// out[m][n] = x[m][k] * w[n][k]^T for few tokens (m <= 64): the weights are streamed from memory exactly once.
//
// Weights stand on the M side of wgmma (64 rows a warpgroup) and tokens on its N side (8 to 64), so a batch of 8
// wastes nothing. Two producer warps keep two rings of shared-memory stages full through the bulk copy engine: weights,
// deep, because they come from memory and may be requested before upstream is done; and x, shallow, because it comes
// from the L2 cache. A stage is 128 bytes of K (64 bf16 or 128 e4m3) of kRows weight rows, or of all tokens. CTAs are
// persistent over row tiles.
//
// K is split over the CTAs of a cluster (`splits`); partial sums meet in distributed shared memory and are added in
// rank order. Splits are chosen from (n, k) alone and nothing else moves a sum, so a token's result does not depend on
// how many others share the batch.
//
// Dependent launch: the first ring of weights is requested before waiting upstream, because weights depend on nothing;
// x and out are touched only after the wait. Tokens past m and rows past n are zero-filled by the copy engine and never
// written. Measured ladder and what did not pay: docs/gpu.md. Long on purpose: one kernel read in order.
#include "ops/bulk_copy.cuh"
#include "ops/cuda_launch.cuh"
#include "ops/wgmma.cuh"

namespace ekiben::cuda {
namespace {

constexpr int kSharedMax = 227 * 1024, kClusterMax = 8;

__host__ __device__ constexpr int StageColumns(bool fp8) {
  return fp8 ? 128 : 64;
}

struct SkinnyArguments {
  void* out;
  int m, n, k_chunks, w_stages;
  int split_bits;       // a power of two
  int tiles, clusters;  // row tiles, and who shares them
  // A CTA's only tile is exchanged where the rings were; else there is room beside them.
  bool one_tile, out_f32;
};

// Shared memory: barriers, the ring of weights, the ring of x, the f32 exchange tile.
template <int kTokens, int kGroups>
struct SkinnyLayout {
  static constexpr int kRows = 64 * kGroups, kConsumers = 128 * kGroups, kThreads = kConsumers + 64;
  static constexpr int kWeightBytes = kRows * 128, kXBytes = kTokens * 128;
  static constexpr int kXStages = kTokens <= 16 ? 16 : 8;
  static constexpr int kPitch = kRows + 4;  // floats; shifts each token pair by 8 banks
  static constexpr int kExchangeBytes = kTokens * kPitch * 4;
  static constexpr int kFixedBytes = 2 * 1024 + kXStages * kXBytes;  // alignment, barriers, x
  static constexpr int WeightStages(bool one_tile) {
    int fit = (kSharedMax - kFixedBytes - (one_tile ? 0 : kExchangeBytes)) / kWeightBytes;
    return fit > 24 ? 24 : fit;
  }
  static constexpr int Bytes(bool one_tile) {
    return kFixedBytes + WeightStages(one_tile) * kWeightBytes + (one_tile ? 0 : kExchangeBytes);
  }
  // In 8 bytes, from the first barrier: two a stage, then two of the exchange.
  static constexpr int kWeightStagesMax = WeightStages(true);
  static constexpr int kWeightEmpty = kWeightStagesMax, kXFull = 2 * kWeightStagesMax, kXEmpty = kXFull + kXStages,
                       kReady = kXEmpty + kXStages, kDrained = kReady + 1;
  static_assert(8 * (kDrained + 1) <= 1024);
  static_assert(WeightStages(false) >= 4 && kExchangeBytes <= kXStages * kXBytes + kWeightStagesMax * kWeightBytes);
};

__device__ __forceinline__ uint64_t SwizzledDescriptor(uint32_t address) {
  // K-major, 128-byte swizzle: groups of 8 rows are 1,024 bytes apart; the leading offset is unused in this mode.
  return static_cast<uint64_t>((address >> 4) & 0x3FFF) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// A place in a ring.
struct Stage {
  int index = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Next(int stages) {
    if (++index < stages) return;
    index = 0;
    parity ^= 1;
  }
};

template <bool kFp8, int kTokens, int kGroups>
__global__ void __launch_bounds__(SkinnyLayout<kTokens, kGroups>::kThreads, 1)
    SkinnyKernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map,
                 SkinnyArguments p) {
  using Layout = SkinnyLayout<kTokens, kGroups>;
  constexpr int kRows = Layout::kRows, kConsumers = Layout::kConsumers, kStageColumns = StageColumns(kFp8),
                kXStages = Layout::kXStages;
  auto* shared_raw = DynamicShared<uint8_t>();
  const uint32_t barriers = (SharedAddressOf(shared_raw) + 1023) & ~1023u, w_ring = barriers + 1024;
  const uint32_t x_ring = w_ring + p.w_stages * Layout::kWeightBytes, x_end = x_ring + kXStages * Layout::kXBytes;
  const uint32_t exchange = p.one_tile ? w_ring : x_end;
  const uint32_t w_full = barriers, w_empty = barriers + 8 * Layout::kWeightEmpty;
  const uint32_t x_full = barriers + 8 * Layout::kXFull, x_empty = barriers + 8 * Layout::kXEmpty;
  const uint32_t ready = barriers + 8 * Layout::kReady;      // every split's partial tile is in its exchange buffer
  const uint32_t drained = barriers + 8 * Layout::kDrained;  // every split has read our exchange buffer
  const uint32_t split = ClusterRank(), splits = 1u << p.split_bits;
  const bool alone = p.split_bits == 0;
  const int first_tile = static_cast<int>(blockIdx.x) >> p.split_bits;
  const int k_begin = p.k_chunks * static_cast<int>(split) >> p.split_bits;
  const int k_count = (p.k_chunks * static_cast<int>(split + 1) >> p.split_bits) - k_begin;
  const int total = p.one_tile ? k_count : (p.tiles - first_tile + p.clusters - 1) / p.clusters * k_count;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // One thread of each warp, at addresses known to the compiler: lanes beside each other would take 70 cycles a
  // barrier.
  if (lane == 0) {
    if (warp == 0) {
#pragma unroll
      for (int i = 0; i < Layout::kWeightStagesMax; ++i) BarrierInit(w_full + 8 * i, 1);
    } else if (warp == 1) {
#pragma unroll
      for (int i = 0; i < Layout::kWeightStagesMax; ++i) BarrierInit(w_empty + 8 * i, kGroups * 4);
    } else if (warp == 2) {
#pragma unroll
      for (int i = 0; i < kXStages; ++i) BarrierInit(x_full + 8 * i, 1);
      BarrierInit(ready, splits);
      BarrierInit(drained, splits);
    } else if (warp == 3) {
#pragma unroll
      for (int i = 0; i < kXStages; ++i) BarrierInit(x_empty + 8 * i, kGroups * 4);
    } else if (warp == kConsumers / 32) {
      PrefetchMap(&w_map);
    } else if (warp > kConsumers / 32) {
      PrefetchMap(&x_map);
    }
    BarrierInitDone();
  }
  __syncthreads();
  if (!alone) ClusterArriveRelaxed();
  LaunchDependents();

  // A CTA must outlive what its peers read and count in its shared memory.
  auto leave = [&] {
    if (!alone) ClusterMeetRelaxed();
  };
  if (warp == kConsumers / 32) {
    if (lane == 0) {
      uint64_t once = EvictFirst();
      Stage stage;
      int i = 0;
      for (int tile = first_tile; tile < p.tiles; tile += p.clusters) {
        for (int chunk = 0; chunk < k_count; ++chunk, ++i) {
          if (i >= p.w_stages) BarrierWaitLocal(w_empty + 8 * stage.index, stage.parity ^ 1);
          uint32_t to = w_ring + stage.index * Layout::kWeightBytes, full = w_full + 8 * stage.index;
          BarrierExpect(full, Layout::kWeightBytes);
#pragma unroll
          for (int group = 0; group < kGroups; ++group)
            TileLoad(to + group * 64 * 128, &w_map, (k_begin + chunk) * kStageColumns, tile * kRows + group * 64, full,
                     once);
          stage.Next(p.w_stages);
        }
      }
    }
    __syncwarp();  // the cluster's barrier is met by whole warps
    if (!alone) ClusterWait();
    leave();
    return;
  }
  if (!alone) ClusterWait();
  if (warp > kConsumers / 32) {
    if (lane == 0) {
      uint64_t keep = EvictLast();
      Stage stage;
      int chunk = 0;
      WaitUpstream();
      for (int i = 0; i < total; ++i) {
        if (i >= kXStages) BarrierWaitLocal(x_empty + 8 * stage.index, stage.parity ^ 1);
        uint32_t to = x_ring + stage.index * Layout::kXBytes, full = x_full + 8 * stage.index;
        BarrierExpect(full, Layout::kXBytes);
        TileLoad(to, &x_map, (k_begin + chunk) * kStageColumns, 0, full, keep);
        if (++chunk == k_count) chunk = 0;
        stage.Next(kXStages);
      }
    }
    __syncwarp();
    leave();
    return;
  }

  WaitUpstream();
  const int group = warp / 4;
  Stage w_stage, x_stage;
  uint32_t tile_parity = 0;
  bool wrote = false;
  // Issues a stage's products; the previous stage's may still run.
  auto issue = [&](auto& into, bool afresh) {
    BarrierWaitLocal(w_full + 8 * w_stage.index, w_stage.parity);
    BarrierWaitLocal(x_full + 8 * x_stage.index, x_stage.parity);
    uint64_t w = SwizzledDescriptor(w_ring + w_stage.index * Layout::kWeightBytes + group * 64 * 128);
    uint64_t x = SwizzledDescriptor(x_ring + x_stage.index * Layout::kXBytes);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<kTokens>::template Run<kFp8>(into, w + 2 * k, x + 2 * k, !afresh || k != 0);
    WgmmaCommit();
    w_stage.Next(p.w_stages);
    x_stage.Next(kXStages);
  };
  Stage w_read, x_read;
  auto release = [&] {
    if (lane == 0) {
      BarrierArrive(w_empty + 8 * w_read.index);
      BarrierArrive(x_empty + 8 * x_read.index);
    }
    w_read.Next(p.w_stages);
    x_read.Next(kXStages);
  };
  for (int tile = first_tile; tile < p.tiles; tile += p.clusters) {
    float sum[kTokens / 2];
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sum[i] = 0;
    if constexpr (!kFp8) {
      for (int chunk = 0; chunk < k_count; ++chunk) {
        issue(sum, false);
        if (chunk == 0) continue;
        WgmmaWait<1>();
        release();
      }
      WgmmaWait<0>();
      WgmmaHold(sum);
      release();
    } else {
      // The tensor cores keep about 14 bits of an e4m3 sum, so every 128 of K is added in f32.
      auto add = [&](const float(&part)[kTokens / 2]) {
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) sum[i] += part[i];
      };
      float even[kTokens / 2], odd[kTokens / 2];
      issue(even, true);
      for (int chunk = 1; chunk + 1 < k_count; chunk += 2) {
        issue(odd, true);
        WgmmaWait<1>();
        WgmmaHold(even);
        release();
        add(even);
        issue(even, true);
        WgmmaWait<1>();
        WgmmaHold(odd);
        release();
        add(odd);
      }
      if (k_count % 2 == 0) {
        issue(odd, true);
        WgmmaWait<1>();
        WgmmaHold(even);
        release();
        add(even);
        WgmmaWait<0>();
        WgmmaHold(odd);
        release();
        add(odd);
      } else {
        WgmmaWait<0>();
        WgmmaHold(even);
        release();
        add(even);
      }
    }
    // Exchange: fragments to shared memory as [token][row], then coalesced sums over the splits.
    if (wrote && splits > 1) BarrierWait(drained, tile_parity ^ 1);
    if (p.one_tile || (wrote && splits == 1)) NamedBarrier<1, kConsumers>();  // the buffer's last readers are done
    wrote = true;
    int row = warp * 16 + lane / 4;
    uint32_t store = exchange + 4 * ((lane % 4) * 2 * Layout::kPitch + row);
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      uint32_t at = store + 4 * (8 * j * Layout::kPitch);
      StoreShared(at, sum[4 * j]);
      StoreShared(at + 4 * Layout::kPitch, sum[4 * j + 1]);
      StoreShared(at + 32, sum[4 * j + 2]);
      StoreShared(at + 4 * Layout::kPitch + 32, sum[4 * j + 3]);
    }
    NamedBarrier<1, kConsumers>();
    if (splits > 1) {
      if (threadIdx.x < splits) BarrierArriveRemote(ready, threadIdx.x);
      BarrierWait(ready, tile_parity);
    }
    // Four quads at once: a read of another CTA's memory takes long.
    constexpr int kQuads = kRows / 4, kBatch = 4;
    const int quads = p.m * kQuads, stride = kConsumers << p.split_bits;
    for (int i = static_cast<int>(split) * kConsumers + threadIdx.x; i < quads; i += kBatch * stride) {
      float4 sums[kBatch];
      uint32_t local[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        int at = min(i + b * stride, quads - 1);
        local[b] = exchange + 4 * (at / kQuads * Layout::kPitch + 4 * (at % kQuads));
      }
      if (splits == 1) {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) sums[b] = LoadSharedFloat4(local[b]);
      } else {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) sums[b] = LoadClusterFloat4(local[b], 0);
        for (uint32_t r = 1; r < splits; ++r) {
          float4 parts[kBatch];
#pragma unroll
          for (int b = 0; b < kBatch; ++b) parts[b] = LoadClusterFloat4(local[b], r);
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            sums[b].x += parts[b].x;
            sums[b].y += parts[b].y;
            sums[b].z += parts[b].z;
            sums[b].w += parts[b].w;
          }
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        int at = i + b * stride, column = tile * kRows + 4 * (at % kQuads);
        if (at >= quads || column >= p.n) continue;
        size_t to = static_cast<size_t>(at / kQuads) * p.n + column;
        if (p.out_f32) {
          *reinterpret_cast<float4*>(static_cast<float*>(p.out) + to) = sums[b];
        } else {
          *reinterpret_cast<uint2*>(static_cast<Bf16*>(p.out) + to) =
              make_uint2(Pack2(sums[b].x, sums[b].y), Pack2(sums[b].z, sums[b].w));
        }
      }
    }
    if (splits > 1 && tile + p.clusters < p.tiles) {
      NamedBarrier<1, kConsumers>();
      if (threadIdx.x < splits) BarrierReleaseRemote(drained, threadIdx.x);
    }
    tile_parity ^= 1;
  }
  leave();
}

struct Kernel {
  void (*function)(const CUtensorMap, const CUtensorMap, SkinnyArguments);
  int rows, threads;
  struct {
    int w_stages, shared;
  } one_tile, more_tiles;
};

template <int kTokens, int kGroups>
Kernel Describe(bool fp8) {
  using Layout = SkinnyLayout<kTokens, kGroups>;
  return {fp8 ? SkinnyKernel<true, kTokens, kGroups> : SkinnyKernel<false, kTokens, kGroups>,
          Layout::kRows,
          Layout::kThreads,
          {Layout::WeightStages(true), Layout::Bytes(true)},
          {Layout::WeightStages(false), Layout::Bytes(false)}};
}

constexpr int kTokenTiles[] = {8, 16, 32, 64};

int TokenTile(int m) {
  return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64;
}

Kernel KernelFor(int token_tile, int groups, bool fp8) {
  switch (token_tile) {
    case 8: return groups == 1 ? Describe<8, 1>(fp8) : Describe<8, 2>(fp8);
    case 16: return groups == 1 ? Describe<16, 1>(fp8) : Describe<16, 2>(fp8);
    case 32: return groups == 1 ? Describe<32, 1>(fp8) : Describe<32, 2>(fp8);
    default: return groups == 1 ? Describe<64, 1>(fp8) : Describe<64, 2>(fp8);
  }
}

cudaError_t AllowShared() {
  for (int tokens : kTokenTiles) {
    for (int variant = 0; variant < 4; ++variant) {
      Kernel kernel = KernelFor(tokens, 1 + variant % 2, variant / 2 == 1);
      int most = kernel.one_tile.shared > kernel.more_tiles.shared ? kernel.one_tile.shared : kernel.more_tiles.shared;
      cudaError_t status = cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
      if (status != cudaSuccess) return status;
    }
  }
  return cudaSuccess;
}

}  // namespace

struct SkinnyLinear::State {
  CUtensorMap w_map;
  bool fp8 = false;
  int n = 0, k = 0, groups = 1, splits = 1, multiprocessors = 132;

  cudaError_t Encode(CUtensorMap* map, const Rows& rows, int count, int box_rows) const {
    return EncodeRows(map, fp8 ? static_cast<const void*>(rows.fp8) : rows.bf16, fp8, static_cast<uint64_t>(count),
                      static_cast<uint64_t>(k), static_cast<uint32_t>(box_rows));
  }
};

SkinnyLinear::SkinnyLinear() : state_(std::make_unique<State>()) {}
SkinnyLinear::~SkinnyLinear() = default;

int SkinnyLinear::Prepare(const Rows& w, int32_t n, int32_t k) {
  static const cudaError_t allowed = AllowShared();
  if (allowed != cudaSuccess) return static_cast<int>(allowed);
  State& s = *state_;
  s.fp8 = w.bf16 == nullptr;
  s.n = n;
  s.k = k;
  cudaError_t status = cudaDeviceGetAttribute(&s.multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  if (status != cudaSuccess) return static_cast<int>(status);
  // Two warpgroups where 64-row tiles are many times the multiprocessors. K is split where tiles leave most of them
  // without work, as long as a CTA keeps at least four stages, and where they leave half of them, if it keeps many.
  // Chosen inside whole steps (docs/gpu.md, ladders 2 and 4).
  int tiles = (n + 63) / 64, chunks = (k + StageColumns(s.fp8) - 1) / StageColumns(s.fp8);
  s.groups = tiles >= 3 * s.multiprocessors ? 2 : 1;
  const int least = tiles < s.multiprocessors / 3 ? 4 : 32;
  while (s.splits < kClusterMax && tiles * s.splits * 2 <= s.multiprocessors && chunks / (s.splits * 2) >= least)
    s.splits *= 2;
  return static_cast<int>(s.Encode(&s.w_map, w, n, 64));
}

void SkinnyLinear::Run(Queue& queue, const Rows& x, int32_t m, void* out, bool out_f32) const {
  const State& s = *state_;
  int token_tile = TokenTile(m), columns = StageColumns(s.fp8);
  // In e4m3 one group for few tokens: a step of one takes 3.20 ms instead of 3.30 (docs/gpu.md). Sums are the same.
  Kernel kernel = KernelFor(token_tile, s.fp8 && token_tile == 8 ? 1 : s.groups, s.fp8);
  CUtensorMap x_map;
  Note(queue, s.Encode(&x_map, x, m, token_tile));
  int tiles = (s.n + kernel.rows - 1) / kernel.rows, resident = s.multiprocessors / s.splits;
  bool one_tile = tiles <= resident;
  const auto& memory = one_tile ? kernel.one_tile : kernel.more_tiles;
  SkinnyArguments a = {};
  a.out = out, a.m = m, a.n = s.n, a.out_f32 = out_f32;
  a.k_chunks = (s.k + columns - 1) / columns, a.w_stages = memory.w_stages;
  while (1 << a.split_bits < s.splits) ++a.split_bits;
  a.tiles = tiles, a.clusters = one_tile ? tiles : resident, a.one_tile = one_tile;
  auto ctas = static_cast<unsigned>(s.splits * a.clusters);
  LaunchCluster(queue, kernel.function, dim3(ctas), dim3(static_cast<unsigned>(s.splits)), kernel.threads,
                static_cast<size_t>(memory.shared), s.w_map, x_map, a);
}

}  // namespace ekiben::cuda
