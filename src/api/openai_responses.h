// POST /v1/responses, the basic part: text and function calls in one answer or as named events. Nothing is stored, so
// `store` is answered with false, and `previous_response_id` is refused: the client sends the whole conversation.
//
// A body is turned into that of a chat, which is parsed and generated as any other.
// Thread: as completion_call.h says.
#pragma once
#include <memory>
#include <string>

#include "api/openai_calls.h"

namespace ekiben::api {

struct ResponsesRequest {
  CompletionRequest chat;
  json::object echoed;  // what the response object repeats of the request
};
Result<ResponsesRequest> ParseResponsesRequest(const json::object& body, uint64_t seed_if_absent,
                                               const OpenAiLimits& limits = {});

// `info.id` is "resp_...".
std::shared_ptr<CompletionCall> MakeResponsesCall(const CallContext& context,
                                                  std::shared_ptr<http::ResponseWriter> writer,
                                                  const ResponsesRequest& request, OpenAiCallInfo info);

}  // namespace ekiben::api
