// Hugging Face's config.json as a ModelConfig. Absent fields take the defaults of the family's configuration class;
// what would change the arithmetic and we do not compute (another activation, per-layer attention, quantised weights,
// a rotary form that is not ours) is refused by name.
#include <array>
#include <boost/json.hpp>
#include <cmath>

#include "weights/file_error.h"
#include "weights/model_config.h"

namespace ekiben {
namespace {

struct Family {
  std::string_view class_name;  // in "architectures"
  std::string_view name;        // our registry key and "model_type"
  int32_t max_position_embeddings;
  int32_t key_value_heads;  // 0: as many as query heads
  bool qkv_bias;            // always there; no field says so
  bool bias_fields;         // attention_bias and mlp_bias have an effect
};
constexpr std::array kFamilies = {
    Family{"LlamaForCausalLM", "llama", 2048, 0, false, true},
    Family{"Qwen2ForCausalLM", "qwen2", 32768, 32, true, false},
    Family{"MistralForCausalLM", "mistral", 131072, 8, false, false},
};

Error Refused(std::string_view field, std::string_view message) {
  return Error(Code::kUnsupported, fmt::format("{}: {}", field, message), std::string(field));
}

Result<const Family*> FindFamily(const json::object& object) {
  ASSIGN_OR_RETURN(const json::array* classes, GetArray(object, "architectures"));
  ASSIGN_OR_RETURN(auto model_type, GetString(object, "model_type"));
  std::string wanted;
  if (classes != nullptr && !classes->empty() && classes->front().is_string())
    wanted = std::string(classes->front().get_string());
  for (const Family& family : kFamilies)
    if (wanted.empty() ? family.name == model_type.value_or("") : family.class_name == wanted) return &family;
  std::string known;
  for (const Family& family : kFamilies) known += fmt::format("{}{}", known.empty() ? "" : ", ", family.class_name);
  return Refused("architectures", fmt::format("'{}' is not supported (known: {})",
                                              PrintableName(wanted.empty() ? model_type.value_or("") : wanted), known));
}

Result<int32_t> Int(const json::object& object, std::string_view key, std::optional<int32_t> otherwise) {
  ASSIGN_OR_RETURN(auto value, GetInt(object, key, 0, INT32_MAX));
  if (!value && !otherwise)
    return Error(Code::kInvalid, fmt::format("{}: absent; it is required", key), std::string(key));
  return value ? static_cast<int32_t>(*value) : *otherwise;
}

Result<float> Number(const json::object& object, std::string_view key, float otherwise) {
  ASSIGN_OR_RETURN(auto value, GetNumber(object, key, 0.0, 1e12));
  return value ? static_cast<float>(*value) : otherwise;
}

// YaRN's attention factor from DeepSeek's two multipliers of the logarithm, when both are given.
Result<float> YarnAttentionFactor(const json::object& object, float factor) {
  ASSIGN_OR_RETURN(float given, Number(object, "attention_factor", 0.0f));
  ASSIGN_OR_RETURN(float mscale, Number(object, "mscale", 0.0f));
  ASSIGN_OR_RETURN(float mscale_all_dim, Number(object, "mscale_all_dim", 0.0f));
  if (given != 0.0f || mscale == 0.0f || mscale_all_dim == 0.0f || factor <= 1.0f) return given;
  float log_factor = std::log(factor);
  return (0.1f * mscale * log_factor + 1.0f) / (0.1f * mscale_all_dim * log_factor + 1.0f);
}

// `object` is "rope_scaling" (old), or "rope_parameters" (new, which also holds rope_theta).
Result<void> ReadScaling(const json::object& object, const json::object& root, ModelConfig& config) {
  ASSIGN_OR_RETURN(auto type, GetString(object, "rope_type"));
  if (!type) {
    ASSIGN_OR_RETURN(type, GetString(object, "type"));
  }
  std::string name = type.value_or("default");
  RopeScaling& scaling = config.rope_scaling;
  if (name == "default") return {};
  if (name == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
  } else if (name == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
  } else if (name == "yarn") {
    scaling.type = RopeScaling::Type::kYarn;
  } else {
    return Refused("rope_type",
                   fmt::format("'{}' is not supported (default, linear, llama3 and yarn are)", PrintableName(name)));
  }
  ASSIGN_OR_RETURN(int32_t original, Int(root, "original_max_position_embeddings", config.max_position_embeddings));
  ASSIGN_OR_RETURN(scaling.original_max_position_embeddings, Int(object, "original_max_position_embeddings", original));
  ASSIGN_OR_RETURN(scaling.factor, Number(object, "factor", 0.0f));
  if (scaling.factor == 0.0f && scaling.type == RopeScaling::Type::kYarn &&
      scaling.original_max_position_embeddings > 0)
    scaling.factor = static_cast<float>(config.max_position_embeddings) /
                     static_cast<float>(scaling.original_max_position_embeddings);
  ASSIGN_OR_RETURN(scaling.low_freq_factor, Number(object, "low_freq_factor", 1.0f));
  ASSIGN_OR_RETURN(scaling.high_freq_factor, Number(object, "high_freq_factor", 4.0f));
  ASSIGN_OR_RETURN(scaling.beta_fast, Number(object, "beta_fast", 32.0f));
  ASSIGN_OR_RETURN(scaling.beta_slow, Number(object, "beta_slow", 1.0f));
  ASSIGN_OR_RETURN(scaling.attention_factor, YarnAttentionFactor(object, scaling.factor));
  ASSIGN_OR_RETURN(auto truncate, GetBool(object, "truncate"));
  if (!truncate.value_or(true)) return Refused("truncate", "false is not supported");
  return {};
}

Result<void> ReadRope(const json::object& object, ModelConfig& config) {
  ASSIGN_OR_RETURN(const json::object* parameters, GetObject(object, "rope_parameters"));
  ASSIGN_OR_RETURN(const json::object* old, GetObject(object, "rope_scaling"));
  ASSIGN_OR_RETURN(config.rope_theta, Number(object, "rope_theta", 10000.0f));
  ASSIGN_OR_RETURN(float partial, Number(object, "partial_rotary_factor", 1.0f));
  if (parameters != nullptr) {
    if (!parameters->empty() && parameters->begin()->value().is_object())
      return Refused("rope_parameters", "a set for each type of layer is not supported");
    ASSIGN_OR_RETURN(config.rope_theta, Number(*parameters, "rope_theta", config.rope_theta));
    ASSIGN_OR_RETURN(partial, Number(*parameters, "partial_rotary_factor", partial));
  }
  if (partial != 1.0f) return Refused("partial_rotary_factor", fmt::format("{} is not supported (1 is)", partial));
  const json::object* scaling = parameters != nullptr ? parameters : old;
  if (scaling == nullptr) return {};
  Result<void> read = ReadScaling(*scaling, object, config);
  if (!read.ok()) return std::move(read).error().Within(parameters != nullptr ? "rope_parameters" : "rope_scaling");
  return {};
}

// Mistral's window covers every layer. Qwen 2's covers those from max_window_layers on, and only when it is switched
// on.
Result<void> ReadWindow(const json::object& object, const Family& family, ModelConfig& config) {
  if (family.name == "llama") return {};
  bool present = object.if_contains("sliding_window") != nullptr;  // null means none; absent means the class's default
  ASSIGN_OR_RETURN(config.sliding_window, Int(object, "sliding_window", present ? 0 : 4096));
  if (family.name != "qwen2") return {};
  ASSIGN_OR_RETURN(auto use, GetBool(object, "use_sliding_window"));
  ASSIGN_OR_RETURN(int32_t first, Int(object, "max_window_layers", 28));
  if (!use.value_or(false) || first >= config.num_hidden_layers) config.sliding_window = 0;
  if (config.sliding_window != 0 && first > 0)
    return Refused("max_window_layers", fmt::format("{}: full attention in some layers and a window of {} in others is "
                                                    "not supported",
                                                    first, config.sliding_window));
  return {};
}

Result<void> ReadBiases(const json::object& object, const Family& family, ModelConfig& config) {
  config.attention_bias = family.qkv_bias;
  if (!family.bias_fields) return {};
  ASSIGN_OR_RETURN(auto attention, GetBool(object, "attention_bias"));
  ASSIGN_OR_RETURN(auto mlp, GetBool(object, "mlp_bias"));
  config.attention_bias = config.attention_out_bias = attention.value_or(false);
  config.mlp_bias = mlp.value_or(false);
  return {};
}

Result<void> RefuseOthers(const json::object& object) {
  ASSIGN_OR_RETURN(auto activation, GetString(object, "hidden_act"));
  if (activation.value_or("silu") != "silu" && *activation != "swish")
    return Refused("hidden_act", fmt::format("'{}' is not supported (silu is)", PrintableName(*activation)));
  ASSIGN_OR_RETURN(const json::object* quantization, GetObject(object, "quantization_config"));
  if (quantization != nullptr) {
    ASSIGN_OR_RETURN(auto method, GetString(*quantization, "quant_method"));
    return Refused("quantization_config", fmt::format("weights quantised by '{}' are not supported; use the original "
                                                      "checkpoint or a GGUF",
                                                      PrintableName(method.value_or("?"))));
  }
  return {};
}

}  // namespace

Result<ModelConfig> ModelConfigFromHuggingFace(const json::object& object) {
  ASSIGN_OR_RETURN(const Family* family, FindFamily(object));
  RETURN_IF_ERROR(RefuseOthers(object));
  ModelConfig config;
  config.architecture = family->name;
  ASSIGN_OR_RETURN(auto name, GetString(object, "_name_or_path"));
  config.name = name.value_or("");
  ASSIGN_OR_RETURN(config.vocab_size, Int(object, "vocab_size", {}));
  ASSIGN_OR_RETURN(config.hidden_size, Int(object, "hidden_size", {}));
  ASSIGN_OR_RETURN(config.intermediate_size, Int(object, "intermediate_size", {}));
  ASSIGN_OR_RETURN(config.num_hidden_layers, Int(object, "num_hidden_layers", {}));
  ASSIGN_OR_RETURN(config.num_attention_heads, Int(object, "num_attention_heads", {}));
  // Present and null means as many as query heads, in every family.
  int32_t kv_heads = object.contains("num_key_value_heads") || family->key_value_heads == 0 ? config.num_attention_heads
                                                                                            : family->key_value_heads;
  ASSIGN_OR_RETURN(config.num_key_value_heads, Int(object, "num_key_value_heads", kv_heads));
  ASSIGN_OR_RETURN(config.head_dim, Int(object, "head_dim", 0));
  if (config.head_dim == 0) {
    if (config.num_attention_heads == 0 || config.hidden_size % config.num_attention_heads != 0)
      return Error(Code::kInvalid,
                   fmt::format("num_attention_heads: {} does not divide hidden_size {}, and there is no head_dim",
                               config.num_attention_heads, config.hidden_size),
                   "num_attention_heads");
    config.head_dim = config.hidden_size / config.num_attention_heads;
  }
  ASSIGN_OR_RETURN(config.max_position_embeddings,
                   Int(object, "max_position_embeddings", family->max_position_embeddings));
  ASSIGN_OR_RETURN(config.rms_norm_eps, Number(object, "rms_norm_eps", 1e-6f));
  ASSIGN_OR_RETURN(auto tied, GetBool(object, "tie_word_embeddings"));
  config.tie_word_embeddings = tied.value_or(false);
  RETURN_IF_ERROR(ReadRope(object, config));
  RETURN_IF_ERROR(ReadWindow(object, *family, config));
  RETURN_IF_ERROR(ReadBiases(object, *family, config));
  RETURN_IF_ERROR(Validate(config));
  return config;
}

}  // namespace ekiben
