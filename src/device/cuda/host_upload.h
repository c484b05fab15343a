// Large host memory to the device, such as the tensors of a mapped file: a ring of pinned slices that a team of threads
// fills while the bus empties the others. A plain copy of pageable memory is staged by the driver on one thread, which
// reads a file's pages at a fraction of what the bus takes.
// Thread: one. Errors: memory, a device fault. Units: bytes.
#pragma once
#include <array>
#include <cstddef>
#include <functional>
#include <memory>

#include "device/cuda/cuda_device.h"
#include "device/thread_pool.h"

namespace ekiben {

class HostUpload {
 public:
  static constexpr size_t kSliceBytes = size_t{32} << 20;

  // `stream` outlives it.
  static Result<std::unique_ptr<HostUpload>> Create(CudaStream& stream, size_t slice_bytes = kSliceBytes);

  // In stream order. `from` is not read any more when it returns.
  Result<void> Copy(void* to, const void* from, size_t bytes);
  // The same of bytes that are made on the way: `make(begin, end, out)` writes [begin, end), counted from `to`, and is
  // called in parallel with bounds that are multiples of `unit`. REQUIRES: unit divides bytes and fits a slice.
  Result<void> Make(void* to, size_t bytes, size_t unit,
                    const std::function<void(size_t begin, size_t end, std::byte* out)>& make);

 private:
  struct Slice {
    PinnedBuffer buffer;
    CudaEvent copied;
  };
  explicit HostUpload(CudaStream& stream);

  CudaStream& stream_;
  ThreadPool pool_;
  std::array<Slice, 4> slices_;
  size_t next_ = 0;
};

}  // namespace ekiben
