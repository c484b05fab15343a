// The models preprocessing and postprocessing as calls of their own: text to TensorRT-LLM's tensors of token ids, and
// back. They run the tokenizer, so never on an I/O thread.
// Thread: pure functions.
#pragma once
#include <vector>

#include "base/result.h"
#include "kserve/inputs.h"
#include "serve/model_registry.h"

namespace ekiben::kserve {

Result<std::vector<Tensor>> Preprocess(const Inputs& inputs, serve::ServedModel& model);
Result<std::vector<Tensor>> Postprocess(const Inputs& inputs, serve::ServedModel& model);

}  // namespace ekiben::kserve
