// KServe v2 over the real server, on the doubles of serve/testing: what curl and tritonclient's HTTP client see.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <chrono>
#include <cstring>
#include <thread>

#include "api/kserve_body.h"
#include "api/kserve_json.h"
#include "api/testing/test_server.h"
#include "http/content_coding.h"
#include "http/testing/raw_client.h"
#include "kserve/testing/shared_object.h"

namespace ekiben::api {
namespace {

using http::testing::Call;
using http::testing::RawClient;
using http::testing::RawResponse;
using kserve::DataType;
using kserve::Tensor;
using testing::TestServer;
using testing::TestServerOptions;

class KserveTest : public ::testing::Test {
 protected:
  void Start(TestServerOptions options = {}) {
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
  static json::value Json(const RawResponse& response, int status = 200) {
    EXPECT_EQ(response.status, status) << response.body;
    auto parsed = ParseJson(response.body);
    EXPECT_TRUE(parsed.ok()) << response.body;
    return parsed.ok() ? *std::move(parsed) : json::value();
  }
  static std::string ErrorOf(const RawResponse& response, int status) {
    return std::string(Json(response, status).at("error").as_string());
  }

  std::unique_ptr<TestServer> server;
};

// Check 9: what there is, for a loaded and an unloaded model, with and without a version.
TEST_F(KserveTest, Check9WhatIsServed) {
  TestServerOptions options;
  options.model_names = {"first", "second"};
  options.models_may_change = true;
  options.app.admin_routes = true;
  Start(std::move(options));
  ASSERT_EQ(Post("/v2/repository/models/second/unload", "").status, 200);

  json::value about = Json(Get("/v2"));
  EXPECT_TRUE(about.at("name").is_string() && about.at("version").is_string() && about.at("extensions").is_array());
  for (const char* path : {"/v2/health/live", "/v2/health/ready", "/v2/models/ensemble/ready",
                           "/v2/models/first/versions/1/ready", "/v2/models/first_tensorrt_llm/ready"}) {
    RawResponse response = Get(path);
    EXPECT_EQ(response.status, 200) << path;
    EXPECT_EQ(response.body, "") << path;
  }
  EXPECT_EQ(Get("/v2/models/second/ready").status, 400);
  EXPECT_EQ(Get("/v2/models/ensemble/versions/2/ready").status, 400);

  json::value metadata = Json(Get("/v2/models/ensemble/versions/1"));
  EXPECT_EQ(metadata.at("name").as_string(), "ensemble");
  EXPECT_EQ(metadata.at("platform").as_string(), "ensemble");
  EXPECT_EQ(metadata.at("versions").as_array(), json::array{"1"});
  EXPECT_EQ(metadata.at("inputs").as_array().at(0),
            (json::value{{"name", "text_input"}, {"datatype", "BYTES"}, {"shape", {-1, 1}}}));
  json::value config = Json(Get("/v2/models/tensorrt_llm/config"));
  EXPECT_TRUE(config.at("model_transaction_policy").at("decoupled").as_bool());
  EXPECT_EQ(Json(Get("/v2/models/ensemble/stats")).at("model_stats").as_array().size(), 1u);
  EXPECT_EQ(Json(Get("/v2/models/stats")).at("model_stats").as_array().size(), 5u);

  auto states = [&](const char* body) {
    std::map<std::string, std::string> out;
    json::value index = Json(Post("/v2/repository/index", body));
    for (const json::value& model : index.as_array())
      out[std::string(model.at("name").as_string())] = model.at("state").as_string();
    return out;
  };
  // An unloaded model says so until its last call and its memory are gone.
  for (int i = 0; i < 1000 && states("{}").at("second") == "UNLOADING"; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(states("{}").at("second"), "UNAVAILABLE");
  EXPECT_EQ(states("").at("ensemble"), "READY");
  EXPECT_FALSE(states(R"({"ready":true})").contains("second"));
  EXPECT_EQ(Post("/v2/repository/any/models/second/load", "{}").status, 200);
  EXPECT_EQ(states("").at("second_ensemble"), "READY");

  for (const char* path : {"", "/config", "/stats"})
    EXPECT_EQ(ErrorOf(Get("/v2/models/nope" + std::string(path)), 404),
              "Request for unknown model: 'nope' is not found");
  EXPECT_EQ(ErrorOf(Post("/v2/repository/models/nope/load", "{}"), 404).find("Request for"), std::string::npos);
  EXPECT_EQ(ErrorOf(Post("/v2/models/ensemble", "{}"), 405), "Method Not Allowed");
  EXPECT_EQ(ErrorOf(Get("/v2/models/ensemble/infer"), 405), "Method Not Allowed");
  EXPECT_EQ(ErrorOf(Get("/v2/nonsense"), 404), "Not Found");
  EXPECT_EQ(ErrorOf(Get("/v2/models/ensemble/nonsense"), 404), "Not Found");
}

std::string BinaryBody(const std::string& json, const std::string& blobs) {
  return json + blobs;
}
std::string Bytes(const std::string& element) {
  std::string out;
  kserve::AppendBytesElement(out, element);
  return out;
}

// Check 10: infer, in all its forms.
TEST_F(KserveTest, Check10Infer) {
  Start();
  constexpr const char* kPath = "/v2/models/ensemble/infer";
  json::value answer = Json(Post(kPath, R"({"id":"42","inputs":[
      {"name":"text_input","shape":[1,1],"datatype":"BYTES","data":[["abc"]]},
      {"name":"max_tokens","shape":[1,1],"datatype":"INT32","data":[5]}]})"));
  EXPECT_EQ(answer.at("id").as_string(), "42");
  EXPECT_EQ(answer.at("model_name").as_string(), "ensemble");
  EXPECT_EQ(answer.at("model_version").as_string(), "1");
  EXPECT_EQ(answer.at("outputs").as_array().at(0),
            (json::value{{"name", "text_output"}, {"datatype", "BYTES"}, {"shape", {1}}, {"data", {"abcab"}}}));

  // Binary in, one output binary: a prompt with a zero byte.
  std::string text = Bytes(std::string("a\0c", 3)), count("\x05\0\0\0", 4);
  std::string head =
      R"({"inputs":[{"name":"text_input","shape":[1,1],"datatype":"BYTES","parameters":)"
      R"({"binary_data_size":7}},{"name":"max_tokens","shape":[1,1],"datatype":"INT32","parameters":)"
      R"({"binary_data_size":4}}],"outputs":[{"name":"text_output","parameters":{"binary_data":true}}]})";
  auto header = [&](size_t size) { return "Inference-Header-Content-Length: " + std::to_string(size) + "\r\n"; };
  RawResponse response = Post(kPath, BinaryBody(head, text + count), header(head.size()));
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(response.Header("content-type"), "application/octet-stream");
  size_t json_bytes = std::stoul(response.Header("inference-header-content-length"));
  auto document = ParseJson(response.body.substr(0, json_bytes));
  ASSERT_TRUE(document.ok());
  EXPECT_EQ(document->at("outputs").as_array().at(0).at("parameters").at("binary_data_size").as_int64(), 9);
  EXPECT_EQ(response.body.substr(json_bytes), Bytes(std::string("a\0ca\0", 5)));

  // Mixed in; everything binary out.
  std::string mixed = R"({"parameters":{"binary_data_output":true},"inputs":[{"name":"text_input","shape":[1],)"
                      R"("datatype":"BYTES","parameters":{"binary_data_size":7}},)"
                      R"({"name":"max_tokens","shape":[1],"datatype":"INT32","data":[2]}]})";
  response = Post(kPath, BinaryBody(mixed, text), header(mixed.size()));
  EXPECT_EQ(response.body.substr(std::stoul(response.Header("inference-header-content-length"))),
            Bytes(std::string("a\0", 2)));

  EXPECT_NE(ErrorOf(Post(kPath, BinaryBody(head, text), header(head.size())), 400).find("max_tokens"),
            std::string::npos);
  EXPECT_NE(ErrorOf(Post(kPath, BinaryBody(head, text + count + "x"), header(head.size())), 400).find("additional"),
            std::string::npos);
  EXPECT_EQ(Post(kPath, head, header(head.size() + 1)).status, 400);
  EXPECT_EQ(Post(kPath, head, header(0)).status, 400);
  EXPECT_NE(ErrorOf(Post(kPath, "abc", header(0)), 400).find("Raw request must only have 1 input"), std::string::npos);
  EXPECT_EQ(Post(kPath, head, "Inference-Header-Content-Length: -1\r\n").status, 400);
  EXPECT_EQ(ErrorOf(Post(kPath, "{bad"), 400).find("JSON"), 0u);
  EXPECT_EQ(Post(kPath, "[]").status, 400);
  EXPECT_EQ(Post(kPath, "{}").status, 400);
  // A stream asked of a route with one answer.
  EXPECT_EQ(Post(kPath, R"({"inputs":[{"name":"text_input","shape":[1],"datatype":"BYTES","data":["a"]},
      {"name":"max_tokens","shape":[1],"datatype":"INT32","data":[1]},
      {"name":"stream","shape":[1],"datatype":"BOOL","data":[true]}]})")
                .status,
            501);
}

TEST_F(KserveTest, TensorsInSharedMemory) {
  kserve::testing::SharedObject object("http", 256);
  TestServerOptions options;
  options.kserve.shared_memory_prefix = kserve::testing::SharedObject::Prefix();
  Start(std::move(options));
  const std::string kBase = "/v2/systemsharedmemory";
  EXPECT_EQ(Get(kBase + "/status").body, "[]");
  std::string body = json::serialize(json::object{{"key", object.key()}, {"offset", 16}, {"byte_size", 200}});
  EXPECT_EQ(Post(kBase + "/region/r/register", body).status, 200);
  EXPECT_EQ(ErrorOf(Post(kBase + "/region/r/register", body), 400), "shared memory region 'r' already in manager");
  EXPECT_EQ(Json(Get(kBase + "/region/r/status")),
            (json::value{{{"name", "r"}, {"key", object.key()}, {"offset", 16}, {"byte_size", 200}}}));
  EXPECT_EQ(ErrorOf(Get(kBase + "/region/q/status"), 404), "Unable to find system shared memory region: 'q'");
  EXPECT_EQ(ErrorOf(Post(kBase + "/region/q/register", R"({"key":"/etc","byte_size":1})"), 400).find("key '/etc'"), 0u);
  EXPECT_EQ(ErrorOf(Post(kBase + "/region/q/register", R"({"byte_size":1})"), 400), "key: is missing");
  EXPECT_EQ(Post(kBase + "/region/q/register", R"({"key":"/x","byte_size":-1})").status, 400);
  EXPECT_EQ(Get(kBase + "/region/r/register").status, 405);
  EXPECT_EQ(Get(kBase + "/nonsense").status, 404);

  object.Put(16, Bytes("abc"));
  constexpr const char* kPath = "/v2/models/ensemble/infer";
  json::value answer = Json(Post(kPath, R"({"inputs":[
      {"name":"text_input","shape":[1,1],"datatype":"BYTES",
       "parameters":{"shared_memory_region":"r","shared_memory_byte_size":7}},
      {"name":"max_tokens","shape":[1,1],"datatype":"INT32","data":[5]}],
      "outputs":[{"name":"text_output",
       "parameters":{"shared_memory_region":"r","shared_memory_byte_size":9,"shared_memory_offset":100}}]})"));
  json::value region{{"shared_memory_region", "r"}, {"shared_memory_offset", 100}, {"shared_memory_byte_size", 9}};
  EXPECT_EQ(answer.at("outputs").as_array().at(0),
            (json::value{{"name", "text_output"}, {"datatype", "BYTES"}, {"shape", {1}}, {"parameters", region}}));
  EXPECT_EQ(object.Take(116, 9), Bytes("abcab"));
  EXPECT_NE(ErrorOf(Post(kPath, R"({"inputs":[{"name":"text_input","shape":[1],"datatype":"BYTES","data":["a"],
      "parameters":{"shared_memory_region":"r","shared_memory_byte_size":7}}]})"),
                    400)
                .find("both data and shared_memory_region"),
            std::string::npos);

  EXPECT_EQ(Post(kBase + "/region/r/unregister", "").status, 200);
  EXPECT_EQ(Post(kBase + "/unregister", "").status, 200);
  EXPECT_EQ(Get(kBase + "/status").body, "[]");
  EXPECT_EQ(Get("/v2/cudasharedmemory/status").body, "[]");
  EXPECT_EQ(Post("/v2/cudasharedmemory/unregister", "").status, 200);
  EXPECT_EQ(ErrorOf(Post("/v2/cudasharedmemory/region/r/register", "{}"), 501).find("CUDA shared memory"), 0u);
}

