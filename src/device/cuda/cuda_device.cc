#include "device/cuda/cuda_device.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "base/human.h"

namespace ekiben {
namespace {

constexpr int kMajor = 9, kMinor = 0;  // what the kernels are built for: sm_90a runs on 9.0 only

}  // namespace

Result<void> CudaStatus(int error, const char* what) {
  if (error == cudaSuccess) return {};
  auto status = static_cast<cudaError_t>(error);
  return Error(Code::kUnavailable,
               fmt::format("CUDA: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status)));
}

Result<CudaDeviceInfo> OpenCudaDevice() {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0)
    return Error(Code::kUnsupported,
                 fmt::format("no CUDA device: {}; use --device cpu, or a machine with an NVIDIA driver and an H100",
                             status != cudaSuccess ? cudaGetErrorString(status) : "the driver lists none"),
                 "device");
  cudaDeviceProp properties;
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties"));
  if (properties.major != kMajor || properties.minor != kMinor)
    return Error(Code::kUnsupported,
                 fmt::format("{} has compute capability {}.{}; the CUDA backend is built for {}.{} (Hopper) only",
                             properties.name, properties.major, properties.minor, kMajor, kMinor),
                 "device");
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(0), "cudaSetDevice"));
  CudaDeviceInfo out;
  out.name = properties.name;
  out.emulated = out.name.starts_with("emulation");
  out.multiprocessors = properties.multiProcessorCount;
  out.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  out.l2_bytes = properties.l2CacheSize;
  RETURN_IF_ERROR(CudaStatus(cudaDriverGetVersion(&out.driver_version), "cudaDriverGetVersion"));
  RETURN_IF_ERROR(CudaStatus(cudaRuntimeGetVersion(&out.runtime_version), "cudaRuntimeGetVersion"));
  return out;
}

Result<CudaMemoryInfo> CudaMemory() {
  CudaMemoryInfo out;
  RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&out.free_bytes, &out.total_bytes), "cudaMemGetInfo"));
  return out;
}

template <>
Result<DeviceBuffer> DeviceBuffer::Create(size_t bytes) {
  DeviceBuffer out;
  if (bytes == 0) return out;
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // not a fault of the device: the next check must not see it
    size_t free = 0, total = 0;
    (void)cudaMemGetInfo(&free, &total);
    return Error(Code::kInvalid,
                 fmt::format("GPU memory: {} asked for, {} of {} free; lower --kv_cache_free_gpu_mem_fraction, "
                             "--max_num_tokens or --max_batch_size",
                             HumanBytes(bytes), HumanBytes(free), HumanBytes(total)));
  }
  RETURN_IF_ERROR(CudaStatus(status, "cudaMalloc"));
  out.data_ = static_cast<std::byte*>(data);
  out.bytes_ = bytes;
  return out;
}

template <>
DeviceBuffer::~CudaBuffer() {
  if (data_ != nullptr) (void)cudaFree(data_);
}

template <>
Result<PinnedBuffer> PinnedBuffer::Create(size_t bytes) {
  PinnedBuffer out;
  if (bytes == 0) return out;
  void* data = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaMallocHost(&data, bytes), "cudaMallocHost"));
  out.data_ = static_cast<std::byte*>(data);
  out.bytes_ = bytes;
  return out;
}

template <>
PinnedBuffer::~CudaBuffer() {
  if (data_ != nullptr) (void)cudaFreeHost(data_);
}

Result<CudaEvent> CudaEvent::Create() {
  CudaEvent out;
  RETURN_IF_ERROR(CudaStatus(cudaEventCreate(&out.event_), "cudaEventCreate"));
  return out;
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) (void)cudaEventDestroy(event_);
}

Result<void> CudaEvent::Wait() const {
  return CudaStatus(cudaEventSynchronize(event_), "waiting for a step");
}

Result<Nanos> CudaEvent::Since(const CudaEvent& begin) const {
  float ms = 0;
  RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&ms, begin.event_, event_), "cudaEventElapsedTime"));
  return Nanos(static_cast<int64_t>(static_cast<double>(ms) * 1e6));
}

CudaGraph::~CudaGraph() {
  if (graph_ != nullptr) (void)cudaGraphExecDestroy(graph_);
}

Result<CudaStream> CudaStream::Create() {
  CudaStream out;
  RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&out.stream_, cudaStreamNonBlocking), "cudaStreamCreate"));
  return out;
}

CudaStream::~CudaStream() {
  if (stream_ == nullptr) return;
  (void)cudaStreamSynchronize(stream_);
  (void)cudaStreamDestroy(stream_);
}

Result<void> CudaStream::Copy(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return {};
  return CudaStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "cudaMemcpyAsync");
}

Result<void> CudaStream::Clear(void* to, size_t bytes) {
  if (bytes == 0) return {};
  return CudaStatus(cudaMemsetAsync(to, 0, bytes, stream_), "cudaMemsetAsync");
}

Result<void> CudaStream::Record(const CudaEvent& event) {
  return CudaStatus(cudaEventRecord(event.get(), stream_), "cudaEventRecord");
}

Result<void> CudaStream::Wait() {
  return CudaStatus(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

Result<CudaGraph> CudaStream::Capture(const std::function<Result<void>()>& body) {
  RETURN_IF_ERROR(
      CudaStatus(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture"));
  Result<void> done = body();
  cudaGraph_t graph = nullptr;
  cudaError_t status = cudaStreamEndCapture(stream_, &graph);
  if (!done.ok()) {
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    return std::move(done).error();
  }
  RETURN_IF_ERROR(CudaStatus(status, "cudaStreamEndCapture"));
  CudaGraph out;
  status = cudaGraphInstantiate(&out.graph_, graph, 0);
  (void)cudaGraphDestroy(graph);
  RETURN_IF_ERROR(CudaStatus(status, "cudaGraphInstantiate"));
  // Else its first launch would pay.
  RETURN_IF_ERROR(CudaStatus(cudaGraphUpload(out.graph_, stream_), "cudaGraphUpload"));
  return out;
}

Result<void> CudaStream::Launch(const CudaGraph& graph) {
  return CudaStatus(cudaGraphLaunch(graph.graph_, stream_), "cudaGraphLaunch");
}

}  // namespace ekiben
