// The bodies of KServe's inference routes, in and out: JSON, Triton's binary tensor data behind it, and the flat JSON
// of generate. Knows nothing of HTTP, so that it is fuzzed alone. Thread: pure functions.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kserve/inference.h"

namespace ekiben::api {

// An infer request, and how its answer is to be written.
struct InferBody {
  kserve::InferRequest request;                      // model_name and model_version left open
  bool binary_all = false;                           // binary_data_output of the request
  std::vector<std::pair<std::string, bool>> binary;  // by output, where it says

  bool Binary(const std::string& output) const;
};
// `json_bytes`: of Inference-Header-Content-Length; nullopt: the body is JSON alone.
Result<InferBody> ParseInferBody(std::string_view body, std::optional<size_t> json_bytes, size_t bytes_max);

// A generate request: keys that name one of `inputs`, at the top or inside "parameters", are tensors; others are
// parameters.
Result<kserve::InferRequest> ParseFlatBody(std::string_view body, const std::vector<kserve::TensorMetadata>& inputs,
                                           size_t bytes_max);

struct InferAnswer {
  std::string body;
  size_t json_bytes = 0;
  bool binary = false;  // tensors follow the JSON
};
Result<InferAnswer> WriteInferAnswer(const kserve::InferResponse& response, const InferBody& asked);
// One JSON object with a member for each output and each parameter.
void AppendGenerateAnswer(std::string& out, const kserve::InferResponse& response);

}  // namespace ekiben::api
