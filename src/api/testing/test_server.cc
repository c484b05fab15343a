#include "api/testing/test_server.h"

namespace ekiben::api::testing {

Result<std::unique_ptr<TestServer>> TestServer::Start(TestServerOptions options) {
  auto out = std::make_unique<TestServer>();
  if (!options.executor.next_token) options.executor.next_token = serve::testing::EchoToken;
  out->executor = std::make_unique<serve::testing::ScriptedExecutor>(options.executor, SystemClock::Get());
  ASSIGN_OR_RETURN(auto parsed, text::ChatTemplate::Parse(serve::testing::ByteChatTemplate()));
  out->chat_template = std::make_unique<text::ChatTemplate>(std::move(parsed));
  if (options.app.model_name.empty()) options.app.model_name = "test-model";
  options.service.model_name = options.app.model_name;
  options.service.vocab_size = serve::testing::ByteTokenizer::kVocabulary;
  if (options.service.max_seq_len == 0) options.service.max_seq_len = 4096;
  if (options.service.max_input_len == 0) options.service.max_input_len = 4000;
  options.service.max_queue_size = options.executor.max_queue_size;
  ASSIGN_OR_RETURN(out->service, serve::Service::Create(*out->executor, out->tokenizer, out->chat_template.get(),
                                                        SystemClock::Get(), options.service));
  ASSIGN_OR_RETURN(out->server, http::Server::Create(options.http));
  ASSIGN_OR_RETURN(out->app, CreateApp(*out->service, *out->server, SystemClock::Get(), options.app));
  out->executor->Start();
  out->server->Start();
  return out;
}

// From the edge inwards: no request comes in, every running one hears its end, then the stages go.
TestServer::~TestServer() {
  if (server != nullptr) server->Stop();
  if (executor != nullptr) executor->Shutdown();
  service.reset();
  app.reset();
}

}  // namespace ekiben::api::testing
