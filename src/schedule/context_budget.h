// How much context a step may compute beside generation, so that those who generate have their next token in time.
//
// A step's time, as far as this needs it: linears of all its tokens (a table that the backend measured at start, and a
// factor learnt from short prompts), attention of its generated rows (learnt from steps without context), attention of
// its context. The last is so much a key for a chunk of a given size: a GPU works on whole tiles of tokens, so the cost
// goes up in stairs (257 tokens may take twice what 256 take), which one price a pair of a token and a key cannot say.
// A backend that measured the stairs is believed from the first step on, and corrected by a factor; without them the
// price a pair is learnt. A bound on the time leaves room for context; the planner (plan_step.h) fills it row by row. A
// backend without a table has no budget. Pure arithmetic. Units: tokens, nanoseconds. Thread: the executor's.
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

// Attention of a chunk of up to so many tokens: so much for each key that its middle token sees.
struct ChunkCost {
  int32_t tokens = 0;
  double nanos_a_key = 0;
};

// What attention of context takes, as measured. Without `chunks` it is learnt, and `nanos_a_step` is not known either.
struct AttentionCosts {
  std::vector<ChunkCost> chunks;  // ascending in tokens
  double nanos_a_step = 0;        // what the first context of a step adds whatever its size
};

// The context of one step, as it is planned.
struct ContextWork {
  int32_t tokens = 0;
  double pairs = 0;      // of a token and a key that it sees
  double attention = 0;  // by the table of chunks, before any factor
};

class StepCosts {
 public:
  StepCosts() = default;
  // `table` ascending in tokens.
  explicit StepCosts(std::span<const StepCost> table, const AttentionCosts& attention = {});
  bool known() const { return !table_.empty(); }

  // Between two entries on their line; beyond the last in its proportion.
  double Linears(int32_t tokens) const { return scale_ * Measured(tokens); }
  // A step of `rows` generated tokens. What context steps take now is no part of it: under load a GPU's clock falls,
  // and a bound in generation steps must not grow with it.
  double Generation(int32_t rows) const { return Measured(rows) + row_nanos_ * rows; }
  // The same with context.
  double Mixed(int32_t rows, const ContextWork& context) const {
    if (context.tokens == 0) return Generation(rows);
    return Linears(rows + context.tokens) + row_nanos_ * rows + nanos_a_step_ + attention_scale_ * context.attention;
  }
  // `context` and a chunk more, of `tokens` tokens from `position` on.
  ContextWork With(ContextWork context, int32_t position, int32_t tokens) const;
  // A finished step.
  void Observe(int32_t rows, const ContextWork& context, Nanos time);
  double attention_scale() const { return attention_scale_; }

 private:
  double Measured(int32_t tokens) const;
  double NanosAKey(int32_t tokens) const;
  void Correct(double linears, double attention, double seen);

  std::vector<StepCost> table_;
  std::vector<ChunkCost> chunks_;
  double nanos_a_step_ = 0;
  double scale_ = 1;            // what context steps take now, relative to the table
  double attention_scale_ = 0;  // the same of attention; without a table, nanoseconds a pair
  double row_nanos_ = 0;
};

// What one step may take. The default sets no limit.
struct ContextAllowance {
  const StepCosts* costs = nullptr;
  double nanos_max = std::numeric_limits<double>::infinity();

  // The most tokens of a row at `position`, at most `wanted`, beside what the step has: generated rows and context.
  int32_t TokensAt(int32_t position, int32_t wanted, int32_t rows, const ContextWork& planned) const;
};

// The oldest request that still has context to compute.
struct OldestContext {
  Nanos waited{};
  int32_t position = 0, tokens_left = 0, tokens_all = 0;
};

// The allowance of a step with `rows` generated tokens. `bound`: of its time; zero: 1.5 steps of generation alone, or
// 1.85 while the oldest context would otherwise have its first token later than 0.1 s and 1.25 times its own time. None
// while nothing generates, and none when that would be later than half a second and twice its own time even so: under
// overload tokens per second count, not their regularity.
ContextAllowance AllowanceFor(const StepCosts& costs, int32_t rows, Nanos bound, const OldestContext& oldest);

}  // namespace ekiben
