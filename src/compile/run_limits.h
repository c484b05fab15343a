// What of an engine only bounds run time. Nothing in rank0.engine depends on these numbers, so a run may lower them
// without a build, and an engine that is cached for a checkpoint is built once for all of them.
//   an engine that a user built   its build_config is the promise: lower is a cap, higher and other is refused
//   a checkpoint                  its cached engine is built with the widest limits and carries the run's own
// Thread: pure functions.
#pragma once
#include "compile/engine.h"

namespace ekiben {

struct RunLimits {  // 0: not said
  int32_t max_batch_size = 0, max_num_tokens = 0, max_seq_len = 0, max_input_len = 0;
};

// The build that `options` with `limits` stands for; what was not said is the default of options.device. A limit said
// alone takes the other along.
BuildConfig WithLimits(BuildConfig options, const RunLimits& limits);

// The build of the cached engine that serves `wanted` and everything else of the same packing and profile.
BuildConfig CacheBuild(const BuildConfig& wanted);

// The engine's own build_config under `limits`. `options` holds what the user asked for besides, at its default where
// nothing was. Errors: kInvalid, with the field, both values and the command that builds such an engine.
Result<BuildConfig> CapBuilt(const Engine& engine, const BuildConfig& options, const RunLimits& limits);

}  // namespace ekiben
