// out[m][n] = x[m][k] * w[n][k]^T for few tokens (m <= 64): the weights are streamed from memory exactly once.
//
// Weights stand on the M side of wgmma (64 rows a warpgroup) and tokens on its N side (8 to 64), so a batch of 8 wastes
// nothing. One producer warp keeps a ring of shared-memory stages full through the bulk copy engine; a stage is 128
// bytes of K (64 bf16 or 128 e4m3) of kRows weight rows and of all tokens. CTAs are persistent over row tiles.
//
// K is split over the CTAs of a cluster (`splits`); partial sums meet in distributed shared memory and are added in
// rank order. Splits and rows are chosen from (n, k) alone, so a token's result does not depend on how many others
// share the batch.
//
// Dependent launch: the first ring of weights is requested before waiting upstream, because weights depend on nothing;
// x and out are touched only after the wait. Tokens past m and rows past n are zero-filled by the copy engine and never
// written. Measured ladder and what did not pay: docs/gpu.md. Long on purpose: one kernel read in order.
#include "ops/bulk_copy.cuh"
#include "ops/cuda_launch.cuh"
#include "ops/wgmma.cuh"

namespace ekiben::cuda {
namespace {

constexpr int kSharedMax = 226 * 1024;

__host__ __device__ constexpr int StageColumns(bool fp8) {
  return fp8 ? 128 : 64;
}

struct SkinnyArguments {
  void* out;
  int m, n, k_chunks, stages;
  bool out_f32;
};

// Shared memory: kRows + kTokens rows of 128 bytes a stage, the f32 exchange tile, barriers.
template <int kTokens, int kGroups>
struct SkinnyLayout {
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kStageBytes = (kRows + kTokens) * 128;
  static constexpr int kPitch = kRows + 4;  // floats; shifts each token pair by 8 banks
  static constexpr int kExchangeBytes = kTokens * kPitch * 4;
  static constexpr int kThreads = kGroups * 128 + 32;
  static constexpr int Bytes(int stages) { return 1024 + stages * kStageBytes + kExchangeBytes + 16 * stages + 32; }
  static constexpr int kStagesFit = (kSharedMax - 1024 - 32 - kExchangeBytes) / (kStageBytes + 16);
  static constexpr int kStages = kStagesFit > 24 ? 24 : kStagesFit;
};

__device__ __forceinline__ uint64_t SwizzledDescriptor(uint32_t address) {
  // K-major, 128-byte swizzle: groups of 8 rows are 1,024 bytes apart; the leading offset is unused in this mode.
  return static_cast<uint64_t>((address >> 4) & 0x3FFF) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

template <bool kFp8, int kTokens, int kGroups>
__global__ void __launch_bounds__(SkinnyLayout<kTokens, kGroups>::kThreads, 1)
    SkinnyKernel(const __grid_constant__ CUtensorMap w_map, const __grid_constant__ CUtensorMap x_map,
                 SkinnyArguments p) {
  using Layout = SkinnyLayout<kTokens, kGroups>;
  constexpr int kRows = Layout::kRows, kConsumers = kGroups * 128, kStageColumns = StageColumns(kFp8);
  auto* shared_raw = DynamicShared<uint8_t>();
  uint32_t ring = (SharedAddressOf(shared_raw) + 1023) & ~1023u;
  uint32_t exchange = ring + p.stages * Layout::kStageBytes;
  uint32_t full = exchange + Layout::kExchangeBytes, empty = full + 8 * p.stages;
  uint32_t ready = empty + 8 * p.stages;  // every rank's partial tile is in its exchange buffer
  uint32_t drained = ready + 8;           // every rank has read our exchange buffer
  const uint32_t rank = ClusterRank(), splits = ClusterSize();
  int first_tile = blockIdx.x / splits, tile_step = gridDim.x / splits, tiles = (p.n + kRows - 1) / kRows;
  int k_begin = p.k_chunks * static_cast<int>(rank) / static_cast<int>(splits);
  int k_count = p.k_chunks * static_cast<int>(rank + 1) / static_cast<int>(splits) - k_begin;

  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kGroups * 4);
    }
    BarrierInit(ready, splits);
    BarrierInit(drained, splits);
    BarrierInitDone();
  }
  __syncthreads();
  if (splits > 1) {
    ClusterArrive();
    ClusterWait();
  }
  LaunchDependents();

