// Who owns the executor's state while its thread is inside the backend: normally that thread, as everywhere else; but a
// device may never answer, and then a watchdog takes the state over. The thread that comes back late finds out here,
// before it touches anything, and leaves.
//
// Thread: Enter and Leave from the executor's; TakeOver from the watchdog's.
#pragma once
#include <atomic>
#include <cstdint>

#include "base/clock.h"

namespace ekiben {

class BackendCalls {
 public:
  void Enter(Nanos now) {
    began_.store(now.count(), std::memory_order_relaxed);
    state_.store(++calls_ * 2 + 1, std::memory_order_release);
  }
  // False: taken over meanwhile.
  [[nodiscard]] bool Leave() {
    uint64_t inside = calls_ * 2 + 1;
    return state_.compare_exchange_strong(inside, calls_ * 2, std::memory_order_acq_rel);
  }
  // True: a call has taken longer than `limit`, and the caller owns the executor's state from here on.
  bool TakeOver(Nanos now, Nanos limit) {
    uint64_t state = state_.load(std::memory_order_acquire);
    bool inside = state % 2 == 1 && state != kTakenOver;
    if (!inside || now.count() - began_.load(std::memory_order_relaxed) <= limit.count()) return false;
    return state_.compare_exchange_strong(state, kTakenOver, std::memory_order_acq_rel);
  }

 private:
  static constexpr uint64_t kTakenOver = UINT64_MAX;
  std::atomic<uint64_t> state_{0};  // 2 * calls, + 1 inside one
  std::atomic<int64_t> began_{0};
  uint64_t calls_ = 0;  // the executor's
};

}  // namespace ekiben
