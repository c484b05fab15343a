// What a load client needs to know of one streamed JSON object, read in one pass without allocating: a client that
// builds a document for each token measures itself. Understands the chunks of /v1/completions and
// /v1/chat/completions as the published OpenAI API and vLLM's extensions define them.
// Thread: pure function. Errors: any bytes are accepted; text that is no JSON object gives valid = false.
#pragma once
#include <cstdint>
#include <string_view>

namespace ekiben::load {

struct StreamChunk {
  bool valid = false;
  bool finished = false;          // a choice has a finish_reason
  bool error = false;             // an `error` member that is not null
  std::string_view error_text;    // error.message, still escaped, or the error's own text
  int32_t output_tokens = -1;     // usage.completion_tokens; -1: no usage
  int32_t prompt_tokens = -1;     // usage.prompt_tokens
  int32_t text_bytes = 0;         // generated text over all choices: text, delta.content, delta.reasoning(_content)
  std::string_view text_escaped;  // the last choice's text as written, still escaped
};

StreamChunk ScanStreamChunk(std::string_view json);

}  // namespace ekiben::load
