// The executor's one implementation. Step (loop.cc) is the whole loop on one screen; each stage has a file:
//
//   arrivals.cc    Submit, Cancel, Stop and the way across to the loop's thread
//   admission.cc   views of sequences -> PlanStep -> blocks reserved -> StepPlan built -> launched
//   commit.cc      results -> tokens emitted, blocks published for reuse, sequences ended
//   lifecycle.cc   Create, Start, Drain, Shutdown, stats, audit
//   watchdog.cc    takes the loop over when the backend does not return
//
// Two steps may be in flight (backend.info().tickets_max): step n+1 is planned while n runs, with what n will do taken
// as done. What n's tokens decide (stop tokens) is seen one step late; the row that n+1 then computes for nothing is
// dropped by its slot. Slots and blocks of an ended sequence go to the lease of the newest step that names it.
//
// Thread: the loop's own, but for the section "any thread". The registry's mutex is held for a map operation only.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "base/bounded_queue.h"
#include "cache/kv_cache.h"
#include "cache/planted_bug.h"
#include "executor/backend_calls.h"
#include "executor/executor.h"
#include "executor/sequence.h"
#include "schedule/plan_step.h"

namespace ekiben {

class ExecutorLoop final : public Executor, private WaitingViews {
 public:
  ExecutorLoop(Backend& backend, const ExecutorConfig& config, const Clock& clock);
  ~ExecutorLoop() override;

  Result<void> Submit(std::shared_ptr<const Request> request, TokenSink* sink) override;
  void Cancel(RequestId id) override;
  void Stop(RequestId id, int32_t sequence_index, FinishReason reason) override;
  void Start() override;
  bool Step() override;
  void Drain(Nanos deadline) override;
  void Shutdown() override;
  ExecutorStats stats() const override;
  bool healthy() const override { return healthy_.load(std::memory_order_acquire); }
  std::string fault() const override;
  Result<void> Audit() const override;

 private:
  // kTakenOver: the watchdog owns the loop's state; nothing of it may be touched, the thread leaves.
  enum class Outcome : uint8_t { kNothing, kWorked, kFault, kTakenOver };
  // One launched step.
  struct Flight {
    struct Row {
      SlotId slot{};
      SequenceId sequence{};
      int32_t position = 0, token_count = 0;
      bool samples = false;  // its token counts
    };
    explicit Flight(BlockLease blocks) : lease(std::move(blocks)) {}
    Ticket ticket;
    uint64_t number = 0;  // of launches
    std::vector<Row> rows;
    size_t context_rows = 0;  // the first ones
    ContextWork context;
    double nanos_max = 0;       // planned for; infinity: no bound
    BlockLease lease;           // blocks of sequences that ended while it was in flight, and sources of its copies
    std::vector<SlotId> slots;  // the same for slots
  };
  // What the loop's thread writes and any thread may read.
  struct Counters {
    std::atomic<uint64_t> steps{0}, context_tokens{0}, generation_tokens{0}, requests_finished{0}, preemptions{0};
    std::atomic<uint64_t> prefix_tokens_queried{0}, prefix_tokens_reused{0}, allocations_in_steps{0};
    std::atomic<int32_t> running{0}, paused{0}, last_step_context_tokens{0}, last_step_generation_rows{0},
        last_step_context_rows{0};
    std::atomic<int32_t> blocks_used{0}, blocks_cached{0};
    std::atomic<int64_t> last_step_device_time{0}, last_step_host_time{0}, host_time{0}, launch_time{0};
    std::atomic<uint64_t> steps_kernel_by_kernel{0}, steps_over_budget{0}, tokens_padded{0};
    std::array<std::atomic<uint64_t>, ExecutorStats::kPaddingShares.size() + 1> steps_by_padding{};
  };

  // --- any thread (arrivals.cc, lifecycle.cc)
  Result<void> Validate(const Request& request) const;
  Result<void> EnterQueue(const Request& request);
  void LeaveQueue(const Request& request);
  void Wake();
  bool AllEnded() const;
  void WaitUntilEnded(Nanos deadline);

  // --- arrivals.cc
  bool TakeArrivals();
  bool EndCancelledAndExpired(Nanos now);
  bool EndIfAsked(RequestState& state, Nanos now);

  // --- admission.cc
  bool WaitingForCompany(Nanos now);
  void Plan();
  ContextAllowance Allowance() const;
  void FillRunningViews();
  const SequenceView* Next() override;  // WaitingViews
  SequenceView ViewOf(Sequence& sequence) const;
  SequenceView ViewOfWaiting(Sequence& sequence);
  StartingPoint FindStart(Sequence& sequence, int32_t& blocks_idle);
  const Sequence* PromptHolder(const Sequence& sequence) const;
  int32_t BlocksToEnd(const Sequence& sequence, int32_t blocks_have, int32_t blocks_own) const;
  int32_t BlocksFor(int32_t tokens) const;
  void Act();
  void PauseSequences();
  void StartSequence(Sequence& sequence);
  void TakeTailBlocks();
  int32_t NewBlocksPlanned() const;
  Sequence& SequenceOf(const StepDecision::Context& context) const;
  void AddContextRow(Sequence& sequence, int32_t token_count);
  void AddGenerationRow(Sequence& sequence);
  void AppendBlocks(Sequence& sequence, int32_t tokens_end);
  Outcome Launch();

