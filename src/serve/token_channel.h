// Token events from the executor's thread to one postprocessing instance: a single-producer, single-consumer ring with
// all storage allocated at construction, so that Push neither allocates nor blocks.
//
// Log-probabilities travel in a second, smaller ring, in step with the events that carry one. A full ring refuses the
// event (Push says false): the caller marks the request as failed and hangs it on the overflow list, which has no limit
// because its links are inside the requests.
// Thread: Push and PushOverflow from one thread, Pop and TakeOverflow from another.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "base/arithmetic.h"
#include "base/check.h"
#include "request/request.h"

namespace ekiben::serve {

class ActiveRequest;

struct TokenItem {
  ActiveRequest* request = nullptr;
  int32_t sequence_index = 0;
  TokenId token = -1;
  FinishReason reason = FinishReason::kNone;
  Code error_code = Code::kInternal;
  int32_t prompt_tokens_cached = 0;
  bool has_logprobs = false;
  Nanos scheduled{}, emitted{};
};

class TokenChannel {
 public:
  explicit TokenChannel(size_t events_max)
      : events_(events_max), logprobs_(std::max<size_t>(1, events_max / kEventsPerLogProbs)) {
    CHECK_GT(events_max, 0u);
  }

  // Copies `logprobs` when not null.
  [[nodiscard]] bool Push(TokenItem item, const PositionLogProbs* logprobs) {
    uint64_t head = head_.load(std::memory_order_relaxed);
    if (head - tail_.load(std::memory_order_acquire) == events_.size()) return false;
    item.has_logprobs = logprobs != nullptr;
    if (logprobs != nullptr) {
      if (logprobs_head_ - logprobs_tail_.load(std::memory_order_acquire) == logprobs_.size()) return false;
      logprobs_[logprobs_head_++ % logprobs_.size()] = *logprobs;
    }
    events_[head % events_.size()] = item;
    head_.store(head + 1, std::memory_order_release);
    Wake();
    return true;
  }

  // Links `request`, through its `next_overflow`, to the overflow list.
  template <class Request>
  void PushOverflow(Request* request) {
    ActiveRequest* first = overflow_.load(std::memory_order_relaxed);
    do request->next_overflow = first;
    while (!overflow_.compare_exchange_weak(first, request, std::memory_order_release, std::memory_order_relaxed));
    Wake();
  }
  ActiveRequest* TakeOverflow() { return overflow_.exchange(nullptr, std::memory_order_acquire); }

  // False when empty. `logprobs` is filled when the item says so.
  bool Pop(TokenItem& item, PositionLogProbs& logprobs) {
    uint64_t tail = tail_.load(std::memory_order_relaxed);
    if (tail == head_.load(std::memory_order_acquire)) return false;
    item = events_[tail % events_.size()];
    if (item.has_logprobs) {
      uint64_t at = logprobs_tail_.load(std::memory_order_relaxed);
      logprobs = logprobs_[at % logprobs_.size()];
      logprobs_tail_.store(at + 1, std::memory_order_release);
    }
    tail_.store(tail + 1, std::memory_order_release);
    return true;
  }

  // Read it, look for work, and only then Wait(it): no wake-up is lost.
  int32_t ticket() const { return signal_.load(std::memory_order_acquire); }
  void Wait(int32_t ticket) const { signal_.wait(ticket, std::memory_order_acquire); }
  void Wake() {
    signal_.fetch_add(1, std::memory_order_release);
    signal_.notify_one();
  }

  size_t size() const {
    uint64_t tail = tail_.load(std::memory_order_acquire);
    return static_cast<size_t>(head_.load(std::memory_order_acquire) - tail);
  }

 private:
  static constexpr size_t kEventsPerLogProbs = 8;  // an event is 56 bytes, log-probabilities 172

  std::vector<TokenItem> events_;
  std::vector<PositionLogProbs> logprobs_;
  uint64_t logprobs_head_ = 0;
  alignas(64) std::atomic<uint64_t> head_{0};
  alignas(64) std::atomic<uint64_t> tail_{0};
  std::atomic<uint64_t> logprobs_tail_{0};
  alignas(64) std::atomic<int32_t> signal_{0};
  std::atomic<ActiveRequest*> overflow_{nullptr};
};

}  // namespace ekiben::serve
