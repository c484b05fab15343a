// Request bodies -> parsed requests. The first byte picks the surface, the rest is the body as it came off the wire.
#include <cstdint>
#include <cstdlib>

#include <boost/json.hpp>

#include "api/bento_request.h"
#include "api/json_text.h"
#include "api/openai_request.h"
#include "base/check.h"

namespace {

using namespace ekiben;

// What the stages below rely on.
void CheckRequest(const api::CompletionRequest& request) {
  api::OpenAiLimits limits;
  CHECK(!request.prompts.empty() && request.prompts.size() <= limits.prompts_max);
  CHECK(request.prompts.size() * static_cast<size_t>(request.n) <= limits.sequences_max);
  for (const serve::TextRequest& prompt : request.prompts) {
    CHECK(prompt.n >= 1 && prompt.n <= limits.n_max);
    CHECK(!prompt.max_tokens || *prompt.max_tokens >= 0);
    CHECK(prompt.sampling.top_k >= 0 && prompt.sampling.top_p > 0 && prompt.sampling.top_p <= 1);
    CHECK(prompt.stop.size() <= 16);
    for (const std::string& stop : prompt.stop) CHECK(!stop.empty());
    if (const auto* chat = std::get_if<serve::ChatInput>(&prompt.input))
      for (const json::value& message : chat->inputs.at("messages").as_array())
        CHECK(message.at("role").is_string() && message.at("content").is_string());
  }
}

void CheckError(const Error& error) {
  CHECK(!error.message().empty() && error.code() != Code::kInternal);
}

void Generate(std::string_view body, const char* type) {
  static const api::ServiceApi kApi = api::ArticleService().apis[0];
  auto parsed = api::ParseBentoBody(body, type, kApi.fields);
  if (parsed.problems.empty()) {
    int64_t max_tokens = parsed.values.at("max_tokens").as_int64();
    CHECK(max_tokens >= 128 && max_tokens <= 1024);
    auto request = api::MakeTextRequest(kApi, parsed.values, 1, 0);
    CHECK(request.ok() && request->max_tokens == max_tokens);
  } else {
    CHECK(boost::json::parse(api::ProblemsJson(parsed.problems)).is_object());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  int surface = data[0] % 7;
  if (surface == 4) return Generate(body, "application/json"), 0;
  if (surface == 5) return Generate(body, "application/x-www-form-urlencoded"), 0;
  if (surface == 6) return Generate(body, "multipart/form-data; boundary=b"), 0;
  std::string quoted;
  api::AppendJsonString(quoted, api::ReplaceInvalidUtf8(body));
  CHECK(boost::json::parse(quoted).is_string());
  auto object = api::ParseBody(body, size_t{1} << 20);
  if (!object.ok()) return CheckError(object.error()), 0;
  if (surface <= 1) {
    auto parsed = surface == 0 ? api::ParseChatRequest(*object, 1) : api::ParseCompletionRequest(*object, 1);
    if (parsed.ok())
      CheckRequest(*parsed);
    else
      CheckError(parsed.error());
  } else if (surface == 2) {
    auto parsed = api::ParseTokenizeRequest(*object);
    if (!parsed.ok()) CheckError(parsed.error());
  } else {
    auto parsed = api::ParseDetokenizeRequest(*object, 1000);
    if (parsed.ok())
      for (TokenId token : *parsed) CHECK(token >= 0 && token < 1000);
    else
      CheckError(parsed.error());
  }
  return 0;
}
