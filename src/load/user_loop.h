// One thread's share of the crowd: closed-loop users, each asking, reading its stream to the end, pausing, asking
// again. A failed request waits 100 ms before the next, so that a refusing server is not hammered and errors stay
// countable. Thread: Run on one thread; TakeInterval, users_active and in_flight from any.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <queue>
#include <string>
#include <vector>

#include "base/clock.h"
#include "load/prompts.h"
#include "load/recorder.h"
#include "load/transport.h"

namespace ekiben::load {

// When user `index` of `users` sends its first request, after the level's start: linear over the ramp.
constexpr Nanos RampStart(int32_t index, int32_t users, Nanos ramp) {
  return Nanos(users > 0 ? ramp.count() / users * index + ramp.count() % users * index / users : 0);
}

struct LoopPlan {
  uint32_t level = 0;                           // index, part of each prompt's name
  int32_t users_total = 1;                      // of the level
  int32_t first_user = 0, step = 1;             // this thread has users first_user, first_user + step, ...
  Nanos start{}, window_begin{}, window_end{};  // Clock::Now() values
  Nanos think{};                                // pause between an answer and the next question
  Nanos timeout = std::chrono::minutes(5);      // of one request
  bool check_output = false;                    // every answer must have exactly Prompt::max_tokens tokens
  uint64_t requests_max = UINT64_MAX;           // of this thread; reached: Run returns once they have ended
};

class UserLoop final : public StreamEventSink {
 public:
  // `transport` numbers this thread's users from 0. `stop` ends the run early; what was measured until then counts.
  UserLoop(const LoopPlan& plan, const PromptSource& prompts, Transport& transport, const Clock& clock,
           const std::atomic<bool>& stop);

  void Run();
  // Only after Run has returned.
  const Recorder& recorder() const { return recorder_; }

  Interval TakeInterval();
  int32_t users_active() const { return users_active_.load(std::memory_order_relaxed); }
  int32_t in_flight() const { return in_flight_.load(std::memory_order_relaxed); }

  void OnEvent(const StreamEvent& event) override;
  void OnConnected(Nanos took) override { recorder_.connect.Record(took.count()); }
  void OnReadLag(Nanos lag) override;
  void OnReconnect() override { ++recorder_.reconnects; }

  static int32_t UsersOf(const LoopPlan& plan) {
    return (plan.users_total - plan.first_user + plan.step - 1) / plan.step;
  }

 private:
  struct User {
    bool busy = false, said_totals = false, guessed = false, first_in_window = false;
    uint32_t number = 0;  // requests so far
    Nanos asked{}, sent{}, first{}, last{};
    int32_t tokens = 0, tokens_wanted = 0, prompt_tokens = -1, prompt_tokens_wanted = 0;
  };
  struct Due {
    Nanos when;
    int32_t user;
    bool operator>(const Due& other) const { return when > other.when; }
  };

  bool InWindow(Nanos when) const { return when >= plan_.window_begin && when < plan_.window_end; }
  void Ask(int32_t user, Nanos due);
  void OnChunk(User& user, const StreamEvent& event);
  void OnTokens(User& user, int32_t count, bool counted, Nanos when);
  void CountTokens(int32_t count, Nanos when);
  void Settle(User& user);
  void OnEnd(User& user, const StreamEvent& event);
  void OnFailed(User& user, const StreamEvent& event);
  void FailOverdue(Nanos now);
  void CutOff(Nanos now);
  void WatchCpu(Nanos now);

  LoopPlan plan_;
  const PromptSource& prompts_;
  Transport& transport_;
  const Clock& clock_;
  const std::atomic<bool>& stop_;
  std::vector<User> users_;
  std::priority_queue<Due, std::vector<Due>, std::greater<Due>> due_;
  std::string scratch_;
  uint64_t requests_ = 0;
  Nanos next_overdue_check_{};
  Recorder recorder_;
  bool cpu_begun_ = false;
  Nanos cpu_begin_{}, cpu_begin_when_{};
  std::atomic<int32_t> users_active_{0}, in_flight_{0};
  std::mutex interval_mutex_;
  Interval interval_;  // guarded by interval_mutex_
};

}  // namespace ekiben::load
