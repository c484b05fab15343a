// The whole edge over doubles of what lies below: real sockets, real routes, predictable tokens.
#include "api/app.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <thread>

#include "api/testing/test_server.h"
#include "http/testing/raw_client.h"

namespace ekiben::api {
namespace {

using namespace std::chrono_literals;
using http::testing::Call;
using http::testing::Format;
using http::testing::RawClient;
using http::testing::RawResponse;
using testing::TestServer;
using testing::TestServerOptions;

template <class Predicate>
bool Eventually(Predicate predicate, std::chrono::milliseconds limit = 20s) {
  auto end = std::chrono::steady_clock::now() + limit;
  while (!predicate()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

class AppTest : public ::testing::Test {
 protected:
  void Start(TestServerOptions options = {}) {
    options.http.host = "127.0.0.1";
    options.http.port = 0;
    options.http.sweep_period = 5ms;
    auto started = TestServer::Start(std::move(options));
    ASSERT_TRUE(started.ok()) << started.error().message();
    server = *std::move(started);
  }
  RawResponse Post(std::string_view path, std::string_view body, std::string_view headers = {}) {
    return Call(server->port(), "POST", path, body, headers);
  }
  RawResponse Get(std::string_view path, std::string_view headers = {}) {
    return Call(server->port(), "GET", path, "", headers);
  }
  static json::value Json(const RawResponse& response) {
    boost::system::error_code code;
    json::value value = json::parse(response.body, code);
    EXPECT_FALSE(code) << response.status << " " << response.body;
    return value;
  }
  // The data objects of a stream; checks the framing and that [DONE] ends it.
  static std::vector<json::value> Events(const RawResponse& response) {
    EXPECT_EQ(response.status, 200);
    EXPECT_TRUE(response.complete);
    EXPECT_EQ(response.Header("content-type"), "text/event-stream; charset=utf-8");
    std::vector<json::value> out;
    for (const std::string& chunk : response.chunks) {
      EXPECT_TRUE(chunk.starts_with("data: ") && chunk.ends_with("\n\n")) << chunk;
      if (chunk == "data: [DONE]\n\n") continue;
      out.push_back(json::parse(chunk.substr(6)));
    }
    EXPECT_FALSE(response.chunks.empty());
    EXPECT_EQ(response.chunks.empty() ? "" : response.chunks.back(), "data: [DONE]\n\n");
    return out;
  }
  void ExpectError(const RawResponse& response, int status, std::string_view param, std::string_view word) {
    EXPECT_EQ(response.status, status) << response.body;
    json::value body = Json(response);
    const json::object& error = body.at("error").as_object();
    for (const char* key : {"message", "type", "param", "code"}) EXPECT_TRUE(error.contains(key)) << key;
    if (param.empty())
      EXPECT_TRUE(error.at("param").is_null());
    else
      EXPECT_EQ(error.at("param").as_string(), param);
    EXPECT_NE(std::string(error.at("message").as_string()).find(word), std::string::npos) << response.body;
  }
  bool Idle() { return server->executor->stats().running + server->executor->stats().waiting == 0; }

  std::unique_ptr<TestServer> server;
};

constexpr const char* kChat = R"({"messages":[{"role":"user","content":"hello "}],"max_tokens":12%})";
std::string ChatBody(std::string_view more = {}) {
  std::string body = kChat;
  return body.replace(body.find('%'), 1, more);
}

TEST_F(AppTest, ChatWhole) {
  Start();
  RawResponse response = Post("/v1/chat/completions", ChatBody(), "X-Request-Id: mine-1\r\n");
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(response.Header("x-request-id"), "mine-1");
  json::value body = Json(response);
  EXPECT_EQ(body.at("id"), "chatcmpl-mine-1");
  EXPECT_EQ(body.at("object"), "chat.completion");
  EXPECT_EQ(body.at("model"), "test-model");
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(choice.at("message").at("content"), "hello hello ");
  EXPECT_EQ(choice.at("message").at("role"), "assistant");
  EXPECT_EQ(choice.at("finish_reason"), "length");
  EXPECT_TRUE(choice.at("logprobs").is_null());
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 8);
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 12);
  EXPECT_EQ(body.at("usage").at("total_tokens"), 20);
}

TEST_F(AppTest, ChatStream) {
  Start();
  RawResponse response =
      Post("/v1/chat/completions", ChatBody(R"(,"stream":true,"stream_options":{"include_usage":true})"));
  auto events = Events(response);
  ASSERT_GT(events.size(), 3u);
  EXPECT_EQ(events[0].at("choices").at(0).at("delta").at("role"), "assistant");
  EXPECT_EQ(events[0].at("choices").at(0).at("delta").at("content"), "");
  std::string text;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    EXPECT_EQ(events[i].at("object"), "chat.completion.chunk");
    EXPECT_EQ(events[i].at("id"), events[0].at("id"));
    EXPECT_TRUE(events[i].at("usage").is_null());
    const json::object& delta = events[i].at("choices").at(0).at("delta").as_object();
    if (delta.contains("content")) text += std::string(delta.at("content").as_string());
  }
  EXPECT_EQ(text, "hello hello ");
  EXPECT_EQ(events[events.size() - 2].at("choices").at(0).at("finish_reason"), "length");
  EXPECT_TRUE(events.back().at("choices").as_array().empty());
  EXPECT_EQ(events.back().at("usage").at("completion_tokens"), 12);
}

TEST_F(AppTest, UsageOnEveryChunkCountsUp) {
  Start();
  auto events = Events(Post("/v1/completions", R"({"prompt":"ab","max_tokens":5,"ignore_eos":true,"stream":true,)"
                                               R"("stream_options":{"continuous_usage_stats":true}})"));
  ASSERT_EQ(events.size(), 5u);
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(events[i].at("usage").at("completion_tokens"), static_cast<int64_t>(i + 1));
  // Without being asked, no usage at all and no chunk without choices.
  for (const auto& event : Events(Post("/v1/completions", R"({"prompt":"ab","stream":true,"stream_options":{}})"))) {
    EXPECT_FALSE(event.as_object().contains("usage"));
    EXPECT_EQ(event.at("choices").as_array().size(), 1u);
  }
}

TEST_F(AppTest, CompletionsSeveralPromptsAndChoices) {
  Start();
  json::value body = Json(Post("/v1/completions", R"({"prompt":["ab","cd"],"n":2,"max_tokens":4,"echo":true})"));
  ASSERT_EQ(body.at("choices").as_array().size(), 4u);
  EXPECT_EQ(body.at("object"), "text_completion");
  for (int64_t i = 0; i < 4; ++i) {
    const json::value& choice = body.at("choices").at(static_cast<size_t>(i));
    EXPECT_EQ(choice.at("index"), i);
    EXPECT_EQ(choice.at("text"), i < 2 ? "ababab" : "cdcdcd");
  }
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 4);
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 16);
  std::map<int64_t, std::string> texts;
  for (const auto& event :
       Events(Post("/v1/completions", R"({"prompt":[[97],[98]],"n":2,"max_tokens":3,"stream":true})")))
    texts[event.at("choices").at(0).at("index").as_int64()] +=
        std::string(event.at("choices").at(0).at("text").as_string());
  EXPECT_EQ(texts, (std::map<int64_t, std::string>{{0, "aaa"}, {1, "aaa"}, {2, "bbb"}, {3, "bbb"}}));
}

