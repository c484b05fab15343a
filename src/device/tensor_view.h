// A view of numbers in device memory: where, of which type, in which shape. Owns nothing.
// Strides are in elements; the last dimension is contiguous (stride 1) everywhere in this project.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>

#include "base/check.h"
#include "base/dtype.h"

namespace ekiben {

struct TensorView {
  static constexpr int kRankMax = 4;
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kRankMax> shape{};
  std::array<int64_t, kRankMax> stride{};

  TensorView() = default;
  // Contiguous.
  TensorView(void* data_in, DType dtype_in, std::initializer_list<int64_t> shape_in)
      : data(data_in), dtype(dtype_in), rank(static_cast<int>(shape_in.size())) {
    CHECK_LE(rank, kRankMax);
    int i = 0;
    for (int64_t extent : shape_in) shape[static_cast<size_t>(i++)] = extent;
    int64_t step = 1;
    for (int d = rank - 1; d >= 0; --d) {
      stride[static_cast<size_t>(d)] = step;
      step *= shape[static_cast<size_t>(d)];
    }
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  template <class T>
  T* row(int64_t i) const {
    return static_cast<T*>(data) + i * stride[0];
  }
  int64_t elements() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= shape[static_cast<size_t>(d)];
    return n;
  }
};

}  // namespace ekiben
