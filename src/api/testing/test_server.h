// A whole server on a loopback port over the doubles of serve/testing: what the API tests and api_test_server run.
#pragma once
#include <memory>

#include "api/app.h"
#include "serve/testing/byte_tokenizer.h"
#include "serve/testing/scripted_executor.h"

namespace ekiben::api::testing {

struct TestServerOptions {
  http::ServerConfig http;
  serve::ServiceConfig service;
  serve::testing::ScriptedOptions executor;  // next_token: EchoToken when empty
  AppConfig app;
};

class TestServer {
 public:
  // Fills what the options leave open; model_name is "test-model".
  static Result<std::unique_ptr<TestServer>> Start(TestServerOptions options);
  ~TestServer();

  uint16_t port() const { return server->port(); }

  serve::testing::ByteTokenizer tokenizer;
  std::unique_ptr<text::ChatTemplate> chat_template;
  std::unique_ptr<serve::testing::ScriptedExecutor> executor;
  std::unique_ptr<serve::Service> service;
  std::unique_ptr<http::Server> server;
  std::unique_ptr<App> app;
};

}  // namespace ekiben::api::testing