TEST_F(KserveTest, CompressedBodiesAreReadWithinTheirLimits) {
  TestServerOptions options;
  options.app.body_bytes_max = 4096;
  Start(std::move(options));
  constexpr const char* kPath = "/v2/models/ensemble/infer";
  std::string body = R"({"inputs":[{"name":"text_input","shape":[1],"datatype":"BYTES","data":["abc"]},
      {"name":"max_tokens","shape":[1],"datatype":"INT32","data":[2]}]})";
  for (auto coding : {http::ContentCoding::kGzip, http::ContentCoding::kDeflate}) {
    std::string header = "Content-Encoding: " + std::string(http::ContentCodingName(coding)) + "\r\n";
    EXPECT_EQ(Json(Post(kPath, http::EncodeContent(coding, body), header)).at("outputs").as_array().size(), 1u);
    std::string bomb(1 << 20, ' ');
    EXPECT_GE(Post(kPath, http::EncodeContent(coding, bomb), header).status, 400);
    EXPECT_EQ(Post(kPath, "not compressed", header).status, 400);
  }
  EXPECT_EQ(Post(kPath, body, "Content-Encoding: br\r\n").status, 415);
}

// Triton compresses nothing else, and its asyncio client can unpack nothing else.
TEST_F(KserveTest, OnlyInferAnswersAreCompressed) {
  TestServerOptions options;
  options.http.compress_bytes_min = 1;
  Start(std::move(options));
  const std::string kAsk = "Accept-Encoding: gzip\r\n";
  EXPECT_EQ(Call(server->port(), "GET", "/v2/models/stats", "", kAsk).Header("content-encoding"), "");
  EXPECT_EQ(Call(server->port(), "GET", "/v2/models/ensemble/config", "", kAsk).Header("content-encoding"), "");
  EXPECT_EQ(Call(server->port(), "GET", "/v1/models", "", kAsk).Header("content-encoding"), "gzip");
  EXPECT_EQ(Post("/v2/models/ensemble/infer",
                 R"({"inputs":[{"name":"text_input","shape":[1],"datatype":"BYTES","data":["abc"]},
      {"name":"max_tokens","shape":[1],"datatype":"INT32","data":[2]}]})",
                 kAsk)
                .Header("content-encoding"),
            "gzip");
}

