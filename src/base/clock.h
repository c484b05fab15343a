// Time is injected, so that the scheduler, timeouts and the load client run the same under a simulated clock.
// Steady time drives every timeout and latency; wall time is only printed (the `created` field, log lines).
// Thread: SystemClock is stateless; FakeClock may be advanced by one thread and read by any.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>

namespace ekiben {

using Nanos = std::chrono::nanoseconds;

class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic, from an arbitrary origin.
  virtual Nanos Now() const = 0;
  // Since the Unix epoch.
  virtual Nanos WallNow() const = 0;
};

class SystemClock final : public Clock {
 public:
  Nanos Now() const override { return std::chrono::steady_clock::now().time_since_epoch(); }
  Nanos WallNow() const override { return std::chrono::system_clock::now().time_since_epoch(); }
  // The one instance that main hands out.
  static SystemClock& Get() {
    static SystemClock clock;
    return clock;
  }
};

class FakeClock final : public Clock {
 public:
  Nanos Now() const override { return Nanos(now_.load(std::memory_order_acquire)); }
  Nanos WallNow() const override { return Now() + Nanos(1'700'000'000'000'000'000); }
  void Advance(Nanos by) { now_.fetch_add(by.count(), std::memory_order_acq_rel); }

 private:
  std::atomic<int64_t> now_{0};
};

inline double Seconds(Nanos t) {
  return std::chrono::duration<double>(t).count();
}
inline double Millis(Nanos t) {
  return std::chrono::duration<double, std::milli>(t).count();
}

}  // namespace ekiben
