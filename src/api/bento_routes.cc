// BentoML's surface: the product API and the document from which its Python client learns it.
#include <boost/json.hpp>

#include "api/app_context.h"
#include "api/generate_call.h"

namespace ekiben::api {
namespace {

void Generate(AppContext& context, const http::Request& request, const Writer& writer) {
  auto room = CheckRoom(context);
  if (!room.ok()) return SendAnswer(writer, ErrorAnswer(PathFamily::kBento, room.error()));
  http::Headers headers = {{"server", "BentoML Service/" + context.config.service_name},
                           {"x-bentoml-request-id", context.ids.NextHex(16)}};
  auto send = [&](Answer answer) {
    answer.headers.insert(answer.headers.end(), headers.begin(), headers.end());
    SendAnswer(writer, answer);
  };
  std::string_view type = request.Header("content-type");
  if (type.starts_with("application/vnd.bentoml+pickle"))
    return send(StatusAnswer(PathFamily::kBento, 415, "content-type: pickles are not read; send application/json"));
  GenerateParse parsed = ParseGenerateBody(request.body, type, context.config.generate);
  if (!parsed.problems.empty()) {
    context.metrics.RequestRefused(Code::kInvalid);
    return send(JsonAnswer(ProblemsJson(parsed.problems), 400));
  }
  auto model = FindModel(context, "");
  if (!model.ok()) return send(ErrorAnswer(PathFamily::kBento, model.error()));
  serve::TextRequest text;
  json::array messages;
  messages.push_back(json::object{{"role", "system"}, {"content", parsed.input.system_prompt}});
  messages.push_back(json::object{{"role", "user"}, {"content", parsed.input.prompt}});
  text.input = serve::ChatInput{{{"messages", std::move(messages)}, {"add_generation_prompt", true}}};
  text.max_tokens = parsed.input.max_tokens;
  text.clamp_max_tokens = true;
  text.sampling.temperature = 0;
  AddLimits(context, text);
  std::vector<serve::TextRequest> prompts;
  prompts.push_back(std::move(text));
  MakeGenerateCall(ContextOf(context, *std::move(model)), writer, std::move(headers))
      ->Begin(std::move(prompts), context.config.first_byte_timeout);
}

// What BentoML's Python client reads to find the API and its parameters.
void Schema(const AppContext& context, const Writer& writer) {
  const GenerateDefaults& defaults = context.config.generate;
  json::object properties;
  properties["prompt"] = {{"default", defaults.prompt}, {"title", "Prompt"}, {"type", "string"}};
  properties["system_prompt"] = {{"anyOf", json::array{{{"type", "string"}}, {{"type", "null"}}}},
                                 {"default", defaults.system_prompt},
                                 {"title", "System Prompt"}};
  properties["max_tokens"] = {{"default", defaults.max_tokens},
                              {"maximum", defaults.max_tokens_max},
                              {"minimum", defaults.max_tokens_min},
                              {"title", "Max Tokens"},
                              {"type", "integer"}};
  json::object route = {{"name", "generate"},
                        {"route", "/generate"},
                        {"batchable", false},
                        {"input", {{"properties", properties}, {"title", "Input"}, {"type", "object"}}},
                        {"output", {{"type", "string"}, {"is_stream", true}, {"media_type", "text/event-stream"}}},
                        {"is_task", false}};
  json::object document = {{"name", context.config.service_name},
                           {"type", "service"},
                           {"routes", json::array{route}},
                           {"paths", {{"/generate", {{"mounted", false}}}}}};
  SendAnswer(writer, JsonAnswer(json::serialize(document)));
}

}  // namespace

std::vector<Route> BentoRoutes(AppContext& context) {
  return {
      {"/generate", "POST",
       [&context](const http::Request& request, const Writer& writer) { Generate(context, request, writer); }},
      {.path = "/schema.json",
       .method = "GET",
       .answer = [&context](const http::Request&, const Writer& writer) { Schema(context, writer); },
       .open = true},
  };
}

}  // namespace ekiben::api
