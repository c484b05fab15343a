// One CUDA device as the host sees it: what it is, its memory, its one stream, events and graphs. No CUDA header is
// needed to use this: only .cu, .cuh and this folder include those.
//
// A machine without a driver or with another GPU is the world's fault: OpenCudaDevice answers an Error that says what
// is missing. Every call into the runtime is checked; a failure after start is a device fault (kUnavailable).
// Memory is plain cudaMalloc, sized at start; pinned memory is for what crosses the bus in every step.
// Thread: one (the executor's), except OpenCudaDevice and MemoryInfo, which any may call. Times in nanoseconds.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace ekiben {

struct CudaDeviceInfo {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int32_t multiprocessors = 0;
  int64_t memory_bytes = 0, l2_bytes = 0;
  int32_t driver_version = 0, runtime_version = 0;  // 13000 is 13.0
  bool emulated = false;                            // by tests/cuda_emulation: right, and thousands of times slower
};

// Device 0, which every thread of the process then uses. Errors: no driver, no device, a compute capability that the
// kernels are not built for.
Result<CudaDeviceInfo> OpenCudaDevice();
// Of the current device.
struct CudaMemoryInfo {
  size_t free_bytes = 0, total_bytes = 0;
};
Result<CudaMemoryInfo> CudaMemory();

// cudaError_t as an Error; 0 is success. `what` names the call or the step.
Result<void> CudaStatus(int error, const char* what);

enum class CudaMemoryKind : uint8_t { kDevice, kPinned };

template <CudaMemoryKind kKind>
class CudaBuffer {
 public:
  CudaBuffer() = default;
  // Errors: not enough memory; of the device, with the bytes asked for and those free. Not cleared.
  static Result<CudaBuffer> Create(size_t bytes);
  CudaBuffer(CudaBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  CudaBuffer& operator=(CudaBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~CudaBuffer();
  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

using DeviceBuffer = CudaBuffer<CudaMemoryKind::kDevice>;
// Host memory that the device reads and writes directly.
using PinnedBuffer = CudaBuffer<CudaMemoryKind::kPinned>;

template <>
Result<DeviceBuffer> DeviceBuffer::Create(size_t bytes);
template <>
DeviceBuffer::~CudaBuffer();
template <>
Result<PinnedBuffer> PinnedBuffer::Create(size_t bytes);
template <>
PinnedBuffer::~CudaBuffer();

class CudaEvent {
 public:
  CudaEvent() = default;
  static Result<CudaEvent> Create();
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~CudaEvent();
  CUevent_st* get() const { return event_; }
  Result<void> Wait() const;  // blocks the host
  // REQUIRES: both have happened.
  Result<Nanos> Since(const CudaEvent& begin) const;

 private:
  CUevent_st* event_ = nullptr;
};

// A sequence of device work that is launched as one.
class CudaGraph {
 public:
  CudaGraph() = default;
  CudaGraph(CudaGraph&& other) noexcept : graph_(std::exchange(other.graph_, nullptr)) {}
  CudaGraph& operator=(CudaGraph&& other) noexcept {
    std::swap(graph_, other.graph_);
    return *this;
  }
  ~CudaGraph();
  explicit operator bool() const { return graph_ != nullptr; }

 private:
  friend class CudaStream;
  CUgraphExec_st* graph_ = nullptr;
};

// The stream that everything of one backend runs on, in order.
class CudaStream {
 public:
  CudaStream() = default;
  static Result<CudaStream> Create();
  CudaStream(CudaStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~CudaStream();
  CUstream_st* get() const { return stream_; }

  Result<void> Copy(void* to, const void* from, size_t bytes);  // either direction, in stream order
  Result<void> Clear(void* to, size_t bytes);
  Result<void> Record(const CudaEvent& event);
  Result<void> Wait();  // blocks the host until all is done
  // What `body` puts onto this stream becomes a graph and does not run. `body` must not wait or allocate.
  Result<CudaGraph> Capture(const std::function<Result<void>()>& body);
  Result<void> Launch(const CudaGraph& graph);

 private:
  CUstream_st* stream_ = nullptr;
};

// A copy of `values` on the device, there when this returns.
template <class T>
Result<DeviceBuffer> Upload(CudaStream& stream, const std::vector<T>& values) {
  ASSIGN_OR_RETURN(DeviceBuffer out, DeviceBuffer::Create(std::max<size_t>(values.size(), 1) * sizeof(T)));
  RETURN_IF_ERROR(stream.Copy(out.data(), values.data(), values.size() * sizeof(T)));
  RETURN_IF_ERROR(stream.Wait());
  return out;
}

}  // namespace ekiben
