// ProfileCudaEngine of a build with CUDA.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "compile/cuda_profile.h"
#include "model/cuda_llama.h"

namespace ekiben {
namespace {

// Steps have at most so many tokens where nothing else is said (DefaultsOf); beyond, the library's first candidate.
constexpr int32_t kTokensMax = 8192;
constexpr int32_t kOutputsMax = 256;
constexpr int32_t kEmulatedTokensMax = 96;  // by tests/cuda_emulation, which takes minutes for more

Result<CudaLinearPlan> Tune(const Engine& engine, bool emulated, const ProgressFunction& progress) {
  const BuildConfig& build = engine.build;
  const int32_t tokens_max = std::min(build.max_num_tokens, emulated ? kEmulatedTokensMax : kTokensMax);
  const CudaModelLimits limits{1, tokens_max, std::min({build.max_batch_size, tokens_max, kOutputsMax})};
  ASSIGN_OR_RETURN(auto model,
                   CudaLlama::Load(engine.model, engine.tensors, limits, {.fp8_linears = build.dtype == "fp8"}));
  const CudaTuneOptions options = TuneOptionsOf(build);
  int64_t done = 0;
  auto total = options.multiple_profiles ? std::ssize(CudaLlama::TuneBuckets(tokens_max)) : 1;
  RETURN_IF_ERROR(model->Tune(options, 1, tokens_max, [&](const CudaLinearBucket& bucket) {
    progress({"profile", ++done, total, Describe(bucket, !options.multiple_profiles)});
  }));
  return model->plan();
}

}  // namespace

Result<std::string> ProfileCudaEngine(const std::filesystem::path& folder, const ProgressFunction& progress) {
  auto untimed = [](const Error& why) {
    std::string reason = why.message();
    reason.resize(std::min(reason.size(), reason.find(';')));  // after it stands advice for a start
    return fmt::format("linears are not timed, a start on a GPU will: {}", reason);
  };
  Result<CudaDeviceInfo> device = OpenCudaDevice();
  if (!device.ok()) return untimed(device.error());
  ASSIGN_OR_RETURN(Engine engine, OpenEngine(folder, Verify::kHeader));
  Result<CudaLinearPlan> plan = Tune(engine, device->emulated, progress);
  if (!plan.ok()) return untimed(plan.error());
  RETURN_IF_ERROR(WriteFileAtomic(folder / "profiles.json", json::serialize(ToJson(*plan))));
  return fmt::format("linears timed on {} for {} buckets of token counts", device->name, plan->buckets.size());
}

}  // namespace ekiben
