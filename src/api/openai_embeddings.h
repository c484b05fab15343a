// POST /v1/embeddings: prompts in, one vector each out: the final hidden state of the last token, or the mean over all
// of them (`pooling`, ours), normalised to length 1. `dimensions` keeps the first so many before normalising.
// Thread: as completion_call.h says.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "api/openai_calls.h"

namespace ekiben::api {

struct EmbeddingsRequest {
  std::string model;  // empty: not given
  std::vector<serve::TextRequest> inputs;
  bool base64 = false;     // little-endian float32; else an array of numbers
  int32_t dimensions = 0;  // 0: all
};
Result<EmbeddingsRequest> ParseEmbeddingsRequest(const json::object& body, const OpenAiLimits& limits = {});

std::shared_ptr<CompletionCall> MakeEmbeddingsCall(const CallContext& context,
                                                   std::shared_ptr<http::ResponseWriter> writer,
                                                   const EmbeddingsRequest& request, OpenAiCallInfo info);

// The first `dimensions` (0: all) of `hidden`, divided by their length; zeros stay zeros.
std::vector<float> Normalized(const std::vector<float>& hidden, int32_t dimensions);
std::string Base64(const std::vector<float>& values);

}  // namespace ekiben::api
