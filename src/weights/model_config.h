// What a decoder of the Llama family is, in numbers: read from config.json or GGUF metadata, stored in the engine.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace ekiben {

struct RopeScaling {
  enum class Type : uint8_t { kNone, kLinear, kLlama3, kYarn } type = Type::kNone;
  float factor = 1.0f;
  float low_freq_factor = 1.0f, high_freq_factor = 4.0f;  // llama3
  int32_t original_max_position_embeddings = 0;           // llama3, yarn
  float beta_fast = 32.0f, beta_slow = 1.0f;              // yarn
  float attention_factor = 0.0f;                          // yarn; 0: 0.1 ln(factor) + 1
};

struct ModelConfig {
  std::string architecture;  // registry key: "llama", "qwen2", "mistral"
  std::string name;          // as the checkpoint calls itself
  int32_t vocab_size = 0, hidden_size = 0, intermediate_size = 0;
  int32_t num_hidden_layers = 0, num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  float rms_norm_eps = 1e-5f;
  float rope_theta = 10000.0f;
  RopeScaling rope_scaling;
  bool rope_interleaved = false;  // pairs (0,1),(2,3).. (GGUF's permuted llama) instead of halves
  bool tie_word_embeddings = false;
  bool attention_bias = false;      // q, k, v have biases
  bool attention_out_bias = false;  // o has a bias
  bool mlp_bias = false;
  int32_t max_position_embeddings = 0;
  int32_t sliding_window = 0;  // 0: none
};

// Sizes positive and within limits, heads divide, products fit. The message names the field.
Result<void> Validate(const ModelConfig& config);
// The engine's config.json form; and Hugging Face's.
json::object ToJson(const ModelConfig& config);
Result<ModelConfig> ModelConfigFromJson(const json::object& object);
Result<ModelConfig> ModelConfigFromHuggingFace(const json::object& object);

}  // namespace ekiben
