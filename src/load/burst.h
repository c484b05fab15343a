// All sequences at once, nothing else: how fast are the two halves of a request when the engine sees only one of them.
// The served numbers of bench.h mix both; these are the ones to set beside llama-bench (`pp`, `tg`) and
// llama-batched-bench (`S_PP`, `S_TG`), and beside the hardware's limits.
//
//   context     from the first request's sending to the last request's first token: all prompt tokens / that time
//   generation  from the last request's first token to the first request's last token, where every sequence runs:
//               tokens that arrived / that time. The steps in which some were still reading their prompts are in
//               neither.
// Thread: as RunBench.
#pragma once
#include <vector>

#include "load/bench.h"

namespace ekiben::load {

struct BurstRun {
  double context_tokens_per_s = 0;
  double generation_tokens_per_s = 0;  // 0: the answers did not overlap, or had one token each
  int64_t prompt_tokens = 0, generation_tokens = 0;
  double context_s = 0, generation_s = 0;
};

struct BurstReport {
  int32_t sequences = 0;
  std::vector<BurstRun> runs;
  double context_median = 0, context_min = 0, context_max = 0;           // tokens/s over the runs
  double generation_median = 0, generation_min = 0, generation_max = 0;  // tokens/s over the runs
  json::object config, machine;
  uint64_t seed = 0;
};

// `repeat` bursts of `sequences` requests each; config.users, ramp, duration and threads are not used. A burst with a
// failed request is an error.
Result<BurstReport> RunBurst(const BenchConfig& config, int32_t sequences, int32_t repeat);

std::string TextReport(const BurstReport& report);
json::object JsonReport(const BurstReport& report);

}  // namespace ekiben::load
