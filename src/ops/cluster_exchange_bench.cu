// The exchange of sums between the CTAs of a cluster as context_attention.cu does it, alone, for compute-sanitizer:
// what racecheck says of an order that values prove, and of the same accesses ordered by a barrier that it follows.
//
//   compute-sanitizer --tool racecheck cluster_exchange_bench WAY
//
// Each round every warp of two CTAs writes its part, and both CTAs add up both parts; then the parts are written again.
// WAY is what stands between writes, reads and the next writes or the end of a CTA:
//   arrivals   each warp arrives at a barrier in each CTA's shared memory (release and acquire at cluster scope); of a
//   CTA
//              only the last warp waits for the last readers before it leaves: context attention's
//   stay       the same, but whole CTAs wait for the last readers
//   meet       arrivals, and both CTAs meet at the cluster's barrier before they leave
//   barrier    the cluster's barrier in every place
//   nothing    no order: a race, which the tool must report and the values may show
// Prints how many of the sums are wrong; exit code 1 if one is in a way that orders.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ops/cuda_launch.cuh"

namespace ekiben::cuda {
namespace {

constexpr int kCtas = 2, kWarps = 9, kConsumers = 8, kThreads = kWarps * 32, kRounds = 16, kClusters = 66;
enum class Way { kArrivals, kStay, kMeet, kBarrier, kNothing };

__device__ float Part(int cluster, int round, uint32_t rank, int thread) {
  return static_cast<float>((cluster * 7 + round * 31 + static_cast<int>(rank) * 1021 + thread) % 4093);
}

// out: [clusters][kRounds][kCtas][kConsumers * 32]
template <Way kWay>
__global__ void __launch_bounds__(kThreads, 1) ExchangeKernel(float4* out) {
  constexpr bool kArrive = kWay == Way::kArrivals || kWay == Way::kStay || kWay == Way::kMeet;
  auto* shared = DynamicShared<float4>();
  const uint32_t parts = SharedAddressOf(shared), ready = parts + kConsumers * 32 * 16, read = ready + 8;
  const uint32_t rank = ClusterRank();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, cluster = blockIdx.x / kCtas;
  if (threadIdx.x == 0) {
    BarrierInit(ready, kCtas * kConsumers);
    BarrierInit(read, kCtas * kConsumers);
    BarrierInitDone();
  }
  ClusterMeet();
  uint32_t parity = 0;
  for (int round = 0; round < kRounds; ++round) {
    if (warp < kConsumers) {
      const auto thread = static_cast<int>(threadIdx.x);
      if (kArrive && round > 0) BarrierWait(read, parity ^ 1);
      const float value = Part(cluster, round, rank, thread);
      shared[thread] = make_float4(value, value + 1, value + 2, value + 3);
      __syncwarp();
      if (kArrive) {
        if (lane < kCtas) BarrierArriveRemote(ready, static_cast<uint32_t>(lane));
        BarrierWait(ready, parity);
      }
    }
    if (kWay == Way::kBarrier) ClusterMeet();
    if (warp < kConsumers) {
      float4 sum = make_float4(0, 0, 0, 0);
      // Another warp's part than the own, so that nothing is ordered by being one thread's.
      const int other = static_cast<int>(threadIdx.x + 32 * (round % kConsumers)) % (kConsumers * 32);
      for (uint32_t r = 0; r < kCtas; ++r) {
        float4 part = LoadClusterFloat4(parts + static_cast<uint32_t>(other) * 16, r);
        sum.x += part.x;
        sum.y += part.y;
        sum.z += part.z;
        sum.w += part.w;
      }
      out[((cluster * kRounds + round) * kCtas + static_cast<int>(rank)) * kConsumers * 32 + other] = sum;
      __syncwarp();
      if (kArrive && lane < kCtas) BarrierArriveRemote(read, static_cast<uint32_t>(lane));
    }
    if (kWay == Way::kBarrier) ClusterMeet();
    if (kArrive && warp == kConsumers) BarrierWait(read, parity);
    parity ^= 1;
  }
  if (kWay == Way::kStay) BarrierWait(read, parity ^ 1);
  if (kWay == Way::kMeet) ClusterMeet();
}

template <Way kWay>
int Wrong(int repeats) {
  const size_t count = static_cast<size_t>(kClusters) * kRounds * kCtas * kConsumers * 32;
  float4* out = nullptr;
  Queue queue;
  Note(queue, cudaMalloc(&out, count * sizeof(float4)));
  std::vector<float4> got(count);
  int wrong = 0;
  for (int repeat = 0; repeat < repeats && queue.error == 0; ++repeat) {
    Note(queue, cudaMemset(out, 0xff, count * sizeof(float4)));
    LaunchCluster(queue, ExchangeKernel<kWay>, dim3(kClusters * kCtas), dim3(kCtas), kThreads,
                  size_t{kConsumers} * 32 * 16 + 16, out);
    Note(queue, cudaMemcpy(got.data(), out, count * sizeof(float4), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < count; ++i) {
      int thread = static_cast<int>(i % (kConsumers * 32)), at = static_cast<int>(i / (kConsumers * 32) / kCtas);
      float want = 0;
      for (int rank = 0; rank < kCtas; ++rank)
        want += static_cast<float>((at / kRounds * 7 + at % kRounds * 31 + rank * 1021 + thread) % 4093);
      const float4& v = got[i];
      wrong += !(v.x == want && v.y == want + 2 && v.z == want + 4 && v.w == want + 6);
    }
  }
  cudaFree(out);
  if (queue.error != 0) {
    std::fprintf(stderr, "%s\n", cudaGetErrorString(static_cast<cudaError_t>(queue.error)));
    return -1;
  }
  std::printf("%d of %zu sums wrong\n", wrong, count * static_cast<size_t>(repeats));
  return wrong;
}

}  // namespace
}  // namespace ekiben::cuda

int main(int argc, char** argv) {
  using namespace ekiben::cuda;
  const char* way = argc > 1 ? argv[1] : "";
  const int repeats = argc > 2 ? std::atoi(argv[2]) : 1;
  if (std::strcmp(way, "arrivals") == 0) return Wrong<Way::kArrivals>(repeats) != 0;
  if (std::strcmp(way, "stay") == 0) return Wrong<Way::kStay>(repeats) != 0;
  if (std::strcmp(way, "meet") == 0) return Wrong<Way::kMeet>(repeats) != 0;
  if (std::strcmp(way, "barrier") == 0) return Wrong<Way::kBarrier>(repeats) != 0;
  if (std::strcmp(way, "nothing") == 0) return Wrong<Way::kNothing>(repeats) < 0;
  std::fprintf(stderr, "cluster_exchange_bench arrivals|stay|meet|barrier|nothing [REPEATS]\n");
  return 2;
}
