#include "ops/e4m3_rounding.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/arithmetic.h"
#include "base/check.h"
#include "base/dtype.h"
#include "ops/e4m3_nearest.h"
#include "ops/lane_sum.h"
#include "ops/packing.h"

namespace ekiben {
namespace {

// Of the samples' moments, what is taken off the diagonal; and the least energy of a column, of the mean.
constexpr double kShrink = 0.5, kRidge = 0.02;
constexpr float kTop = 448;
constexpr int64_t kSamplesGrain = 64;  // four chains of sixteen lanes

float SumOf(const float (&chains)[4][16]) {
  LaneSum sum;
  for (int i = 0; i < 16; ++i) sum.lane[i] = (chains[0][i] + chains[1][i]) + (chains[2][i] + chains[3][i]);
  return sum.Total();
}

// A group of rows as f32 [columns][16], and back.
void Widen(const uint16_t* packed, int64_t columns, float* values) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t r = 0; r < kGroupRows; ++r)
      values[c * kGroupRows + r] = BF16ToF32(packed[(c / 2 * kGroupRows + r) * 2 + c % 2]);
}
void Narrow(const float* values, int64_t columns, uint16_t* packed) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t r = 0; r < kGroupRows; ++r)
      packed[(c / 2 * kGroupRows + r) * 2 + c % 2] = F32ToBF16(values[c * kGroupRows + r]);
}

}  // namespace

float RoundToE4m3(float value) {
  return NearestE4m3(value);
}

void reference::RunRoundingGains(const RoundingGains& work) {
  const int64_t n = work.samples;
  float *last = work.last, *current = work.current;
  float scale = 0;
  for (int64_t j = work.columns - 1; j >= 0; --j) {
    const float* a = work.inputs + j * n;
    for (int64_t r = 0; r < n; ++r) {
      const float change = -(last[r] * scale);
      float chains[4][16] = {};
      for (int64_t s = 0; s < n; ++s) {
        float& p = work.inverse[r * n + s];
        p = std::fma(change, last[s], p);
        float& sum = chains[s / 16 % 4][s % 16];
        sum = std::fma(p, a[s], sum);
      }
      current[r] = SumOf(chains);
    }
    double total = work.ridge[j];
    for (int64_t r = 0; r < n; ++r) total += static_cast<double>(a[r]) * static_cast<double>(current[r]);
    scale = static_cast<float>(1 / total);
    for (int64_t r = 0; r < n; ++r) work.gains[j * n + r] = current[r] * scale;
    std::swap(last, current);
  }
}

void reference::RunRoundingGroup(const RoundingGroup& group) {
  float shift[16] = {};
  for (int64_t j = 0; j < group.columns; ++j) {
    const int32_t column = group.order[j];
    const float *a = group.inputs + j * group.samples, *gain = group.gains + (j + 1) * group.samples;
    for (int64_t r = 0; r < kGroupRows; ++r) {
      float& value = group.values[int64_t{column} * kGroupRows + r];
      float rounded = NearestE4m3((value - shift[r]) / group.factors[r]) * group.factors[r];
      if (group.tops[r] == column) rounded = value;
      const float difference = rounded - value;
      value = rounded;
      float sum[4] = {};
      for (int64_t s = 0; s < group.samples; ++s) {
        float& e = group.error[s * kGroupRows + r];
        e = std::fma(a[s], difference, e);
        sum[s % 4] = std::fma(gain[s], e, sum[s % 4]);
      }
      shift[r] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
  }
}

RoundingPlan::RoundingPlan(Isa isa, TensorView inputs)
    : isa_(isa),
      columns_(inputs.shape[1]),
      samples_(RoundUp(inputs.shape[0], kSamplesGrain)),
      order_(static_cast<size_t>(columns_)),
      inputs_(static_cast<size_t>(columns_ * samples_) * sizeof(float)),
      gains_(static_cast<size_t>((columns_ + 1) * samples_) * sizeof(float)) {
  const int64_t tokens = inputs.shape[0];
  std::vector<double> energy(order_.size());
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < columns_; ++c)
      energy[static_cast<size_t>(c)] +=
          std::pow(static_cast<double>(inputs.row<float>(t)[c]), 2) / static_cast<double>(tokens);
  const double mean = std::accumulate(energy.begin(), energy.end(), 0.0) / static_cast<double>(columns_);
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
    return energy[static_cast<size_t>(a)] > energy[static_cast<size_t>(b)];
  });
  const auto scale = static_cast<float>(std::sqrt((1 - kShrink) / static_cast<double>(tokens)));
  std::vector<double> ridge(order_.size());
  for (size_t j = 0; j < order_.size(); ++j) {
    const double left = kShrink * energy[static_cast<size_t>(order_[j])] + kRidge * mean;
    ridge[j] = left > 0 ? left : 1;  // inputs that are all zero
    for (int64_t t = 0; t < tokens; ++t)
      inputs_.as<float>()[static_cast<int64_t>(j) * samples_ + t] = inputs.row<float>(t)[order_[j]] * scale;
  }
  Buffer inverse(static_cast<size_t>(samples_ * samples_) * sizeof(float));
  for (int64_t i = 0; i < samples_; ++i) inverse.as<float>()[i * samples_ + i] = 1;
  Buffer scratch(static_cast<size_t>(2 * samples_) * sizeof(float));
  auto body = isa_ == Isa::kAvx512 ? avx512::RunRoundingGains
              : isa_ == Isa::kAvx2 ? avx2::RunRoundingGains
                                   : reference::RunRoundingGains;
  body({inputs_.as<float>(), ridge.data(), gains_.as<float>(), inverse.as<float>(), scratch.as<float>(),
        scratch.as<float>() + samples_, columns_, samples_});
}

void RoundingPlan::Round(ThreadPool& pool, int64_t rows, std::span<std::byte> packed) const {
  CHECK(HoldsE4m3(rows, columns_));
  CHECK_EQ(packed.size(), static_cast<size_t>(rows * columns_) * sizeof(uint16_t));
  auto body = isa_ == Isa::kAvx512 ? avx512::RunRoundingGroup
              : isa_ == Isa::kAvx2 ? avx2::RunRoundingGroup
                                   : reference::RunRoundingGroup;
  auto round = [&](int64_t begin, int64_t end, int) {
    Buffer values(static_cast<size_t>(columns_ * kGroupRows) * sizeof(float));
    for (int64_t at = begin; at < end; ++at) {
      auto* group = reinterpret_cast<uint16_t*>(packed.data()) + at * kGroupRows * columns_;
      Widen(group, columns_, values.as<float>());
      alignas(64) float factors[kGroupRows];
      int32_t tops[kGroupRows] = {};
      for (int64_t r = 0; r < kGroupRows; ++r) {
        float top = 0;
        for (int64_t c = 0; c < columns_; ++c) {
          const float size = std::fabs(values.as<float>()[c * kGroupRows + r]);
          if (size > top) tops[r] = static_cast<int32_t>(c), top = size;
        }
        factors[r] = top > 0 ? top / kTop : 1;
      }
      Buffer error(static_cast<size_t>(samples_ * kGroupRows) * sizeof(float));
      body({values.as<float>(), factors, tops, order_.data(), inputs_.as<float>(), gains_.as<float>(),
            error.as<float>(), columns_, samples_});
      Narrow(values.as<float>(), columns_, group);
    }
  };
  pool.ParallelFor(rows / kGroupRows, 1, round);
}

}  // namespace ekiben
