// The bodies of ops/e4m3_rounding.h for sixteen lanes. Included by e4m3_rounding_avx2.cc and e4m3_rounding_avx512.cc
// only. Sums over samples run in four chains, so that an fma need not wait for the one before.
#pragma once
#include <utility>

#include "ops/e4m3_nearest.h"
#include "ops/e4m3_rounding.h"
#include "ops/lanes.h"

namespace ekiben {
namespace {

inline void RoundingGainsInLanes(const RoundingGains& work) {
  const int64_t n = work.samples;
  float *last = work.last, *current = work.current;
  float scale = 0;
  for (int64_t j = work.columns - 1; j >= 0; --j) {
    const float* a = work.inputs + j * n;
    // inverse -= last last^T * scale, of the column before; current = inverse a.
    for (int64_t r = 0; r < n; ++r) {
      float* row = work.inverse + r * n;
      const Lanes change = Broadcast(-(last[r] * scale));
      Lanes sum[4] = {Zero(), Zero(), Zero(), Zero()};
      for (int64_t s = 0; s < n; s += 4 * kLanes)
        for (int i = 0; i < 4; ++i) {
          Lanes p = Fma(change, Load(last + s + i * kLanes), Load(row + s + i * kLanes));
          Store(row + s + i * kLanes, p);
          sum[i] = Fma(p, Load(a + s + i * kLanes), sum[i]);
        }
      current[r] = Sum(Add(Add(sum[0], sum[1]), Add(sum[2], sum[3])));
    }
    double total = work.ridge[j];
    for (int64_t r = 0; r < n; ++r) total += static_cast<double>(a[r]) * static_cast<double>(current[r]);
    scale = static_cast<float>(1 / total);
    for (int64_t r = 0; r < n; ++r) work.gains[j * n + r] = current[r] * scale;
    std::swap(last, current);
  }
}

inline void RoundingGroupInLanes(const RoundingGroup& group) {
  alignas(64) float wanted[kLanes], difference[kLanes];
  Lanes shift = Zero();
  for (int64_t j = 0; j < group.columns; ++j) {
    const int32_t column = group.order[j];
    float* values = group.values + int64_t{column} * kLanes;
    Store(wanted, Subtract(Load(values), shift));
    for (int r = 0; r < kLanes; ++r) {
      float rounded = NearestE4m3(wanted[r] / group.factors[r]) * group.factors[r];
      rounded = group.tops[r] == column ? values[r] : rounded;
      difference[r] = rounded - values[r];
      values[r] = rounded;
    }
    const Lanes change = Load(difference);
    const float *a = group.inputs + j * group.samples, *gain = group.gains + (j + 1) * group.samples;
    Lanes sum[4] = {Zero(), Zero(), Zero(), Zero()};
    for (int64_t s = 0; s < group.samples; s += 4)
      for (int i = 0; i < 4; ++i) {
        float* at = group.error + (s + i) * kLanes;
        Lanes e = Fma(Broadcast(a[s + i]), change, Load(at));
        Store(at, e);
        sum[i] = Fma(Broadcast(gain[s + i]), e, sum[i]);
      }
    shift = Add(Add(sum[0], sum[1]), Add(sum[2], sum[3]));
  }
}

}  // namespace
}  // namespace ekiben
