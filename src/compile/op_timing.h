// Every op of a step at the served shapes, timed alone: what `ekiben kernels` prints beside the measured peaks.
// Each op runs over all layers in order, so that it finds the caches as a step leaves them; the time is the median over
// rounds, of one call.
// Thread: the caller's, forks over the pool.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "compile/engine.h"
#include "device/thread_pool.h"
#include "ops/linear_tuning.h"
#include "ops/roofline.h"

namespace ekiben {

struct OpTiming {
  std::string op;     // "qkv", "paged_attention context", ...
  std::string shape;  // "int4_block32 960x576", "9/3 heads of 64, 150 before"
  int64_t tokens = 0;
  int64_t calls_per_step = 0;
  double seconds = 0, operations = 0, bytes = 0;  // of one call
  double peak_operations = 0;                     // per second; 0: the op is bound by bytes only
};

// `kv_tokens`: what each generating sequence has in the cache before its token.
Result<std::vector<OpTiming>> TimeOps(const Engine& engine, const Roofline& roofline, const LinearTuning& tuning,
                                      ThreadPool& pool, const std::vector<int32_t>& token_counts, int32_t kv_tokens);

}  // namespace ekiben
