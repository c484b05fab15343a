// A whole server on a loopback port over the doubles of serve/testing: what the API tests and api_test_server run.
#pragma once
#include <memory>

#include "api/app.h"
#include "serve/testing/scripted_model.h"

namespace ekiben::api::testing {

struct TestServerOptions {
  http::ServerConfig http;
  serve::ServiceConfig service;
  serve::testing::ScriptedOptions executor;               // next_token: EchoToken when empty
  std::vector<std::string> model_names = {"test-model"};  // each with the service and executor above
  std::vector<std::string> model_aliases;                 // of the first
  bool models_may_change = false;
  kserve::InferenceServer::Config kserve;
  AppConfig app;
};

class TestServer {
 public:
  // Fills what the options leave open.
  static Result<std::unique_ptr<TestServer>> Start(TestServerOptions options);
  ~TestServer();

  uint16_t port() const { return server->port(); }

  std::unique_ptr<http::Server> server;
  std::unique_ptr<App> app;
  std::unique_ptr<kserve::InferenceServer> inference;
  std::unique_ptr<serve::LoadedModels> models;
  serve::testing::ScriptedExecutor* executor = nullptr;  // the first model's, while that is loaded
};

}  // namespace ekiben::api::testing