  // --- commit.cc
  Outcome FinishOldest();
  void CountStep(const Flight& flight, const StepResult& result);
  void CommitRow(const Flight::Row& row, const RowResult& result);
  void KeepPromptLogProbs(Sequence& sequence, const Flight::Row& row, const RowResult& result);
  void AcceptToken(Sequence& sequence, TokenId token, const PositionLogProbs* logprobs);
  void Emit(Sequence& sequence, TokenId token, FinishReason reason, Code error = Code::kInternal,
            const PositionLogProbs* logprobs = nullptr);
  // The end was emitted: frees slot and blocks. The last of a request's sequences ends the request; its memory stays
  // until CompactRunning.
  void End(Sequence& sequence);
  void EndWith(Sequence& sequence, FinishReason reason, Code error = Code::kInternal);
  void EndRequest(RequestState& state);
  void ReleaseSlot(Sequence& sequence);
  void EndAll(FinishReason reason, Code error);
  void DeviceFault(const Error& error);
  BlockLease* LeaseNaming(const Sequence& sequence);
  Flight* NewestNaming(const Sequence& sequence);
  void ReturnFlight(Flight& flight);
  Flight& NextFlight() { return flights_[(oldest_flight_ + in_flight_) % flights_.size()]; }
  void CompactRunning();
  void PublishStats(Nanos step_begin);

  Outcome Turn();
  void Run();
  void Watch();
  void JoinThreads();
  bool UseIdleTime();
  void WaitForWork();
  void WaitToLaunch();

  Backend& backend_;
  const Clock& clock_;
  const ExecutorConfig config_;  // clamped to the backend
  const SequenceLimits limits_;

  // --- any thread
  mutable std::mutex registry_mutex_;
  std::condition_variable all_ended_;
  std::unordered_map<uint64_t, RequestState*> registry_;  // every request not ended
  bool accepting_ = true;
  uint64_t next_arrival_ = 0;
  std::atomic<uint64_t> next_sequence_{1};
  std::atomic<int32_t> waiting_requests_{0};
  std::atomic<int64_t> waiting_tokens_{0};
  std::atomic<bool> asked_{false};  // some Cancel or Stop was set
  std::atomic<bool> draining_{false}, cancel_all_{false}, stopping_{false}, healthy_{true};
  BoundedQueue<std::unique_ptr<RequestState>> arrivals_;
  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool woken_ = false;
  mutable std::mutex fault_mutex_;
  std::string fault_;
  Counters counters_;
  std::thread thread_, watchdog_thread_;
  std::mutex watch_mutex_;
  std::condition_variable watch_;
  bool taken_over_ = false, left_ = false;  // by the watchdog; the executor's thread came back after that
  std::atomic<bool> threaded_{false};
  BackendCalls calls_;

  // --- the loop's thread
  KvCache cache_;
  IntrusiveList<RequestState, &RequestState::live_link> live_;
  IntrusiveList<Sequence, &Sequence::waiting_link> waiting_;
  std::vector<Sequence*> running_;  // in the order of their start; ended ones until CompactRunning
  std::vector<Sequence*> by_slot_;
  std::vector<SlotId> free_slots_;
  std::vector<std::shared_ptr<const Request>> bound_requests_;  // by slot: a binding reads its request to its end
  std::vector<Flight> flights_;                                 // a ring of tickets_max
  size_t oldest_flight_ = 0, in_flight_ = 0;
  uint64_t launches_ = 0;
  StepPlan plan_;
  StepDecision decision_;
  ContextPace pace_;
  StepCosts costs_;
  double step_nanos_max_ = 0;        // that the step being planned may take
  std::vector<SequenceView> views_;  // of running_
  std::vector<Sequence*> viewed_;    // the sequences of views_
  std::vector<Sequence*> pulled_;    // the waiting sequences that PlanStep looked at, in order
  Sequence* next_waiting_ = nullptr;
  SequenceView waiting_view_;
  std::vector<BlockId> matched_;  // scratch of a tree lookup
  Nanos next_deadline_ = Nanos::max();
  std::optional<Nanos> company_until_;
  IntrusiveList<RequestState, &RequestState::live_link> ended_;  // freed when running_ has forgotten them
  int32_t paused_ = 0;
  const int32_t window_blocks_max_;  // blocks a sequence holds at most under the attention window
  Nanos now_{};                      // read at the step's begin and again when a step finished: the time of the events
  Nanos newest_begin_{};             // when the newest step in flight began on the device, as far as is known
  Nanos generation_step_time_{};     // what the last step without context rows took there
  Nanos context_launch_time_{};      // what queueing the last step with context rows took here
  Nanos in_backend_{};               // spent in Launch and Finish by the step under way
  Nanos in_launch_{};                // of that, in Launch
};

}  // namespace ekiben
