// y = x W^T (+ bias): the op that is 90 % of the time. One weight layout per packing, made at build time, read in place
// from the engine by every token count: few rows (generation, bound by the bytes of W) and many rows (context, bound by
// multiply-adds) run different bodies over the same bytes, and give bit-equal results because all bodies of a packing
// share one documented order of summation (integers inside a block, then blocks in order).
//
// Packings. N = out_features, K = in_features; rows in groups of 16 (padded with zeros).
//   kF32         exact; the oracle's path.
//   kBF16        weights rounded to bf16, bf16 activations, f32 accumulation.
//   kInt8        int8 weights with a scale per row and 64 columns, int8 activations (ops/quantize.h).
//   kInt4Block32 4-bit blocks of 32 with scale and minimum, int8 activations. GGUF Q4_1 and Q4_0 codes are kept; a
//                block's scale and minimum are kept to 1/16383 of the row's largest.
// Thread: caller's, forks over ctx.pool.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/result.h"
#include "device/tensor_view.h"
#include "ops/op_context.h"
#include "ops/quantize.h"

namespace ekiben {

enum class Packing : uint32_t { kF32 = 1, kBF16 = 2, kInt8 = 3, kInt4Block32 = 4 };
std::string_view Name(Packing packing);
// Whether a linear of this packing multiplies int8 activations.
bool TakesQuantizedRows(Packing packing);

// A packed weight, in place (engine file or memory). `data` is 64-byte aligned.
struct LinearWeight {
  Packing packing = Packing::kF32;
  int64_t out_features = 0, in_features = 0;
  const std::byte* data = nullptr;
  size_t bytes = 0;
  const float* bias = nullptr;  // [out_features] or null
};

// One piece of a weight to pack: `rows` rows of `in_features` values, as stored in a checkpoint (row-major; block
// formats along the row). Several pieces stack (q, k, v become one linear).
struct LinearSource {
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;
  int64_t rows = 0;
};

// Bytes that PackLinear writes.
size_t PackedBytes(Packing packing, int64_t out_features, int64_t in_features);
// Whether `source` keeps its values in `packing` (kInt4Block32: its codes, see above); the builder's `auto` picks with
// it.
bool IsLossless(Packing packing, DType source);
// `out` has PackedBytes bytes, zeroed. Without a pool the caller packs alone. Errors: in_features not a multiple of the
// packing's block, unsupported dtype.
Result<void> PackLinear(Packing packing, int64_t in_features, std::span<const LinearSource> pieces,
                        std::span<std::byte> out, ThreadPool* pool = nullptr);

// y[t, n] (f32, [tokens, out_features], row stride free) = x[t, :] . W[n, :] + bias[n]; x f32 [tokens, in_features].
// y and x do not overlap.
void Linear(OpContext& ctx, TensorView y, TensorView x, const LinearWeight& w);
// The same for rows that are already quantised, so that linears with one input share the work. Integer packings only.
void LinearQuantized(OpContext& ctx, TensorView y, const QuantizedRows& x, const LinearWeight& w);
// y[t, n] = swiglu(W[n, :] . x[t, :], W[n + N/2, :] . x[t, :]) (ops/swiglu.h) where W stacks a gate on an up
// projection, for n < N/2 = out_features / 2. The bits are those of LinearQuantized and SwiGlu, but the [tokens, N]
// between them is not written. gate_up: such a tensor, scratch for the bodies that have no fused form.
void LinearSwiGlu(OpContext& ctx, TensorView y, TensorView gate_up, const QuantizedRows& x, const LinearWeight& w);
// The plain reference: same result bit for bit as every body of the packing.
void LinearReference(TensorView y, TensorView x, const LinearWeight& w);

// Scratch that Linear takes from the arena for `tokens` rows.
size_t LinearScratchBytes(int64_t tokens, int64_t in_features, int64_t out_features);

}  // namespace ekiben
