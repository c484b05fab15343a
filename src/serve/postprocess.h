// The last stage: one instance turns the tokens of its requests into text events. Internal to serve/.
// A request stays with one instance, so its events keep their order.
// Thread: Run is the instance's own thread.
#pragma once
#include <atomic>
#include <functional>

#include "serve/active_request.h"

namespace ekiben::serve {

class Postprocessor {
 public:
  // `release` is called once for a request, after its n-th last event: nothing refers to it any more.
  Postprocessor(Executor& executor, size_t queue_max, std::function<void(RequestId)> release)
      : executor_(executor), channel_(queue_max), release_(std::move(release)) {}

  TokenChannel& channel() { return channel_; }
  // Until Stop, then until the channel is empty.
  void Run();
  void Stop();
  uint64_t output_tokens() const { return output_tokens_.load(std::memory_order_relaxed); }

 private:
  void Handle(const TokenItem& item, const PositionLogProbs& logprobs);
  bool HandleOverrun();
  void TellPrompt(ActiveRequest& request, const TokenItem& item);
  void TellText(ActiveRequest& request, const TokenItem& item, const PositionLogProbs& logprobs);
  void Fail(ActiveRequest& request, const Error& error);
  static bool Ended(const ActiveRequest& request);

  Executor& executor_;
  TokenChannel channel_;
  const std::function<void(RequestId)> release_;
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> output_tokens_{0};
  std::vector<ActiveRequest*> overran_;  // failed, with ends still to be counted
  std::string text_;                     // of the event at hand; keeps its storage
};

}  // namespace ekiben::serve
