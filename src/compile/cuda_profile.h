// The profile of an engine for CUDA: how its linears run for each bucket of token counts, timed on the GPU of the
// machine that builds (model/cuda_linear_plan.h). Another GPU, another cuBLASLt or other types than it was made for do
// not use it: they time when they start, as every engine without a profile does.
//
// profiles.json: {"device", "library", "dtype", "linears": [{"linear": "qkv", "choices": [{"bucket", "tokens",
//   "variant": "own" or "cublaslt N", "algorithm", "us", "us_of_others": {name: us}}]}],
//   "chains": [{"bucket", "tokens", "us_a_layer", "us_unmeasured"}]}
// `bucket` is the first token count of the bucket, "all" stands for one choice everywhere; `tokens` is where it was
// measured, its last count. A variant that was not timed alone has no "us".
// Thread: ProfileCudaEngine takes the GPU for itself.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "compile/engine.h"
#include "model/cuda_linear_plan.h"

namespace ekiben {

CudaTuneOptions TuneOptionsOf(const BuildConfig& build);

json::object ToJson(const CudaLinearPlan& plan);
// Absent: the profile is empty. Errors: a field that cannot be, by name.
Result<std::optional<CudaLinearPlan>> ReadCudaProfile(const json::object& profiles);

// A bucket in one line: "65 to 72 tokens: own kernels, 160.1 us a layer; lm_head cublaslt 2, 350.0 us".
std::string Describe(const CudaLinearBucket& bucket, bool for_all);

// Times the linears of the engine in `folder` on this machine's GPU and writes its profiles.json. A line for the user:
// what was timed, or why nothing was (no GPU here, no memory), which leaves the engine as it is.
Result<std::string> ProfileCudaEngine(const std::filesystem::path& folder, const ProgressFunction& progress);

}  // namespace ekiben
