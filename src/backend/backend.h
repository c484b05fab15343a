// Runs one step on a device. Virtual twice a step, never per op.
//
// Launch(plan) queues a step and returns a ticket; Finish(ticket) waits for it and returns what it produced. Tickets
// finish in the order of their launch; at most info().tickets_max are in flight. A slot's tokens, length and sampling
// state live on the device from BindSlot to the next BindSlot of the slot: a generation row reads the token that the
// step before sampled, without the host in between.
// The plan is copied by Launch; its storage may be reused at once. A StepResult is valid until the next Finish.
//
// Errors: Launch and Finish answer an Error only for a device fault; the executor then fails everything in flight and
// the server stops being ready. A row whose logits are not finite is a row's failure (RowResult::finite), not the
// step's. Thread: one (the executor's).
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "request/request.h"
#include "schedule/context_budget.h"
#include "schedule/step_plan.h"

namespace ekiben {

struct BackendInfo {
  std::string name;         // "cpu", "fake", ...
  std::string description;  // one line: device, instruction set, threads, weight format
  int32_t vocab_size = 0;
  int32_t max_batch_size = 0;  // slots
  int32_t max_num_tokens = 0;  // tokens of one step
  int32_t max_seq_len = 0;     // tokens of one sequence, prompt and output
  int32_t tokens_per_block = 0;
  int32_t blocks = 0;       // KV pool
  int32_t tickets_max = 1;  // 1: steps do not overlap; 2: step n+1 may be launched before n finished
  int64_t kv_bytes_per_token = 0;
  bool gathers_logits = false;  // Request::logits are filled
  bool pools_hidden = false;  // OutputKind::kPooledHidden is offered
  // Measured at start; empty: not known.
  std::vector<StepCost> step_costs;  // ascending in tokens
  AttentionCosts attention_costs;
};

// One line of the memory table that is printed at start.
struct MemoryLine {
  std::string name;
  size_t bytes = 0;
};

// What a slot needs to know of its sequence for as long as it holds it.
struct SlotBinding {
  SlotId slot{};
  SequenceId sequence{};
  int32_t sequence_index = 0;        // of n, for the RNG
  const Request* request = nullptr;  // outlives the binding
  // Tokens generated before a preemption; they count for penalties and min_tokens as if sampled in this binding.
  std::span<const TokenId> generated;
};

struct Ticket {
  uint64_t value = 0;
};

struct RowResult {
  SequenceId sequence{};
  SlotId slot{};
  int32_t token_count = 0;                     // 0 (a chunk, or pooled), 1, or more with speculation
  std::span<const TokenId> tokens;             // token_count of them
  bool finite = true;                          // false: NaN or Inf in this row's logits; the token is meaningless
  const PositionLogProbs* logprobs = nullptr;  // token_count of them, when the request asked
  std::span<const PositionLogProbs> prompt_logprobs;  // kAllLogits: one a fed position that has a next prompt token
  std::span<const float> hidden;                      // kPooledHidden, where the row ends its prompt
};

struct StepResult {
  Ticket ticket;
  std::span<const RowResult> rows;  // the plan's rows, in its order
  Nanos device_time{};              // what the step took on the device
  int32_t tokens_padded = 0;        // computed beside the plan's, because steps come in few sizes
  bool kernel_by_kernel = false;    // not as a captured graph, on a device that has them
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const BackendInfo& info() const = 0;
  // Before the first plan that names the slot for this sequence. The slot's earlier binding ends.
  virtual void BindSlot(const SlotBinding& binding) = 0;
  virtual Result<Ticket> Launch(const StepPlan& plan) = 0;
  virtual Result<StepResult> Finish(Ticket ticket) = 0;
  // Called when no step is in flight and none can be planned: a few milliseconds of work that makes later steps
  // faster. False when there is none left. An error is a device fault.
  virtual Result<bool> UseIdleTime() { return false; }
};

}  // namespace ekiben
