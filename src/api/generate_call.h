// The answer of a BentoML API: the text itself. A stream is one HTTP chunk an event, no framing; its status line goes
// out with the first text, so that a failure before it is a clean error; one after it is a line of JSON in the text, as
// the service that this replaces wrote it. Without a stream it is one text/plain document.
#pragma once
#include <memory>
#include <string>

#include "api/completion_call.h"

namespace ekiben::api {

std::shared_ptr<CompletionCall> MakeGenerateCall(const CallContext& context,
                                                 std::shared_ptr<http::ResponseWriter> writer, http::Headers headers,
                                                 bool stream);

}  // namespace ekiben::api
