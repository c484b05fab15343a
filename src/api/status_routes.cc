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
  // BentoML counts its probes, too.
  auto counted = [&context](const char* path, std::function<void(const Writer&)> answer) {
    return Open(path, [&context, path, answer = std::move(answer)](const Writer& writer) {
      answer(context.service_metrics.Watch(path, writer));
    });
  };
  auto live = [&context](const Writer& writer) { SendAnswer(writer, TextAnswer("\n", Healthy(context) ? 200 : 503)); };
  auto ready = [&context](const Writer& writer) {
    SendAnswer(writer, TextAnswer("\n", Healthy(context) && !context.draining ? 200 : 503));
  };
  auto health = [&context](const Writer& writer) { writer->Send(Healthy(context) ? 200 : 503, {}, ""); };
  std::vector<Route> out = {
      counted("/healthz", live),
      counted("/livez", live),
      counted("/readyz", ready),
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
  const AppConfig& config = context.config;
  for (auto [path, page] : {std::pair{"/", config.web_page}, std::pair{"/docs", config.docs_page}}) {
    if (page.empty()) continue;
    out.push_back(Open(path, [page = page](const Writer& writer) {
      writer->Send(200, {{"content-type", "text/html; charset=utf-8"}, {"cache-control", "no-cache"}}, page);
    }));
  }
  return out;
}

}  // namespace ekiben::api
