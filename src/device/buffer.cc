#include "device/buffer.h"

#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

namespace ekiben {
namespace {

// From this size on a buffer is mapped and huge pages are asked for: weights and KV are read end to end, and with 4 KiB
// pages the page walks alone cost several percent of the read bandwidth.
constexpr size_t kHugePage = size_t{2} << 20;

bool IsMapped(size_t bytes) {
  return bytes >= kHugePage;
}

// The mapping is rounded up to whole huge pages; it starts on one, so that the kernel can back all of it.
std::byte* MapHuge(size_t bytes) {
  size_t rounded = (bytes + kHugePage - 1) & ~(kHugePage - 1);
  size_t reserved = rounded + kHugePage;
  void* raw = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(raw != MAP_FAILED, "out of memory: {} bytes asked for", bytes);
  uintptr_t begin = reinterpret_cast<uintptr_t>(raw);
  uintptr_t aligned = (begin + kHugePage - 1) & ~(kHugePage - 1);
  if (aligned > begin) munmap(raw, aligned - begin);
  size_t tail = begin + reserved - (aligned + rounded);
  if (tail > 0) munmap(reinterpret_cast<void*>(aligned + rounded), tail);
  // Advice only: a kernel without huge pages runs the same, a little slower.
  (void)madvise(reinterpret_cast<void*>(aligned), rounded, MADV_HUGEPAGE);
  return reinterpret_cast<std::byte*>(aligned);
}

}  // namespace

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (IsMapped(bytes)) {
    data_ = MapHuge(bytes);
    return;
  }
  size_t rounded = (bytes + 63) & ~size_t{63};
  data_ = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
  CHECK(data_ != nullptr, "out of memory: {} bytes asked for", bytes);
  std::memset(data_, 0, rounded);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (IsMapped(bytes_)) {
    munmap(data_, (bytes_ + kHugePage - 1) & ~(kHugePage - 1));
  } else {
    std::free(data_);
  }
}

}  // namespace ekiben
