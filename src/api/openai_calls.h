// The two shapes of an OpenAI answer, for chat and for completions: one document, or a stream of server-sent events.
#pragma once
#include <memory>
#include <string>

#include "api/completion_call.h"
#include "api/openai_request.h"
#include "api/request_ids.h"
#include "api/tool_calls.h"

namespace ekiben::api {

struct OpenAiCallInfo {
  std::string id;                                       // "chatcmpl-..." or "cmpl-..."
  std::string request_id;                               // x-request-id
  std::string model;                                    // as the answer names it
  int64_t created = 0;                                  // Unix seconds
  http::Headers headers;                                // further ones for the answer
  RequestIds* ids = nullptr;                            // names tool calls; outlives the call
  ToolCallFormat tool_calls = ToolCallFormat::kHermes;  // how this model writes them
};

http::Headers HeadersOf(const OpenAiCallInfo& info, const char* content_type);
void SendCallError(http::ResponseWriter& writer, const OpenAiCallInfo& info, const Error& error);

// The model's own format where it is free to call, ours where a grammar makes it.
ToolCallFormat ToolCallFormatFor(ToolChoice::Kind choice, ToolCallFormat of_model);
// Some models mark their calls with special tokens, which the text must then show.
void ShowToolCallTokens(CompletionRequest& request, ToolCallFormat format);

// Creates the call for `request` (stream or not); the caller hands `request.prompts` to Begin.
std::shared_ptr<CompletionCall> MakeOpenAiCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer,
                                               const CompletionRequest& request, OpenAiCallInfo info);

}  // namespace ekiben::api
