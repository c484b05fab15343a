// What a person sees while something takes time: one line rewritten in place on a terminal, plain lines in a pipe.
// Thread: one.
#pragma once
#include <cstdint>
#include <string>

#include "base/clock.h"

namespace ekiben::cli {

// True when standard error is a terminal.
bool IsTerminal();

class ProgressLine {
 public:
  // `noun` is what is counted: "tensors", "prompts".
  ProgressLine(std::string title, std::string noun, const Clock& clock);
  ~ProgressLine();
  // Shows count, rate and the time left; at most ten times a second on a terminal, every 5 s elsewhere.
  void Update(int64_t done, int64_t total, const std::string& detail = {});
  // A line that stays, above the moving one.
  void Keep(const std::string& text);
  // Ends the line.
  void Done(const std::string& text);

 private:
  std::string title_, noun_;
  const Clock& clock_;
  Nanos begin_, last_{};
  bool terminal_, open_ = false;
};

}  // namespace ekiben::cli
