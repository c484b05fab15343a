// Checked arithmetic for numbers that come from files and requests: sizes are proven before anything is allocated.
#pragma once
#include <concepts>
#include <cstdint>
#include <optional>

namespace ekiben {

template <std::integral T>
[[nodiscard]] inline std::optional<T> CheckedMul(T a, T b) {
  T out;
  if (__builtin_mul_overflow(a, b, &out)) return std::nullopt;
  return out;
}

template <std::integral T>
[[nodiscard]] inline std::optional<T> CheckedAdd(T a, T b) {
  T out;
  if (__builtin_add_overflow(a, b, &out)) return std::nullopt;
  return out;
}

// REQUIRES: multiple > 0 and the result fits.
template <std::integral T>
constexpr T RoundUp(T value, T multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
template <std::integral T>
constexpr T CeilDiv(T value, T divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace ekiben
