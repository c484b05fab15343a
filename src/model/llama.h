// The Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU; tied or untied head; optional biases
// and sliding window. Tensors of an engine (L = layers.<i>):
//   embedding · L.attention_norm · L.qkv [q, k, v stacked] · L.o · L.mlp_norm · L.gate_up [gate, up stacked] · L.down ·
//   final_norm · lm_head; with a bias <linear>.bias. A tied head is packed from the embedding as a linear of its own.
#pragma once
#include "model/model.h"

namespace ekiben {

Result<std::vector<PackRule>> LlamaPackRules(const ModelConfig& config);
// Errors: a tensor that is missing or of another shape than the configuration says.
Result<std::unique_ptr<Model>> LoadLlama(const ModelConfig& config, const EngineTensors& tensors, int32_t max_seq_len);

}  // namespace ekiben
