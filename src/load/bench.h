// A load run: levels of closed-loop users against one target, measured as load/recorder.h defines. The library behind
// `ekiben bench`; the tuner uses the same call.
//
// Each level ramps its users up linearly over `ramp`, then measures for `duration`; what is in flight at the end is cut
// off and counted as such. Before the first level one request is sent alone: a wrong URL, model or parameter is an
// error here and not a column of failed requests.
// Thread: RunBench blocks its caller and starts `threads` of its own; `progress` is called on the caller's thread.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/histogram.h"
#include "base/json.h"
#include "base/result.h"
#include "load/http_transport.h"

namespace ekiben {
namespace serve {
class Service;
}

namespace load {

struct BenchConfig {
  std::string url = "http://127.0.0.1:3000";
  serve::Service* service = nullptr;  // set: in this process, no HTTP; `url`, `headers`, `extra_json` are not used
  Api api = Api::kCompletions;
  std::string model;                    // empty: the first of GET /v1/models
  std::vector<int32_t> users = {1};     // one level each
  double ramp_s = 20, duration_s = 60;  // the window of `duration_s` begins when the ramp has ended
  double think_s = 0;
  double timeout_s = 300;  // of one request
  double report_every_s = 5;
  double pause_s = 1;  // between levels, for the server to end what was cut off
  int32_t prompt_tokens = 100, output_tokens = 64, shared_prefix_tokens = 0;
  int32_t prompt_tokens_min = 0;  // above 0: lengths are drawn evenly from here to prompt_tokens
  bool steady_start = false;      // first requests begin somewhere in their answers (prompts.h)
  std::string prompts_file;       // JSONL; replaces random words
  std::optional<uint64_t> seed;   // nullopt: drawn from the wall clock, so that a second run repeats no prompt
  bool ignore_eos = false;        // ask for exactly output_tokens and count answers of another length
  double temperature = 0;
  std::string extra_json;  // members added to each request body: an object's text, "{\"cache_prompt\":false}"
  std::string api_key;
  int32_t threads = 0;                                            // 0: a quarter of the cores, 1..8
  std::function<Result<int32_t>(std::string_view)> count_tokens;  // empty: ask the target
  std::string command, commit;                                    // repeated in the report
  const std::atomic<bool>* stop = nullptr;  // true: end the level at once and report what there is
};

// Every `report_every_s` during a level.
struct BenchProgress {
  int32_t users = 0, users_active = 0, in_flight = 0;
  double elapsed_s = 0, total_s = 0;  // of the level
  bool ramping = false;
  double tokens_per_s = 0, requests_per_s = 0;  // since the last report
  double ttft_ms_p50 = 0, ttft_ms_p99 = 0, itl_ms_p50 = 0, itl_ms_p99 = 0;
  uint64_t failed = 0;  // since the last report
};

// Milliseconds.
struct LatencySummary {
  uint64_t count = 0;
  double mean = 0, min = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, max = 0;
};
LatencySummary Summarize(const Histogram& nanos);

struct LevelReport {
  int32_t users = 0;
  double window_s = 0;  // measured; shorter than asked when stopped
  double tokens_per_s = 0, prompt_tokens_per_s = 0, requests_per_s = 0;
  int64_t output_tokens = 0, prompt_tokens = 0;
  uint64_t started = 0, completed = 0, failed = 0;
  std::map<std::string, uint64_t> errors;
  std::vector<std::string> error_messages;
  uint64_t cut_off = 0, cut_off_waiting = 0;
  double oldest_waiting_s = 0;
  LatencySummary ttft, itl_token, itl_chunk, tpot, e2e;
  uint64_t chunks = 0, chunks_multi = 0;
  // How output tokens were counted: "usage of each chunk", "one a chunk, corrected by the final usage" or "chunks".
  std::string token_source;
  uint64_t output_mismatches = 0, prompt_mismatches = 0, unchecked = 0;
  std::vector<uint32_t> tokens_by_second;

  // The client's own part.
  int32_t threads = 0;
  double client_cpu_share = 0;      // of one core, all load threads together
  double busiest_thread_share = 0;  // of one core
  double machine_busy_share = -1;   // of all cores of this machine, everything on it; -1: unknown
  uint64_t reconnects = 0;
  LatencySummary connect, send_lag, read_lag;
  bool client_bottleneck = false;
  std::string client_verdict;  // one sentence
};

struct BenchReport {
  static constexpr int kSchemaVersion = 1;
  json::object config, machine;
  std::string started_utc, prompts;
  uint64_t seed = 0;
  bool stopped_early = false;
  std::vector<LevelReport> levels;
};

Result<BenchReport> RunBench(const BenchConfig& config, const std::function<void(const BenchProgress&)>& progress);

std::string ProgressLine(const BenchProgress& progress);
std::string TextReport(const BenchReport& report);
json::object JsonReport(const BenchReport& report);

// Decides client_bottleneck and client_verdict from the level's own numbers.
void JudgeClient(LevelReport& level);

}  // namespace load
}  // namespace ekiben
