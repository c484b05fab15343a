// What the routes of every surface share, and the table that a surface gives the app: one file a surface
// (openai_routes.cc, bento_routes.cc, text_routes.cc, status_routes.cc, ...), each a function that returns its Routes.
// Thread: handlers run on I/O threads or, for large bodies and slow routes, on the app's worker; all of this is safe
// from any.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "api/app.h"
#include "api/completion_call.h"
#include "api/error_response.h"
#include "api/metrics.h"
#include "api/request_ids.h"
#include "api/service_metrics.h"
#include "base/json.h"
#include "http/server.h"
#include "serve/model_registry.h"

namespace ekiben::api {

using Writer = std::shared_ptr<http::ResponseWriter>;

struct AppContext {
  AppContext(serve::ModelRegistry& models, http::Server& server, const Clock& clock, AppConfig config);

  serve::ModelRegistry& models;
  http::Server& server;
  const Clock& clock;
  const AppConfig config;
  Metrics metrics;
  ServiceMetrics service_metrics;
  CallRegistry calls;
  RequestIds ids;
  std::atomic<bool> draining{false};
};

struct Route {
  std::string path;
  std::string_view method;  // GET also serves HEAD; "*": every method, the function words a wrong one
  std::function<void(const http::Request&, const Writer&)> answer;
  bool open = false;    // needs no API key, is served while draining
  bool admin = false;   // changes the server (load, unload, trace): see AppConfig::admin_routes
  bool prefix = false;  // every longer path that begins so, where no route has the path itself
  bool slow = false;    // may take long for a large body: never on an I/O thread, which carries other people's streams
};

// One function a surface. The context outlives the routes.
std::vector<Route> OpenAiRoutes(AppContext& context);
std::vector<Route> BentoRoutes(AppContext& context);
std::vector<Route> TextRoutes(AppContext& context);    // tokenize, detokenize
std::vector<Route> KserveRoutes(AppContext& context);  // /v2; none without AppConfig::kserve
std::vector<Route> StatusRoutes(AppContext& context);  // health, metrics, version, the pages

void SendAnswer(const Writer& writer, const Answer& answer);
// A JSON body that may be read: its type, no coding, an object.
Result<json::object> ReadJsonBody(const AppContext& context, const http::Request& request);
// The model that a request names; "" is the default. kNotFound names those that are served.
Result<std::shared_ptr<serve::ServedModel>> FindModel(const AppContext& context, std::string_view name);
// traffic.max_concurrency.
Result<void> CheckRoom(const AppContext& context);
// For a call on `model`.
CallContext ContextOf(AppContext& context, std::shared_ptr<serve::ServedModel> model);
// Fills what the server bounds of every request.
void AddLimits(const AppContext& context, serve::TextRequest& request);
// x-request-id: the client's own where it is short and printable, else a new one.
std::string RequestIdOf(AppContext& context, const http::Request& request);
bool IsRequestId(std::string_view id);

}  // namespace ekiben::api
