// Every op of a step at the served shapes, timed alone: what `ekiben kernels` prints beside the measured peaks.
// Each op runs over all layers in order, so that it finds the caches as a step leaves them; the time is the median over
// rounds, of one call.
// Thread: the caller's, forks over the pool.
#pragma once
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "compile/engine.h"
#include "device/thread_pool.h"
#include "ops/linear_tuning.h"
#include "ops/op_timing.h"
#include "ops/roofline.h"

namespace ekiben {

// `kv_tokens`: what each generating sequence has in the cache before its token, one row of attention for each.
Result<std::vector<OpTiming>> TimeOps(const Engine& engine, const Roofline& roofline, const LinearTuning& tuning,
                                      ThreadPool& pool, const std::vector<int32_t>& token_counts,
                                      const std::vector<int32_t>& kv_tokens);

}  // namespace ekiben
