#include "model/registry.h"

#include <fmt/ranges.h>

#include "model/llama.h"

namespace ekiben {
namespace {

// Qwen2 is Llama with q, k, v biases (ModelConfig::attention_bias), Mistral is Llama with a sliding window
// (ModelConfig::sliding_window) and a head size of its own.
constexpr ArchitectureRow kArchitectures[] = {
    {"llama", LlamaPackRules, LoadLlama},
    {"mistral", LlamaPackRules, LoadLlama},
    {"qwen2", LlamaPackRules, LoadLlama},
};

Result<const ArchitectureRow*> Find(const ModelConfig& config) {
  for (const ArchitectureRow& row : kArchitectures) {
    if (row.name == config.architecture) return &row;
  }
  return Error(Code::kUnsupported,
               fmt::format("architecture '{}' is not one that this version runs ({})", config.architecture,
                           fmt::join(KnownArchitectures(), ", ")),
               "architecture");
}

}  // namespace

std::span<const ArchitectureRow> Architectures() {
  return kArchitectures;
}

std::vector<std::string> KnownArchitectures() {
  std::vector<std::string> names;
  for (const ArchitectureRow& row : kArchitectures) names.emplace_back(row.name);
  return names;
}

Result<std::vector<PackRule>> PackRules(const ModelConfig& config) {
  ASSIGN_OR_RETURN(const ArchitectureRow* row, Find(config));
  return row->pack_rules(config);
}

Result<std::unique_ptr<Model>> Model::Load(const ModelConfig& config, const EngineTensors& tensors,
                                           int32_t max_seq_len) {
  ASSIGN_OR_RETURN(const ArchitectureRow* row, Find(config));
  return row->load(config, tensors, max_seq_len);
}

}  // namespace ekiben
