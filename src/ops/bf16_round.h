// f32 to bf16 as the vector instruction does it: nearest even, denormals to a signed zero. The plain form for bodies
// that must give the same bits.
#pragma once
#include <cmath>

#include "base/dtype.h"

namespace ekiben {

inline uint16_t RoundToBF16(float value) {
  if (std::fabs(value) < 0x1p-126f) value = std::copysign(0.0f, value);
  return F32ToBF16(value);
}

}  // namespace ekiben
