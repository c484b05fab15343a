#include "model/logit_compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "base/check.h"

namespace ekiben {
namespace {

double LogSumExp(std::span<const float> logits) {
  double peak = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(x - peak);
  return peak + std::log(sum);
}

int32_t ArgMax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

void LogitComparison::AddDifference(float reference, float candidate) {
  double difference = std::fabs(double{reference} - double{candidate});
  if (std::isnan(difference)) difference = std::numeric_limits<double>::infinity();
  max_difference_ = std::max(max_difference_, difference);
  difference_sum_ += difference;
  difference_squares_ += difference * difference;
  reference_squares_ += double{reference} * reference;
  ++values_;
  int bin = 0;
  double edge = 1e-7;
  while (bin < kBins - 1 && difference >= edge) {
    edge *= 10;
    ++bin;
  }
  ++histogram_[static_cast<size_t>(bin)];
}

void LogitComparison::AddKl(double kl) {
  if (std::isnan(kl)) kl = std::numeric_limits<double>::infinity();
  kl = std::max(kl, 0.0);  // rounding may take it a little below
  ++positions_;
  kl_sum_ += kl;
  kl_max_ = std::max(kl_max_, kl);
}

void LogitComparison::Add(std::span<const float> reference, std::span<const float> candidate) {
  CHECK_EQ(reference.size(), candidate.size());
  double reference_sum = LogSumExp(reference), candidate_sum = LogSumExp(candidate), kl = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    AddDifference(reference[i], candidate[i]);
    double log_p = reference[i] - reference_sum;
    kl += std::exp(log_p) * (log_p - (candidate[i] - candidate_sum));
  }
  top1_agree_ += ArgMax(reference) == ArgMax(candidate);
  AddKl(kl);
}

void LogitComparison::AddTop(std::span<const int32_t> ids, std::span<const float> logits, float log_sum_exp,
                             std::span<const float> candidate) {
  CHECK_EQ(ids.size(), logits.size());
  double candidate_sum = LogSumExp(candidate), kl = 0, p_rest = 1, q_rest = 1;
  for (size_t i = 0; i < ids.size(); ++i) {
    float other = candidate[static_cast<size_t>(ids[i])];
    AddDifference(logits[i], other);
    double log_p = double{logits[i]} - log_sum_exp, log_q = other - candidate_sum;
    kl += std::exp(log_p) * (log_p - log_q);
    p_rest -= std::exp(log_p);
    q_rest -= std::exp(log_q);
  }
  // Below this the remainder is rounding of the sums above.
  constexpr double kRestMin = 1e-6;
  p_rest = std::max(p_rest, 0.0);
  if (p_rest > kRestMin && q_rest > kRestMin) kl += p_rest * std::log(p_rest / q_rest);
  rest_sum_ += p_rest;
  top1_agree_ += ids[0] == ArgMax(candidate);
  AddKl(kl);
}

double LogitComparison::relative_error() const {
  return reference_squares_ > 0 ? std::sqrt(difference_squares_ / reference_squares_) : 0;
}

std::string LogitComparison::Describe() const {
  std::string out = fmt::format(
      "positions {}, values {}: max |difference| {:.3g}, mean {:.3g}, relative {:.3g}; KL mean {:.3g}, max {:.3g}; "
      "top-1 agreement {:.2f} %\n|difference|",
      positions_, values_, max_difference(), mean_difference(), relative_error(), mean_kl(), max_kl(),
      100 * top1_agreement());
  for (int bin = 0; bin < kBins; ++bin) {
    const char* form = bin == 0 ? " <1e{}: {}" : " 1e{}: {}";
    out += fmt::format(fmt::runtime(form), bin == 0 ? -7 : bin - 8, histogram_[static_cast<size_t>(bin)]);
  }
  return out;
}

int64_t CompareWithGolden(const GoldenFile& golden, std::span<const float> logits, LogitComparison& comparison) {
  int64_t tokens = std::ssize(golden.token_ids), vocab = golden.vocab_size;
  CHECK_EQ(std::ssize(logits), tokens * vocab);
  int64_t greedy = 0;
  bool equal = true;
  size_t full = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    std::span<const float> row = logits.subspan(static_cast<size_t>(i * vocab), static_cast<size_t>(vocab));
    if (full < golden.full_positions.size() && golden.full_positions[full] == i) {
      comparison.Add(golden.Full(static_cast<int64_t>(full++)), row);
    } else {
      comparison.AddTop(golden.TopIds(i), golden.TopLogits(i), golden.log_sum_exp[static_cast<size_t>(i)], row);
    }
    if (i + 1 < golden.prompt_tokens || i + 1 == tokens) continue;
    equal = equal && ArgMax(row) == golden.token_ids[static_cast<size_t>(i + 1)];
    greedy += equal;
  }
  return greedy;
}

void GoldenComparison::Add(const GoldenFile& golden, std::span<const float> logits) {
  const int64_t equal = CompareWithGolden(golden, logits, comparison),
                total = std::ssize(golden.token_ids) - golden.prompt_tokens;
  ++files;
  greedy_equal += equal;
  greedy_total += total;
  if (equal == total) {
    ++files_equal;
    return;
  }
  auto top = golden.TopLogits(golden.prompt_tokens + equal - 1);
  if (top.size() > 1) tie_max = std::max(tie_max, double{top[0]} - top[1]);
}

}  // namespace ekiben
