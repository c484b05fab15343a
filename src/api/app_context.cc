#include "api/app_context.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "api/openai_request.h"

namespace ekiben::api {

AppContext::AppContext(serve::ModelRegistry& m, http::Server& s, const Clock& c, AppConfig conf)
    : models(m),
      server(s),
      clock(c),
      config(std::move(conf)),
      metrics(m, s),
      service_metrics(metrics.registry(), config.service.metrics_namespace, config.service.name, config.service.version,
                      c) {}

void SendAnswer(const Writer& writer, const Answer& answer) {
  writer->Send(answer.status, answer.headers, answer.body);
}

Result<json::object> ReadJsonBody(const AppContext& context, const http::Request& request) {
  std::string_view type = request.Header("content-type");
  std::string_view media = type.substr(0, type.find(';'));
  while (!media.empty() && media.back() == ' ') media.remove_suffix(1);
  if (!media.empty() && !http::EqualsIgnoreCase(media, "application/json"))
    return Error(Code::kUnsupported,
                 fmt::format("content-type: '{}' is not read here; send application/json", media.substr(0, 100)),
                 "content-type");
  return ParseBody(request.body, context.config.body_bytes_max);
}

Result<std::shared_ptr<serve::ServedModel>> FindModel(const AppContext& context, std::string_view name) {
  if (auto model = context.models.Find(name)) return model;
  std::string served;
  for (const auto& model : context.models.Models()) served += (served.empty() ? "'" : ", '") + model->name() + "'";
  if (served.empty())
    return Error(Code::kUnavailable, "model: none is loaded; load one, or ask again when it is", "model");
  return Error(Code::kNotFound, fmt::format("model: '{}' is not served here; {} is", name.substr(0, 200), served),
               "model");
}

Result<void> CheckRoom(const AppContext& context) {
  int32_t most = context.config.max_concurrency;
  if (most > 0 && context.calls.size() >= static_cast<size_t>(most))
    return Error(Code::kOverloaded,
                 fmt::format("traffic.max_concurrency: {} calls are running already; try again later", most));
  return {};
}

CallContext ContextOf(AppContext& context, std::shared_ptr<serve::ServedModel> model) {
  serve::Service& service = model->service();
  ModelMetrics& metrics = context.metrics.Of(model->name());
  return {std::move(model), service, metrics, context.calls, context.clock};
}

void AddLimits(const AppContext& context, serve::TextRequest& request) {
  if (context.config.request_timeout > Nanos(0)) request.timeout = context.config.request_timeout;
}

bool IsRequestId(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
}

std::string RequestIdOf(AppContext& context, const http::Request& request) {
  std::string_view given = request.Header("x-request-id");
  return IsRequestId(given) ? std::string(given) : context.ids.NextHex(32);
}

}  // namespace ekiben::api
