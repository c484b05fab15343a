// How fast device memory can be read: a kernel that does nothing else, for `ekiben kernels` to measure others against.
#include "ops/cuda_launch.cuh"

namespace ekiben::cuda {
namespace {

constexpr int kThreads = 512, kCtas = 4 * 132, kUnroll = 8;

// A CTA reads whole runs of kUnroll x kThreads x 16 bytes, all of a run's loads in flight before the first is used.
__global__ void __launch_bounds__(kThreads) ReadKernel(uint32_t* sum_out, const uint4* data, size_t count) {
  WaitUpstream();
  const size_t run = size_t{kThreads} * kUnroll;
  uint32_t sum = 0;
  for (size_t at = blockIdx.x * run; at < count; at += gridDim.x * run) {
    uint4 words[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      size_t index = at + static_cast<size_t>(i) * kThreads + threadIdx.x;
      words[i] = index < count ? data[index] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) sum += words[i].x + words[i].y + words[i].z + words[i].w;
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) atomicAdd(sum_out, sum);
}

}  // namespace

void ReadAll(Queue& queue, uint32_t* sum_out, const void* data, size_t bytes) {
  Launch(queue, ReadKernel, dim3(kCtas), kThreads, 0, sum_out, static_cast<const uint4*>(data), bytes / 16);
}

}  // namespace ekiben::cuda