// Check 11: generate.
TEST_F(KserveTest, Check11Generate) {
  Start();
  constexpr const char* kPath = "/v2/models/ensemble/generate";
  json::value answer =
      Json(Post(kPath, R"({"id":"x","text_input":"abc","max_tokens":5,"bad_words":"","stop_words":[""],"pad_id":2})"));
  EXPECT_EQ(answer.at("text_output").as_string(), "abcab");
  EXPECT_EQ(answer.at("id").as_string(), "x");
  EXPECT_EQ(answer.at("model_name").as_string(), "ensemble");
  EXPECT_EQ(answer.at("sequence_end").as_bool(), false);
  // Nested parameters, and a key that is no input stays a parameter.
  answer =
      Json(Post(kPath, R"({"text_input":"abc","parameters":{"max_tokens":4,"return_log_probs":true,"mine":"1"}})"));
  EXPECT_EQ(answer.at("text_output").as_string(), "abca");
  EXPECT_EQ(answer.at("output_log_probs").as_array().size(), 4u);
  EXPECT_EQ(answer.at("cum_log_probs").to_number<double>(), -1.0);
  EXPECT_NE(ErrorOf(Post(kPath, R"({"text_input":"abc"})"), 400).find("missing required input(s) ['max_tokens']"),
            std::string::npos);
  EXPECT_NE(ErrorOf(Post(kPath, R"({"text_input":7,"max_tokens":1})"), 400).find("text_input"), std::string::npos);
  EXPECT_EQ(ErrorOf(Post(kPath, R"({"text_input":"a","max_tokens":1,"id":7})"), 400).find("Unable to parse 'id'"), 0u);
  EXPECT_EQ(
      ErrorOf(Post(kPath, R"({"text_input":"a","max_tokens":1,"parameters":7})"), 400).find("Expected JSON object"),
      0u);
  EXPECT_NE(ErrorOf(Post(kPath, R"({"text_input":"a","max_tokens":3000000000})"), 400).find("out of range"),
            std::string::npos);
  const std::string kOne =
      "generate expects model to produce exactly 1 response, use generate stream for model that generates various "
      "number of responses";
  EXPECT_EQ(ErrorOf(Post(kPath, R"({"text_input":"abc","max_tokens":3,"stream":true})"), 500), kOne);
  EXPECT_EQ(ErrorOf(Post(kPath, R"({"text_input":"abc","max_tokens":3,"num_return_sequences":2})"), 500), kOne);
  EXPECT_EQ(ErrorOf(Post("/v2/models/nope/generate", "{}"), 404), "Request for unknown model: 'nope' is not found");
  EXPECT_EQ(Json(Post("/v2/models/tensorrt_llm_bls/versions/1/generate", R"({"text_input":"ab","max_tokens":3})"))
                .at("text_output")
                .as_string(),
            "aba");
}

