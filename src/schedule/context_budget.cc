#include "schedule/context_budget.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace ekiben {
namespace {

// Of a generation step; the wide one stays under two.
constexpr double kAutoBound = 1.5, kAutoBoundWide = 1.9;
// When a first token should come, and must: so long, and so many times what the prompt takes alone.
constexpr double kSoonNanos = 100e6, kSoonTimes = 1.25, kLateNanos = 500e6, kLateTimes = 2;
constexpr double kScaleMin = 0.25, kScaleMax = 2;
constexpr double kForget = 0.1;  // of what was learnt, by one step
// Fewer pairs than a prompt of 512 tokens has drown in what the table does not know.
constexpr double kPairsMin = 512.0 * 512 / 2;

double InNanos(Nanos time) {
  return static_cast<double>(time.count());
}

}  // namespace

double ContextPairs(int32_t position, int32_t tokens) {
  return static_cast<double>(tokens) * (position + (tokens + 1) / 2.0);
}

StepCosts::StepCosts(std::span<const StepCost> table, double pair_nanos)
    : table_(table.begin(), table.end()), pair_nanos_(pair_nanos) {
  for (size_t i = 1; i < table_.size(); ++i) {
    CHECK_LT(table_[i - 1].tokens, table_[i].tokens);
    // More tokens are not faster; where they were, the measurement was off.
    table_[i].time = std::max(table_[i].time, table_[i - 1].time);
  }
}

double StepCosts::Measured(int32_t tokens) const {
  auto above = std::ranges::lower_bound(table_, tokens, {}, &StepCost::tokens);
  if (above == table_.end()) return InNanos(table_.back().time) * tokens / table_.back().tokens;
  if (above == table_.begin()) return InNanos(above->time);
  auto below = above - 1;
  double share = static_cast<double>(tokens - below->tokens) / (above->tokens - below->tokens);
  return InNanos(below->time) + share * InNanos(above->time - below->time);
}

void StepCosts::Observe(int32_t rows, int32_t context_tokens, double pairs, Nanos time) {
  if (!known()) return;
  auto learn = [](double& value, double seen) { value += kForget * (std::max(seen, 0.0) - value); };
  double left = InNanos(time) - row_nanos_ * rows;
  if (context_tokens == 0) {
    if (rows > 0) learn(row_nanos_, (InNanos(time) - Linears(rows)) / rows);
  } else if (pairs < kPairsMin) {
    learn(scale_, std::clamp((left - pair_nanos_ * pairs) / Measured(rows + context_tokens), kScaleMin, kScaleMax));
  } else {
    learn(pair_nanos_, (left - Linears(rows + context_tokens)) / pairs);
  }
}

int32_t ContextAllowance::TokensAt(int32_t position, int32_t wanted, int32_t rows, int32_t context_tokens,
                                   double pairs) const {
  if (costs == nullptr) return wanted;
  int32_t fits = 0, too_many = wanted + 1;  // the cost grows with tokens
  while (too_many - fits > 1) {
    int32_t middle = fits + (too_many - fits) / 2;
    double time = costs->Mixed(rows, context_tokens + middle, pairs + ContextPairs(position, middle));
    (time <= nanos_max ? fits : too_many) = middle;
  }
  return fits;
}

ContextAllowance AllowanceFor(const StepCosts& costs, int32_t rows, Nanos bound, const OldestContext& oldest) {
  if (!costs.known() || rows == 0) return {};
  const double generation = costs.Generation(rows);
  ContextAllowance out{&costs, bound > Nanos(0) ? InNanos(bound) : kAutoBound * generation};
  if (oldest.tokens_left == 0) return out;
  const double alone = costs.Mixed(0, oldest.tokens_all, ContextPairs(0, oldest.tokens_all));
  // When the oldest has its first token, from its arrival on, if every step takes its allowance.
  auto first_token = [&] {
    // Chunks get smaller as keys get more: the middle one stands for all.
    int32_t chunk = out.TokensAt(oldest.position + oldest.tokens_left / 2, oldest.tokens_left, rows, 0, 0);
    double steps = std::ceil(static_cast<double>(oldest.tokens_left) / std::max(chunk, 1));
    return InNanos(oldest.waited) + steps * out.nanos_max;
  };
  if (bound == Nanos(0) && first_token() > kSoonNanos + kSoonTimes * alone) out.nanos_max = kAutoBoundWide * generation;
  return first_token() > kLateNanos + kLateTimes * alone ? ContextAllowance{} : out;
}

}  // namespace ekiben
