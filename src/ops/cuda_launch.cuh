// What every CUDA body shares: launching on a Queue with or without dependence, bf16 and e4m3 in vectors.
// C++17, device code of sm_90a. Thread: one (the queue's).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda_ops.h"
#include "ops/ptx.cuh"

namespace ekiben::cuda {

inline void Note(Queue& queue, cudaError_t status) {
  if (queue.error == 0 && status != cudaSuccess) queue.error = static_cast<int>(status);
}

template <typename... P, typename... A>
void LaunchCluster(Queue& queue, void (*kernel)(P...), dim3 grid, dim3 cluster, int threads, size_t shared,
                   A... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = queue.stream;
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (queue.dependent && !queue.serial_next) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster.x * cluster.y * cluster.z > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  }
  queue.serial_next = false;
  config.attrs = attributes;
  config.numAttrs = count;
  Note(queue, cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...));
}

template <typename... P, typename... A>
void Launch(Queue& queue, void (*kernel)(P...), dim3 grid, int threads, size_t shared, A... arguments) {
  LaunchCluster(queue, kernel, grid, dim3(1), threads, shared, arguments...);
}

__device__ __forceinline__ void Load8(const Bf16* p, float (&v)[8]) {
  uint4 raw = *reinterpret_cast<const uint4*>(p);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
}
__device__ __forceinline__ void Store8(Bf16* p, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(p) = make_uint4(Pack2(v[0], v[1]), Pack2(v[2], v[3]), Pack2(v[4], v[5]), Pack2(v[6], v[7]));
}
__device__ __forceinline__ void StoreFp8x8(Fp8* p, const float (&v)[8]) {
  *reinterpret_cast<uint2*>(p) = make_uint2(PackFp8x2(v[0], v[1]) | PackFp8x2(v[2], v[3]) << 16,
                                            PackFp8x2(v[4], v[5]) | PackFp8x2(v[6], v[7]) << 16);
}
constexpr float kFp8Max = 448;
}  // namespace ekiben::cuda
