// What the next step does, decided by arithmetic on plain numbers: views of sequences in, a decision out. Nothing is
// touched; the executor reserves blocks and runs the decision, or drops it.
//
// Two stages, as TensorRT-LLM's capacityScheduler and microBatchScheduler:
//   capacity    whose KV fits. kGuaranteedNoEvict keeps blocks back for every admitted sequence up to its end, so none
//               is ever paused. kMaxUtilization keeps back the next step only, and whoever starts must leave a block
//               for each that runs; when the next step does not fit it pauses the sequence started last (its KV is
//               dropped and computed again later). The one started first is never paused, so there is always
//               progress.
//   micro-batch which of them fit max_batch_size rows and max_num_tokens tokens. Generation rows are served first,
//               because someone is reading already; contexts share what is left, in chunks, as far as the step's time
//               allows (context_budget.h), but at least a block of one.
// A new policy is a function here, never a second scheduler.
// Units: tokens and blocks. Thread: pure functions.   Knows: request/ids, costs of steps.   Must not know: the cache,
// devices, clocks.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "schedule/context_budget.h"

namespace ekiben {

enum class CapacityPolicy : uint8_t { kGuaranteedNoEvict, kMaxUtilization };
enum class BatchingStrategy : uint8_t { kInflightFusedBatching, kV1 };  // kV1: static batches
enum class ContextAdmissionPolicy : uint8_t { kPaced, kGreedy };
enum class ChunkingPolicy : uint8_t { kFirstComeFirstServed, kEqualProgress };

// What a policy may see of one sequence. Counts of blocks are of new ones, still to be taken from the pool; for a
// waiting sequence they include cached blocks that are idle now and would no longer be.
struct SequenceView {
  bool generation = false;       // its next row is one generated token; else a chunk of context
  int32_t tokens_left = 1;       // context still to feed; generation: 1, or 0 when its last token is in flight
  int32_t tokens_cached = 0;     // position of its next token
  int32_t blocks_next = 0;       // to feed its next row, at most max_num_tokens tokens of it
  int32_t blocks_context = 0;    // to feed tokens_left
  int32_t blocks_to_end = 0;     // until its last token
  int32_t blocks_if_paused = 0;  // that would come back; read only when something must be paused
  int32_t entries_reused = 0;    // waiting: block table entries that it starts with
  // For reuse: the chain keys of its full blocks, how many of them are computed, and a number common to the sequences
  // of one request while the prompt is to be computed. A waiting sequence is held back while another computes the block
  // that it needs next. Empty and 0: neither waits nor makes others wait.
  std::span<const uint64_t> block_keys;
  int32_t blocks_computed = 0;
  uint64_t group = 0;
};

// Waiting sequences in the order in which they may start: priority, then arrival. Pulled one by one, because a view of
// a waiting sequence costs a walk of the prefix tree and most steps look at none.
class WaitingViews {
 public:
  virtual ~WaitingViews() = default;
  // Nullptr at the end. Valid until the next call.
  virtual const SequenceView* Next() = 0;
};

struct StepLimits {
  int32_t max_batch_size = 0;  // rows of a step
  int32_t max_num_tokens = 0;  // tokens of a step
  int32_t tokens_per_block = 1;
  int32_t blocks_available = 0;
  int32_t slots_free = 0;               // sequences that may start
  int32_t entries_max = INT32_MAX;      // block table entries that starting sequences may bring along
  ContextAllowance context;             // what the step's context may take beside generation
  int32_t long_starts_max = INT32_MAX;  // starting sequences with more than a block of context; see ContextPace
  bool any_running = false;             // some sequence holds a slot, also one that has no row to run now
  bool may_pause = false;               // no step is in flight, so blocks of a paused sequence return at once
  CapacityPolicy capacity = CapacityPolicy::kGuaranteedNoEvict;
  BatchingStrategy batching = BatchingStrategy::kInflightFusedBatching;
  ChunkingPolicy chunking = ChunkingPolicy::kFirstComeFirstServed;
  bool enable_chunked_context = true;
};

struct StepDecision {
  struct Context {
    bool admitted = false;    // from the waiting ones, else running
    int32_t index = 0;        // of the running span, or how many were pulled before it
    int32_t token_count = 0;  // 0: admitted to a static batch, no row yet
  };
  std::vector<int32_t> generations;  // indices of the running span
  std::vector<Context> contexts;
  std::vector<int32_t> paused;  // indices of the running span, last started first
  // The next rows of what runs do not fit, and nothing may be paused yet: no row is planned.
  bool short_of_blocks = false;

  explicit StepDecision(int32_t rows_max);
  void Clear();
  bool has_rows() const;

  // Scratch of PlanStep: views of the contexts, running ones first; what is being computed for others to reuse.
  std::vector<SequenceView> context_views, being_computed;
};

// REQUIRES: `running` in the order of their start. `decision` was made for at least max_batch_size rows.
void PlanStep(std::span<const SequenceView> running, WaitingViews& waiting, const StepLimits& limits,
              StepDecision& decision);

// kPaced: how many prompts a step takes when more would fit.
//
// Users who wait for their answer and then ask again stay in step with whoever started beside them: prompts computed in
// one step end in one step and come back together, and each of them again waits for all (a cohort). A step of many
// prompts also makes everyone who generates wait for it. So a step takes half of the waiting prompts, at least one; and
// a prompt that waits alone right after a step with context lets one step of generation pass first, so that those two
// come back two steps apart, where each finds the device free. That rest is taken only while less than half of the
// recent steps had context: beyond, there is no room to spread into (so beside a long prompt's chunks it lasts a few
// steps at most). Measured, with its price in tokens per second:
// bench/results/cpu_ablation_context_admission_policy.json. Thread: the executor's.
class ContextPace {
 public:
  // For StepLimits::long_starts_max. 0 holds only while something generates.
  int32_t StartsMax(size_t waiting) const;
  // A step was launched. `had_context`: a row of more than a block of context.
  void Count(bool had_context);

 private:
  static constexpr int32_t kOne = 1 << 16;
  bool last_had_context_ = false;
  int32_t share_ = 0;  // of recent steps with context, in kOne: a mean that forgets a tenth each step
};

// For tests and short lists.
class WaitingSpan final : public WaitingViews {
 public:
  explicit WaitingSpan(std::span<const SequenceView> views) : views_(views) {}
  const SequenceView* Next() override { return at_ < views_.size() ? &views_[at_++] : nullptr; }

 private:
  std::span<const SequenceView> views_;
  size_t at_ = 0;
};

}  // namespace ekiben
