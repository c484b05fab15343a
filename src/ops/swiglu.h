// y = silu(gate) * up, where silu(g) = g / (1 + e^-g). gate_up holds a row's gate values, then its up values.
// Shapes: gate_up f32 [tokens, 2 * columns], y f32 [tokens, columns] (row strides free).
// Element by element, e^-g by ops/exp2.h: all bodies give the same bits.
// Thread: caller's, forks over ctx.pool.
#pragma once
#include "device/tensor_view.h"
#include "ops/op_context.h"

namespace ekiben {

void SwiGlu(OpContext& ctx, TensorView y, TensorView gate_up);

// y[0, n) from gate[0, n) and up[0, n).
namespace reference {
void RunSwiGlu(float* y, const float* gate, const float* up, int64_t n);
}
namespace avx2 {
void RunSwiGlu(float* y, const float* gate, const float* up, int64_t n);
}
namespace avx512 {
void RunSwiGlu(float* y, const float* gate, const float* up, int64_t n);
}

}  // namespace ekiben
