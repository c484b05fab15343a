// One client call that generates text: from the parsed body to the finished answer, whatever the surface. The base
// class owns the life cycle (submit, count the ends, cancel when the client leaves, fail once), the derived classes the
// words.
//
// Invariants: the answer is finished exactly once (done_); after that nothing is written and every request of the call
// is cancelled or has ended. Errors before the first byte are a status, later ones are the surface's own event.
// Thread: any; mutex_ guards everything below it and is held while the derived class is called.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "api/metrics.h"
#include "base/clock.h"
#include "http/server.h"
#include "serve/model_registry.h"
#include "serve/service.h"

namespace ekiben::api {

// A call of any surface, as the registry sees it.
class RunningCall {
 public:
  virtual ~RunningCall() = default;
  // Ends the call with an error, if it has not ended. From any thread.
  virtual void Fail(const Error& error) = 0;
};

// The calls that are running, so that a drain can end what is left of them.
class CallRegistry {
 public:
  void Add(const std::shared_ptr<RunningCall>& call);
  void Remove(RunningCall* call);
  size_t size() const;
  void FailAll(const Error& error);

 private:
  mutable std::mutex mutex_;
  std::unordered_map<RunningCall*, std::weak_ptr<RunningCall>> calls_;
};

// What a call uses; all references outlive the call.
struct CallContext {
  std::shared_ptr<serve::ServedModel> model;  // held: it is there until the call is over
  serve::Service& service;                    // the model's
  ModelMetrics& metrics;
  CallRegistry& registry;
  const Clock& clock;
};

class CompletionCall : public RunningCall, public std::enable_shared_from_this<CompletionCall> {
 public:
  CompletionCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer);
  ~CompletionCall() override;

  // Submits every prompt. `first_byte_timeout`: 504 when nothing could be sent by then; zero: none.
  void Begin(std::vector<serve::TextRequest> prompts, Nanos first_byte_timeout);
  void Fail(const Error& error) override;

 protected:
  struct Sequence {
    int32_t index = 0;  // of the choice: prompt index * n + sequence index
    int32_t output_tokens = 0;
    Nanos last_token{};
    FinishReason reason = FinishReason::kNone;
  };
  struct Prompt {
    RequestId id{};
    serve::PromptInfo info;
    bool known = false;
    std::vector<Sequence> sequences;
  };

  // mutex_ is held.
  virtual void PromptKnown(Prompt& prompt) = 0;
  virtual void Text(Prompt& prompt, Sequence& sequence, const serve::TextEvent& event) = 0;
  virtual void AllEnded() = 0;
  virtual void Broken(const Error& error) = 0;

  int64_t prompt_tokens() const;
  int64_t cached_tokens() const;
  int64_t output_tokens() const;

  const CallContext context_;
  const std::shared_ptr<http::ResponseWriter> writer_;
  const Nanos arrival_;
  std::vector<Prompt> prompts_;
  bool started_ = false;  // the head of the answer is out

 private:
  class Sink;

  void OnPrompt(size_t prompt_index, const serve::PromptInfo& info);
  void OnText(size_t prompt_index, const serve::TextEvent& event);
  void FailLocked(const Error& error);
  void ClientLeft();
  void CancelAllLocked();
  void LeaveLocked();
  void CountTokens(Sequence& sequence, const serve::TextEvent& event);

  std::mutex mutex_;
  size_t sequences_left_ = 0;
  bool first_token_seen_ = false, done_ = false;
};

}  // namespace ekiben::api
