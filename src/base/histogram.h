// Latency histogram with bounded relative error: 64 linear sub-buckets per power of two, so a quantile is within
// 1/64 = 1.6 % of the exact value at any scale from 1 to 2^62. The form is that of HdrHistogram (Gil Tene).
// Fixed size (30 KiB), so recording allocates nothing and histograms of several threads add up exactly.
// Thread: one writer; merge copies to read.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace ekiben {

class Histogram {
 public:
  // Values below 0 count as 0. The unit is the caller's (nanoseconds everywhere in this project).
  void Record(int64_t value) {
    uint64_t v = value < 0 ? 0 : static_cast<uint64_t>(value);
    ++counts_[IndexOf(v)];
    ++count_;
    sum_ += static_cast<double>(v);
    max_ = std::max(max_, v);
    min_ = std::min(min_, v);
  }
  void Merge(const Histogram& other) {
    for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    count_ += other.count_;
    sum_ += other.sum_;
    max_ = std::max(max_, other.max_);
    min_ = std::min(min_, other.min_);
  }
  // The smallest recorded value v such that a share `q` of all values is <= v, up to the bucket width. 0 when empty.
  double Quantile(double q) const {
    if (count_ == 0) return 0;
    auto rank = static_cast<uint64_t>(std::ceil(std::clamp(q, 0.0, 1.0) * static_cast<double>(count_)));
    rank = std::max<uint64_t>(rank, 1);
    if (rank == 1) return static_cast<double>(min_);
    if (rank == count_) return static_cast<double>(max_);
    uint64_t seen = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (seen >= rank) return std::clamp(MiddleOf(i), static_cast<double>(min_), static_cast<double>(max_));
    }
    return static_cast<double>(max_);
  }
  uint64_t count() const { return count_; }
  double sum() const { return sum_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  double max() const { return static_cast<double>(max_); }
  double min() const { return count_ == 0 ? 0 : static_cast<double>(min_); }

 private:
  static constexpr int kSubBits = 6;
  static constexpr uint64_t kSub = 1u << kSubBits;
  // Below kSub each value has its own bucket; above, the top kSubBits + 1 bits pick it.
  static size_t IndexOf(uint64_t v) {
    if (v < kSub) return v;
    int shift = std::bit_width(v) - 1 - kSubBits;
    return static_cast<size_t>((static_cast<uint64_t>(shift) + 1) * kSub + ((v >> shift) - kSub));
  }
  static double MiddleOf(size_t index) {
    if (index < kSub) return static_cast<double>(index);
    auto shift = static_cast<int>(index / kSub) - 1;
    double low = std::ldexp(static_cast<double>(kSub + index % kSub), shift);
    return low + std::ldexp(0.5, shift) - 0.5;
  }
  std::array<uint64_t, (62 - kSubBits + 2) * kSub> counts_{};
  uint64_t count_ = 0, max_ = 0, min_ = UINT64_MAX;
  double sum_ = 0;
};

}  // namespace ekiben
