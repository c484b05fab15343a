#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "executor/loop.h"

namespace ekiben {

// Waits for the oldest step and makes its results visible.
ExecutorLoop::Outcome ExecutorLoop::FinishOldest() {
  Flight& flight = flights_[oldest_flight_];
  Nanos begin = clock_.Now();
  calls_.Enter(begin);
  Result<StepResult> result = backend_.Finish(flight.ticket);
  if (!calls_.Leave()) return Outcome::kTakenOver;
  now_ = clock_.Now();
  in_backend_ += now_ - begin;
  if (!result.ok()) {
    DeviceFault(result.error());
    return Outcome::kFault;
  }
  oldest_flight_ = (oldest_flight_ + 1) % flights_.size();
  --in_flight_;
  ReturnFlight(flight);
  CHECK_EQ(result->rows.size(), flight.rows.size());
  int32_t context_tokens = 0, generation_rows = 0;
  for (size_t i = 0; i < flight.rows.size(); ++i) {
    bool generation = i >= flight.context_rows;
    generation_rows += generation;
    context_tokens += generation ? 0 : flight.rows[i].token_count;
    CommitRow(flight.rows[i], result->rows[i]);
  }
  newest_begin_ = now_;
  if (context_tokens == 0) generation_step_time_ = result->device_time;
  costs_.Observe(generation_rows, flight.context, result->device_time);
  CountStep(flight, *result);
  counters_.steps.fetch_add(1, std::memory_order_relaxed);
  counters_.context_tokens.fetch_add(static_cast<uint64_t>(context_tokens), std::memory_order_relaxed);
  counters_.generation_tokens.fetch_add(static_cast<uint64_t>(generation_rows), std::memory_order_relaxed);
  counters_.last_step_context_tokens.store(context_tokens, std::memory_order_relaxed);
  counters_.last_step_generation_rows.store(generation_rows, std::memory_order_relaxed);
  counters_.last_step_context_rows.store(static_cast<int32_t>(flight.context_rows), std::memory_order_relaxed);
  counters_.last_step_device_time.store(result->device_time.count(), std::memory_order_relaxed);
  return Outcome::kWorked;
}

void ExecutorLoop::CountStep(const Flight& flight, const StepResult& result) {
  auto add = [](auto& counter, uint64_t value) { counter.fetch_add(value, std::memory_order_relaxed); };
  int32_t tokens = 0;
  for (const Flight::Row& row : flight.rows) tokens += row.token_count;
  double share = static_cast<double>(result.tokens_padded) / tokens;
  auto at = std::ranges::lower_bound(ExecutorStats::kPaddingShares, share) - ExecutorStats::kPaddingShares.begin();
  add(counters_.steps_by_padding[static_cast<size_t>(at)], 1);
  add(counters_.tokens_padded, static_cast<uint64_t>(result.tokens_padded));
  add(counters_.steps_kernel_by_kernel, result.kernel_by_kernel);
  add(counters_.steps_over_budget, static_cast<double>(result.device_time.count()) > flight.nanos_max);
}

void ExecutorLoop::ReturnFlight(Flight& flight) {
  flight.lease.Return();
  for (SlotId slot : flight.slots) free_slots_.push_back(slot);
  flight.slots.clear();
}

void ExecutorLoop::CommitRow(const Flight::Row& row, const RowResult& result) {
  CHECK(result.slot == row.slot && result.sequence == row.sequence, "slot {} for slot {}", result.slot, row.slot);
  Sequence* sequence = by_slot_[static_cast<size_t>(row.slot.value)];
  if (sequence == nullptr || sequence->id != row.sequence) return;  // ended meanwhile: the row was for nothing
  sequence->computed = row.position + row.token_count;
  sequence->samples_in_flight -= row.samples;
  if (!result.finite) {
    cache_.Distrust(row.slot);
    LOG_WARNING("request {}: logits are not finite at token {}; the request ends", sequence->owner->request->id,
                sequence->computed);
    return EndWith(*sequence, FinishReason::kError, Code::kInternal);
  }
  KeepPromptLogProbs(*sequence, row, result);
  cache_.Commit(row.slot, sequence->owner->salt, sequence->tokens, sequence->keys,
                sequence->computed / limits_.tokens_per_block);
  if (limits_.attention_window > 0) {
    int32_t first_needed = std::max(0, sequence->cached - limits_.attention_window + 1) / limits_.tokens_per_block;
    cache_.GiveBack(row.slot, first_needed, LeaseNaming(*sequence));
  }
  if (row.samples) {
    CHECK_EQ(result.token_count, 1);
    AcceptToken(*sequence, result.tokens[0], result.logprobs);
  } else if (sequence->generated_max == 0 && sequence->computed >= sequence->prompt_tokens) {
    if (!result.hidden.empty()) sequence->owner->sink->OnPooled(sequence->owner->request->id, result.hidden);
    EndWith(*sequence, FinishReason::kLength);
  }
}

void ExecutorLoop::KeepPromptLogProbs(Sequence& sequence, const Flight::Row& row, const RowResult& result) {
  RequestState& state = *sequence.owner;
  if (!WantsEveryLogit(sequence)) return;
  std::vector<PositionLogProbs>& all = state.prompt_logprobs;
  auto begin = static_cast<size_t>(row.position);
  for (size_t i = 0; i < result.prompt_logprobs.size() && begin + i < all.size(); ++i) {
    all[begin + i] = result.prompt_logprobs[i];
  }
  if (sequence.computed < sequence.prompt_tokens) return;
  state.prompt_scored = true;
  if (state.request->prompt_logprobs) state.sink->OnPromptLogProbs(state.request->id, all);
}

void ExecutorLoop::AcceptToken(Sequence& sequence, TokenId token, const PositionLogProbs* logprobs) {
  const Request& request = *sequence.owner->request;
  FinishReason reason = FinishReason::kNone;
  if (!request.ignore_eos && std::ranges::find(request.stop_tokens, token) != request.stop_tokens.end()) {
    reason = FinishReason::kEndToken;
  } else {
    AppendToken(sequence, token, limits_.tokens_per_block);
    if (sequence.generated() == sequence.generated_max) reason = FinishReason::kLength;
  }
  Emit(sequence, token, reason, Code::kInternal, logprobs);
  if (reason != FinishReason::kNone) End(sequence);
}

void ExecutorLoop::Emit(Sequence& sequence, TokenId token, FinishReason reason, Code error,
                        const PositionLogProbs* logprobs) {
  RequestState& state = *sequence.owner;
  bool first = !std::exchange(sequence.reuse_reported, true);
  state.sink->OnToken({.request = state.request->id,
                       .sequence_index = sequence.index,
                       .token = token,
                       .reason = reason,
                       .error_code = error,
                       .prompt_tokens_cached = first ? sequence.prompt_tokens_reused : 0,
                       .scheduled = sequence.scheduled,
                       .emitted = now_,
                       .logprobs = logprobs});
}

void ExecutorLoop::EndWith(Sequence& sequence, FinishReason reason, Code error) {
  if (Planted(PlantedBug::kLeak) && reason == FinishReason::kCancelled && sequence.slot.value >= 0) {
    const BlockTable& table = cache_.table(sequence.slot);
    if (table.length > 0) cache_.Acquire(table.blocks().back());
  }
  Emit(sequence, -1, reason, error);
  End(sequence);
}

void ExecutorLoop::End(Sequence& sequence) {
  RequestState& state = *sequence.owner;
  if (sequence.phase == Phase::kWaiting) {
    waiting_.Remove(&sequence);
    if (std::exchange(sequence.paused, false)) --paused_;
  } else {
    ReleaseSlot(sequence);
  }
  sequence.phase = Phase::kEnded;
  if (--state.alive == 0) EndRequest(state);
}

void ExecutorLoop::EndRequest(RequestState& state) {
  if (!state.started) LeaveQueue(*state.request);
  counters_.requests_finished.fetch_add(1, std::memory_order_relaxed);
  live_.Remove(&state);
  ended_.PushBack(&state);
  std::lock_guard lock(registry_mutex_);
  registry_.erase(state.request->id.value);
  if (registry_.empty()) all_ended_.notify_all();
}

// The newest step in flight that names the sequence; null when none does.
ExecutorLoop::Flight* ExecutorLoop::NewestNaming(const Sequence& sequence) {
  for (size_t i = 0; i < in_flight_; ++i) {
    Flight& flight = flights_[(oldest_flight_ + i) % flights_.size()];
    if (flight.number == sequence.last_ticket) return &flight;
  }
  return nullptr;
}

BlockLease* ExecutorLoop::LeaseNaming(const Sequence& sequence) {
  if (Planted(PlantedBug::kEarlyRelease)) return nullptr;
  Flight* flight = NewestNaming(sequence);
  return flight == nullptr ? nullptr : &flight->lease;
}

void ExecutorLoop::ReleaseSlot(Sequence& sequence) {
  cache_.Retire(sequence.slot, LeaseNaming(sequence));
  by_slot_[static_cast<size_t>(sequence.slot.value)] = nullptr;
  if (Flight* flight = NewestNaming(sequence)) {
    flight->slots.push_back(sequence.slot);
  } else {
    free_slots_.push_back(sequence.slot);
  }
  sequence.slot = {-1};
}

void ExecutorLoop::EndAll(FinishReason reason, Code error) {
  while (RequestState* state = live_.first()) {
    for (int32_t i = 0; i < state->request->n; ++i) {
      Sequence& sequence = state->sequences[static_cast<size_t>(i)];
      if (sequence.phase != Phase::kEnded) EndWith(sequence, reason, error);
    }
  }
}

// The device is not asked again: what was in flight is gone, everyone hears of it, and the supervisor decides.
void ExecutorLoop::DeviceFault(const Error& error) {
  LOG_ERROR("device fault, no further step will run: {}", error.message());
  {
    std::lock_guard lock(fault_mutex_);
    fault_ = error.message();
  }
  healthy_.store(false, std::memory_order_release);
  for (; in_flight_ > 0; --in_flight_) {
    ReturnFlight(flights_[oldest_flight_]);
    oldest_flight_ = (oldest_flight_ + 1) % flights_.size();
  }
  EndAll(FinishReason::kError, Code::kUnavailable);
}

// Sequences without a slot leave the running list; then the ended requests' memory can go.
void ExecutorLoop::CompactRunning() {
  std::erase_if(running_, [](const Sequence* sequence) { return sequence->phase == Phase::kEnded; });
  while (RequestState* state = ended_.first()) {
    ended_.Remove(state);
    std::unique_ptr<RequestState>(state).reset();  // the owner that TakeArrivals let go
  }
}

}  // namespace ekiben
