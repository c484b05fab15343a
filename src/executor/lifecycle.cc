#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>

#include "base/arithmetic.h"
#include "executor/loop.h"

namespace ekiben {
namespace {

// Block table entries that sequences starting in one step may bring along from the prefix tree, at least.
constexpr int32_t kReusedEntriesMin = 4096;
// Held-back sequences looked past in one step, beyond a batch.
constexpr size_t kHeldBackMax = 64;
// Planning and queueing a step on a GPU takes 10 to 100 us, waking up from the sleep as much again.
constexpr Nanos kLaunchLead = std::chrono::microseconds(400), kLaunchWaitMax = std::chrono::milliseconds(100);
// How often Drain looks at an injected clock.
constexpr auto kDrainPoll = std::chrono::milliseconds(2);

Error Refused(std::string_view field, std::string message) {
  return Error(Code::kInvalid, std::move(message), std::string(field));
}

StepPlanCapacity CapacityFor(const BackendInfo& info, const ExecutorConfig& config) {
  int32_t rows = config.max_batch_size;
  int32_t blocks_per_sequence = CeilDiv(info.max_seq_len, info.tokens_per_block);
  return {.rows = rows,
          .tokens = info.max_num_tokens,
          .table_edits = CeilDiv(info.max_num_tokens, info.tokens_per_block) + 2 * rows +
                         std::max(blocks_per_sequence, kReusedEntriesMin),
          .copies = rows};
}

int32_t WindowOf(const BackendInfo& info, const ExecutorConfig& config) {
  return config.max_attention_window_size < info.max_seq_len ? config.max_attention_window_size : 0;
}

}  // namespace

Result<std::unique_ptr<Executor>> Executor::Create(Backend& backend, const ExecutorConfig& config, const Clock& clock) {
  const BackendInfo& info = backend.info();
  ExecutorConfig clamped = config;
  auto clamp = [](int32_t& value, int32_t limit) { value = value == 0 ? limit : std::min(value, limit); };
  clamp(clamped.max_batch_size, info.max_batch_size);
  clamp(clamped.max_num_tokens, info.max_num_tokens);
  if (clamped.max_batch_size < 1) {
    return Refused("max_batch_size", fmt::format("max_batch_size {} must be at least 1", config.max_batch_size));
  }
  if (clamped.max_num_tokens < 1) {
    return Refused("max_num_tokens", fmt::format("max_num_tokens {} must be at least 1", config.max_num_tokens));
  }
  if (clamped.max_queue_size < 1) {
    return Refused("max_queue_size", fmt::format("max_queue_size {} must be at least 1", config.max_queue_size));
  }
  if (clamped.max_queue_tokens < 1) {
    return Refused("max_queue_tokens", fmt::format("max_queue_tokens {} must be at least 1", config.max_queue_tokens));
  }
  if (clamped.max_attention_window_size < 0) {
    return Refused("max_attention_window_size", fmt::format("max_attention_window_size {} is negative; 0 means all",
                                                            config.max_attention_window_size));
  }
  if (clamped.max_queue_delay_microseconds < 0) {
    return Refused("max_queue_delay_microseconds",
                   fmt::format("max_queue_delay_microseconds {} is negative", config.max_queue_delay_microseconds));
  }
  return std::unique_ptr<Executor>(std::make_unique<ExecutorLoop>(backend, clamped, clock));
}

ExecutorLoop::ExecutorLoop(Backend& backend, const ExecutorConfig& config, const Clock& clock)
    : backend_(backend),
      clock_(clock),
      config_(config),
      limits_{.max_seq_len = backend.info().max_seq_len,
              .tokens_per_block = backend.info().tokens_per_block,
              .attention_window = WindowOf(backend.info(), config),
              .enable_kv_cache_reuse = config.enable_kv_cache_reuse},
      arrivals_(static_cast<size_t>(config.max_queue_size)),
      cache_({.blocks = backend.info().blocks,
              .tokens_per_block = backend.info().tokens_per_block,
              .slots = config.max_batch_size,
              .blocks_per_sequence = CeilDiv(backend.info().max_seq_len, backend.info().tokens_per_block)}),
      plan_(CapacityFor(backend.info(), config)),
      decision_(config.max_batch_size),
      costs_(backend.info().step_costs.empty() ? config.step_costs : backend.info().step_costs,
             backend.info().attention_costs),
      // The window, the block begun before it, one a step in flight delays, and the largest chunk.
      window_blocks_max_(BlocksFor(limits_.attention_window) + BlocksFor(config.max_num_tokens) + 3) {
  auto slots = static_cast<size_t>(config.max_batch_size);
  auto tickets = static_cast<size_t>(std::max(backend.info().tickets_max, 1));
  flights_.reserve(tickets);
  for (size_t i = 0; i < tickets; ++i) {
    Flight& flight = flights_.emplace_back(cache_.MakeLease());
    flight.rows.reserve(slots);
    flight.slots.reserve(slots);
  }
  running_.reserve(slots);
  by_slot_.resize(slots);
  bound_requests_.resize(slots);
  free_slots_.reserve(slots);
  for (int32_t i = config.max_batch_size - 1; i >= 0; --i) free_slots_.push_back({i});
  views_.reserve(slots);
  viewed_.reserve(slots);
  pulled_.reserve(slots + kHeldBackMax);
  matched_.resize(static_cast<size_t>(CeilDiv(limits_.max_seq_len, limits_.tokens_per_block)) + 1);
}

ExecutorLoop::~ExecutorLoop() {
  Shutdown();
}

void ExecutorLoop::Start() {
  CHECK(!threaded_.exchange(true), "the executor is started already");
  thread_ = std::thread([this] { Run(); });
  if (config_.step_timeout > Nanos(0)) watchdog_thread_ = std::thread([this] { Watch(); });
}

void ExecutorLoop::Run() {
  pthread_setname_np(pthread_self(), "executor");
  while (!stopping_.load(std::memory_order_acquire)) {
    WaitToLaunch();
    Outcome outcome = Turn();
    if (outcome == Outcome::kTakenOver) {
      std::lock_guard lock(watch_mutex_);
      left_ = true;
      watch_.notify_all();
      return;
    }
    if (outcome == Outcome::kNothing && !UseIdleTime()) WaitForWork();
  }
}

// False when there is nothing to do in an idle moment.
bool ExecutorLoop::UseIdleTime() {
  if (!healthy() || company_until_) return false;
  Result<bool> more = backend_.UseIdleTime();
  if (!more.ok()) DeviceFault(more.error());
  return more.ok() && *more;
}

// With a step in flight the next one is planned late, shortly before the device needs it: who arrives until then joins
// it, and who got a last token in the step before may already have asked again. A step takes at least as long as the
// last one without context did. A step with context takes longer to queue: when somebody waits, it is planned earlier.
void ExecutorLoop::WaitToLaunch() {
  if (in_flight_ == 0 || in_flight_ == flights_.size()) return;
  Nanos end = newest_begin_ + generation_step_time_;
  for (Nanos lead : {kLaunchLead + context_launch_time_, kLaunchLead}) {
    Nanos wait = end - lead - clock_.Now();
    if (wait > Nanos(0)) std::this_thread::sleep_for(std::min(wait, kLaunchWaitMax));
    if (waiting_requests_.load(std::memory_order_relaxed) > 0) return;
  }
}

void ExecutorLoop::WaitForWork() {
  std::unique_lock lock(wake_mutex_);
  auto woken = [this] { return woken_; };
  if (company_until_) {
    wake_.wait_for(lock, std::max(*company_until_ - clock_.Now(), Nanos(0)), woken);
  } else {
    wake_.wait(lock, woken);
  }
  woken_ = false;
}

bool ExecutorLoop::AllEnded() const {
  std::lock_guard lock(registry_mutex_);
  return registry_.empty();
}

void ExecutorLoop::WaitUntilEnded(Nanos deadline) {
  if (!threaded_.load()) {
    while (!AllEnded() && clock_.Now() < deadline && Step()) {
    }
    return;
  }
  std::unique_lock lock(registry_mutex_);
  while (!registry_.empty() && clock_.Now() < deadline) all_ended_.wait_for(lock, kDrainPoll);
}

void ExecutorLoop::Drain(Nanos deadline) {
  {
    std::lock_guard lock(registry_mutex_);
    accepting_ = false;
  }
  draining_.store(true, std::memory_order_relaxed);
  Wake();
  WaitUntilEnded(deadline);
  cancel_all_.store(true, std::memory_order_release);
  Wake();
  WaitUntilEnded(Nanos::max());
}

void ExecutorLoop::Shutdown() {
  {
    std::lock_guard lock(registry_mutex_);
    accepting_ = false;
  }
  draining_.store(true, std::memory_order_relaxed);
  cancel_all_.store(true, std::memory_order_release);
  stopping_.store(true, std::memory_order_release);
  Wake();
  JoinThreads();
  threaded_.store(false);
  while (Step()) {  // ends what is left and takes the steps in flight home
  }
}

void ExecutorLoop::PublishStats(Nanos step_begin) {
  auto set = [](auto& counter, auto value) { counter.store(value, std::memory_order_relaxed); };
  int32_t cached = cache_.idle_count();
  set(counters_.running, static_cast<int32_t>(running_.size()));
  set(counters_.paused, paused_);
  set(counters_.blocks_cached, cached);
  set(counters_.blocks_used, cache_.total() - cache_.available());
  Nanos host = clock_.Now() - step_begin - in_backend_;
  if (in_backend_ == Nanos(0)) return;  // no step: nothing to say of one
  set(counters_.last_step_host_time, host.count());
  counters_.host_time.fetch_add(host.count(), std::memory_order_relaxed);
  counters_.launch_time.fetch_add(in_launch_.count(), std::memory_order_relaxed);
}

ExecutorStats ExecutorLoop::stats() const {
  auto get = [](const auto& counter) { return counter.load(std::memory_order_relaxed); };
  const Counters& c = counters_;
  std::array<uint64_t, ExecutorStats::kPaddingShares.size() + 1> by_padding;
  std::ranges::transform(c.steps_by_padding, by_padding.begin(), get);
  return {.steps = get(c.steps),
          .context_tokens = get(c.context_tokens),
          .generation_tokens = get(c.generation_tokens),
          .requests_finished = get(c.requests_finished),
          .preemptions = get(c.preemptions),
          .prefix_tokens_queried = get(c.prefix_tokens_queried),
          .prefix_tokens_reused = get(c.prefix_tokens_reused),
          .waiting = get(waiting_requests_),
          .running = get(c.running),
          .paused = get(c.paused),
          .waiting_tokens = get(waiting_tokens_),
          .last_step_context_tokens = get(c.last_step_context_tokens),
          .last_step_generation_rows = get(c.last_step_generation_rows),
          .last_step_context_rows = get(c.last_step_context_rows),
          .blocks_total = cache_.total(),
          .blocks_used = get(c.blocks_used),
          .blocks_cached = get(c.blocks_cached),
          .last_step_device_time = Nanos(get(c.last_step_device_time)),
          .last_step_host_time = Nanos(get(c.last_step_host_time)),
          .host_time = Nanos(get(c.host_time)),
          .launch_time = Nanos(get(c.launch_time)),
          .steps_kernel_by_kernel = get(c.steps_kernel_by_kernel),
          .steps_over_budget = get(c.steps_over_budget),
          .tokens_padded = get(c.tokens_padded),
          .steps_by_padding = by_padding,
          .allocations_in_steps = get(c.allocations_in_steps)};
}

std::string ExecutorLoop::fault() const {
  std::lock_guard lock(fault_mutex_);
  return fault_;
}

Result<void> ExecutorLoop::Audit() const {
  auto broken = [](std::string what) { return Error(Code::kInternal, std::move(what)); };
  std::vector<const BlockLease*> leases;
  std::vector<int> slot_uses(by_slot_.size(), 0);
  for (const Flight& flight : flights_) {
    leases.push_back(&flight.lease);
    for (SlotId slot : flight.slots) ++slot_uses[static_cast<size_t>(slot.value)];
  }
  RETURN_IF_ERROR(cache_.Audit(leases));
  for (SlotId slot : free_slots_) ++slot_uses[static_cast<size_t>(slot.value)];
  for (const Sequence* sequence : running_) {
    ++slot_uses[static_cast<size_t>(sequence->slot.value)];
    if (by_slot_[static_cast<size_t>(sequence->slot.value)] != sequence) {
      return broken(fmt::format("a slot knows its sequence: slot {}", sequence->slot));
    }
    if (cache_.table(sequence->slot).length < BlocksFor(sequence->cached)) {
      return broken(fmt::format("cached tokens have blocks: sequence {}, {} tokens", sequence->id, sequence->cached));
    }
  }
  for (size_t slot = 0; slot < slot_uses.size(); ++slot) {
    if (slot_uses[slot] != 1) return broken(fmt::format("a slot is in one place: slot {}, {}", slot, slot_uses[slot]));
  }
  if (static_cast<size_t>(paused_) > waiting_.size()) return broken("paused sequences wait");
  return {};
}

}  // namespace ekiben
