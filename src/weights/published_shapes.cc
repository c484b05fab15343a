#include "weights/published_shapes.h"

#include <fmt/ranges.h>

#include <boost/json.hpp>

#include "base/json.h"

namespace ekiben {
namespace {

struct Row {
  std::string_view name, config;
};

constexpr Row kRows[] = {
    {"llama-3-8b", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
 "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
 "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
 "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16"})"},
    {"llama-3-70b", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
 "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
 "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
 "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16"})"},
    {"llama-3.2-1b", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
 "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64,
 "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
 "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 8192},
 "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": true, "torch_dtype": "bfloat16"})"},
    {"mistral-7b", R"({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32768,
 "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
 "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
 "sliding_window": null, "hidden_act": "silu", "tie_word_embeddings": false, "torch_dtype": "bfloat16"})"},
    {"qwen2.5-7b", R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 152064,
 "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
 "num_key_value_heads": 4, "max_position_embeddings": 131072, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
 "sliding_window": 131072, "use_sliding_window": false, "max_window_layers": 28, "hidden_act": "silu",
 "tie_word_embeddings": false, "torch_dtype": "bfloat16"})"},
    {"smollm2-135m", R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152,
 "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
 "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 100000.0,
 "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": true, "torch_dtype": "bfloat16"})"},
};

}  // namespace

std::vector<std::string_view> PublishedShapeNames() {
  std::vector<std::string_view> out;
  for (const Row& row : kRows) out.push_back(row.name);
  return out;
}

Result<std::string_view> PublishedConfigJson(std::string_view name) {
  for (const Row& row : kRows)
    if (row.name == name) return row.config;
  return Error(Code::kInvalid,
               fmt::format("synth: '{}' is not one of {}", name, fmt::join(PublishedShapeNames(), ", ")), "synth");
}

Result<ModelConfig> PublishedShape(std::string_view name) {
  ASSIGN_OR_RETURN(std::string_view text, PublishedConfigJson(name));
  ASSIGN_OR_RETURN(json::value value, ParseJson(text));
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfigFromHuggingFace(value.as_object()));
  config.name = name;
  return config;
}

}  // namespace ekiben
