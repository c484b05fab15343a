#include "weights/model_config.h"

#include <array>
#include <boost/json.hpp>
#include <cmath>

namespace ekiben {
namespace {

constexpr std::array<std::string_view, 4> kScalingNames = {"none", "linear", "llama3", "yarn"};

// One row a number: where it lives and its range. The order is that of the engine's config.json.
struct IntField {
  std::string_view name;
  int32_t ModelConfig::*member;
  int32_t low, high;
};
constexpr std::array kIntFields = {
    IntField{"vocab_size", &ModelConfig::vocab_size, 1, 1 << 24},
    IntField{"hidden_size", &ModelConfig::hidden_size, 1, 1 << 20},
    IntField{"intermediate_size", &ModelConfig::intermediate_size, 1, 1 << 22},
    IntField{"num_hidden_layers", &ModelConfig::num_hidden_layers, 1, 4096},
    IntField{"num_attention_heads", &ModelConfig::num_attention_heads, 1, 4096},
    IntField{"num_key_value_heads", &ModelConfig::num_key_value_heads, 1, 4096},
    IntField{"head_dim", &ModelConfig::head_dim, 2, 1024},
    IntField{"max_position_embeddings", &ModelConfig::max_position_embeddings, 1, 1 << 27},
    IntField{"sliding_window", &ModelConfig::sliding_window, 0, 1 << 30},
};
struct BoolField {
  std::string_view name;
  bool ModelConfig::*member;
};
constexpr std::array kBoolFields = {
    BoolField{"rope_interleaved", &ModelConfig::rope_interleaved},
    BoolField{"tie_word_embeddings", &ModelConfig::tie_word_embeddings},
    BoolField{"attention_bias", &ModelConfig::attention_bias},
    BoolField{"attention_out_bias", &ModelConfig::attention_out_bias},
    BoolField{"mlp_bias", &ModelConfig::mlp_bias},
};
struct ScalingField {
  std::string_view name;
  float RopeScaling::*member;
};
constexpr std::array kScalingFields = {
    ScalingField{"factor", &RopeScaling::factor},
    ScalingField{"low_freq_factor", &RopeScaling::low_freq_factor},
    ScalingField{"high_freq_factor", &RopeScaling::high_freq_factor},
    ScalingField{"beta_fast", &RopeScaling::beta_fast},
    ScalingField{"beta_slow", &RopeScaling::beta_slow},
    ScalingField{"attention_factor", &RopeScaling::attention_factor},
};

Error Invalid(std::string_view field, std::string_view message) {
  return Error(Code::kInvalid, fmt::format("{}: {}", field, message), std::string(field));
}

Result<void> InRange(std::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return {};  // false for NaN
  return Invalid(field, fmt::format("{} is outside [{}, {}]", value, low, high));
}

Result<void> Validate(const RopeScaling& scaling) {
  if (scaling.type == RopeScaling::Type::kNone) return {};
  RETURN_IF_ERROR(InRange("rope_scaling.factor", scaling.factor, 1.0, 1e6));
  if (scaling.type == RopeScaling::Type::kLinear) return {};
  RETURN_IF_ERROR(
      InRange("rope_scaling.original_max_position_embeddings", scaling.original_max_position_embeddings, 1, 1 << 27));
  if (scaling.type == RopeScaling::Type::kLlama3) {
    RETURN_IF_ERROR(InRange("rope_scaling.low_freq_factor", scaling.low_freq_factor, 1e-6, 1e6));
    RETURN_IF_ERROR(InRange("rope_scaling.high_freq_factor", scaling.high_freq_factor, 1e-6, 1e6));
    if (scaling.high_freq_factor <= scaling.low_freq_factor)
      return Invalid("rope_scaling.high_freq_factor", fmt::format("{} is not above low_freq_factor {}",
                                                                  scaling.high_freq_factor, scaling.low_freq_factor));
    return {};
  }
  RETURN_IF_ERROR(InRange("rope_scaling.beta_fast", scaling.beta_fast, 1e-6, 1e6));
  RETURN_IF_ERROR(InRange("rope_scaling.beta_slow", scaling.beta_slow, 1e-6, 1e6));
  return InRange("rope_scaling.attention_factor", scaling.attention_factor, 0.0, 1e3);
}

json::object ToJson(const RopeScaling& scaling) {
  json::object out;
  out["type"] = kScalingNames[static_cast<size_t>(scaling.type)];
  for (const ScalingField& field : kScalingFields) out[field.name] = scaling.*field.member;
  out["original_max_position_embeddings"] = scaling.original_max_position_embeddings;
  return out;
}

Result<RopeScaling> RopeScalingFromJson(const json::object& object) {
  RopeScaling scaling;
  ASSIGN_OR_RETURN(auto type, GetString(object, "type"));
  size_t index = 0;
  while (index < kScalingNames.size() && kScalingNames[index] != type.value_or("none")) ++index;
  if (index == kScalingNames.size())
    return Error(Code::kUnsupported, fmt::format("type: '{}' is not one of none, linear, llama3, yarn", *type), "type");
  scaling.type = static_cast<RopeScaling::Type>(index);
  for (const ScalingField& field : kScalingFields) {
    ASSIGN_OR_RETURN(auto value, GetNumber(object, field.name, 0.0, 1e9));
    if (value) scaling.*field.member = static_cast<float>(*value);
  }
  ASSIGN_OR_RETURN(auto original, GetInt(object, "original_max_position_embeddings", 0, 1 << 27));
  scaling.original_max_position_embeddings = static_cast<int32_t>(original.value_or(0));
  return scaling;
}

}  // namespace

Result<void> Validate(const ModelConfig& config) {
  for (const IntField& field : kIntFields)
    RETURN_IF_ERROR(InRange(field.name, config.*field.member, field.low, field.high));
  RETURN_IF_ERROR(InRange("rms_norm_eps", config.rms_norm_eps, 0.0, 1.0));
  RETURN_IF_ERROR(InRange("rope_theta", config.rope_theta, 1.0, 1e12));
  if (config.head_dim % 2 != 0)
    return Invalid("head_dim", fmt::format("{} is odd; rotary pairs need an even size", config.head_dim));
  if (config.num_attention_heads % config.num_key_value_heads != 0)
    return Invalid("num_key_value_heads", fmt::format("{} does not divide num_attention_heads {}",
                                                      config.num_key_value_heads, config.num_attention_heads));
  return Validate(config.rope_scaling);
}

json::object ToJson(const ModelConfig& config) {
  json::object out;
  out["architecture"] = config.architecture;
  out["name"] = config.name;
  for (const IntField& field : kIntFields) out[field.name] = config.*field.member;
  out["rms_norm_eps"] = config.rms_norm_eps;
  out["rope_theta"] = config.rope_theta;
  out["rope_scaling"] = ToJson(config.rope_scaling);
  for (const BoolField& field : kBoolFields) out[field.name] = config.*field.member;
  return out;
}

Result<ModelConfig> ModelConfigFromJson(const json::object& object) {
  ModelConfig config;
  ASSIGN_OR_RETURN(auto architecture, GetString(object, "architecture"));
  if (!architecture) return Invalid("architecture", "absent; it is required");
  config.architecture = *architecture;
  ASSIGN_OR_RETURN(auto name, GetString(object, "name"));
  config.name = name.value_or("");
  for (const IntField& field : kIntFields) {
    ASSIGN_OR_RETURN(auto value, GetInt(object, field.name, field.low, field.high));
    if (!value) return Invalid(field.name, "absent; it is required");
    config.*field.member = static_cast<int32_t>(*value);
  }
  ASSIGN_OR_RETURN(auto epsilon, GetNumber(object, "rms_norm_eps", 0.0, 1.0));
  if (epsilon) config.rms_norm_eps = static_cast<float>(*epsilon);
  ASSIGN_OR_RETURN(auto theta, GetNumber(object, "rope_theta", 1.0, 1e12));
  if (theta) config.rope_theta = static_cast<float>(*theta);
  ASSIGN_OR_RETURN(const json::object* scaling, GetObject(object, "rope_scaling"));
  if (scaling != nullptr) {
    Result<RopeScaling> parsed = RopeScalingFromJson(*scaling);
    if (!parsed.ok()) return std::move(parsed).error().Within("rope_scaling");
    config.rope_scaling = *parsed;
  }
  for (const BoolField& field : kBoolFields) {
    ASSIGN_OR_RETURN(auto value, GetBool(object, field.name));
    config.*field.member = value.value_or(config.*field.member);
  }
  RETURN_IF_ERROR(Validate(config));
  return config;
}

}  // namespace ekiben
