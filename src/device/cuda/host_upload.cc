#include "device/cuda/host_upload.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/check.h"

namespace ekiben {
namespace {

constexpr int kThreadsMax = 16;
constexpr size_t kPieceBytes = size_t{1} << 20;  // of one thread at a time

}  // namespace

HostUpload::HostUpload(CudaStream& stream)
    : stream_(stream), pool_(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kThreadsMax)) {}

Result<std::unique_ptr<HostUpload>> HostUpload::Create(CudaStream& stream, size_t slice_bytes) {
  auto out = std::unique_ptr<HostUpload>(new HostUpload(stream));
  for (Slice& slice : out->slices_) {
    ASSIGN_OR_RETURN(slice.buffer, PinnedBuffer::Create(slice_bytes));
    ASSIGN_OR_RETURN(slice.copied, CudaEvent::Create());
  }
  return out;
}

Result<void> HostUpload::Copy(void* to, const void* from, size_t bytes) {
  return Make(to, bytes, 1, [from](size_t begin, size_t end, std::byte* out) {
    std::memcpy(out, static_cast<const std::byte*>(from) + begin, end - begin);
  });
}

Result<void> HostUpload::Make(void* to, size_t bytes, size_t unit,
                              const std::function<void(size_t begin, size_t end, std::byte* out)>& make) {
  const size_t slice_bytes = slices_[0].buffer.size() / unit * unit;
  CHECK(slice_bytes > 0 && bytes % unit == 0, "{} bytes in units of {}", bytes, unit);
  const auto piece = static_cast<int64_t>(std::max<size_t>(kPieceBytes / unit, 1));
  for (size_t at = 0; at < bytes; at += slice_bytes) {
    const size_t count = std::min(slice_bytes, bytes - at);
    Slice& slice = slices_[next_++ % slices_.size()];
    RETURN_IF_ERROR(slice.copied.Wait());
    pool_.ParallelFor(static_cast<int64_t>(count / unit), piece, [&](int64_t begin, int64_t end, int) {
      size_t first = static_cast<size_t>(begin) * unit, last = static_cast<size_t>(end) * unit;
      make(at + first, at + last, slice.buffer.data() + first);
    });
    RETURN_IF_ERROR(stream_.Copy(static_cast<std::byte*>(to) + at, slice.buffer.data(), count));
    RETURN_IF_ERROR(stream_.Record(slice.copied));
  }
  return {};
}

}  // namespace ekiben
