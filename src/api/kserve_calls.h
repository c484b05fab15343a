// One inference over HTTP, from the request to the finished answer: infer (one response, JSON or binary), generate (one
// response, flat JSON) and generate_stream (an event a response). The status goes out with the first response, so that
// a failure before it is a plain error; in a stream, a later one is an event. A client that leaves cancels,
// and a drain whose time is over ends what is in `calls`.
// Thread: any.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "api/completion_call.h"
#include "api/error_response.h"
#include "api/kserve_body.h"
#include "http/server.h"
#include "kserve/inference.h"

namespace ekiben::api {

enum class KserveAnswer : uint8_t { kInfer, kGenerate, kGenerateStream };

// `asked` says how an answer of kInfer is written. `load`: the value of ORCA's header, asked for by the client.
void RunInference(kserve::InferenceServer& server, CallRegistry& calls, KserveAnswer kind, kserve::InferRequest request,
                  InferBody asked, std::optional<std::string> load,
                  const std::shared_ptr<http::ResponseWriter>& writer);

}  // namespace ekiben::api
