// A double of the executor for tests of the stages above it: a thread that gives every running sequence one token a
// turn, out of a function, with slots, a queue, cancels, stops and deadlines as executor.h promises them. No schedule,
// no cache, no model.
// Thread: as executor.h says.
#pragma once
#include <condition_variable>
#include <functional>
#include <list>
#include <mutex>
#include <set>
#include <thread>

#include "executor/executor.h"

namespace ekiben::serve::testing {

struct ScriptedOptions {
  int32_t max_batch_size = 64;  // sequences
  int32_t max_queue_size = 1024;
  Nanos turn_time{};  // sleeps so long before each turn
  // The token of `request`'s sequence at `position`; -1 ends it with an end token.
  std::function<TokenId(const Request&, int32_t sequence_index, int32_t position)> next_token;
};

// Repeats the bytes of the prompt, specials left out: an answer that a test can predict.
TokenId EchoToken(const Request& request, int32_t sequence_index, int32_t position);

class ScriptedExecutor final : public Executor {
 public:
  ScriptedExecutor(ScriptedOptions options, const Clock& clock) : options_(std::move(options)), clock_(clock) {}
  ~ScriptedExecutor() override { Shutdown(); }

  Result<void> Submit(std::shared_ptr<const Request> request, TokenSink* sink) override;
  void Cancel(RequestId id) override;
  void Stop(RequestId id, int32_t sequence_index, FinishReason reason) override;
  void Start() override;
  bool Step() override;
  void Drain(Nanos deadline) override;
  void Shutdown() override;
  ExecutorStats stats() const override;
  bool healthy() const override { return healthy_; }
  std::string fault() const override { return healthy_ ? "" : "the device is gone"; }
  Result<void> Audit() const override { return {}; }

  // As after a device fault: everything in flight ends with kError.
  void BreakDevice();

 private:
  struct Sequence {
    std::shared_ptr<const Request> request;
    TokenSink* sink = nullptr;
    int32_t index = 0, position = 0;
    bool running = false;
    Nanos scheduled{};
    FinishReason asked = FinishReason::kNone;  // by Cancel or Stop
  };
  void Run();
  bool Turn(Sequence& sequence);

  const ScriptedOptions options_;
  const Clock& clock_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Sequence> sequences_;
  ExecutorStats stats_;
  std::atomic<bool> healthy_{true};
  bool draining_ = false, stopping_ = false;
  std::thread thread_;
};

}  // namespace ekiben::serve::testing
