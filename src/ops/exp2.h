// 2^x, one polynomial for every body, so that all of them give the same bits.
// x is split into n = nearest integer (ties to even) and f = x - n in [-1/2, 1/2]; 2^f is a polynomial of degree 6
// fitted by weighted least squares (relative error 2e-9 before rounding, about 1 ulp after) with constant term 1, so
// that 2^0 == 1 exactly. Domain: below -126, -inf included, the result is 0; above 127 it is 2^127. NaN gives 0.
#pragma once
#include <cmath>
#include <cstdint>

namespace ekiben {

inline constexpr float kExp2Coefficients[6] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f,  0x1.c6aee8p-5f,
                                               0x1.3b2d4cp-7f, 0x1.5f3e54p-10f, 0x1.41fbbcp-13f};
inline constexpr float kLog2E = 1.44269504088896340736f;

inline float Exp2Reference(float x) {
  if (!(x >= -126.0f)) return 0.0f;
  if (x > 127.0f) x = 127.0f;
  float n = std::nearbyint(x);
  float f = x - n;
  float p = kExp2Coefficients[5];
  for (int i = 4; i >= 0; --i) p = std::fma(p, f, kExp2Coefficients[i]);
  return std::ldexp(std::fma(p, f, 1.0f), static_cast<int>(n));
}

}  // namespace ekiben
