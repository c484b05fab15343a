// A model family's forward pass, written once in terms of ops, reading like the paper.
// A family is a row in the registry (model/registry.cc) and, where it differs, a file; no switch over architectures
// anywhere else.
//
// Build side: PackRules says which packed tensors an engine of this configuration holds and what each is made of.
// Run side: Model::Load takes those tensors in place; Forward runs one packed batch.
// Thread: the backend's.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "device/tensor_view.h"
#include "ops/linear.h"
#include "ops/op_context.h"
#include "ops/paged_kv.h"
#include "weights/model_config.h"

namespace ekiben {

// One tensor of an engine, and the checkpoint tensors that it is made of, stacked by rows.
struct PackRule {
  enum class Kind : uint8_t { kLinear, kVector, kEmbedding } kind;  // packed; f32; rows looked up by token id
  std::string name;                  // the engine's: "layers.0.qkv", "layers.0.qkv.bias", "embedding", "lm_head"
  std::vector<std::string> sources;  // the checkpoint's
  int64_t rows = 0, columns = 0;     // total, as packed; a vector has columns == 1
  bool keep_precision = false;       // never below 8 bits (lm_head, embedding)
};

// Errors: an unknown architecture, listing those known.
Result<std::vector<PackRule>> PackRules(const ModelConfig& config);
std::vector<std::string> KnownArchitectures();

// A tensor of a loaded engine.
struct EngineTensor {
  std::string name;
  PackRule::Kind kind;
  Packing packing = Packing::kF32;  // kLinear
  bool keeps_bf16 = false;          // kLinear: a run in fp8 leaves it in bf16
  DType dtype = DType::kF32;        // kVector (f32), kEmbedding (f32, f16, bf16, q8_0)
  int64_t rows = 0, columns = 0;
  const std::byte* data = nullptr;
  size_t bytes = 0;
};
using EngineTensors = std::map<std::string, EngineTensor, std::less<>>;

// One packed batch: rows of consecutive tokens of different sequences, no padding.
struct ForwardBatch {
  std::span<const int32_t> token_ids;      // [tokens]
  std::span<const int32_t> positions;      // [tokens]
  std::span<const AttentionRow> rows;      // which tokens belong to which sequence and where its blocks are
  std::span<const int32_t> output_tokens;  // indices into [0, tokens) that need logits (or a hidden state), ascending
};

class Model {
 public:
  static Result<std::unique_ptr<Model>> Load(const ModelConfig& config, const EngineTensors& tensors,
                                             int32_t max_seq_len);
  virtual ~Model() = default;
  // logits: f32 [output_tokens, vocab_size]. hidden: f32 [output_tokens, hidden_size], after the final norm. Either may
  // be empty (no data).
  virtual void Forward(OpContext& ctx, const ForwardBatch& batch, PagedKv& kv, TensorView logits,
                       TensorView hidden) = 0;
  // Arena bytes that Forward needs for up to `tokens` tokens of which `outputs` have logits, on a pool of `threads`.
  virtual size_t ScratchBytes(int64_t tokens, int64_t outputs, int threads) const = 0;
  virtual const ModelConfig& config() const = 0;
};

}  // namespace ekiben