TEST_F(AppTest, Logprobs) {
  Start();
  json::value chat = Json(Post("/v1/chat/completions", ChatBody(R"(,"logprobs":true,"top_logprobs":2)")));
  const json::value& content = chat.at("choices").at(0).at("logprobs").at("content");
  ASSERT_EQ(content.as_array().size(), 12u);
  EXPECT_EQ(content.at(0).at("token"), "h");
  EXPECT_EQ(content.at(0).at("bytes").at(0), 104);
  EXPECT_EQ(content.at(0).at("top_logprobs").as_array().size(), 2u);
  json::value scored =
      Json(Post("/v1/completions", R"({"prompt":[97,98],"max_tokens":1,"echo":true,"logprobs":1,"temperature":0})"));
  const json::value& logprobs = scored.at("choices").at(0).at("logprobs");
  EXPECT_EQ(logprobs.at("tokens"), json::parse(R"(["a","b","a"])"));
  EXPECT_EQ(logprobs.at("text_offset"), json::parse("[0,1,2]"));
  EXPECT_TRUE(logprobs.at("token_logprobs").at(0).is_null());
  EXPECT_EQ(logprobs.at("token_logprobs").at(1), -1.5);
  EXPECT_TRUE(logprobs.at("top_logprobs").at(2).as_object().contains("a"));
  json::value only = Json(Post("/v1/completions", R"({"prompt":"ab","max_tokens":0,"echo":true,"logprobs":0})"));
  EXPECT_EQ(only.at("choices").at(0).at("text"), "ab");
  EXPECT_EQ(only.at("choices").at(0).at("logprobs").at("tokens").as_array().size(), 2u);
  EXPECT_EQ(only.at("usage").at("completion_tokens"), 0);
}

