#include "cli/terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "base/human.h"

namespace ekiben::cli {

bool IsTerminal() {
  return ::isatty(STDERR_FILENO) == 1;
}

ProgressLine::ProgressLine(std::string title, std::string noun, const Clock& clock)
    : title_(std::move(title)), noun_(std::move(noun)), clock_(clock), begin_(clock.Now()), terminal_(IsTerminal()) {}

ProgressLine::~ProgressLine() {
  if (open_) std::fputc('\n', stderr);
}

void ProgressLine::Update(int64_t done, int64_t total, const std::string& detail) {
  Nanos now = clock_.Now();
  Nanos period = terminal_ ? Nanos(std::chrono::milliseconds(100)) : Nanos(std::chrono::seconds(5));
  if (now - last_ < period && done < total) return;
  last_ = now;
  double seconds = Seconds(now - begin_);
  double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  std::string eta =
      rate > 0 && done < total
          ? ", " + HumanDuration(Nanos(static_cast<int64_t>(static_cast<double>(total - done) / rate * 1e9))) + " left"
          : "";
  std::string line = fmt::format("{}: {} of {} {}, {:.1f}/s{}{}{}", title_, done, total, noun_, rate, eta,
                                 detail.empty() ? "" : ", ", detail);
  if (terminal_) {
    fmt::print(stderr, "\r\x1b[K{}", line);
    open_ = true;
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
}

void ProgressLine::Keep(const std::string& text) {
  Done(text);
}

void ProgressLine::Done(const std::string& text) {
  fmt::print(stderr, "{}{}: {}\n", open_ ? "\r\x1b[K" : "", title_, text);
  open_ = false;
}

}  // namespace ekiben::cli
