// The part of CUDA C++ and of its runtime that this project uses, over the machine of tests/cuda_emulation. Names and
// shapes are CUDA's.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <utility>

#include "../machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("ekiben_shared")))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  // NOLINTNEXTLINE(google-explicit-constructor): as CUDA's
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

using std::isfinite;  // NOLINT(google-global-names-in-headers): CUDA's is global
inline int min(int a, int b) {
  return std::min(a, b);
}
inline int max(int a, int b) {
  return std::max(a, b);
}
template <class T>
T min(T a, T b) {
  return std::min(a, b);
}
// Compiled for a processor without contraction: plain operators round as these do.
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ull2double_rn(unsigned long long x) {
  return static_cast<double>(x);
}
inline unsigned long long __double2ull_rz(double x) {
  return static_cast<unsigned long long>(x);
}
inline long long __float2ll_rz(float x) {
  return static_cast<long long>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __cosf(float x) {
  return std::cos(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline int __clz(unsigned x) {
  return std::countl_zero(x);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xFF) << (8 * i);
  return out;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
inline void __threadfence() {}
template <class T, class U>
T atomicAdd(T* p, U value) {
  return std::exchange(*p, static_cast<T>(*p + value));
}
template <class T>
T atomicOr(T* p, T value) {
  return std::exchange(*p, *p | value);
}
template <class T>
T atomicMax(T* p, T value) {
  return std::exchange(*p, std::max(*p, value));
}
inline void __syncthreads() {
  ekiben::emulation::MeetCta();
}
inline int __syncthreads_or(int value) {
  static int any;
  __syncthreads();
  any = 0;
  __syncthreads();
  any = any != 0 || value != 0;
  __syncthreads();
  return any;
}
inline void __syncwarp() {
  ekiben::emulation::MeetWarp(nullptr, nullptr);
}

namespace ekiben::emulation {
template <class T>
struct Shuffled {
  T value, result;
  int source;
};
template <class T>
T ShuffleFrom(T value, int source) {
  Shuffled<T> mine{value, value, source & 31};
  MeetWarp(&mine, [](void* const* all) {
    for (int lane = 0; lane < 32; ++lane) {
      auto& to = *static_cast<Shuffled<T>*>(all[lane]);
      to.result = static_cast<Shuffled<T>*>(all[to.source])->value;
    }
  });
  return mine.result;
}
}  // namespace ekiben::emulation

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return ekiben::emulation::ShuffleFrom(value, static_cast<int>(threadIdx.x % 32) ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned by) {
  unsigned lane = threadIdx.x % 32;
  return ekiben::emulation::ShuffleFrom(value, static_cast<int>(lane >= by ? lane - by : lane));
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return ekiben::emulation::ShuffleFrom(value, lane);
}
inline bool __any_sync(unsigned, bool value) {
  ekiben::emulation::MeetWarp(&value, [](void* const* all) {
    bool any = false;
    for (int i = 0; i < 32; ++i) any = any || *static_cast<bool*>(all[i]);
    for (int i = 0; i < 32; ++i) *static_cast<bool*>(all[i]) = any;
  });
  return value;
}
inline unsigned __match_any_sync(unsigned, int value) {
  struct Match {
    int value;
    unsigned same;
  } mine{value, 0};
  ekiben::emulation::MeetWarp(&mine, [](void* const* all) {
    for (int a = 0; a < 32; ++a)
      for (int b = 0; b < 32; ++b)
        if (static_cast<Match*>(all[a])->value == static_cast<Match*>(all[b])->value)
          static_cast<Match*>(all[a])->same |= 1u << b;
  });
  return mine.same;
}

// --- Runtime ---

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNotSupported = 801
};
enum cudaMemcpyKind { cudaMemcpyDefault };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization, cudaLaunchAttributeClusterDimension };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound };
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned long long cudaEnableDefault = 0;

struct CUstream_st;
struct CUevent_st;
struct CUgraph_st;
struct CUgraphExec_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;
using cudaGraph_t = CUgraph_st*;
using cudaGraphExec_t = CUgraphExec_st*;

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount, l2CacheSize;
  size_t totalGlobalMem;
};
struct cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim{1, 1, 1};
  int programmaticStreamSerializationAllowed = 0;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id{};
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes);
cudaError_t cudaMalloc(void** pointer, size_t bytes);
cudaError_t cudaFree(void* pointer);
cudaError_t cudaMallocHost(void** pointer, size_t bytes);
cudaError_t cudaFreeHost(void* pointer);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphUpload(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags, cudaDriverEntryPointQueryResult* found);

namespace ekiben::emulation {
// At once, or into the graph that the stream captures.
cudaError_t Submit(cudaStream_t stream, std::function<void()> work);
cudaError_t AllowShared(const void* kernel, int bytes);
cudaError_t LaunchChecked(const void* kernel, const cudaLaunchConfig_t& config, std::function<void()> body);
}  // namespace ekiben::emulation

template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int bytes) {
  return ekiben::emulation::AllowShared(reinterpret_cast<const void*>(kernel), bytes);
}
// Two: enough for a kernel whose clusters take turns to show that they do.
template <class... P>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*)(P...), const cudaLaunchConfig_t*) {
  *clusters = 2;
  return cudaSuccess;
}
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... arguments) {
  return ekiben::emulation::LaunchChecked(reinterpret_cast<const void*>(kernel), *config,
                                          [kernel, arguments...] { kernel(arguments...); });
}
