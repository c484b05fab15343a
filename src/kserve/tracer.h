// Triton's trace extension: settings, and a file of requests with the times at which they passed each stage.
// The file is one JSON array, closed after every entry, in Triton's trace format.
// Off until trace_level holds TIMESTAMPS and trace_file names a file that can be written.
// Thread: any. Writing is a buffered append of some hundred bytes; it is meant for looking, not for all traffic.
#pragma once
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "kserve/statistics.h"

namespace ekiben::kserve {

class Tracer {
 public:
  using Settings = std::map<std::string, std::vector<std::string>>;

  // The full set after the change. An error changes nothing. trace_file is opened here.
  Result<Settings> Change(const Settings& changes);
  // Every trace_rate-th request, trace_count of them at most.
  void Record(const std::string& model, const std::string& request_id, const StageTimes& times);

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  Result<void> Apply(const Settings& wanted);

  std::mutex mutex_;
  Settings settings_ = {{"trace_file", {""}},    {"trace_level", {"OFF"}}, {"trace_rate", {"1000"}},
                        {"trace_count", {"-1"}}, {"log_frequency", {"0"}}, {"trace_mode", {"triton"}}};
  std::unique_ptr<std::FILE, CloseFile> file_;
  bool on_ = false;
  int64_t rate_ = 1000, left_ = -1;
  uint64_t seen_ = 0, written_ = 0;
};

}  // namespace ekiben::kserve
