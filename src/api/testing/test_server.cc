#include "api/testing/test_server.h"

namespace ekiben::api::testing {

Result<std::unique_ptr<TestServer>> TestServer::Start(TestServerOptions options) {
  auto out = std::make_unique<TestServer>();
  std::vector<serve::testing::ScriptedModelOptions> models;
  for (const std::string& name : options.model_names)
    models.push_back({.name = name,
                      .aliases = models.empty() ? options.model_aliases : std::vector<std::string>(),
                      .service = options.service,
                      .executor = options.executor});
  out->models = std::make_unique<serve::LoadedModels>(
      std::make_unique<serve::testing::ScriptedSource>(std::move(models)), options.models_may_change);
  for (const std::string& name : options.model_names) RETURN_IF_ERROR(out->models->Open(name));
  out->executor = &dynamic_cast<serve::testing::ScriptedModel&>(*out->models->Find("")).executor();
  options.http.may_compress = MayCompress;
  ASSIGN_OR_RETURN(out->server, http::Server::Create(options.http));
  out->inference = kserve::InferenceServer::Create(*out->models, SystemClock::Get(), options.kserve);
  options.app.kserve = out->inference.get();
  ASSIGN_OR_RETURN(out->app, CreateApp(*out->models, *out->server, SystemClock::Get(), options.app));
  out->server->Start();
  return out;
}

// From the edge inwards: no request comes in, every running one hears its end, then the app goes.
TestServer::~TestServer() {
  if (server != nullptr) server->Stop();
  models.reset();
  app.reset();
}

}  // namespace ekiben::api::testing
