#include <fmt/format.h>

#include <algorithm>

#include "executor/loop.h"

namespace ekiben {
namespace {

constexpr int32_t kSequencesMax = 128;  // n

}  // namespace

Result<void> ExecutorLoop::Validate(const Request& request) const {
  auto invalid = [](std::string_view field, std::string message) {
    return Error(Code::kInvalid, std::move(message), std::string(field));
  };
  const BackendInfo& info = backend_.info();
  auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (prompt_tokens == 0) return invalid("prompt", "prompt is empty: give at least one token");
  if (request.max_tokens < 0)
    return invalid("max_tokens", fmt::format("max_tokens {} is negative", request.max_tokens));
  int64_t prompt_max = info.max_seq_len - (request.max_tokens > 0 ? 1 : 0);
  if (prompt_tokens > prompt_max) {
    return invalid("prompt", fmt::format("prompt of {} tokens is over the limit of {} (max_seq_len {}): shorten it, or "
                                         "build the engine with a larger max_seq_len",
                                         prompt_tokens, prompt_max, info.max_seq_len));
  }
  if (!config_.enable_chunked_context && prompt_tokens > config_.max_num_tokens) {
    return invalid("prompt", fmt::format("prompt of {} tokens is over max_num_tokens {}: shorten it, or serve with "
                                         "enable_chunked_context",
                                         prompt_tokens, config_.max_num_tokens));
  }
  auto outside = std::ranges::find_if(request.prompt, [&](TokenId t) { return t < 0 || t >= info.vocab_size; });
  if (outside != request.prompt.end()) {
    return invalid("prompt", fmt::format("prompt[{}] is token {}, outside the vocabulary of {}",
                                         outside - request.prompt.begin(), *outside, info.vocab_size));
  }
  if (request.pooling != Pooling::kNone && !info.pools_hidden)
    return Error(Code::kUnsupported,
                 fmt::format("input: embeddings are not offered by the backend '{}'; the CPU's has "
                             "them (--device cpu)",
                             info.name),
                 "input");
  if (request.logits != nullptr && !info.gathers_logits)
    return Error(
        Code::kUnsupported,
        fmt::format("logits are not offered by the backend '{}'; the CPU's has them (--device cpu)", info.name),
        "return_context_logits");
  if (request.n < 1 || request.n > kSequencesMax) {
    return invalid("n", fmt::format("n {} is outside [1, {}]", request.n, kSequencesMax));
  }
  int64_t output = std::min<int64_t>(request.max_tokens, info.max_seq_len - prompt_tokens);
  int64_t blocks = BlocksFor(static_cast<int32_t>(prompt_tokens + std::max<int64_t>(output - 1, 0)));
  if (limits_.attention_window > 0) blocks = std::min<int64_t>(blocks, window_blocks_max_);
  if (blocks > info.blocks) {
    return invalid("max_tokens", fmt::format("prompt of {} and output of {} tokens need {} KV blocks, the pool has {}: "
                                             "lower max_tokens, or serve with more KV memory",
                                             prompt_tokens, output, blocks, info.blocks));
  }
  return ekiben::Validate(request.sampling, info.vocab_size);
}

// Counts a request in, or says which bound of the queue refuses it.
Result<void> ExecutorLoop::EnterQueue(const Request& request) {
  auto tokens = static_cast<int64_t>(request.prompt.size());
  int32_t requests_before = waiting_requests_.fetch_add(1, std::memory_order_relaxed);
  int64_t tokens_before = waiting_tokens_.fetch_add(tokens, std::memory_order_relaxed);
  if (requests_before >= config_.max_queue_size) {
    LeaveQueue(request);
    return Error(Code::kOverloaded, fmt::format("{} requests are waiting, max_queue_size is {}: try again later",
                                                config_.max_queue_size, config_.max_queue_size));
  }
  // A prompt that meets no other is taken whatever its length: Validate has bounded it.
  if (tokens_before > 0 && tokens_before + tokens > config_.max_queue_tokens) {
    LeaveQueue(request);
    return Error(Code::kOverloaded,
                 fmt::format("prompt of {} tokens: prompts of {} tokens are waiting, max_queue_tokens "
                             "is {}: try again later",
                             tokens, tokens_before, config_.max_queue_tokens));
  }
  return {};
}

void ExecutorLoop::LeaveQueue(const Request& request) {
  waiting_requests_.fetch_sub(1, std::memory_order_relaxed);
  waiting_tokens_.fetch_sub(static_cast<int64_t>(request.prompt.size()), std::memory_order_relaxed);
}

Result<void> ExecutorLoop::Submit(std::shared_ptr<const Request> request, TokenSink* sink) {
  CHECK(request != nullptr && sink != nullptr);
  if (!healthy()) return Error(Code::kUnavailable, fmt::format("the device has failed: {}", fault()));
  RETURN_IF_ERROR(Validate(*request));
  RETURN_IF_ERROR(EnterQueue(*request));
  auto n = static_cast<uint64_t>(request->n);
  SequenceId first{next_sequence_.fetch_add(n, std::memory_order_relaxed)};
  std::unique_ptr<RequestState> state = MakeRequestState(std::move(request), sink, limits_, first);
  {
    std::lock_guard lock(registry_mutex_);
    if (!accepting_) {
      LeaveQueue(*state->request);
      return Error(Code::kUnavailable, "the server is shutting down and takes no new requests");
    }
    state->arrival_order = next_arrival_++;
    auto [at, is_new] = registry_.try_emplace(state->request->id.value, state.get());
    CHECK(is_new, "request id {} is in use", state->request->id);
    CHECK(arrivals_.TryPush(std::move(state)));  // as many places as waiting requests
  }
  Wake();
  return {};
}

void ExecutorLoop::Cancel(RequestId id) {
  {
    std::lock_guard lock(registry_mutex_);
    auto found = registry_.find(id.value);
    if (found == registry_.end()) return;
    found->second->cancelled.store(true, std::memory_order_release);
    asked_.store(true, std::memory_order_release);
  }
  Wake();
}

void ExecutorLoop::Stop(RequestId id, int32_t sequence_index, FinishReason reason) {
  CHECK(reason != FinishReason::kNone);
  {
    std::lock_guard lock(registry_mutex_);
    auto found = registry_.find(id.value);
    if (found == registry_.end() || sequence_index < 0 || sequence_index >= found->second->request->n) return;
    found->second->sequences[static_cast<size_t>(sequence_index)].stop.store(reason, std::memory_order_release);
    asked_.store(true, std::memory_order_release);
  }
  Wake();
}

void ExecutorLoop::Wake() {
  {
    std::lock_guard lock(wake_mutex_);
    woken_ = true;
  }
  wake_.notify_one();
}

bool ExecutorLoop::TakeArrivals() {
  bool any = false;
  while (std::optional<std::unique_ptr<RequestState>> arrival = arrivals_.TryPop()) {
    any = true;
    RequestState& state = *arrival->release();  // owned by live_, then by ended_
    live_.PushBack(&state);
    for (int32_t i = 0; i < state.request->n; ++i) {
      waiting_.InsertSorted(&state.sequences[static_cast<size_t>(i)], StartsBefore);
    }
    if (state.request->deadline) next_deadline_ = std::min(next_deadline_, *state.request->deadline);
    // A cancel may have come while it was on its way, and the scan for it be over.
    EndIfAsked(state, now_);
  }
  return any;
}

bool ExecutorLoop::EndCancelledAndExpired(Nanos now) {
  if (cancel_all_.load(std::memory_order_acquire) && !live_.empty()) {
    EndAll(FinishReason::kCancelled, Code::kCancelled);
    return true;
  }
  if (!healthy() && !live_.empty()) {
    EndAll(FinishReason::kError, Code::kUnavailable);
    return true;
  }
  bool asked = asked_.exchange(false, std::memory_order_acq_rel);
  if (!asked && now < next_deadline_) return false;
  bool any = false;
  next_deadline_ = Nanos::max();
  for (RequestState *state = live_.first(), *next; state != nullptr; state = next) {
    next = decltype(live_)::Next(state);
    if (EndIfAsked(*state, now)) {
      any = true;
    } else if (state->request->deadline) {
      next_deadline_ = std::min(next_deadline_, *state->request->deadline);
    }
  }
  return any;
}

// True when the whole request ended.
bool ExecutorLoop::EndIfAsked(RequestState& state, Nanos now) {
  if (Planted(PlantedBug::kLostCancel) && !state.started) state.cancelled = false;
  FinishReason reason = FinishReason::kNone;
  if (state.request->deadline && *state.request->deadline <= now) reason = FinishReason::kDeadline;
  if (state.cancelled.load(std::memory_order_acquire)) reason = FinishReason::kCancelled;
  for (int32_t i = 0; i < state.request->n; ++i) {
    Sequence& sequence = state.sequences[static_cast<size_t>(i)];
    FinishReason own = reason;
    if (own == FinishReason::kNone) own = sequence.stop.load(std::memory_order_acquire);
    if (own != FinishReason::kNone && sequence.phase != Phase::kEnded) EndWith(sequence, own);
  }
  return state.alive == 0;
}

}  // namespace ekiben
