// How the server is: health, metrics, version, and the chat page. All open: probes and scrapers carry no key.
#include "api/app_context.h"
#include "api/json_text.h"
#include "executor/executor.h"
#include "serve/service.h"

namespace ekiben::api {
namespace {

bool Healthy(const AppContext& context) {
  for (const auto& model : context.models.Models())
    if (!model->service().executor().healthy()) return false;
  return true;
}

std::string MetricsText(const AppContext& context) {
  std::string out = context.metrics.Text();
  if (context.config.kserve != nullptr) out += context.config.kserve->MetricsText();
  return out;
}

Route Open(std::string path, std::function<void(const Writer&)> answer) {
  return {.path = std::move(path),
          .method = "GET",
          .answer = [answer = std::move(answer)](const http::Request&, const Writer& writer) { answer(writer); },
          .open = true};
}

}  // namespace

std::vector<Route> StatusRoutes(AppContext& context) {
  auto live = [&context](const Writer& writer) { SendAnswer(writer, TextAnswer("\n", Healthy(context) ? 200 : 503)); };
  auto ready = [&context](const Writer& writer) {
    SendAnswer(writer, TextAnswer("\n", Healthy(context) && !context.draining ? 200 : 503));
  };
  auto health = [&context](const Writer& writer) { writer->Send(Healthy(context) ? 200 : 503, {}, ""); };
  std::vector<Route> out = {
      Open("/healthz", live),
      Open("/livez", live),
      Open("/readyz", ready),
      Open("/health", health),
      Open("/ping", health),
      Open("/version",
           [&context](const Writer& writer) {
             std::string text = "{\"version\":";
             AppendJsonString(text, context.config.version);
             SendAnswer(writer, JsonAnswer(text + "}"));
           }),
      Open("/metrics",
           [&context](const Writer& writer) {
             writer->Send(200, {{"content-type", "text/plain; version=0.0.4; charset=utf-8"}}, MetricsText(context));
           }),
  };
  if (!context.config.web_page.empty())
    out.push_back(Open("/", [&context](const Writer& writer) {
      writer->Send(200, {{"content-type", "text/html; charset=utf-8"}, {"cache-control", "no-cache"}},
                   context.config.web_page);
    }));
  return out;
}

}  // namespace ekiben::api
