// The inner seam of ops/roofline.h. Each loop returns the operations (or bytes) that it did.
#pragma once
#include <cstdint>

namespace ekiben {

struct RooflineKernels {
  double (*int8)(int64_t rounds) = nullptr;
  double (*bf16)(int64_t rounds) = nullptr;
  double (*f32)(int64_t rounds) = nullptr;
  // Reads [data, data + bytes), bytes a multiple of 1024.
  double (*read)(const void* data, int64_t bytes) = nullptr;
};

extern const RooflineKernels kRooflineAvx2, kRooflineAvx512;

}  // namespace ekiben
