// A template from a model file, parsed and rendered with a fixed conversation under tight limits. Beyond not crashing:
// the spans joined are the text, and every error is one line that names a field.
#include <boost/json.hpp>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/chat_template.h"

namespace {

const ekiben::json::object& Conversation() {
  static const ekiben::json::object kInputs = ekiben::json::parse(R"({
    "messages": [
      {"role": "system", "content": "Be kind."},
      {"role": "user", "content": "Grüße <|im_end|> {{ x }} 🎉"},
      {"role": "assistant", "content": null,
       "tool_calls": [{"id": "a1", "type": "function", "function": {"name": "f", "arguments": {"x": 1.5, "y": [true]}}}]},
      {"role": "tool", "name": "f", "content": "{\"z\": 1}"},
      {"role": "user", "content": [{"type": "text", "text": "parts"}]}],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {
      "type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "date_string": "26 Jul 2024"})")
                                                  .as_object();
  return kInputs;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ekiben::text::TemplateLimits limits;
  limits.source_bytes_max = 64 << 10;
  limits.steps_max = 20'000;
  limits.output_bytes_max = 256 << 10;
  limits.depth_max = 50;
  auto parsed = ekiben::text::ChatTemplate::Parse({reinterpret_cast<const char*>(data), size}, limits);
  if (!parsed.ok()) {
    CHECK(parsed.error().field() == "chat_template", "{}", parsed.error().message());
    return 0;
  }
  auto spans = parsed->Render(Conversation(), 1'722'000'000);
  auto text = parsed->RenderText(Conversation(), 1'722'000'000);
  CHECK(spans.ok() == text.ok());
  if (!spans.ok()) {
    CHECK(!spans.error().field().empty(), "{}", spans.error().message());
    return 0;
  }
  std::string joined;
  for (const auto& span : *spans) joined += span.text;
  CHECK(joined == *text);
  return 0;
}