  // A CTA must outlive its peers' reads of its exchange buffer.
  auto leave = [&] {
    if (splits > 1) ClusterMeet();
  };
  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x == kConsumers) {
      uint64_t once = EvictFirst(), keep = EvictLast();
      int my_tiles = first_tile < tiles ? (tiles - first_tile + tile_step - 1) / tile_step : 0;
      int total = my_tiles * k_count, ahead = min(total, p.stages);
      auto load_w = [&](int i, int stage) {
        int tile = first_tile + i / k_count * tile_step;
        BarrierExpect(full + 8 * stage, Layout::kStageBytes);
        TileLoad(ring + stage * Layout::kStageBytes, &w_map, (k_begin + i % k_count) * kStageColumns, tile * kRows,
                 full + 8 * stage, once);
      };
      auto load_x = [&](int i, int stage) {
        TileLoad(ring + stage * Layout::kStageBytes + kRows * 128, &x_map, (k_begin + i % k_count) * kStageColumns, 0,
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
    }
    __syncwarp();  // the cluster's barrier is met by whole warps
    leave();
    return;
  }

  WaitUpstream();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4;
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
      // The tensor cores keep about 14 bits of an e4m3 sum, so every 128 of K is added in f32.
      float part[kFp8 ? kTokens / 2 : 1] = {};
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        if constexpr (kFp8) {
          Wgmma<kTokens>::template Run<true>(part, w + 2 * step, x + 2 * step, step != 0);
        } else {
          Wgmma<kTokens>::template Run<false>(sum, w + 2 * step, x + 2 * step, 1);
        }
      }
      WgmmaFinish();
      if constexpr (kFp8) {
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) sum[i] += part[i];
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
        NamedBarrier<1, kConsumers>();
      }
    }
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
    constexpr int kQuads = kRows / 4;
    for (int i = rank * kConsumers + threadIdx.x; i < p.m * kQuads; i += splits * kConsumers) {
      int token = i / kQuads, quad = i % kQuads;
      float4 total = make_float4(0, 0, 0, 0);
      uint32_t local = exchange + 4 * (token * Layout::kPitch + 4 * quad);
      for (uint32_t r = 0; r < splits; ++r) {
        float4 part = LoadClusterFloat4(local, r);
        total.x += part.x;
        total.y += part.y;
        total.z += part.z;
        total.w += part.w;
      }
      int column = tile * kRows + 4 * quad;
      if (column >= p.n) continue;
      size_t at = static_cast<size_t>(token) * p.n + column;
      if (p.out_f32) {
        *reinterpret_cast<float4*>(static_cast<float*>(p.out) + at) = total;
      } else {
        *reinterpret_cast<uint2*>(static_cast<Bf16*>(p.out) + at) =
            make_uint2(Pack2(total.x, total.y), Pack2(total.z, total.w));
      }
    }
    if (splits > 1) {
      NamedBarrier<1, kConsumers>();
      if (threadIdx.x < splits) BarrierArriveRemote(drained, threadIdx.x);
    }
    tile_parity ^= 1;
  }
  leave();
}

int TokenTile(int m) {
  return m <= 8 ? 8 : m <= 16 ? 16 : m <= 32 ? 32 : 64;
}

struct Kernel {
  void (*function)(const CUtensorMap, const CUtensorMap, SkinnyArguments);
  int rows, threads, stages, shared;
};

template <int kTokens, int kGroups>
Kernel Describe(bool fp8) {
  using Layout = SkinnyLayout<kTokens, kGroups>;
  return {fp8 ? SkinnyKernel<true, kTokens, kGroups> : SkinnyKernel<false, kTokens, kGroups>, Layout::kRows,
          Layout::kThreads, Layout::kStages, Layout::Bytes(Layout::kStages)};
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
  for (int tokens : {8, 16, 32, 64}) {
    for (int variant = 0; variant < 4; ++variant) {
      Kernel kernel = KernelFor(tokens, 1 + variant % 2, variant / 2 == 1);
      cudaError_t status =
          cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared);
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
  // Two warpgroups where 64-row tiles are many times the multiprocessors; K is split where tiles leave most of them
  // without work, as long as a CTA keeps at least four stages. Chosen inside whole steps (docs/gpu.md, ladder 4).
  int tiles = (n + 63) / 64, chunks = (k + StageColumns(s.fp8) - 1) / StageColumns(s.fp8);
  s.groups = tiles >= 3 * s.multiprocessors ? 2 : 1;
  while (s.splits < 8 && tiles * s.splits * 2 <= s.multiprocessors && chunks / (s.splits * 2) >= 4 &&
         (tiles < s.multiprocessors / 3 || k >= 8192)) {
    s.splits *= 2;
  }
  return static_cast<int>(s.Encode(&s.w_map, w, n, 64 * s.groups));
}

void SkinnyLinear::Run(Queue& queue, const Rows& x, int32_t m, void* out, bool out_f32) const {
  const State& s = *state_;
  int tile = TokenTile(m), columns = StageColumns(s.fp8);
  Kernel kernel = KernelFor(tile, s.groups, s.fp8);
  CUtensorMap x_map;
  Note(queue, s.Encode(&x_map, x, m, tile));
  SkinnyArguments arguments = {out, m, s.n, (s.k + columns - 1) / columns, kernel.stages, out_f32};
  int tiles = (s.n + kernel.rows - 1) / kernel.rows, resident = s.multiprocessors / s.splits;
  auto ctas = static_cast<unsigned>(s.splits * (tiles < resident ? tiles : resident));
  LaunchCluster(queue, kernel.function, dim3(ctas), dim3(static_cast<unsigned>(s.splits)), kernel.threads,
                static_cast<size_t>(kernel.shared), s.w_map, x_map, arguments);
}

}  // namespace ekiben::cuda
