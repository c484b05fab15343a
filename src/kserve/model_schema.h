// The five Triton models that every engine answers as, as data: which tensors each takes and makes, which of them we
// honour, and the ModelConfig and metadata that tell clients so.
// Source: the published configs of Triton's inflight_batcher_llm models, with the names of v0.10 and of later releases
// where one moved (random_seed and seed, min_length and min_tokens).
// Thread: constants and pure functions.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "kserve/inference.h"
#include "serve/model_registry.h"

namespace ekiben::kserve {

enum class Part : uint8_t { kEnsemble, kBls, kPreprocessing, kTensorRtLlm, kPostprocessing };
inline constexpr int kPartCount = 5;

struct TensorSchema {
  std::string_view name;
  DataType type;
  std::vector<int64_t> dims;  // without the batch; -1: any size
  bool required = false;
  std::string_view refusal;  // of an input that is known but not offered: why; a neutral value of it is taken
};

struct ModelSchema {
  Part part;
  std::string_view name;  // "ensemble", ...
  std::string_view platform, backend;
  bool decoupled;
  std::vector<TensorSchema> inputs, outputs;

  const TensorSchema* Input(std::string_view name) const;
  const TensorSchema* Output(std::string_view name) const;
};

const ModelSchema& SchemaOf(Part part);

ModelMetadata MetadataOf(const ModelSchema& schema, const std::string& model_name);

// What of a run stands in a config's parameters.
struct ModelOptions {
  bool accumulate_tokens = false, exclude_input_in_output = true;
  int32_t preprocessing_instance_count = 1, postprocessing_instance_count = 1;
};
// `prefix`: of the engine's other parts ("" or "NAME_"): an ensemble names its steps.
json::object ConfigOf(const ModelSchema& schema, const std::string& model_name, const std::string& prefix,
                      const serve::EngineFacts& facts, const ModelOptions& options);

}  // namespace ekiben::kserve
