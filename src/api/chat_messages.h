// The chat part of a body: messages and tools -> what a chat template reads.
// Thread: pure function.
#pragma once
#include "api/tool_choice.h"
#include "base/json.h"
#include "base/result.h"
#include "serve/service.h"

namespace ekiben::api {

// Roles are checked, content parts are joined to text, tool-call arguments become objects, as templates expect them;
// `chat_template_kwargs`, `tools`, `documents` and `add_generation_prompt` are handed on. A developer is a system.
// The tools themselves stay where ParseToolChoice has checked them: in `body`.
Result<serve::ChatInput> ParseChatInput(const json::object& body, const ToolChoice& tools, size_t messages_max);

}  // namespace ekiben::api