TEST_F(AppTest, StopTextAndStopTokens) {
  Start();
  json::value body = Json(Post("/v1/completions", R"({"prompt":"one STOP two","max_tokens":40,"stop":"STOP"})"));
  EXPECT_EQ(body.at("choices").at(0).at("text"), "one ");
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "stop");
  EXPECT_EQ(body.at("choices").at(0).at("stop_reason"), "STOP");
  body = Json(Post("/v1/completions", R"({"prompt":"abc","max_tokens":40,"stop_token_ids":[99],"ignore_eos":true,)"
                                      R"("return_token_ids":true})"));
  EXPECT_EQ(body.at("choices").at(0).at("text"), "ab");
  EXPECT_EQ(body.at("choices").at(0).at("stop_reason"), 99);
  EXPECT_EQ(body.at("choices").at(0).at("token_ids"), json::parse("[97,98]"));
  EXPECT_EQ(body.at("choices").at(0).at("prompt_token_ids"), json::parse("[97,98,99]"));
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 3);
}

TEST_F(AppTest, ErrorsOfTheV1Paths) {
  TestServerOptions options;
  options.http.limits.body_bytes_max = 100'000;
  options.service.max_seq_len = 100;
  options.service.max_input_len = 50;
  Start(options);
  const char* chat = "/v1/chat/completions";
  ExpectError(Post(chat, "{bad"), 400, "", "JSON");
  ExpectError(Post(chat, "[]"), 400, "", "object");
  ExpectError(Post(chat, "{}"), 400, "messages", "missing");
  ExpectError(Post(chat, ChatBody(R"(,"n":500)")), 400, "n", "128");
  ExpectError(Post(chat, ChatBody(R"(,"model":"other")")), 404, "model", "other");
  ExpectError(Post(chat, R"({"messages":[{"role":"user","content":")" + std::string(60, 'x') + "\"}]}"), 400,
              "messages", "50");
  ExpectError(Post(chat, ChatBody(R"(,"stream":true,"max_tokens":1000)")), 400, "max_tokens", "100");
  ExpectError(Post(chat, ChatBody(), "Content-Type: text/plain\r\n"), 415, "content-type", "text/plain");
  ExpectError(Post(chat, ChatBody(), "Content-Type: application/json\r\nContent-Encoding: br\r\n"), 415,
              "content-encoding", "br");
  ExpectError(Post(chat, ChatBody(R"(,"user":")" + std::string(80'000, 'u') + R"(","n":500)")), 400, "n", "128");
  ExpectError(Post(chat, std::string(200'000, ' ')), 413, "", "100000");
  ExpectError(Get("/v1/nothing"), 404, "", "/v1/nothing");
  RawResponse method = Get(chat);
  ExpectError(method, 405, "", "POST");
  EXPECT_EQ(method.Header("allow"), "POST");
  EXPECT_EQ(Json(Post(chat, ChatBody())).at("choices").at(0).at("message").at("content"), "hello hello ");
}

TEST_F(AppTest, ModelsTokenizeAndHealth) {
  TestServerOptions options;
  options.model_aliases = {"org/alias"};
  options.app.web_page = "<!doctype html>hi";
  Start(options);
  json::value models = Json(Get("/v1/models"));
  EXPECT_EQ(models.at("data").as_array().size(), 2u);
  EXPECT_EQ(models.at("data").at(0).at("id"), "test-model");
  EXPECT_EQ(models.at("data").at(0).at("max_model_len"), 4096);
  EXPECT_EQ(Json(Get("/v1/models/org%2Falias")).at("id"), "org/alias");
  EXPECT_EQ(Json(Get("/v1/models/org/alias")).at("id"), "org/alias");
  ExpectError(Get("/v1/models/none"), 404, "model", "none");
  json::value tokens = Json(Post("/tokenize", R"({"prompt":"a<end>","return_token_strs":true})"));
  EXPECT_EQ(tokens.at("tokens"), json::parse("[97,256]"));
  EXPECT_EQ(tokens.at("count"), 2);
  EXPECT_EQ(tokens.at("token_strs"), json::parse(R"(["a","<end>"])"));
  EXPECT_EQ(Json(Post("/tokenize", R"({"messages":[{"role":"user","content":"<end>"}]})")).at("count"), 7);
  EXPECT_EQ(Json(Post("/detokenize", R"({"tokens":[233,167,133]})")).at("prompt"), "駅");
  ExpectError(Post("/detokenize", R"({"tokens":[260]})"), 400, "tokens", "260");
  for (const char* path : {"/healthz", "/livez", "/readyz"}) {
    RawResponse response = Get(path);
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "\n");
    EXPECT_EQ(response.Header("content-type"), "text/plain; charset=utf-8");
    EXPECT_EQ(Call(server->port(), "HEAD", path).status, 200);
    RawResponse post = Post(path, "");
    EXPECT_EQ(post.status, 405);
    EXPECT_EQ(post.Header("allow"), "GET, HEAD");
  }
  EXPECT_EQ(Get("/health").body, "");
  EXPECT_EQ(Json(Get("/version")).at("version"), "0.1.0");
  EXPECT_EQ(Get("/").body, "<!doctype html>hi");
  EXPECT_EQ(Get("/nothing").body, "Not Found");
}

TEST_F(AppTest, GenerateIsRawText) {
  Start();
  RawResponse response = Post("/generate", R"({"prompt":"駅弁🍱","max_tokens":"128","extra":1})");
  EXPECT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(response.Header("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(response.Header("server"), "BentoML Service/ekiben");
  EXPECT_EQ(response.Header("x-bentoml-request-id").size(), 16u);
  ASSERT_GT(response.chunks.size(), 3u);
  EXPECT_EQ(response.chunks[0], "駅");
  EXPECT_EQ(response.chunks[2], "🍱");
  EXPECT_EQ(response.body.find("data:"), std::string::npos);
  EXPECT_EQ(Post("/generate", "").status, 200);
  EXPECT_EQ(Post("/generate", "prompt=form&max_tokens=130", "Content-Type: application/x-www-form-urlencoded\r\n")
                .body.size(),
            130u);
  RawResponse bad = Post("/generate", R"({"max_tokens":5})");
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(Json(bad).at("detail").at(0).at("type"), "greater_than_equal");
  RawResponse get = Get("/generate");
  EXPECT_EQ(get.status, 405);
  EXPECT_EQ(get.body, "Method Not Allowed");
  EXPECT_EQ(get.Header("allow"), "POST");
  EXPECT_EQ(get.Header("server"), "");
  EXPECT_EQ(Json(Get("/schema.json")).at("routes").at(0).at("name"), "generate");
}

TEST_F(AppTest, ApiKeysGuardAllButHealth) {
  TestServerOptions options;
  options.app.api_keys = {"secret"};
  options.app.web_page = "page";
  Start(options);
  RawResponse refused = Post("/v1/chat/completions", ChatBody());
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(Json(refused).at("error").at("code"), "invalid_api_key");
  EXPECT_EQ(Post("/v1/chat/completions", ChatBody(), "Authorization: Bearer secret\r\n").status, 200);
  EXPECT_EQ(Post("/generate", "", "Authorization: Bearer wrong\r\n").body, R"({"error":"Authorization error"})");
  for (const char* path : {"/v1/models", "/v1/models/test-model"}) EXPECT_EQ(Get(path).status, 401);
  // Neither an absolute target nor an odd spelling of the path changes which route is checked.
  EXPECT_EQ(Get("http://localhost/v1/models").status, 401);
  EXPECT_EQ(Get("//v1/models").status, 404);
  EXPECT_EQ(Get("/%761/models").status, 404);
  for (const char* path : {"/healthz", "/readyz", "/health", "/metrics", "/"}) EXPECT_EQ(Get(path).status, 200);
}

TEST_F(AppTest, OverloadAnswersAtOnce) {
  TestServerOptions options;
  options.executor.max_batch_size = 1;
  options.executor.max_queue_size = 1;
  options.executor.turn_time = 5ms;
  Start(options);
  RawClient running(server->port()), waiting(server->port());
  running.Send(Format("POST", "/v1/completions", R"({"prompt":"a","max_tokens":400,"stream":true})"));
  ASSERT_NE(running.ReadUntil("data: ").find("200"), std::string::npos);
  waiting.Send(Format("POST", "/v1/completions", R"({"prompt":"a","max_tokens":1})"));
  ASSERT_TRUE(Eventually([&] { return server->executor->stats().waiting == 1; }));
  RawResponse refused = Post("/v1/completions", R"({"prompt":"a"})");
  ExpectError(refused, 429, "", "max_queue_size");
  EXPECT_EQ(refused.Header("retry-after"), "1");
  RawResponse bento = Post("/generate", "");
  EXPECT_EQ(bento.body, R"({"error":"Too many requests"})");
  EXPECT_EQ(bento.Header("retry-after"), "");  // as BentoML's own
}

TEST_F(AppTest, MaxConcurrencyAndFirstByteTimeout) {
  TestServerOptions options;
  options.app.max_concurrency = 2;
  options.app.first_byte_timeout = 100ms;
  options.executor.max_batch_size = 1;
  options.executor.turn_time = 5ms;
  Start(options);
  RawClient slow(server->port()), late(server->port());
  slow.Send(Format("POST", "/generate", R"({"prompt":"ab","max_tokens":128})"));
  slow.ReadUntil("\r\n\r\n");
  late.Send(Format("POST", "/generate", "{}"));
  ASSERT_TRUE(Eventually([&] { return server->app->calls_running() == 2; }));
  RawResponse refused = Post("/generate", "{}");
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.Header("server"), "");
  for (const char* path : {"/metrics", "/healthz", "/livez", "/readyz"}) EXPECT_EQ(Get(path).status, 200);
  RawResponse timeout = late.Read();
  EXPECT_EQ(timeout.status, 504);
  EXPECT_EQ(timeout.body, R"({"error":"Not able to process the request in 0.1 seconds"})");
  RawResponse whole = slow.Read();  // its first byte was early: it is not cut
  EXPECT_TRUE(whole.complete || whole.head.empty());
  EXPECT_TRUE(Eventually([&] { return Idle() && server->app->calls_running() == 0; }));
}

TEST_F(AppTest, LeavingFreesTheSlot) {
  TestServerOptions options;
  options.executor.turn_time = 2ms;
  Start(options);
  for (const char* body :
       {R"({"prompt":"a","max_tokens":4000,"stream":true})", R"({"prompt":"a","max_tokens":4000})"}) {
    RawClient client(server->port());
    client.Send(Format("POST", "/v1/completions", body));
    ASSERT_TRUE(Eventually([&] { return server->executor->stats().running == 1; }));
    client.Close();
    EXPECT_TRUE(Eventually([&] { return Idle() && server->app->calls_running() == 0; }));
  }
  std::string metrics = Get("/metrics").body;
  EXPECT_NE(metrics.find("ekiben_requests_in_progress{model_name=\"test-model\"} 0\n"), std::string::npos);
  EXPECT_NE(metrics.find("sequences_finished_total{finished_reason=\"cancelled\",model_name=\"test-model\"} 2\n"),
            std::string::npos)
      << metrics;
}

TEST_F(AppTest, FaultMidStreamIsAnEventThenDone) {
  TestServerOptions options;
  options.executor.turn_time = 2ms;
  Start(options);
  RawClient client(server->port());
  client.Send(Format("POST", "/v1/completions", R"({"prompt":"a","max_tokens":4000,"stream":true})"));
  ASSERT_TRUE(Eventually([&] { return server->executor->stats().steps > 5; }));
  server->executor->BreakDevice();
  auto events = Events(client.Read());
  EXPECT_EQ(events.back().at("error").at("type"), "server_error");
  EXPECT_EQ(Get("/readyz").status, 503);
  EXPECT_EQ(Get("/livez").status, 503);
  EXPECT_EQ(Get("/health").status, 503);
  ExpectError(Post("/v1/completions", R"({"prompt":"a"})"), 503, "", "no requests");
}

TEST_F(AppTest, MetricsHaveEveryFamilyOnce) {
  Start();
  Post("/v1/chat/completions", ChatBody());
  Post("/v1/chat/completions", "{}");
  std::string text = Get("/metrics").body;
  for (const char* line : {"ekiben_time_to_first_token_seconds_count{model_name=\"test-model\"} 1",
                           "vllm:time_to_first_token_seconds_count{model_name=\"test-model\"} 1",
                           "ekiben_inter_token_latency_seconds_count{model_name=\"test-model\"} 11",
                           "ekiben_output_tokens_total{model_name=\"test-model\"} 12",
                           "vllm:num_requests_running{model_name=\"test-model\"} 0",
                           "ekiben_sequences_finished_total{finished_reason=\"length\",model_name=\"test-model\"} 1",
                           "vllm:generation_tokens_total{model_name=\"test-model\"} 12",
                           "ekiben_kv_cache_blocks{model_name=\"test-model\"} 100"})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  std::map<std::string, int> types;
  for (size_t at = text.find("# TYPE "); at != std::string::npos; at = text.find("# TYPE ", at + 1))
    ++types[text.substr(at, text.find('\n', at) - at)];
  for (const auto& [line, count] : types) EXPECT_EQ(count, 1) << line;
}

TEST_F(AppTest, DrainUnderFiftyStreams) {
  TestServerOptions options;
  options.executor.turn_time = 2ms;
  Start(options);
  constexpr int kStreams = 50;
  std::vector<std::thread> clients;
  clients.reserve(kStreams);
  std::atomic<int> begun{0}, whole{0};
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back([&] {
      RawClient client(server->port());
      client.Send(Format("POST", "/v1/completions", R"({"prompt":"a","max_tokens":150,"stream":true})"));
      client.ReadUntil("data: ");
      ++begun;
      RawResponse response = client.Read();
      whole += response.complete && response.chunks.size() == 151 && response.chunks.back() == "data: [DONE]\n\n";
    });
  }
  ASSERT_TRUE(Eventually([&] { return begun == kStreams; }));
  RawClient kept(server->port());
  kept.Send(Format("GET", "/readyz"));
  EXPECT_EQ(kept.Read().status, 200);
  server->app->BeginDrain();
  kept.Send(Format("GET", "/readyz") + Format("POST", "/v1/completions", R"({"prompt":"a"})"));
  EXPECT_EQ(kept.Read().status, 503);
  EXPECT_EQ(kept.Read().status, 503);
  EXPECT_TRUE(server->app->Drain(20s));
  for (auto& client : clients) client.join();
  EXPECT_EQ(whole, kStreams);
}

TEST_F(AppTest, DrainDeadlineEndsStreamsWithAnEvent) {
  TestServerOptions options;
  options.executor.turn_time = 2ms;
  Start(options);
  RawClient client(server->port());
  client.Send(Format("POST", "/v1/completions", R"({"prompt":"a","max_tokens":4000,"stream":true})"));
  client.ReadUntil("data: ");
  EXPECT_FALSE(server->app->Drain(50ms));
  auto events = Events(client.Read());
  EXPECT_NE(std::string(events.back().at("error").at("message").as_string()).find("shutting down"), std::string::npos);
}

TEST_F(AppTest, PipelinedCallsAnswerInOrder) {
  Start();
  RawClient client(server->port());
  client.Send(Format("POST", "/v1/completions", R"({"prompt":"long","max_tokens":200})") +
              Format("POST", "/v1/completions", R"({"prompt":"s","max_tokens":1,"stream":true})") +
              Format("GET", "/healthz"));
  EXPECT_EQ(Json(client.Read()).at("usage").at("completion_tokens"), 200);
  EXPECT_EQ(Events(client.Read()).size(), 1u);
  EXPECT_EQ(client.Read().body, "\n");
}

}  // namespace
}  // namespace ekiben::api
