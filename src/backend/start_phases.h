// What a device does before it is ready: a log line where each phase begins, so that a start of seconds is not silent,
// and their times in one line at its end. One thread.
#pragma once
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/log.h"

namespace ekiben {

class StartPhases {
 public:
  explicit StartPhases(const Clock& clock) : clock_(clock) {}

  // Ends the phase before it.
  void Begin(std::string_view phase) {
    End();
    LOG_INFO("GPU start: {}", phase);
    phase_ = phase;
  }
  // Ends the last phase. "device 0.23 s, weights 0.13 s, ..."
  const std::string& Text() {
    End();
    return text_;
  }

 private:
  void End() {
    Nanos now = clock_.Now();
    if (!phase_.empty())
      text_ += fmt::format("{}{} {:.2f} s", text_.empty() ? "" : ", ", phase_, Seconds(now - begin_));
    phase_.clear();
    begin_ = now;
  }

  const Clock& clock_;
  Nanos begin_{};
  std::string phase_, text_;
};

}  // namespace ekiben
