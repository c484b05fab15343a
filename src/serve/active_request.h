// A request between Submit and its last event: what preprocessing made of it and what postprocessing holds of its
// sequences. Internal to serve/.
// Thread: `input`, `tokens` and `sequences` belong to preprocessing until the executor accepted the request, then to
// its postprocessing instance; OnToken, OnPromptLogProbs and OnPooled run on the executor's thread; atomics are shared.
#pragma once
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "request/request.h"
#include "serve/service.h"
#include "serve/token_channel.h"
#include "text/detokenizer.h"

namespace ekiben::serve {

class ActiveRequest final : public TokenSink {
 public:
  struct Sequence {
    explicit Sequence(text::Detokenizer d) : detokenizer(std::move(d)) {}
    text::Detokenizer detokenizer;
    bool told_end = false;  // the sink has its last event; the executor's may still come
  };

  void OnToken(const TokenEvent& event) override {
    if (!overran.load(std::memory_order_relaxed)) {
      TokenItem item{.request = this,
                     .sequence_index = event.sequence_index,
                     .token = event.token,
                     .reason = event.reason,
                     .error_code = event.error_code,
                     .prompt_tokens_cached = event.prompt_tokens_cached,
                     .scheduled = event.scheduled,
                     .emitted = event.emitted};
      if (channel->Push(item, event.logprobs)) return;
      stalls->fetch_add(1, std::memory_order_relaxed);
    } else if (event.reason == FinishReason::kNone) {
      return;  // the request has failed already
    }
    TokenChannel* wake = channel;  // the last end counted may be this request's last moment
    if (!overran.exchange(true, std::memory_order_relaxed)) wake->PushOverflow(this);
    if (event.reason != FinishReason::kNone) {
      ends_lost.fetch_add(1, std::memory_order_release);
      wake->Wake();
    }
  }
  void OnPromptLogProbs(RequestId, const std::vector<PositionLogProbs>& positions) override {
    prompt_logprobs = positions;  // published by the next Push
  }

  void OnPooled(RequestId, std::span<const float> hidden) override {
    pooled.assign(hidden.begin(), hidden.end());  // published by the next Push
  }

  RequestId id{};
  RequestTimes times;
  TextRequest input;
  std::shared_ptr<TextSink> sink;
  std::shared_ptr<const Request> tokens;
  TokenChannel* channel = nullptr;
  std::atomic<uint64_t>* stalls = nullptr;
  std::vector<Sequence> sequences;
  std::vector<PositionLogProbs> prompt_logprobs;
  std::vector<float> pooled;
  bool prompt_told = false, failed = false;
  int32_t ends_seen = 0;

  std::atomic<bool> cancelled{false};
  std::atomic<bool> overran{false};   // an event found the channel full: the request fails, nothing more is pushed
  std::atomic<int32_t> ends_lost{0};  // last events that did not go through the channel
  ActiveRequest* next_overflow = nullptr;
};

}  // namespace ekiben::serve
