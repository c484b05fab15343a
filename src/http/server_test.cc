#include "http/server.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "http/content_coding.h"
#include "http/testing/raw_client.h"

namespace ekiben::http {
namespace {

using namespace std::chrono_literals;
using testing::Call;
using testing::Format;
using testing::RawClient;
using testing::RawResponse;

const Headers kText = {{"content-type", "text/plain"}};

template <class Predicate>
bool Eventually(Predicate predicate, std::chrono::milliseconds limit = 10s) {
  auto end = std::chrono::steady_clock::now() + limit;
  while (!predicate()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

class HttpServer : public ::testing::Test {
 protected:
  void Start(ServerConfig config = {}) {
    config.host = "127.0.0.1";
    config.port = 0;
    config.sweep_period = 5ms;
    auto created = Server::Create(config);
    ASSERT_TRUE(created.ok()) << created.error().message();
    server = *std::move(created);
    server->SetHandler([this](Request request, std::shared_ptr<ResponseWriter> writer) {
      Handle(std::move(request), std::move(writer));
    });
    server->Start();
    port = server->port();
  }

  void Handle(Request request, std::shared_ptr<ResponseWriter> writer) {
    if (request.path == "/hold") {
      writer->OnClosed([this] { ++closed; });
      std::lock_guard lock(mutex);
      held.push_back(std::move(writer));
      return;
    }
    if (request.path == "/stream") {
      writer->Start(200, kText);
      for (int i = 0; i < 3; ++i) writer->Write(fmt::format("piece {}\n", i));
      return writer->Finish();
    }
    if (request.path == "/json")
      return writer->Send(200, {{"content-type", "application/json"}}, "[" + std::string(5000, ' ') + "]");
    if (request.path == "/throw") throw std::runtime_error("a library gave up");
    if (request.path == "/drop") return;
    writer->Send(200, kText, fmt::format("{} {} {}", request.method, request.target, request.body));
  }

  std::shared_ptr<ResponseWriter> Held(size_t index = 0) {
    EXPECT_TRUE(Eventually([&] {
      std::lock_guard lock(mutex);
      return held.size() > index;
    }));
    std::lock_guard lock(mutex);
    return held.at(index);
  }

  void TearDown() override {
    held.clear();
    if (server != nullptr) server->Stop();
  }

  std::unique_ptr<Server> server;
  uint16_t port = 0;
  std::mutex mutex;
  std::vector<std::shared_ptr<ResponseWriter>> held;
  std::atomic<int> closed{0};
};

TEST_F(HttpServer, KeepsTheConnectionAndSplitRequests) {
  Start();
  RawClient client(port);
  std::string request = Format("POST", "/a?b", "hello");
  for (char c : request) client.Send(std::string_view(&c, 1));
  RawResponse first = client.Read();
  EXPECT_EQ(first.status, 200);
  EXPECT_EQ(first.body, "POST /a?b hello");
  EXPECT_EQ(first.Header("connection"), "");
  EXPECT_NE(first.Header("date"), "");
  client.Send(Format("GET", "/again"));
  EXPECT_EQ(client.Read().body, "GET /again ");
  EXPECT_EQ(server->stats().connections_accepted, 1u);
}

TEST_F(HttpServer, PipelinedAnswersKeepTheirOrder) {
  Start();
  RawClient client(port);
  client.Send(Format("GET", "/hold") + Format("GET", "/second") + Format("GET", "/stream") + Format("GET", "/last"));
  auto first = Held();
  std::this_thread::sleep_for(20ms);
  first->Send(200, kText, "first");
  EXPECT_EQ(client.Read().body, "first");
  EXPECT_EQ(client.Read().body, "GET /second ");
  EXPECT_EQ(client.Read().body, "piece 0\npiece 1\npiece 2\n");
  EXPECT_EQ(client.Read().body, "GET /last ");
}

TEST_F(HttpServer, EachWriteIsOneChunk) {
  Start();
  RawResponse response = Call(port, "GET", "/stream");
  EXPECT_TRUE(response.complete);
  ASSERT_EQ(response.chunks.size(), 3u);
  EXPECT_EQ(response.chunks[1], "piece 1\n");
}

TEST_F(HttpServer, ChunkedBodyAndContinue) {
  Start();
  RawClient client(port);
  client.Send("POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_NE(client.ReadUntil("\r\n\r\n").find("100 Continue"), std::string::npos);
  client.Send("3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n");
  EXPECT_EQ(client.Read().body, "POST /c abcdef");
}

TEST_F(HttpServer, HeadAndOldProtocol) {
  Start();
  RawClient client(port);
  client.Send(Format("HEAD", "/x") + Format("HEAD", "/stream") + Format("GET", "/y"));
  RawResponse head = client.Read(/*head_only=*/true);
  EXPECT_EQ(head.Header("content-length"), "8");
  EXPECT_EQ(client.Read(/*head_only=*/true).status, 200);
  EXPECT_EQ(client.Read().body, "GET /y ");

  RawClient old(port);
  old.Send("GET /stream HTTP/1.0\r\n\r\n");
  RawResponse response = old.Read();
  EXPECT_EQ(response.Header("transfer-encoding"), "");
  EXPECT_EQ(response.body, "piece 0\npiece 1\npiece 2\n");
  EXPECT_TRUE(response.complete);
}

TEST_F(HttpServer, LimitsHaveStatusesAndTheServerLivesOn) {
  ServerConfig config;
  config.limits.header_bytes_max = 1024;
  config.limits.body_bytes_max = 1000;
  Start(config);
  EXPECT_EQ(Call(port, "GET", "/x", "", "A: " + std::string(100'000, 'x') + "\r\n").status, 431);
  RawResponse large = Call(port, "POST", "/x", std::string(2'000'000, 'x'));
  EXPECT_EQ(large.status, 413);
  EXPECT_EQ(large.Header("connection"), "close");
  EXPECT_NE(large.body.find("1000"), std::string::npos);
  EXPECT_EQ(Call(port, "POST", "/x", "", "Transfer-Encoding: gzip\r\n").status, 501);
  EXPECT_EQ(Call(port, "POST", "/x", "a", "Content-Length: 2\r\n").status, 400);
  RawClient smuggler(port);
  smuggler.Send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x");
  EXPECT_EQ(smuggler.Read().status, 400);
  EXPECT_TRUE(smuggler.ReadToEnd());
  EXPECT_EQ(server->stats().requests, 0u);
  EXPECT_EQ(server->stats().requests_malformed, 5u);
  EXPECT_EQ(Call(port, "GET", "/x").status, 200);
}

TEST_F(HttpServer, JsonIsCompressedForThoseWhoAsk) {
  Start();
  RawResponse plain = Call(port, "GET", "/json");
  EXPECT_EQ(plain.body.size(), 5002u);
  EXPECT_EQ(plain.Header("content-encoding"), "");
  for (auto [asked, coding] :
       {std::pair("gzip, deflate", ContentCoding::kGzip), {"deflate", ContentCoding::kDeflate}}) {
    RawResponse coded = Call(port, "GET", "/json", "", fmt::format("Accept-Encoding: {}\r\n", asked));
    EXPECT_EQ(coded.Header("content-encoding"), ContentCodingName(coding));
    EXPECT_EQ(coded.Header("vary"), "accept-encoding");
    EXPECT_LT(coded.body.size(), 200u);
    EXPECT_EQ(*DecodeContent(coding, coded.body, {}), plain.body);
  }
  // Short answers, other types and streams stay as they are.
  EXPECT_EQ(Call(port, "GET", "/x", "", "Accept-Encoding: gzip\r\n").Header("content-encoding"), "");
  EXPECT_EQ(Call(port, "GET", "/stream", "", "Accept-Encoding: gzip\r\n").chunks.size(), 3u);
}

TEST_F(HttpServer, PagesOfNamedOriginsMayReadAnswers) {
  ServerConfig config;
  config.allowed_origins = {"https://app.example"};
  Start(config);
  RawResponse named = Call(port, "GET", "/stream", "", "Origin: https://app.example\r\n");
  EXPECT_EQ(named.Header("access-control-allow-origin"), "https://app.example");
  EXPECT_EQ(named.Header("vary"), "origin");
  for (const char* origin : {"https://evil.example", "https://app.example.evil", "null", "HTTPS://APP.EXAMPLE"})
    EXPECT_EQ(Call(port, "GET", "/x", "", fmt::format("Origin: {}\r\n", origin)).Header("access-control-allow-origin"),
              "")
        << origin;
  RawResponse asked = Call(port, "OPTIONS", "/v1/x", "",
                           "Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n"
                           "Access-Control-Request-Headers: authorization, content-type\r\n");
  EXPECT_EQ(asked.status, 204);
  EXPECT_EQ(asked.Header("content-length"), "");
  EXPECT_EQ(asked.Header("access-control-allow-headers"), "authorization, content-type");
  EXPECT_NE(asked.Header("access-control-allow-methods").find("POST"), std::string::npos);
  // Without the policy's consent it is a request like any other.
  EXPECT_EQ(
      Call(port, "OPTIONS", "/v1/x", "", "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n")
          .body,
      "OPTIONS /v1/x ");
}

TEST_F(HttpServer, AnyOriginWhereTheOperatorSaysSo) {
  ServerConfig config;
  config.allowed_origins = {"*"};
  Start(config);
  RawResponse response = Call(port, "GET", "/x", "", "Origin: https://any.example\r\n");
  EXPECT_EQ(response.Header("access-control-allow-origin"), "*");
  EXPECT_EQ(Call(port, "GET", "/x").Header("access-control-allow-origin"), "");
}

TEST_F(HttpServer, SeveralPortsOneHandler) {
  uint16_t free_port = 0;
  {
    ServerConfig any;
    any.host = "127.0.0.1";
    any.port = 0;
    free_port = (*Server::Create(any))->port();
  }
  ServerConfig config;
  config.more_ports = {free_port};
  Start(config);
  EXPECT_EQ(Call(port, "GET", "/one").body, "GET /one ");
  EXPECT_EQ(Call(free_port, "GET", "/two").body, "GET /two ");
  ServerConfig taken;
  taken.host = "127.0.0.1";
  taken.port = 0;
  taken.more_ports = {free_port};
  auto refused = Server::Create(taken);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message().find(std::to_string(free_port)), std::string::npos);
  server->Stop();
  EXPECT_FALSE(RawClient(free_port).connected());
}

TEST_F(HttpServer, HandlerFaultsAreItsRequestsOnly) {
  Start();
  RawClient client(port);
  client.Send(Format("GET", "/throw") + Format("GET", "/drop") + Format("GET", "/ok"));
  EXPECT_EQ(client.Read().status, 500);
  EXPECT_EQ(client.Read().status, 500);
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpServer, DisconnectIsSeenAtOnce) {
  Start();
  {
    RawClient waiting(port);
    waiting.Send(Format("GET", "/hold"));
    Held();
  }
  EXPECT_TRUE(Eventually([&] { return closed == 1; }));
  RawClient streaming(port);
  streaming.Send(Format("GET", "/hold"));
  auto writer = Held(1);
  writer->Start(200, kText);
  writer->Write("some");
  streaming.ReadUntil("some");
  streaming.Reset();
  EXPECT_TRUE(Eventually([&] { return closed == 2; }));
  EXPECT_TRUE(writer->closed());
  writer->Write("more");  // into nothing
  writer->Finish();
  // A callback that comes too late runs at once.
  writer->OnClosed([this] { ++closed; });
  EXPECT_EQ(closed, 3);
  EXPECT_EQ(server->stats().clients_left, 2u);
}

TEST_F(HttpServer, ANormalEndRunsNoCallback) {
  Start();
  RawClient client(port);
  client.Send(Format("GET", "/hold"));
  Held()->Send(200, kText, "done");
  EXPECT_EQ(client.Read().body, "done");
  client.Close();
  ASSERT_TRUE(Eventually([&] { return server->stats().connections == 0; }));
  EXPECT_EQ(closed, 0);
  EXPECT_EQ(server->stats().clients_left, 0u);
}

TEST_F(HttpServer, DroppedMidStreamCutsTheConnection) {
  Start();
  RawClient client(port);
  client.Send(Format("GET", "/hold"));
  {
    auto writer = Held();
    writer->Start(200, kText);
    writer->Write("half");
    std::lock_guard lock(mutex);
    held.clear();
  }
  RawResponse response = client.Read();
  EXPECT_EQ(response.body, "half");
  EXPECT_FALSE(response.complete);
}

TEST_F(HttpServer, SlowReaderIsCutAtTheBuffer) {
  ServerConfig config;
  config.send_buffer_bytes_max = 64 << 10;
  Start(config);
  RawClient client(port);
  client.SetReceiveBuffer(4096);
  client.Send(Format("GET", "/hold"));
  auto writer = Held();
  writer->Start(200, kText);
  std::string piece(1000, 'x');
  EXPECT_TRUE(Eventually([&] {
    for (int i = 0; i < 100; ++i) writer->Write(piece);
    return closed == 1;
  }));
  EXPECT_EQ(server->stats().clients_too_slow, 1u);
}

// Events larger than the buffer (logits of a large vocabulary) wait like others.
TEST_F(HttpServer, LargeEventsMayWaitInNumber) {
  ServerConfig config;
  config.send_buffer_bytes_max = 64 << 10;
  Start(config);
  RawClient client(port);
  client.Send(Format("GET", "/hold"));
  auto writer = Held();
  writer->Start(200, kText);
  for (int i = 0; i < 20; ++i) writer->Write(std::string(1 << 20, 'x'));
  writer->Write("small");
  writer->Finish();
  RawResponse response = client.Read();
  EXPECT_TRUE(response.complete);
  EXPECT_EQ(response.body.size(), (size_t{20} << 20) + 5);
  EXPECT_EQ(server->stats().clients_too_slow, 0u);
}

TEST_F(HttpServer, NoProgressInWritingTimesOut) {
  ServerConfig config;
  config.write_timeout = 100ms;
  config.send_buffer_bytes_max = 64 << 20;
  Start(config);
  RawClient client(port);
  client.SetReceiveBuffer(4096);
  client.Send(Format("GET", "/hold"));
  Held()->Send(200, kText, std::string(32 << 20, 'x'));
  EXPECT_TRUE(Eventually([&] { return server->stats().clients_too_slow == 1; }));
}

TEST_F(HttpServer, SlowHeaderAndBodyAnswer408IdleJustCloses) {
  ServerConfig config;
  config.header_timeout = config.body_timeout = config.idle_timeout = 100ms;
  Start(config);
  RawClient header(port), body(port), idle(port);
  header.Send("GET / HT");
  body.Send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n123");
  EXPECT_EQ(header.Read().status, 408);
  EXPECT_EQ(body.Read().status, 408);
  EXPECT_TRUE(idle.ReadToEnd());
  EXPECT_EQ(idle.ReadUntil("x"), "");
}

TEST_F(HttpServer, StartTimeoutRunsOnlyBeforeTheFirstByte) {
  Start();
  RawClient client(port), started(port);
  client.Send(Format("GET", "/hold"));
  auto late = Held();
  late->OnStartTimeout(50ms, [late] { late->Send(504, kText, "too late"); });
  EXPECT_EQ(client.Read().status, 504);
  started.Send(Format("GET", "/hold"));
  auto writer = Held(1);
  std::atomic<bool> ran{false};
  writer->OnStartTimeout(50ms, [&] { ran = true; });
  writer->Start(200, kText);
  std::this_thread::sleep_for(150ms);
  writer->Finish();
  EXPECT_EQ(started.Read().status, 200);
  EXPECT_FALSE(ran);
}

TEST_F(HttpServer, TooManyConnections) {
  ServerConfig config;
  config.connections_max = 2;
  Start(config);
  RawClient first(port), second(port);
  first.Send(Format("GET", "/1"));
  second.Send(Format("GET", "/2"));
  EXPECT_EQ(first.Read().status, 200);
  EXPECT_EQ(second.Read().status, 200);
  RawClient third(port);
  EXPECT_EQ(third.Read().status, 503);
  first.Close();
  EXPECT_TRUE(Eventually([&] { return Call(port, "GET", "/3").status == 200; }));
}

TEST_F(HttpServer, PortInUseIsNamed) {
  Start();
  ServerConfig config;
  config.host = "127.0.0.1";
  config.port = port;
  auto other = Server::Create(config);
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().field(), "port");
  EXPECT_NE(other.error().message().find(std::to_string(port)), std::string::npos);
  config.host = "no-address";
  EXPECT_EQ(Server::Create(config).error().field(), "host");
}

TEST_F(HttpServer, DrainFinishesStreamsAndClosesTheRest) {
  Start();
  RawClient idle(port), streaming(port), waiting(port);
  idle.Send(Format("GET", "/1"));
  EXPECT_EQ(idle.Read().status, 200);
  streaming.Send(Format("GET", "/hold"));
  auto stream = Held(0);
  waiting.Send(Format("GET", "/hold"));
  auto wait = Held(1);
  stream->Start(200, kText);
  stream->Write("a");
  std::thread drain([&] { EXPECT_TRUE(server->Drain(10s)); });
  EXPECT_TRUE(idle.ReadToEnd());
  EXPECT_TRUE(Eventually([&] { return !RawClient(port).connected(); }));
  stream->Write("b");
  stream->Finish();
  wait->Send(200, kText, "late");
  drain.join();
  EXPECT_EQ(streaming.Read().body, "ab");
  RawResponse late = waiting.Read();
  EXPECT_EQ(late.body, "late");
  EXPECT_EQ(late.Header("connection"), "close");
  EXPECT_TRUE(waiting.ReadToEnd());
}

TEST_F(HttpServer, DrainGivesUpAtItsDeadline) {
  Start();
  RawClient client(port);
  client.Send(Format("GET", "/hold"));
  Held();
  EXPECT_FALSE(server->Drain(50ms));
  server->Stop();
  EXPECT_EQ(closed, 1);
}

TEST_F(HttpServer, ManyThreadsWriteToManyConnections) {
  ServerConfig config;
  config.io_threads = 2;
  Start(config);
  constexpr int kClients = 8, kPieces = 500;
  std::vector<std::thread> clients, writers;
  std::atomic<int> good{0};
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&] {
      RawClient client(port);
      client.Send(Format("GET", "/hold"));
      RawResponse response = client.Read();
      good += response.complete && response.chunks.size() == kPieces;
    });
  }
  Held(kClients - 1);
  for (auto& writer : held) {
    writers.emplace_back([&writer] {
      writer->Start(200, kText);
      for (int k = 0; k < kPieces; ++k) writer->Write("0123456789");
      writer->Finish();
    });
  }
  for (auto& thread : writers) thread.join();
  for (auto& thread : clients) thread.join();
  EXPECT_EQ(good, kClients);
}

}  // namespace
}  // namespace ekiben::http
