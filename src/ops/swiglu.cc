#include "ops/swiglu.h"

#include <algorithm>

#include "base/check.h"
#include "ops/exp2.h"

namespace ekiben {

void reference::RunSwiGlu(float* y, const float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float g = gate[i];
    y[i] = g / (1.0f + Exp2Reference(-kLog2E * g)) * up[i];
  }
}

void SwiGlu(OpContext& ctx, TensorView y, TensorView gate_up) {
  int64_t tokens = y.shape[0], columns = y.shape[1];
  CHECK_EQ(gate_up.shape[0], tokens);
  CHECK_EQ(gate_up.shape[1], 2 * columns);
  auto body = ctx.isa == Isa::kAvx512 ? avx512::RunSwiGlu
              : ctx.isa == Isa::kAvx2 ? avx2::RunSwiGlu
                                      : reference::RunSwiGlu;
  constexpr int64_t kGrainElements = 8192;  // a fork pays from about here on
  int64_t grain = std::max<int64_t>(1, kGrainElements / columns);
  ctx.pool->ParallelFor(tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up.row<float>(t);
      body(y.row<float>(t), gate, gate + columns, columns);
    }
  });
}

}  // namespace ekiben
