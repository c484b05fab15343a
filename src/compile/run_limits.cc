#include "compile/run_limits.h"

#include <algorithm>

namespace ekiben {
namespace {

// The widest that Validate lets pass; max_seq_len and max_input_len widen to the model's by themselves.
constexpr int32_t kBatchSizeMax = 4096, kNumTokensMax = 1 << 16;

Error NeedsBuild(std::string_view field, std::string_view value, std::string_view built,
                 const std::filesystem::path& engine) {
  return Error(Code::kInvalid,
               fmt::format("{}: {} was asked for, {} is built with {}; leave the option out, or run `ekiben build "
                           "CHECKPOINT -o {} --{} {}`",
                           field, value, engine.string(), built, engine.string(), field, value),
               std::string(field));
}

Result<void> Lower(std::string_view field, int32_t asked, const std::filesystem::path& engine, int32_t& limit) {
  if (asked < 0) return Error(Code::kInvalid, fmt::format("{}: {} is negative", field, asked), std::string(field));
  if (asked > limit)
    return Error(Code::kInvalid,
                 fmt::format("{}: {} is over the {} that {} was built for; lower it, or run `ekiben build CHECKPOINT "
                             "-o {} --{} {}`",
                             field, asked, limit, engine.string(), engine.string(), field, asked),
                 std::string(field));
  if (asked > 0) limit = asked;
  return {};
}

// Options that went into the engine's weights or profile.
Result<void> SameAsBuilt(const BuildConfig& options, const Engine& engine) {
  const BuildConfig said_nothing;
  const BuildConfig& built = engine.build;
  if (options.device != built.device)
    return Error(Code::kInvalid,
                 fmt::format("device: {} was built for {}; run it with --device {}, or run `ekiben build CHECKPOINT -o "
                             "{} --device {}`",
                             engine.path.string(), built.device, built.device, engine.path.string(), options.device),
                 "device");
  if (options.dtype != said_nothing.dtype && options.dtype != built.dtype)
    return NeedsBuild("dtype", options.dtype, built.dtype, engine.path);
  if (options.tokens_per_block != said_nothing.tokens_per_block && options.tokens_per_block != built.tokens_per_block)
    return NeedsBuild("tokens_per_block", std::to_string(options.tokens_per_block),
                      std::to_string(built.tokens_per_block), engine.path);
  if (options.gemm_plugin != said_nothing.gemm_plugin && options.gemm_plugin != built.gemm_plugin)
    return NeedsBuild("gemm_plugin", options.gemm_plugin, built.gemm_plugin, engine.path);
  if (options.gather_context_logits && !built.gather_context_logits)
    return NeedsBuild("gather_context_logits", "enable", "disable", engine.path);
  if (options.gather_generation_logits && !built.gather_generation_logits)
    return NeedsBuild("gather_generation_logits", "enable", "disable", engine.path);
  if (!options.multiple_profiles && built.multiple_profiles)
    return NeedsBuild("multiple_profiles", "disable", "enable", engine.path);
  if (options.opt_num_tokens != 0 && options.opt_num_tokens != built.opt_num_tokens)
    return NeedsBuild("opt_num_tokens", std::to_string(options.opt_num_tokens), std::to_string(built.opt_num_tokens),
                      engine.path);
  return {};
}

}  // namespace

BuildConfig WithLimits(BuildConfig options, const RunLimits& limits) {
  const DeviceDefaults defaults = DefaultsOf(options.device);
  options.max_batch_size = defaults.max_batch_size;
  options.max_num_tokens = defaults.max_num_tokens;
  // One of the two said alone takes the other along: a step must be able to feed every row.
  if (limits.max_num_tokens != 0) {
    options.max_num_tokens = limits.max_num_tokens;
    options.max_batch_size = std::min(options.max_batch_size, limits.max_num_tokens);
  }
  if (limits.max_batch_size != 0) {
    options.max_batch_size = limits.max_batch_size;
    if (limits.max_num_tokens == 0) options.max_num_tokens = std::max(options.max_num_tokens, limits.max_batch_size);
  }
  options.max_seq_len = limits.max_seq_len;
  options.max_input_len = limits.max_input_len;
  return options;
}

BuildConfig CacheBuild(const BuildConfig& wanted) {
  BuildConfig out;
  out.device = wanted.device;
  out.dtype = wanted.dtype;
  if (wanted.device == "cuda") out.gemm_plugin = wanted.gemm_plugin;
  out.multiple_profiles = wanted.multiple_profiles;
  if (!wanted.multiple_profiles) {  // the one token count that kernels are chosen for
    out.opt_num_tokens = wanted.opt_num_tokens;
    if (out.opt_num_tokens == 0) out.opt_num_tokens = std::min(wanted.max_batch_size, wanted.max_num_tokens);
  }
  out.max_batch_size = kBatchSizeMax;
  out.max_num_tokens = kNumTokensMax;
  return out;
}

Result<BuildConfig> CapBuilt(const Engine& engine, const BuildConfig& options, const RunLimits& limits) {
  RETURN_IF_ERROR(Validate(options, engine.model));
  RETURN_IF_ERROR(SameAsBuilt(options, engine));
  BuildConfig out = engine.build;
  RETURN_IF_ERROR(Lower("max_num_tokens", limits.max_num_tokens, engine.path, out.max_num_tokens));
  if (limits.max_batch_size == 0) out.max_batch_size = std::min(out.max_batch_size, out.max_num_tokens);
  RETURN_IF_ERROR(Lower("max_batch_size", limits.max_batch_size, engine.path, out.max_batch_size));
  RETURN_IF_ERROR(Lower("max_seq_len", limits.max_seq_len, engine.path, out.max_seq_len));
  if (limits.max_input_len == 0) out.max_input_len = std::min(out.max_input_len, std::max(1, out.max_seq_len - 1));
  RETURN_IF_ERROR(Lower("max_input_len", limits.max_input_len, engine.path, out.max_input_len));
  out.opt_num_tokens = std::min(out.opt_num_tokens, out.max_num_tokens);
  RETURN_IF_ERROR(Validate(out, engine.model));
  return out;
}

}  // namespace ekiben
