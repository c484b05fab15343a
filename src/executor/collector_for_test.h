// What tests of the executor share: requests, and a sink that keeps what came. Thread: any.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "request/request.h"

namespace ekiben {

struct Stream {
  std::vector<TokenId> tokens;
  FinishReason reason = FinishReason::kNone;
  Code error = Code::kInternal;
  int32_t cached = 0;
  int ends = 0;
};

class Collector final : public TokenSink {
 public:
  void OnToken(const TokenEvent& event) override {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[{event.request.value, event.sequence_index}];
    EXPECT_EQ(stream.ends, 0) << "an event after the end";
    if (event.token >= 0 && event.reason != FinishReason::kEndToken) stream.tokens.push_back(event.token);
    stream.cached += event.prompt_tokens_cached;
    if (event.reason == FinishReason::kNone) return;
    stream.reason = event.reason;
    stream.error = event.error_code;
    ++stream.ends;
  }
  void OnPromptLogProbs(RequestId, const std::vector<PositionLogProbs>& positions) override {
    prompt_logprobs = positions;
  }
  Stream stream(uint64_t request, int32_t index = 0) {
    std::lock_guard lock(mutex_);
    return streams_[{request, index}];
  }
  size_t ended() {
    std::lock_guard lock(mutex_);
    return static_cast<size_t>(std::ranges::count_if(streams_, [](auto& s) { return s.second.ends == 1; }));
  }
  std::vector<PositionLogProbs> prompt_logprobs;

 private:
  std::mutex mutex_;
  std::map<std::pair<uint64_t, int32_t>, Stream> streams_;
};

inline std::shared_ptr<Request> MakeRequest(uint64_t id, std::vector<TokenId> prompt, int32_t max_tokens) {
  auto request = std::make_shared<Request>();
  request->id = {id};
  request->prompt = std::move(prompt);
  request->max_tokens = max_tokens;
  request->sampling.seed = id;
  return request;
}

inline std::vector<TokenId> Tokens(int32_t count, TokenId from = 1) {
  std::vector<TokenId> out(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = (from + i * 7) % 500;
  return out;
}

}  // namespace ekiben
