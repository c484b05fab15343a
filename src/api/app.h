// The routes of one server: OpenAI's, BentoML's, health, metrics and the chat page, all on one port, over the models of
// a registry. cli/ creates registry, server and app, calls server.Start(), and on SIGTERM app.Drain().
// Thread: handlers run on I/O threads; the methods below from any.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "api/openai_request.h"
#include "api/service_definition.h"
#include "base/api_keys.h"
#include "base/clock.h"
#include "base/result.h"
#include "http/server.h"
#include "kserve/inference.h"
#include "serve/model_registry.h"

namespace ekiben::api {

struct AppConfig {
  std::string version = "0.1.0";
  ApiKeys api_keys;           // none: open
  bool admin_routes = false;  // for everyone who may pass; else only for keys that are an admin's
  bool log_requests = false;  // with their bodies, so with prompts
  // Served at "/" and "/docs"; static storage; empty: 404.
  std::string_view web_page, docs_page;
  size_t body_bytes_max = size_t{16} << 20;
  int32_t max_concurrency = 0;  // traffic.max_concurrency: generating calls at once, then 429; 0: no limit
  Nanos first_byte_timeout{};   // traffic.timeout: to the first byte of the answer, then 504; 0: none
  Nanos request_timeout{};      // to the end of the answer; 0: none
  OpenAiLimits limits;
  std::string tool_call_parser = "auto";  // how the model writes its calls: api/tool_calls.h
  // The product API and its name; its own traffic limits are not read here but by who fills the two above.
  ServiceDefinition service = ArticleService();
  kserve::InferenceServer* kserve = nullptr;  // over the same models; outlives them and the app. Null: no /v2
};

class App {
 public:
  virtual ~App() = default;

  // From here on /readyz says 503 and new calls are refused; running ones go on. Idempotent.
  virtual void BeginDrain() = 0;
  // BeginDrain, then the server's drain; what is left at the deadline ends with an error event and [DONE].
  // True when nothing had to be cut.
  virtual bool Drain(Nanos timeout) = 0;
  virtual size_t calls_running() const = 0;
};

// For http::ServerConfig::may_compress. Of KServe's routes only infer's answers may be, as in Triton: tritonclient's
// asyncio client has its library ask for gzip on every route and unpacks only those.
bool MayCompress(std::string_view path);

// Sets the server's handler; before server.Start(). Server and clock outlive the app, the app outlives the models'
// registry (a call that ends with its model still counts itself in the app's metrics), and the server is stopped before
// either is destroyed.
Result<std::unique_ptr<App>> CreateApp(serve::ModelRegistry& models, http::Server& server, const Clock& clock,
                                       AppConfig config);

}  // namespace ekiben::api
