// How far a model's logits are from a reference's: largest and mean difference, a histogram of differences, the
// Kullback-Leibler divergence of the next-token distributions and how often both prefer the same token.
//
// KL(reference || candidate) per position, in nats. Where the reference has all logits it is exact. Where it has the
// highest T and the log of the sum of all exponentials, it is that of T + 1 outcomes: the T tokens and "any other".
// Merging outcomes never raises a divergence, so this is a lower bound; rest_mass says how much probability is merged.
// Thread: plain values.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "model/golden_file.h"

namespace ekiben {

class LogitComparison {
 public:
  // Bin 0: below 1e-7; bin i: [1e-(8-i), 1e-(7-i)); last: 1 and above, or not a number.
  static constexpr int kBins = 9;

  // All logits of one position from both.
  void Add(std::span<const float> reference, std::span<const float> candidate);
  // The reference's highest logits (`ids`, highest first) and log(sum(exp)) against all of the candidate's.
  void AddTop(std::span<const int32_t> ids, std::span<const float> logits, float log_sum_exp,
              std::span<const float> candidate);

  int64_t positions() const { return positions_; }
  double max_difference() const { return max_difference_; }
  double mean_difference() const { return values_ > 0 ? difference_sum_ / static_cast<double>(values_) : 0; }
  // ||candidate - reference|| / ||reference|| over all values: of nearly flat logits, whose KL says little.
  double relative_error() const;
  double mean_kl() const { return positions_ > 0 ? kl_sum_ / static_cast<double>(positions_) : 0; }
  double max_kl() const { return kl_max_; }
  double top1_agreement() const {
    return positions_ > 0 ? static_cast<double>(top1_agree_) / static_cast<double>(positions_) : 0;
  }
  double mean_rest_mass() const { return positions_ > 0 ? rest_sum_ / static_cast<double>(positions_) : 0; }
  const std::array<int64_t, kBins>& histogram() const { return histogram_; }

  // A few lines for a terminal.
  std::string Describe() const;

 private:
  void AddDifference(float reference, float candidate);
  void AddKl(double kl);

  int64_t positions_ = 0, values_ = 0, top1_agree_ = 0;
  double max_difference_ = 0, difference_sum_ = 0, difference_squares_ = 0, reference_squares_ = 0, kl_sum_ = 0,
         kl_max_ = 0, rest_sum_ = 0;
  std::array<int64_t, kBins> histogram_{};
};

// One forward pass over golden.token_ids against it: `logits` f32 [tokens, vocab_size]. Full positions are compared in
// full, the others by their highest logits. Returns how many greedy tokens of the file the logits reproduce before the
// first that differs (all: token_ids.size() - prompt_tokens).
int64_t CompareWithGolden(const GoldenFile& golden, std::span<const float> logits, LogitComparison& comparison);

// The same over several files.
struct GoldenComparison {
  LogitComparison comparison;
  int64_t files = 0, files_equal = 0;          // equal: all greedy tokens
  int64_t greedy_equal = 0, greedy_total = 0;  // tokens before each file's first difference
  double tie_max = 0;  // the most that the reference's best two logits are apart where a text first differs

  void Add(const GoldenFile& golden, std::span<const float> logits);
};

}  // namespace ekiben
