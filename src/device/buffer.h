// Host memory for tensors: 64-byte aligned, huge pages asked for when large, sized once at start.
// Arena: bump allocation inside one Buffer for the activations of a step; Reset at the step's end. An op takes what it
// needs and never frees; overflow is our bug (the size is computed from max_num_tokens at start), hence a CHECK.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/check.h"

namespace ekiben {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);  // zeroed
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer();
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

class Arena {
 public:
  Arena() = default;
  explicit Arena(size_t bytes) : buffer_(bytes), data_(buffer_.data()), bytes_(bytes) {}
  // In memory of another's, 64-byte aligned.
  Arena(std::byte* data, size_t bytes) : data_(data), bytes_(bytes) {}

  // 64-byte aligned, not cleared. Lives until the Mark before it is rewound.
  template <class T>
  T* Take(int64_t count) {
    size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) & ~size_t{63};
    CHECK_LE(used_ + bytes, bytes_);
    T* out = reinterpret_cast<T*>(data_ + used_);
    used_ += bytes;
    if (used_ > peak_) peak_ = used_;
    return out;
  }
  size_t Mark() const { return used_; }
  void Rewind(size_t mark) { used_ = mark; }
  size_t peak() const { return peak_; }
  size_t capacity() const { return bytes_; }

 private:
  Buffer buffer_;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  size_t used_ = 0, peak_ = 0;
};

}  // namespace ekiben
