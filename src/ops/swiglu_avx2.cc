#include "ops/swiglu_body.h"

void ekiben::avx2::RunSwiGlu(float* y, const float* gate, const float* up, int64_t n) {
  SwiGluInLanes(y, gate, up, n);
}
