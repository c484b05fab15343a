// The in-flight batching loop (TensorRT-LLM's word). One thread owns every sequence, the schedule and the cache, and
// takes no lock in its step: drain arrivals -> plan -> reserve blocks -> launch -> finish -> commit -> emit.
//
// Submit and Cancel are called from any thread; they cross over by bounded queues. Tokens leave through the request's
// TokenSink, on the executor's thread.
// A request ends exactly once for each of its n sequences, with one reason, whatever happens: cancel, deadline,
// device fault, shutdown.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "request/request.h"
#include "schedule/plan_step.h"  // the policies

namespace ekiben {

class Backend;

// TensorRT-LLM's names, section 2.3 and 2.4 of its options, and context_admission_policy, ours. Each is read at start.
struct ExecutorConfig {
  int32_t max_batch_size = 0;  // 0: the engine's
  int32_t max_num_tokens = 0;  // 0: the engine's
  CapacityPolicy batch_scheduler_policy = CapacityPolicy::kGuaranteedNoEvict;
  BatchingStrategy batching_strategy = BatchingStrategy::kInflightFusedBatching;
  ChunkingPolicy context_chunking_policy = ChunkingPolicy::kFirstComeFirstServed;
  ContextAdmissionPolicy context_admission_policy = ContextAdmissionPolicy::kPaced;
  bool enable_chunked_context = true;
  bool enable_kv_cache_reuse = true;
  int32_t max_attention_window_size = 0;  // 0: max_seq_len; blocks wholly outside the window are given back
  int32_t max_queue_size = 1024;          // waiting requests; one more is refused with kOverloaded
  // Their prompts' tokens together, one prompt of any length excepted; 32 MiB of them. More is refused with
  // kOverloaded.
  int64_t max_queue_tokens = 8'388'608;
  int64_t max_queue_delay_microseconds = 0;  // an idle executor waits this long for company before the first step
  // Bound of a step's time while something generates, kept by cutting context (schedule/context_budget.h); needs a
  // backend that knows its steps' costs. kItlAuto: 1.5 steps of generation alone; zero: none.
  Nanos itl_budget = kItlAuto;
  std::vector<StepCost> step_costs;  // of a backend whose info() has none
  Nanos step_timeout{};  // a call into the backend that takes longer is a device fault; zero: waits for ever

  static constexpr Nanos kItlAuto{-1};
};

// A snapshot for /metrics, the dashboard and tests. Counters only grow.
struct ExecutorStats {
  static constexpr std::array<double, 5> kPaddingShares = {0, .02, .04, .08, .16};
  uint64_t steps = 0, context_tokens = 0, generation_tokens = 0, requests_finished = 0, preemptions = 0;
  uint64_t prefix_tokens_queried = 0, prefix_tokens_reused = 0;
  int32_t waiting = 0, running = 0, paused = 0;
  int64_t waiting_tokens = 0;  // of the prompts of `waiting`
  int32_t last_step_context_tokens = 0, last_step_generation_rows = 0, last_step_context_rows = 0;
  int32_t blocks_total = 0, blocks_used = 0, blocks_cached = 0;  // used: leased; cached: reusable, evictable
  Nanos last_step_device_time{}, last_step_host_time{};
  // Sums over all steps: the executor's own time, all but the calls into the backend; and its calls of Launch.
  Nanos host_time{}, launch_time{};
  uint64_t steps_kernel_by_kernel = 0, steps_over_budget = 0;  // not as a graph; over the bound that was planned for
  // Tokens computed as padding; steps by their share of it, of the plan's tokens: at most kPaddingShares[i], then more.
  uint64_t tokens_padded = 0;
  std::array<uint64_t, kPaddingShares.size() + 1> steps_by_padding{};
  uint64_t allocations_in_steps = 0;  // heap allocations by the executor thread while stepping (counted in tests)
};

class Executor {
 public:
  // REQUIRES: `backend` and `clock` outlive the executor. The config is clamped to the backend's limits or refused.
  static Result<std::unique_ptr<Executor>> Create(Backend& backend, const ExecutorConfig& config, const Clock& clock);
  virtual ~Executor() = default;

  // Queues a request. `sink` must live until the request's last event. Errors: kInvalid with the field (a prompt over
  // the limit, a token outside the vocabulary, needs more blocks than the pool has), kOverloaded when the queue is
  // full, kUnavailable when draining or after a device fault.
  virtual Result<void> Submit(std::shared_ptr<const Request> request, TokenSink* sink) = 0;
  // Idempotent; unknown ids are ignored. Takes effect by the next step: blocks and slot are free then.
  virtual void Cancel(RequestId id) = 0;
  // Ends one of a request's n sequences with `reason`, e.g. when a stop string matched on text.
  virtual void Stop(RequestId id, int32_t sequence_index, FinishReason reason) = 0;

  // Starts the loop's thread. Without it, tests and simulations call Step themselves.
  virtual void Start() = 0;
  // One turn of the loop. False when there was nothing to do. REQUIRES: not started.
  virtual bool Step() = 0;
  // No new requests from here on; returns when the running ones have ended or at `deadline`, then cancels the rest.
  virtual void Drain(Nanos deadline) = 0;
  // Cancels everything and joins. A thread that a device holds since a fault by timeout is waited for two seconds; then
  // the process ends here with exit code 1, because its memory cannot be taken away under it.
  virtual void Shutdown() = 0;

  virtual ExecutorStats stats() const = 0;
  // False after a device fault; the message says which.
  virtual bool healthy() const = 0;
  virtual std::string fault() const = 0;

  // Recounts every block, slot and sequence from scratch; the error names the invariant that is broken. Slow: for
  // tests. REQUIRES: not started, or stopped.
  virtual Result<void> Audit() const = 0;
};

}  // namespace ekiben
