#include <boost/json.hpp>

#include "base/json.h"
#include "compile/engine.h"

namespace ekiben {
namespace {

Error Refuse(std::string_view field, std::string message) {
  return Error(Code::kInvalid, fmt::format("{}: {}", field, std::move(message)), std::string(field));
}

Result<void> InRange(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return {};
  return Refuse(field, fmt::format("{} is outside [{}, {}]", value, low, high));
}

Result<void> OneOf(std::string_view field, const std::string& value, std::initializer_list<std::string_view> allowed) {
  std::string list;
  for (std::string_view candidate : allowed) {
    if (candidate == value) return {};
    list += (list.empty() ? "" : ", ") + std::string(candidate);
  }
  return Refuse(field, fmt::format("'{}' is not one of {}", value, list));
}

}  // namespace

DeviceDefaults DefaultsOf(std::string_view device) {
  // 1,024 sequences serve 128 tokens in and out 12 % faster than 256, and 100 users as fast (docs/gpu.md).
  if (device == "cuda") return {1024, 8192, 64, 0.9};
  return {128, 512, 32, 0.3};
}

Result<void> Validate(const BuildConfig& build, const ModelConfig& model) {
  RETURN_IF_ERROR(OneOf("device", build.device, {"cpu", "cuda"}));
  const bool cuda = build.device == "cuda";
  if (cuda) {
    RETURN_IF_ERROR(OneOf("dtype", build.dtype, {"auto", "bf16", "fp8"}));
  } else {
    RETURN_IF_ERROR(OneOf("dtype", build.dtype, {"auto", "f32", "bf16", "int8", "int4"}));
  }
  RETURN_IF_ERROR(InRange("max_batch_size", build.max_batch_size, 1, 4096));
  if (build.max_num_tokens < build.max_batch_size)
    return Refuse("max_num_tokens", fmt::format("{} is under max_batch_size of {}: a step must be able to feed a token "
                                                "of every sequence; raise it or lower max_batch_size",
                                                build.max_num_tokens, build.max_batch_size));
  RETURN_IF_ERROR(InRange("max_num_tokens", build.max_num_tokens, 1, 1 << 16));
  RETURN_IF_ERROR(InRange("max_seq_len", build.max_seq_len, 0, model.max_position_embeddings));
  int64_t seq_len = build.max_seq_len > 0 ? build.max_seq_len : model.max_position_embeddings;
  RETURN_IF_ERROR(InRange("max_input_len", build.max_input_len, 0, seq_len));
  RETURN_IF_ERROR(InRange("opt_num_tokens", build.opt_num_tokens, 0, build.max_num_tokens));
  if (build.tokens_per_block != 0) RETURN_IF_ERROR(InRange("tokens_per_block", build.tokens_per_block, 16, 256));
  if ((build.tokens_per_block & (build.tokens_per_block - 1)) != 0)
    return Refuse("tokens_per_block", fmt::format("{} is not a power of two", build.tokens_per_block));
  if (build.max_beam_width != 1)
    return Refuse("max_beam_width", fmt::format("{} is not offered: this version generates single sequences (use n > 1 "
                                                "for several); the limit is 1",
                                                build.max_beam_width));
  if (cuda) {
    RETURN_IF_ERROR(OneOf("gemm_plugin", build.gemm_plugin, {"auto", "disable", "bfloat16", "fp8"}));
    const bool fp8 = build.dtype == "fp8";
    if ((build.gemm_plugin == "fp8" && !fp8) || (build.gemm_plugin == "bfloat16" && fp8))
      return Refuse("gemm_plugin", fmt::format("'{}' cannot multiply linears of dtype {}; add --dtype {}, or say auto",
                                               build.gemm_plugin, build.dtype, fp8 ? "bf16" : "fp8"));
  } else if (build.gemm_plugin != "auto" && build.gemm_plugin != "disable") {
    return Refuse("gemm_plugin", fmt::format("'{}' is not offered: the CPU backend has its own kernels and no library "
                                             "to take instead; the value is disable, or auto, which comes to the same",
                                             build.gemm_plugin));
  }
  if (cuda && (build.gather_context_logits || build.gather_generation_logits))
    return Refuse(build.gather_context_logits ? "gather_context_logits" : "gather_generation_logits",
                  "enable is not offered by the CUDA backend, whose logits stay on the GPU; build for --device cpu");
  if (build.kv_cache_type != "paged")
    return Refuse("kv_cache_type", fmt::format("'{}' is not offered by the {} backend, which keeps keys and values in "
                                               "blocks only; the value is paged",
                                               build.kv_cache_type, cuda ? "CUDA" : "CPU"));
  if (!build.use_paged_context_fmha)
    return Refuse(
        "use_paged_context_fmha",
        "disable is not offered: context attention always reads the paged cache, which chunking and reuse need");
  return {};
}

json::object ToJson(const BuildConfig& b) {
  return {{"device", b.device},
          {"dtype", b.dtype},
          {"max_batch_size", b.max_batch_size},
          {"max_num_tokens", b.max_num_tokens},
          {"max_seq_len", b.max_seq_len},
          {"max_input_len", b.max_input_len},
          {"max_beam_width", b.max_beam_width},
          {"opt_num_tokens", b.opt_num_tokens},
          {"tokens_per_block", b.tokens_per_block},
          {"multiple_profiles", b.multiple_profiles},
          {"gemm_plugin", b.gemm_plugin},
          {"use_paged_context_fmha", b.use_paged_context_fmha},
          {"kv_cache_type", b.kv_cache_type},
          {"gather_context_logits", b.gather_context_logits},
          {"gather_generation_logits", b.gather_generation_logits}};
}

Result<BuildConfig> BuildConfigFromJson(const json::object& object) {
  BuildConfig out;
  auto integer = [&](const char* key, int32_t& field) -> Result<void> {
    ASSIGN_OR_RETURN(auto value, GetInt(object, key, 0, INT32_MAX));
    if (value) field = static_cast<int32_t>(*value);
    return {};
  };
  auto flag = [&](const char* key, bool& field) -> Result<void> {
    ASSIGN_OR_RETURN(auto value, GetBool(object, key));
    if (value) field = *value;
    return {};
  };
  auto text = [&](const char* key, std::string& field) -> Result<void> {
    ASSIGN_OR_RETURN(auto value, GetString(object, key));
    if (value) field = *value;
    return {};
  };
  RETURN_IF_ERROR(text("device", out.device));
  RETURN_IF_ERROR(text("dtype", out.dtype));
  RETURN_IF_ERROR(integer("max_batch_size", out.max_batch_size));
  RETURN_IF_ERROR(integer("max_num_tokens", out.max_num_tokens));
  RETURN_IF_ERROR(integer("max_seq_len", out.max_seq_len));
  RETURN_IF_ERROR(integer("max_input_len", out.max_input_len));
  RETURN_IF_ERROR(integer("max_beam_width", out.max_beam_width));
  RETURN_IF_ERROR(integer("opt_num_tokens", out.opt_num_tokens));
  RETURN_IF_ERROR(integer("tokens_per_block", out.tokens_per_block));
  RETURN_IF_ERROR(flag("multiple_profiles", out.multiple_profiles));
  RETURN_IF_ERROR(text("gemm_plugin", out.gemm_plugin));
  RETURN_IF_ERROR(flag("use_paged_context_fmha", out.use_paged_context_fmha));
  RETURN_IF_ERROR(text("kv_cache_type", out.kv_cache_type));
  RETURN_IF_ERROR(flag("gather_context_logits", out.gather_context_logits));
  RETURN_IF_ERROR(flag("gather_generation_logits", out.gather_generation_logits));
  return out;
}

}  // namespace ekiben