// Check 12: generate_stream.
TEST_F(KserveTest, Check12GenerateStream) {
  TestServerOptions options;
  std::atomic<bool> breaks = false;
  TestServer* broken = nullptr;
  options.executor.next_token = [&](const Request& request, int32_t index, int32_t position) {
    if (breaks && position == 2) broken->executor->BreakDevice();
    return serve::testing::EchoToken(request, index, position);
  };
  Start(std::move(options));
  broken = server.get();
  constexpr const char* kPath = "/v2/models/ensemble/generate_stream";
  RawResponse response = Post(kPath, R"({"text_input":"abc","max_tokens":4,"stream":true})");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.Header("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_TRUE(response.complete);
  EXPECT_EQ(response.body.find("[DONE]"), std::string::npos);
  ASSERT_EQ(response.chunks.size(), 4u);
  std::string text;
  for (const std::string& chunk : response.chunks) {
    ASSERT_TRUE(chunk.starts_with("data: ") && chunk.ends_with("\n\n")) << chunk;
    auto event = ParseJson(chunk.substr(6, chunk.size() - 8));
    ASSERT_TRUE(event.ok()) << chunk;
    text += event->at("text_output").as_string();
  }
  EXPECT_EQ(text, "abca");
  EXPECT_EQ(Post(kPath, R"({"text_input":"abc","max_tokens":4})").chunks.size(), 1u);  // works without `stream` too
  RawResponse early = Post(kPath, R"({"text_input":"abc"})");
  EXPECT_NE(ErrorOf(early, 400).find("max_tokens"), std::string::npos);
  EXPECT_EQ(early.Header("content-type"), "application/json");
  EXPECT_NE(ErrorOf(Post(kPath, R"({"text_input":"","max_tokens":4})"), 400).find("prompt"), std::string::npos);
  breaks = true;
  RawResponse late = Post(kPath, R"({"text_input":"abc","max_tokens":9,"stream":true})");
  EXPECT_EQ(late.status, 200);
  ASSERT_FALSE(late.chunks.empty());
  EXPECT_TRUE(late.chunks.back().starts_with("data: {\"error\":")) << late.chunks.back();
  EXPECT_TRUE(late.complete);
}

TEST_F(KserveTest, AClientThatLeavesIsCancelled) {
  TestServerOptions options;
  options.executor.turn_time = std::chrono::milliseconds(2);
  Start(std::move(options));
  for (const char* route : {"generate_stream", "generate"}) {
    RawClient client(server->port());
    client.Send(http::testing::Format("POST", "/v2/models/ensemble/" + std::string(route),
                                      R"({"text_input":"abc","max_tokens":250})"));
    while (server->executor->stats().running == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    client.Close();
    for (int i = 0; i < 200 && server->executor->stats().running > 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_EQ(server->executor->stats().running, 0) << route;
  }
}

// Whole answers become an error with a status, streams end with an event.
TEST_F(KserveTest, DrainDeadlineEndsWhatRuns) {
  TestServerOptions options;
  options.executor.turn_time = std::chrono::milliseconds(2);
  options.app.max_concurrency = 3;
  Start(std::move(options));
  constexpr const char* kBody = R"({"text_input":"abc","max_tokens":250,"stream":true})";
  constexpr const char* kInfer = R"({"inputs":[{"name":"text_input","shape":[1,1],"datatype":"BYTES","data":["abc"]},)"
                                 R"({"name":"max_tokens","shape":[1,1],"datatype":"INT32","data":[250]}]})";
  RawClient stream(server->port()), generate(server->port()), infer(server->port());
  const std::string base = "/v2/models/ensemble/";
  stream.Send(http::testing::Format("POST", base + "generate_stream", kBody));
  stream.ReadUntil("data: ");
  generate.Send(http::testing::Format("POST", base + "generate", R"({"text_input":"abc","max_tokens":250})"));
  infer.Send(http::testing::Format("POST", base + "infer", kInfer));
  for (int i = 0; i < 2000 && server->app->calls_running() < 3; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  ASSERT_EQ(server->app->calls_running(), 3u);
  EXPECT_NE(ErrorOf(Post(base + "generate", kBody), 503).find("max_concurrency"), std::string::npos);
  EXPECT_NE(ErrorOf(Post(base + "infer", kInfer), 503).find("max_concurrency"), std::string::npos);
  EXPECT_FALSE(server->app->Drain(std::chrono::milliseconds(20)));
  RawResponse ended = stream.Read();
  EXPECT_TRUE(ended.complete);
  EXPECT_NE(ended.body.substr(ended.body.rfind("data: ")).find("shutting down"), std::string::npos) << ended.body;
  EXPECT_NE(ErrorOf(generate.Read(), 503).find("shutting down"), std::string::npos);
  EXPECT_NE(ErrorOf(infer.Read(), 503).find("shutting down"), std::string::npos);
  EXPECT_EQ(server->app->calls_running(), 0u);
}

TEST_F(KserveTest, LoadIsToldWhereItIsAskedFor) {
  Start();
  auto load = [&](const std::string& format) {
    return Post("/v2/models/ensemble/generate", R"({"text_input":"abc","max_tokens":1})",
                "endpoint-load-metrics-format: " + format + "\r\n")
        .Header("endpoint-load-metrics");
  };
  EXPECT_TRUE(load("text").starts_with("TEXT named_metrics.kv_cache_utilization=0.")) << load("text");
  EXPECT_TRUE(load("json").starts_with("JSON {\"named_metrics\":{\"kv_cache_utilization\":")) << load("json");
  EXPECT_EQ(load("xml"), "");
  EXPECT_EQ(
      Post("/v2/models/ensemble/generate", R"({"text_input":"abc","max_tokens":1})").Header("endpoint-load-metrics"),
      "");
}

TEST_F(KserveTest, SettingsAreReadAndChangedOnlyWhereAllowed) {
  Start();
  EXPECT_EQ(Json(Get("/v2/trace/setting")).at("trace_level").as_array(), json::array{"OFF"});
  EXPECT_EQ(Json(Get("/v2/models/ensemble/trace/setting")).at("trace_rate").as_string(), "1000");
  EXPECT_EQ(Json(Get("/v2/logging")).at("log_format").as_string(), "default");
  for (auto [path, body] : {std::pair("/v2/logging", R"({"log_info":false})"),
                            {"/v2/trace/setting", R"({"trace_level":["TIMESTAMPS"]})"},
                            {"/v2/repository/models/test-model/unload", ""},
                            {"/v2/repository/any/models/test-model/load", ""}})
    EXPECT_EQ(Post(path, body).status, 403) << path;
  EXPECT_EQ(Post("/v2/models/ensemble/trace/setting", R"({"trace_level":["TIMESTAMPS"]})").status, 501);
  EXPECT_EQ(Json(Get("/v2/systemsharedmemory/status")).as_array().size(), 0u);
  EXPECT_EQ(Post("/v2/cudasharedmemory/region/x/register", "{}").status, 501);
}

TEST_F(KserveTest, KeysGuardAllButHealth) {
  TestServerOptions options;
  options.app.api_keys = ApiKeys(std::vector<ApiKey>{{.key = "key"}});
  Start(std::move(options));
  EXPECT_EQ(Get("/v2/health/ready").status, 200);
  EXPECT_FALSE(ErrorOf(Get("/v2/models/ensemble"), 401).empty());
  EXPECT_EQ(Get("/v2/models/ensemble", "Authorization: Bearer key\r\n").status, 200);
}

TEST_F(KserveTest, AnAdminsKeyLoadsAndUnloads) {
  TestServerOptions options;
  options.app.api_keys =
      ApiKeys(std::vector<ApiKey>{{.key = "key"}, {.key = "root", .name = "operations", .admin = true}});
  Start(std::move(options));
  for (const char* path : {"/v2/repository/models/nope/load", "/v2/repository/models/nope/unload"}) {
    EXPECT_FALSE(ErrorOf(Call(server->port(), "POST", path, "{}"), 401).empty());
    EXPECT_FALSE(ErrorOf(Call(server->port(), "POST", path, "{}", "Authorization: Bearer key\r\n"), 403).empty());
    // The right is there; this server's models are fixed.
    EXPECT_EQ(ErrorOf(Call(server->port(), "POST", path, "{}", "Authorization: Bearer root\r\n"), 501).find("explicit"),
              0u);
  }
}

TEST_F(KserveTest, MetricsStandBesideTheOthers) {
  Start();
  Json(Post("/v2/models/ensemble/generate", R"({"text_input":"abc","max_tokens":3})"));
  std::string text = Get("/metrics").body;
  EXPECT_NE(text.find("nv_inference_request_success{model=\"ensemble\",version=\"1\"} 1\n"), std::string::npos) << text;
  EXPECT_NE(text.find("nv_trt_llm_request_metrics{request_type=\"waiting\",model=\"tensorrt_llm\",version=\"1\"} 0\n"),
            std::string::npos);
  EXPECT_NE(text.find("vllm:num_requests_running"), std::string::npos);
}

TEST(KserveJson, NumbersAreCheckedForRange) {
  auto read = [](DataType type, const char* text) { return TensorFromJson("t", type, *ParseJson(text)); };
  EXPECT_EQ(read(DataType::kInt8, "[-128,127]")->data, std::string("\x80\x7f"));
  EXPECT_EQ(read(DataType::kUint64, "18446744073709551615")->data, std::string(8, '\xff'));
  for (auto [type, text] : {std::pair(DataType::kInt8, "128"),
                            {DataType::kUint8, "-1"},
                            {DataType::kInt32, "1.5"},
                            {DataType::kUint64, "-1"},
                            {DataType::kFp32, "1e39"},
                            {DataType::kBool, "1"},
                            {DataType::kBytes, "1"},
                            {DataType::kInt32, "\"1\""},
                            {DataType::kFp16, "1"},
                            {DataType::kInt32, "[[1]]"},
                            {DataType::kInt32, "{}"},
                            {DataType::kInt64, "1e300"}})
    EXPECT_FALSE(read(type, text).ok()) << kserve::DataTypeName(type) << " " << text;
  Tensor nested{"t", DataType::kInt32, {2, 2}, {}};
  EXPECT_TRUE(DataFromJson(*ParseJson("[[1,2],[3,4]]"), nested).ok());
  EXPECT_EQ(nested.data.size(), 16u);
  for (const char* text : {"[1,2,3]", "[1,2,3,4,5]", "7"}) {
    Tensor wrong{"t", DataType::kInt32, {2, 2}, {}};
    EXPECT_FALSE(DataFromJson(*ParseJson(text), wrong).ok()) << text;
  }
}

TEST(KserveJson, EveryTypeComesBackAsItWent) {
  for (auto [type, text] : {std::pair(DataType::kBool, "[true,false]"),
                            {DataType::kInt16, "[-2,3]"},
                            {DataType::kUint32, "[4294967295]"},
                            {DataType::kInt64, "[-9223372036854775808]"},
                            {DataType::kFp32, "[0.25,-3]"},
                            {DataType::kFp64, "[0.1]"},
                            {DataType::kBytes, "[\"a\",\"\"]"}}) {
    auto tensor = TensorFromJson("t", type, *ParseJson(text));
    ASSERT_TRUE(tensor.ok()) << text;
    std::string out;
    AppendDataJson(out, *tensor, false);
    EXPECT_EQ(*ParseJson(out), *ParseJson(text)) << out;
  }
}

}  // namespace
}  // namespace ekiben::api
