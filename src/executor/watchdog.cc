#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/log.h"
#include "executor/loop.h"

namespace ekiben {
namespace {

// How long Shutdown waits for a thread that the device holds.
constexpr auto kStuckWait = std::chrono::seconds(2);

}  // namespace

// Looks a few times in each timeout. After a fault this thread is the executor's: it ends everybody and refuses who
// comes, until Shutdown.
void ExecutorLoop::Watch() {
  auto period = std::clamp<Nanos>(config_.step_timeout / 8, std::chrono::milliseconds(1), std::chrono::seconds(1));
  std::unique_lock lock(watch_mutex_);
  while (!stopping_.load(std::memory_order_acquire)) {
    watch_.wait_for(lock, period);
    if (!calls_.TakeOver(clock_.Now(), config_.step_timeout)) continue;
    taken_over_ = true;
    lock.unlock();
    now_ = clock_.Now();
    DeviceFault(Error(Code::kUnavailable,
                      fmt::format("the device has not answered for step_timeout_s {}", Seconds(config_.step_timeout))));
    CompactRunning();
    PublishStats(now_);
    return Run();
  }
}

void ExecutorLoop::JoinThreads() {
  {
    std::lock_guard lock(watch_mutex_);
    watch_.notify_all();
  }
  if (watchdog_thread_.joinable()) watchdog_thread_.join();
  if (!thread_.joinable()) return;
  std::unique_lock lock(watch_mutex_);
  if (taken_over_ && !watch_.wait_for(lock, kStuckWait, [this] { return left_; })) {
    LOG_ERROR("the device still holds a thread: leaving without it");
    std::_Exit(1);
  }
  lock.unlock();
  thread_.join();
}

}  // namespace ekiben
