// How much context a step may compute beside generation, so that those who generate have their next token in time.
//
// A step's time, as far as this needs it: linears of all its tokens (a table that the backend measured at start, and a
// factor learnt from short prompts), attention of its generated rows (learnt from steps without context), attention of
// its context (so much a pair of a token and a key that it sees; measured at start, then learnt). A bound on the time
// leaves room for context; the planner (plan_step.h) fills it row by row. A backend without a table has no budget. Pure
// arithmetic. Units: tokens, nanoseconds. Thread: the executor's.
#pragma once
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/clock.h"

namespace ekiben {

// What a step of so many tokens takes without attention.
struct StepCost {
  int32_t tokens = 0;
  Nanos time{};
};

// Pairs of a token and a key that it sees, of `tokens` tokens from `position` on.
double ContextPairs(int32_t position, int32_t tokens);

class StepCosts {
 public:
  StepCosts() = default;
  // `table` ascending in tokens. `pair_nanos`: the first guess of a pair's cost.
  StepCosts(std::span<const StepCost> table, double pair_nanos);
  bool known() const { return !table_.empty(); }

  // Between two entries on their line; beyond the last in its proportion.
  double Linears(int32_t tokens) const { return scale_ * Measured(tokens); }
  // A step of `rows` generated tokens.
  double Generation(int32_t rows) const { return Linears(rows) + row_nanos_ * rows; }
  // The same with context.
  double Mixed(int32_t rows, int32_t context_tokens, double pairs) const {
    return Linears(rows + context_tokens) + row_nanos_ * rows + pair_nanos_ * pairs;
  }
  // A finished step.
  void Observe(int32_t rows, int32_t context_tokens, double pairs, Nanos time);
  double pair_nanos() const { return pair_nanos_; }

 private:
  double Measured(int32_t tokens) const;

  std::vector<StepCost> table_;
  double scale_ = 1;  // what context steps take now, relative to the table
  double row_nanos_ = 0, pair_nanos_ = 0;
};

// What one step may take. The default sets no limit.
struct ContextAllowance {
  const StepCosts* costs = nullptr;
  double nanos_max = std::numeric_limits<double>::infinity();

  // The most tokens of a row at `position`, at most `wanted`, beside what the step has: generated rows, context tokens
  // and their pairs.
  int32_t TokensAt(int32_t position, int32_t wanted, int32_t rows, int32_t context_tokens, double pairs) const;
};

// The oldest request that still has context to compute.
struct OldestContext {
  Nanos waited{};
  int32_t position = 0, tokens_left = 0, tokens_all = 0;
};

// The allowance of a step with `rows` generated tokens. `bound`: of its time; zero: 1.5 steps of generation alone, or
// 1.9 while the oldest context would otherwise have its first token later than 0.1 s and 1.25 times its own time. None
// while nothing generates, and none when that would be later than half a second and twice its own time even so: under
// overload tokens per second count, not their regularity.
ContextAllowance AllowanceFor(const StepCosts& costs, int32_t rows, Nanos bound, const OldestContext& oldest);

}  // namespace ekiben
