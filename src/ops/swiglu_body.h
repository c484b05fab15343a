// The body of ops/swiglu.h for sixteen lanes. Included by swiglu_avx2.cc and swiglu_avx512.cc only.
#pragma once
#include "ops/lanes.h"
#include "ops/swiglu.h"

namespace ekiben {
namespace {

inline Lanes SwiGluOfLanes(Lanes gate, Lanes up) {
  Lanes e = Exp2(Multiply(Broadcast(-kLog2E), gate));
  return Multiply(Divide(gate, Add(Broadcast(1.0f), e)), up);
}

inline void SwiGluInLanes(float* y, const float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(y + i, SwiGluOfLanes(Load(gate + i), Load(up + i)));
  if (i < n) {
    StoreFirst(y + i, SwiGluOfLanes(LoadFirst(gate + i, n - i), LoadFirst(up + i, n - i)), n - i);
  }
}

}  // namespace
}  // namespace ekiben
