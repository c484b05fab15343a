// A configuration that CUDA's tests of how a model runs, not of what it says, make random weights for: small, and every
// size one that e4m3 and the own linear kernel take.
#pragma once
#include "weights/model_config.h"

namespace ekiben {

inline ModelConfig SmallConfig(int32_t layers) {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 256;
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.num_hidden_layers = layers;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = 128;
  return config;
}

}  // namespace ekiben
