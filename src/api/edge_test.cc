// The edge: JSON text, BentoML's body, ids; coded bodies, OPTIONS and keys with limits on a whole server.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <boost/json.hpp>
#include <set>
#include <thread>

#include "api/error_response.h"
#include "api/json_text.h"
#include "api/request_ids.h"
#include "api/testing/test_server.h"
#include "http/content_coding.h"
#include "http/testing/raw_client.h"

namespace ekiben::api {
namespace {

TEST(JsonText, EscapesReadBackEqual) {
  std::string all;
  for (int c = 1; c < 0x80; ++c) all.push_back(static_cast<char>(c));
  all += "駅弁 🍱 \"quoted\" \\";
  all.push_back('\0');
  std::string out;
  AppendJsonString(out, all);
  EXPECT_EQ(std::string(boost::json::parse(out).as_string()), all);
}

TEST(JsonText, InvalidUtf8IsReplacedAndTheRestKept) {
  EXPECT_EQ(ReplaceInvalidUtf8("a\xE9\xA7"
                               "b"),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(ReplaceInvalidUtf8("\xC0\xAF\xED\xA0\x80\xF5"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(ReplaceInvalidUtf8("駅🍱"), "駅🍱");
  EXPECT_EQ(CountCodePoints("駅🍱a"), 3u);
}

TEST(JsonText, NumbersThatJsonLacks) {
  std::string out;
  AppendJsonFloat(out, -INFINITY);
  out += ' ';
  AppendJsonFloat(out, -0.5);
  out += ' ';
  AppendJsonInt(out, -42);
  EXPECT_EQ(out, "-9999 -0.5 -42");
}

TEST(ErrorResponse, ShapesByFamily) {
  Error error(Code::kInvalid, "n: 200 is outside [1, 128]", "n");
  Answer openai = ErrorAnswer(PathFamily::kOpenAi, error);
  EXPECT_EQ(openai.status, 400);
  auto body = boost::json::parse(openai.body).at("error");
  EXPECT_EQ(body.at("param"), "n");
  EXPECT_EQ(body.at("type"), "invalid_request_error");
  EXPECT_TRUE(body.at("code").is_null());
  EXPECT_EQ(ErrorAnswer(PathFamily::kBento, error).body, R"([{"error":"n: 200 is outside [1, 128]"}])");
  Answer full = ErrorAnswer(PathFamily::kOpenAi, Error(Code::kOverloaded, "full"));
  EXPECT_EQ(full.status, 429);
  EXPECT_EQ(full.headers.back().first, "retry-after");
  EXPECT_EQ(StatusAnswer(PathFamily::kBento, 404, "x").body, "Not Found");
  EXPECT_EQ(FamilyOf("/v1/x"), PathFamily::kOpenAi);
  EXPECT_EQ(FamilyOf("/generate"), PathFamily::kBento);
}

TEST(RequestIds, AreDistinct) {
  RequestIds ids;
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(ids.NextHex(32));
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_EQ(seen.begin()->size(), 32u);
}

// ---- on a whole server

using http::testing::Call;
using http::testing::Format;
using http::testing::RawClient;
using http::testing::RawResponse;
using testing::TestServer;
using testing::TestServerOptions;

std::unique_ptr<TestServer> StartServer(TestServerOptions options = {}) {
  options.http.host = "127.0.0.1";
  options.http.port = 0;
  auto server = TestServer::Start(std::move(options));
  EXPECT_TRUE(server.ok()) << server.error().message();
  return *std::move(server);
}

constexpr std::string_view kCompletion = R"({"prompt":"echo this","max_tokens":4,"temperature":0})";

TEST(EdgeServer, CodedBodiesAreReadByEverySurface) {
  auto server = StartServer();
  uint16_t port = server->port();
  for (auto coding : {http::ContentCoding::kGzip, http::ContentCoding::kDeflate}) {
    std::string field =
        fmt::format("Content-Type: application/json\r\nContent-Encoding: {}\r\n", http::ContentCodingName(coding));
    RawResponse openai = Call(port, "POST", "/v1/completions", http::EncodeContent(coding, kCompletion), field);
    EXPECT_EQ(openai.status, 200) << openai.body;
    EXPECT_EQ(boost::json::parse(openai.body).at("choices").at(0).at("text"), "echo");
    EXPECT_EQ(Call(port, "POST", "/generate", http::EncodeContent(coding, R"({"max_tokens":1})"), field).status, 400);
    EXPECT_EQ(Call(port, "POST", "/tokenize", http::EncodeContent(coding, R"({"prompt":"ab"})"), field).status, 200);
    std::string bomb = http::EncodeContent(coding, std::string(30 << 20, ' '));
    EXPECT_LT(bomb.size(), 200'000u);
    RawResponse refused = Call(port, "POST", "/v1/completions", bomb, field);
    EXPECT_EQ(refused.status, 413);
    EXPECT_NE(refused.body.find("body: more than the limit of 16777216 bytes when decoded"), std::string::npos)
        << refused.body;
  }
  std::string gzip = "Content-Type: application/json\r\nContent-Encoding: gzip\r\n";
  EXPECT_EQ(Call(port, "POST", "/v1/completions", kCompletion, gzip).status, 400);
  EXPECT_EQ(
      Call(port, "POST", "/v1/completions", kCompletion, "Content-Type: application/json\r\nContent-Encoding: br\r\n")
          .status,
      415);
  EXPECT_EQ(Call(port, "POST", "/v1/completions", kCompletion,
                 "Content-Type: application/json\r\nContent-Encoding: identity\r\n")
                .status,
            200);
}

TEST(EdgeServer, OptionsAndHeadAnswerEverywhere) {
  TestServerOptions options;
  options.app.api_keys = {"secret"};
  options.app.web_page = "page";
  auto server = StartServer(std::move(options));
  for (auto [path, allow] : {std::pair("/v1/chat/completions", "POST, OPTIONS"),
                             {"/generate", "POST, OPTIONS"},
                             {"/v1/models", "GET, HEAD, OPTIONS"},
                             {"/metrics", "GET, HEAD, OPTIONS"}}) {
    RawResponse response = Call(server->port(), "OPTIONS", path);  // without the key
    EXPECT_EQ(response.status, 204) << path;
    EXPECT_EQ(response.Header("allow"), allow) << path;
  }
  EXPECT_EQ(Call(server->port(), "OPTIONS", "/nothing").status, 404);
  for (const char* path : {"/metrics", "/readyz", "/", "/version"}) {
    RawResponse head = Call(server->port(), "HEAD", path), get = Call(server->port(), "GET", path);
    EXPECT_EQ(head.status, 200) << path;
    EXPECT_EQ(head.body, "") << path;
    if (std::string_view(path) == "/metrics") continue;  // has counted the question itself
    EXPECT_EQ(head.Header("content-length"), get.Header("content-length"));
  }
  EXPECT_EQ(Call(server->port(), "HEAD", "/v1/models").status, 401);
}

TEST(EdgeServer, EachKeyHasItsLimits) {
  TestServerOptions options;
  options.executor.turn_time = std::chrono::milliseconds(5);
  options.app.api_keys = ApiKeys(std::vector<ApiKey>{{.key = "one", .name = "alice", .max_concurrency = 1},
                                                     {.key = "two", .name = "bob", .requests_per_minute = 2}});
  auto server = StartServer(std::move(options));
  uint16_t port = server->port();
  std::string alice = "Authorization: Bearer one\r\n", bob = "Authorization: Bearer two\r\n";
  RawClient running(port);
  running.Send(Format("POST", "/v1/completions", R"({"prompt":"a","max_tokens":2000,"stream":true,"ignore_eos":true})",
                      alice + "Content-Type: application/json\r\n"));
  ASSERT_NE(running.ReadUntil("data: ").find("200"), std::string::npos);
  for (const char* path : {"/v1/completions", "/generate"}) {
    RawResponse refused = Call(port, "POST", path, kCompletion, alice + "Content-Type: application/json\r\n");
    EXPECT_EQ(refused.status, 429) << path;
    EXPECT_EQ(refused.Header("retry-after"), "1");
  }
  EXPECT_EQ(Call(port, "GET", "/v1/models", "", alice).status, 200);  // asks for no work
  running.Close();
  int status = 429;
  for (int i = 0; i < 500 && status == 429; ++i) {
    status = Call(port, "POST", "/v1/completions", kCompletion, alice + "Content-Type: application/json\r\n").status;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(status, 200);
  // One after the other on a connection: the place is free when the answer is there.
  RawClient again(port);
  for (int i = 0; i < 50; ++i) {
    again.Send(Format("POST", "/v1/completions", R"({"prompt":"a","max_tokens":1,"temperature":0})",
                      alice + "Content-Type: application/json\r\n"));
    ASSERT_EQ(again.Read().status, 200) << i;
  }
  for (int wanted : {200, 200, 429}) {
    RawResponse response =
        Call(port, "POST", "/v1/completions", kCompletion, bob + "Content-Type: application/json\r\n");
    EXPECT_EQ(response.status, wanted) << response.body;
    if (wanted == 429) {
      EXPECT_GE(std::stoi(response.Header("retry-after")), 25);
      EXPECT_EQ(boost::json::parse(response.body).at("error").at("type"), "rate_limit_error");
    }
  }
}

}  // namespace
}  // namespace ekiben::api
