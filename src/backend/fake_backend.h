// A backend without a model, for tests, simulations and for loading the stages above faster than any model could.
//
// It keeps token ids where a model keeps keys and values: in a simulated KV pool, written at each row's positions and
// read back through the block table. The next token is a hash of what that walk finds, so a wrong block, a stale
// prefix or a block reused too early changes the tokens. FakeNextToken is the same function of a plain prefix: the
// oracle for one request alone.
// It also holds every plan against the contract of backend.h (blocks in range, table entries set, no row twice, counts
// within limits, no block taken while a step in flight still names it): each violation is noted, and aborts unless
// `abort_on_violation` is false.
// Steps run in Finish, in order; Launch only queues. Time passes on the given FakeClock, on the system clock, or not
// at all. Thread: one (the executor's); violations() and counters when it is idle.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/clock.h"

namespace ekiben {

struct FakeBackendOptions {
  uint64_t model_seed = 1;
  int32_t vocab_size = 512;
  TokenId token_min = 0;  // tokens are drawn from [token_min, vocab_size)
  int32_t max_batch_size = 64;
  int32_t max_num_tokens = 2048;
  int32_t max_seq_len = 2048;
  int32_t tokens_per_block = 16;
  int32_t blocks = 1024;
  int32_t tickets_max = 1;
  int32_t attention_window = 0;  // 0: all; else a token sees that many positions, its own included

  // What a step takes: base + a token + for each context row so much for each key that its middle token sees, times the
  // row's tiles of `context_tile` tokens. With `fake_clock` Finish advances it to the step's end; otherwise, when
  // `real_time`, Finish sleeps until then; otherwise a step takes no time.
  Nanos step_time{}, step_time_per_token{};
  int32_t context_tile = 1;
  double tile_nanos_a_key = 0;
  bool knows_step_costs = false;  // says so in info()
  int32_t pads_to = 1;            // steps come in multiples of so many tokens
  int32_t idle_work = 0;          // calls of UseIdleTime that find something to do
  FakeClock* fake_clock = nullptr;
  bool real_time = false;

  // Faults. Step numbers count launches from 0; -1: never.
  int64_t launch_fails_at = -1, finish_fails_at = -1, finish_hangs_at = -1;
  const std::atomic<bool>* hang_ends = nullptr;  // a Finish that hangs does so until this is true
  // True: this row's logits are not finite (sequence, its index of n, tokens generated so far).
  std::function<bool(const Request&, int32_t sequence_index, int32_t draw_position)> not_finite;

  bool abort_on_violation = true;
  int32_t tokens_limit = 0;  // token budget to hold plans to; 0: max_num_tokens
};

// The token after `tokens` (prompt and generated) for the sequence `sequence_index` of `request`, of which
// `draw_position` are generated: what FakeBackend returns when every block is right.
TokenId FakeNextToken(const FakeBackendOptions& options, const Request& request, int32_t sequence_index,
                      int32_t draw_position, std::span<const TokenId> tokens);

class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(FakeBackendOptions options);
  ~FakeBackend() override;

  const BackendInfo& info() const override { return info_; }
  void BindSlot(const SlotBinding& binding) override;
  Result<Ticket> Launch(const StepPlan& plan) override;
  Result<StepResult> Finish(Ticket ticket) override;
  Result<bool> UseIdleTime() override { return ++idle_calls_ < options_.idle_work; }

  const std::vector<std::string>& violations() const { return violations_; }
  int64_t launches() const { return launches_; }
  int32_t idle_calls() const { return idle_calls_; }

 private:
  struct Slot;
  struct Flight;
  void Violation(std::string what);
  void CheckPlan(const StepPlan& plan);
  void CheckRow(const StepPlan& plan, const PlanRow& row);
  bool NamedInFlight(BlockId block, SlotId by_other_than) const;
  void ApplyEdits(const StepPlan& plan);
  void RunRow(const StepPlan& plan, const PlanRow& row, RowResult& result, size_t row_index);
  uint64_t PrefixAt(const Slot& slot, int32_t position);
  TokenId* Cell(const Slot& slot, int32_t position);
  Nanos TimeOf(const StepPlan& plan) const;
  void WaitUntil(Nanos end);

  const FakeBackendOptions options_;
  BackendInfo info_;
  std::vector<TokenId> kv_;  // [block][tokens_per_block]; -1: never written
  std::vector<Slot> slots_;
  std::vector<Flight> flights_;  // a ring of tickets_max
  uint64_t next_ticket_ = 1, next_finish_ = 1;
  int64_t launches_ = 0, finishes_ = 0;
  std::atomic<int32_t> idle_calls_ = 0;  // read by the test while the executor's thread counts
  std::vector<BlockId> written_;         // blocks that rows of the plan under check write; scratch
  std::vector<RowResult> results_;
  std::vector<TokenId> sampled_;
  std::vector<PositionLogProbs> logprobs_, prompt_logprobs_;
  std::vector<std::string> violations_;
};

}  // namespace ekiben
