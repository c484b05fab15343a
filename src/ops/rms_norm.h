// y = x / sqrt(mean(x^2) + eps) * weight, row by row; and the same fused with the residual add before it, which saves
// one pass over the activations.
// Shapes: x, y, residual, delta f32 [tokens, columns] (row strides free); weight f32 [columns].
// Order: the squares of a row are summed with fma in sixteen lanes and a fixed tree (ops/lane_sum.h); then
// (x * scale) * weight. A row's result depends on that row only, so it is the same in any batch and on any thread; all
// bodies give the same bits.
// Thread: caller's, forks over ctx.pool.
#pragma once
#include "device/tensor_view.h"
#include "ops/op_context.h"
#include "ops/quantize.h"

namespace ekiben {

// y and x may be the same.
void RmsNorm(OpContext& ctx, TensorView y, TensorView x, const float* weight, float eps);
// residual += delta; y = norm(residual).
void AddRmsNorm(OpContext& ctx, TensorView y, TensorView residual, TensorView delta, const float* weight, float eps);
// The same, y quantised row by row while it is in the nearest cache. Of `scratch` (like y) only some rows are written.
QuantizedRows RmsNormQuantized(OpContext& ctx, TensorView scratch, TensorView x, const float* weight, float eps);
QuantizedRows AddRmsNormQuantized(OpContext& ctx, TensorView scratch, TensorView residual, TensorView delta,
                                  const float* weight, float eps);

// One row of either; `delta` null for RmsNorm, else `x` receives the sum.
struct RmsNormRow {
  float* y;
  float* x;
  const float* delta;
  const float* weight;
  int64_t columns;
  float eps;
};
namespace reference {
void RunRmsNormRow(const RmsNormRow& row);
}
namespace avx2 {
void RunRmsNormRow(const RmsNormRow& row);
}
namespace avx512 {
void RunRmsNormRow(const RmsNormRow& row);
}

}  // namespace ekiben
