#include "schedule/context_budget.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace ekiben {
namespace {

// Of a generation step; the wide one stays under two.
constexpr double kAutoBound = 1.5, kAutoBoundWide = 1.85;
// When a first token should come, and must: so long, and so many times what the prompt takes alone.
constexpr double kSoonNanos = 100e6, kSoonTimes = 1.25, kLateNanos = 500e6, kLateTimes = 2;
constexpr double kScaleMin = 0.25, kScaleMax = 2;
constexpr double kForget = 0.1;   // of what was learnt, by one step
constexpr double kCorrect = 0.3;  // of the error in what was measured, by one step
// Fewer pairs than a prompt of 512 tokens has drown in what the table does not know.
constexpr double kPairsMin = 512.0 * 512 / 2;

double InNanos(Nanos time) {
  return static_cast<double>(time.count());
}

}  // namespace

StepCosts::StepCosts(std::span<const StepCost> table, const AttentionCosts& attention)
    : table_(table.begin(), table.end()),
      chunks_(attention.chunks),
      nanos_a_step_(attention.nanos_a_step),
      attention_scale_(attention.chunks.empty() ? 0 : 1) {
  // More tokens are not faster; where they were, the measurement was off.
  for (size_t i = 1; i < table_.size(); ++i) {
    CHECK_LT(table_[i - 1].tokens, table_[i].tokens);
    table_[i].time = std::max(table_[i].time, table_[i - 1].time);
  }
  for (size_t i = 1; i < chunks_.size(); ++i) {
    CHECK_LT(chunks_[i - 1].tokens, chunks_[i].tokens);
    chunks_[i].nanos_a_key = std::max(chunks_[i].nanos_a_key, chunks_[i - 1].nanos_a_key);
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

// A step up for each size that was measured; beyond the last in its proportion.
double StepCosts::NanosAKey(int32_t tokens) const {
  if (chunks_.empty()) return tokens;
  auto at = std::ranges::lower_bound(chunks_, tokens, {}, &ChunkCost::tokens);
  if (at == chunks_.end()) return chunks_.back().nanos_a_key * tokens / chunks_.back().tokens;
  return at->nanos_a_key;
}

ContextWork StepCosts::With(ContextWork context, int32_t position, int32_t tokens) const {
  const double keys = position + (tokens + 1) / 2.0;
  context.tokens += tokens;
  context.pairs += tokens * keys;
  context.attention += NanosAKey(tokens) * keys;
  return context;
}

void StepCosts::Observe(int32_t rows, const ContextWork& context, Nanos time) {
  if (!known()) return;
  auto learn = [](double& value, double seen) { value += kForget * (std::max(seen, 0.0) - value); };
  if (context.tokens == 0) {
    if (rows > 0) learn(row_nanos_, (InNanos(time) - Measured(rows)) / rows);
    return;
  }
  const double left = InNanos(time) - row_nanos_ * rows - nanos_a_step_;
  const double linears = Measured(rows + context.tokens);
  if (!chunks_.empty()) return Correct(linears, context.attention, left);
  if (context.pairs < kPairsMin) {
    double seen = (left - attention_scale_ * context.attention) / linears;
    learn(scale_, std::clamp(seen, kScaleMin, kScaleMax));
  } else {
    learn(attention_scale_, (left - scale_ * linears) / context.attention);
  }
}

// Both parts were measured, so each takes its share of the error: the larger it is, the likelier it was wrong.
void StepCosts::Correct(double linears, double attention, double seen) {
  const double error = seen - scale_ * linears - attention_scale_ * attention;
  const double gain = kCorrect * error / (linears * linears + attention * attention);
  scale_ = std::clamp(scale_ + gain * linears, kScaleMin, kScaleMax);
  attention_scale_ = std::clamp(attention_scale_ + gain * attention, kScaleMin, kScaleMax);
}

int32_t ContextAllowance::TokensAt(int32_t position, int32_t wanted, int32_t rows, const ContextWork& planned) const {
  if (costs == nullptr) return wanted;
  int32_t fits = 0, too_many = wanted + 1;  // the cost grows with tokens
  while (too_many - fits > 1) {
    int32_t middle = fits + (too_many - fits) / 2;
    double time = costs->Mixed(rows, costs->With(planned, position, middle));
    (time <= nanos_max ? fits : too_many) = middle;
  }
  return fits;
}

ContextAllowance AllowanceFor(const StepCosts& costs, int32_t rows, Nanos bound, const OldestContext& oldest) {
  if (!costs.known() || rows == 0) return {};
  const double generation = costs.Generation(rows);
  ContextAllowance out{&costs, bound > Nanos(0) ? InNanos(bound) : kAutoBound * generation};
  if (oldest.tokens_left == 0) return out;
  const double alone = costs.Mixed(0, costs.With({}, 0, oldest.tokens_all));
  // When the oldest has its first token, from its arrival on, if every step takes its allowance.
  auto first_token = [&] {
    // Chunks get smaller as keys get more: the middle one stands for all.
    int32_t chunk = out.TokensAt(oldest.position + oldest.tokens_left / 2, oldest.tokens_left, rows, {});
    double steps = std::ceil(static_cast<double>(oldest.tokens_left) / std::max(chunk, 1));
    return InNanos(oldest.waited) + steps * out.nanos_max;
  };
  if (bound == Nanos(0) && first_token() > kSoonNanos + kSoonTimes * alone) out.nanos_max = kAutoBoundWide * generation;
  return first_token() > kLateNanos + kLateTimes * alone ? ContextAllowance{} : out;
}

}  // namespace ekiben
