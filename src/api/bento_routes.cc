// BentoML's surface: the APIs of the service, and the documents from which its Python client and its page learn them.
#include <boost/json.hpp>

#include "api/app_context.h"
#include "api/bento_request.h"
#include "api/generate_call.h"

namespace ekiben::api {
namespace {

void CallApi(AppContext& context, const ServiceApi& api, const http::Request& request, const Writer& writer) {
  auto room = CheckRoom(context);
  if (!room.ok()) return SendAnswer(writer, ErrorAnswer(PathFamily::kBento, room.error()));
  http::Headers headers = {{"server", "BentoML Service/" + context.config.service.name},
                           {"x-bentoml-request-id", context.ids.NextHex(16)}};
  auto send = [&](Answer answer) {
    answer.headers.insert(answer.headers.end(), headers.begin(), headers.end());
    SendAnswer(writer, answer);
  };
  std::string_view type = request.Header("content-type");
  if (type.starts_with("application/vnd.bentoml+pickle"))
    return send(StatusAnswer(PathFamily::kBento, 415, "content-type: pickles are not read; send application/json"));
  BentoParse parsed = ParseBentoBody(request.body, type, api.fields);
  if (!parsed.problems.empty()) {
    context.metrics.RequestRefused(Code::kInvalid);
    return send(JsonAnswer(ProblemsJson(parsed.problems), 400));
  }
  auto model = FindModel(context, api.model);
  if (!model.ok()) return send(ErrorAnswer(PathFamily::kBento, model.error()));
  auto wall = std::chrono::duration_cast<std::chrono::seconds>(context.clock.WallNow()).count();
  auto text = MakeTextRequest(api, parsed.values, context.ids.NextSeed(), wall);
  if (!text.ok()) return send(ErrorAnswer(PathFamily::kBento, text.error()));
  AddLimits(context, *text);
  std::vector<serve::TextRequest> prompts;
  prompts.push_back(*std::move(text));
  MakeGenerateCall(ContextOf(context, *std::move(model)), writer, std::move(headers), api.stream)
      ->Begin(std::move(prompts), context.config.first_byte_timeout);
}

Route Document(AppContext& context, const char* path, const json::object& document) {
  return {.path = path,
          .method = "GET",
          .answer =
              [&context, path, text = json::serialize(document)](const http::Request&, const Writer& writer) {
                SendAnswer(context.service_metrics.Watch(path, writer), JsonAnswer(text));
              },
          .open = true};
}

}  // namespace

std::vector<Route> BentoRoutes(AppContext& context) {
  const ServiceDefinition& service = context.config.service;
  std::vector<Route> out = {Document(context, "/schema.json", SchemaDocument(service)),
                            Document(context, "/docs.json", OpenApiDocument(service))};
  for (const ServiceApi& api : service.apis) {
    context.service_metrics.AddEndpoint(api.route);
    out.push_back({api.route, "POST", [&context, &api](const http::Request& request, const Writer& writer) {
                     CallApi(context, api, request, context.service_metrics.Watch(api.route, writer));
                   }});
  }
  return out;
}

}  // namespace ekiben::api
