// The body of ops/rms_norm.h for sixteen lanes. Included by rms_norm_avx2.cc and rms_norm_avx512.cc only.
#pragma once
#include "ops/lanes.h"
#include "ops/rms_norm.h"

namespace ekiben {
namespace {

inline void RmsNormRowInLanes(const RmsNormRow& row) {
  Lanes squares = Zero();
  int64_t n = row.columns;
  for (int64_t i = 0; i < n; i += kLanes) {
    int64_t left = n - i;
    bool whole = left >= kLanes;
    Lanes x = whole ? Load(row.x + i) : LoadFirst(row.x + i, left);
    if (row.delta != nullptr) {
      x = Add(x, whole ? Load(row.delta + i) : LoadFirst(row.delta + i, left));
      whole ? Store(row.x + i, x) : StoreFirst(row.x + i, x, left);
    }
    squares = Fma(x, x, squares);
  }
  float mean = Sum(squares) / static_cast<float>(n);
  Lanes scale = Broadcast(1.0f / __builtin_sqrtf(mean + row.eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    int64_t left = n - i;
    if (left >= kLanes) {
      Store(row.y + i, Multiply(Multiply(Load(row.x + i), scale), Load(row.weight + i)));
    } else {
      Lanes y = Multiply(Multiply(LoadFirst(row.x + i, left), scale), LoadFirst(row.weight + i, left));
      StoreFirst(row.y + i, y, left);
    }
  }
}

}  // namespace
}  // namespace ekiben
