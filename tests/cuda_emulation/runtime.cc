// The runtime's calls over the host's memory. A stream does its work at once; a graph is the list of what a stream
// would have done.
#include <cuda.h>
#include <cuda_runtime.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "machine.h"

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};
struct CUstream_st {
  cudaGraph_t capturing = nullptr;
};
struct CUevent_st {
  std::chrono::steady_clock::time_point when;
};

namespace {

constexpr size_t kMemoryBytes = size_t{2} << 30, kSharedMax = 227 << 10, kSharedDefault = 48 << 10;
size_t allocated = 0;
std::map<void*, size_t> sizes;
std::map<const void*, size_t> shared_allowed;

CUresult EncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data,
                     const cuuint64_t* sizes_of, const cuuint64_t* strides, const cuuint32_t* box,
                     const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                     CUtensorMapFloatOOBfill) {
  uint32_t element = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
  bool right = rank == 2 && reinterpret_cast<uintptr_t>(data) % 16 == 0 && strides[0] % 16 == 0 && sizes_of[0] > 0 &&
               sizes_of[1] > 0 && box[0] * element == 128 && box[1] <= 256 && steps[0] == 1 && steps[1] == 1;
  if (!right) return CUDA_ERROR_INVALID_VALUE;
  *map = {static_cast<const unsigned char*>(data), sizes_of[1], sizes_of[0], strides[0], box[1], element};
  return CUDA_SUCCESS;
}

}  // namespace

namespace ekiben::emulation {

cudaError_t Submit(cudaStream_t stream, std::function<void()> work) {
  if (stream->capturing != nullptr) {
    stream->capturing->work.push_back(std::move(work));
  } else {
    work();
  }
  return cudaSuccess;
}

cudaError_t AllowShared(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > kSharedMax) return cudaErrorInvalidValue;
  shared_allowed[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

cudaError_t LaunchChecked(const void* kernel, const cudaLaunchConfig_t& config, std::function<void()> body) {
  auto dim = [](const dim3& d) { return Dim{d.x, d.y, d.z}; };
  Grid grid{dim(config.gridDim), {}, dim(config.blockDim), config.dynamicSmemBytes};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const auto& size = config.attrs[i].val.clusterDim;
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) grid.cluster = {size.x, size.y, size.z};
  }
  auto allowed = shared_allowed.find(kernel);
  size_t most = allowed == shared_allowed.end() ? kSharedDefault : std::max(allowed->second, kSharedDefault);
  bool right = grid.ctas.count() > 0 && grid.threads.count() > 0 && grid.threads.count() <= 1024 &&
               grid.cluster.count() <= 8 && grid.ctas.x % grid.cluster.x == 0 && grid.ctas.y % grid.cluster.y == 0 &&
               grid.dynamic_shared <= most && grid.ctas.y <= 65535 && grid.ctas.z <= 65535;
  if (!right) return cudaErrorInvalidValue;
  return Submit(config.stream, [grid, body = std::move(body)] { RunGrid(grid, body); });
}

}  // namespace ekiben::emulation

using ekiben::emulation::Submit;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {"emulation on the CPU", 9, 0, 132, 50 << 20, kMemoryBytes};
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 132;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}
const char* cudaGetErrorName(cudaError_t error) {
  return cudaGetErrorString(error);
}
cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = kMemoryBytes - allocated;
  *total_bytes = kMemoryBytes;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (bytes > kMemoryBytes - allocated) return cudaErrorMemoryAllocation;
  *pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*pointer, 0xFF, bytes);
  sizes[*pointer] = bytes;
  allocated += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  auto it = sizes.find(pointer);
  CHECK(it != sizes.end(), "freeing what was not allocated");
  allocated -= it->second;
  sizes.erase(it);
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  *pointer = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return Submit(stream, [=] { std::memcpy(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return Submit(stream, [=] { std::memset(to, value, bytes); });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return stream->capturing == nullptr ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->capturing = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->capturing, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  *out = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  for (const auto& work : graph->work) Submit(stream, work);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return Submit(stream, [event] { event->when = std::chrono::steady_clock::now(); });
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  *ms = std::chrono::duration<float, std::milli>(end->when - begin->when).count();
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *found = cudaDriverEntryPointSymbolNotFound;
  if (std::strcmp(name, "cuTensorMapEncodeTiled") != 0) return cudaSuccess;
  *function = reinterpret_cast<void*>(&EncodeTiled);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
