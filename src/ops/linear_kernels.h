// The inner seam of ops/linear.h: one table of bodies an instruction set. Plain pointers only, because these files are
// compiled with instruction-set flags and must not pull in inline functions that others share.
#pragma once
#include <cstddef>
#include <cstdint>

#include "ops/quantize.h"

namespace ekiben {

// Rows [16 * group_begin, 16 * group_end) of y for the tokens of one tile.
struct LinearTask {
  const std::byte* weight = nullptr;  // of group 0
  int64_t in_features = 0, out_features = 0;
  int64_t group_begin = 0, group_end = 0;
  const float* bias = nullptr;  // or null
  float* y = nullptr;           // of the tile's first token
  int64_t y_stride = 0;
  // Integer packings.
  QuantTile tile;
  // Float packings: rows of f32, or bf16 with in_features rounded up to even.
  const void* x = nullptr;
  int64_t x_stride = 0;
  int64_t tokens = 0;
  int32_t prefetch_bytes = 0;  // how far ahead of use weights are fetched; 0: left to the hardware
};

struct LinearKernels {
  void (*quantize_token)(const float* x, int64_t in_features, const QuantTile& tile, int32_t token) = nullptr;
  void (*int4)(const LinearTask&) = nullptr;
  void (*int8)(const LinearTask&) = nullptr;
  // The same with a SwiGLU at the end: y's rows [16 * group_begin, 16 * group_end) from those of W and those
  // out_features / 2 further (a multiple of 16). Null: not there.
  void (*int4_swiglu)(const LinearTask&) = nullptr;
  void (*int8_swiglu)(const LinearTask&) = nullptr;
  void (*f32)(const LinearTask&) = nullptr;
  void (*bf16)(const LinearTask&) = nullptr;
  // count values to bf16, round to nearest even, denormals to zero.
  void (*to_bf16)(const float* x, int64_t count, uint16_t* out) = nullptr;
};

extern const LinearKernels kLinearReference, kLinearAvx2, kLinearAvx512;

}  // namespace ekiben
