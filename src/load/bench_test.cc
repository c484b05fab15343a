#include "load/bench.h"

#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>

#include <algorithm>
#include <thread>

#include "load/burst.h"
#include "load/toy_server_for_test.h"
#include "serve/service.h"

namespace ekiben::load {
namespace {

using Fault = ToyBehaviour::Fault;

BenchConfig ConfigFor(const std::string& url) {
  BenchConfig config;
  config.url = url;
  config.users = {2};
  config.ramp_s = 0.1;
  config.duration_s = 0.8;
  config.output_tokens = 8;
  config.ignore_eos = true;
  config.report_every_s = 0.3;
  config.pause_s = 0.01;
  config.threads = 1;
  config.count_tokens = [](std::string_view text) -> Result<int32_t> {
    return static_cast<int32_t>(std::count(text.begin(), text.end(), ' ') + 2);
  };
  return config;
}

BenchReport MustRun(const BenchConfig& config) {
  auto report = RunBench(config, nullptr);
  EXPECT_TRUE(report.ok()) << report.error().message();
  return *std::move(report);
}

// The same on a machine that others use too: a run whose client or server was kept from the processor measured that and
// nothing else, and is repeated. The client's own lag and the number of answers tell.
BenchReport RunUndisturbed(const BenchConfig& config) {
  BenchReport report;
  for (int attempt = 0; attempt < 5; ++attempt) {
    report = MustRun(config);
    const LevelReport& level = report.levels.at(0);
    if (level.completed > 4 && std::max(level.read_lag.p99, level.send_lag.p99) < 10 && level.ttft.p50 < 80) break;
  }
  return report;
}

// Below: the toy's sleep is a floor. Above: a busy machine may add what it likes, so the bounds there are wide; that
// each number is computed exactly is shown under a fake clock in user_loop_test.cc.
void ExpectToyTimes(const LevelReport& level) {
  EXPECT_GE(level.ttft.min, 48.0);
  EXPECT_LE(level.ttft.p50, 120.0);
  EXPECT_GE(level.itl_chunk.p50, 5.0);
  EXPECT_LE(level.itl_chunk.p50, 25.0);
  EXPECT_GE(level.tpot.p50, 8.0);
  EXPECT_LE(level.tpot.p50, 25.0);
  EXPECT_GE(level.e2e.min, 118.0);
  EXPECT_GT(level.completed, 4u);
  EXPECT_EQ(level.failed, 0u);
  EXPECT_EQ(level.output_mismatches, 0u);
  EXPECT_EQ(level.prompt_mismatches, 0u);
}

TEST(Bench, MeasuresKnownDelays) {
  ToyServer server({});
  std::vector<BenchProgress> lines;
  BenchConfig config = ConfigFor(server.url());
  config.count_tokens = nullptr;  // by POST /tokenize
  auto result = RunBench(config, [&](const BenchProgress& line) { lines.push_back(line); });
  ASSERT_TRUE(result.ok()) << result.error().message();
  ASSERT_GE(lines.size(), 1u);
  EXPECT_EQ(lines.back().users_active, 2);
  EXPECT_NE(ProgressLine(lines.back()).find("2 users"), std::string::npos);
  *result = RunUndisturbed(config);
  const LevelReport& level = result->levels.at(0);
  ExpectToyTimes(level);
  EXPECT_EQ(level.token_source, "usage of each chunk");
  EXPECT_EQ(level.chunks_multi, 0u);
  EXPECT_NE(result->prompts.find("100 tokens exactly"), std::string::npos) << result->prompts;
  EXPECT_EQ(level.prompt_tokens % 100, 0);
  EXPECT_GT(level.read_lag.count, 0u);
  std::string body = server.last_body();
  EXPECT_NE(body.find("\"model\":\"toy\""), std::string::npos);
  EXPECT_NE(body.find("\"ignore_eos\":true,\"min_tokens\":8"), std::string::npos);
  EXPECT_NE(body.find("\"continuous_usage_stats\":true"), std::string::npos);
  std::string text = TextReport(*result), as_json = json::serialize(JsonReport(*result));
  EXPECT_NE(text.find("TTFT"), std::string::npos);
  EXPECT_NE(text.find("% of a core, lag p50"), std::string::npos) << text;
  EXPECT_TRUE(ParseJson(as_json).ok());
  EXPECT_NE(as_json.find("\"schema_version\":1"), std::string::npos);
}

TEST(Bench, KeepsConnectionsAndSurvivesOnesThatWereClosed) {
  ToyBehaviour behaviour;
  behaviour.ttft = behaviour.itl = std::chrono::milliseconds(1);
  {
    ToyServer server(behaviour);
    BenchConfig config = ConfigFor(server.url());
    LevelReport level = RunUndisturbed(config).levels.at(0);
    EXPECT_GT(level.completed, 4u);
    EXPECT_EQ(server.connections() % 4, 0);  // a run: models, the first request, two users
    EXPECT_EQ(level.failed, 0u);
  }
  behaviour.close_silently = true;
  {
    ToyServer server(behaviour);
    LevelReport level = RunUndisturbed(ConfigFor(server.url())).levels.at(0);
    EXPECT_GT(level.completed, 4u);
    EXPECT_EQ(level.failed, 0u) << (level.error_messages.empty() ? "" : level.error_messages[0]);
  }
  behaviour.close_silently = false;
  behaviour.close_each = true;
  {
    ToyServer server(behaviour);
    LevelReport level = RunUndisturbed(ConfigFor(server.url())).levels.at(0);
    EXPECT_GT(level.completed, 4u);
    EXPECT_EQ(level.failed, 0u);
    EXPECT_EQ(level.reconnects, 0u);
  }
}

TEST(Bench, ReadsAStreamThatArrivesByteByByte) {
  ToyBehaviour behaviour;
  behaviour.byte_by_byte = true;
  ToyServer server(behaviour);
  ExpectToyTimes(RunUndisturbed(ConfigFor(server.url())).levels.at(0));
}

TEST(Bench, DoesNotTakeTheRoleChunkForAToken) {
  for (bool usage : {true, false}) {
    ToyBehaviour behaviour;
    behaviour.role_chunk = true;
    behaviour.usage_each_chunk = usage;
    ToyServer server(behaviour);
    BenchConfig config = ConfigFor(server.url());
    config.api = Api::kChat;
    LevelReport level = RunUndisturbed(config).levels.at(0);
    ExpectToyTimes(level);
    EXPECT_EQ(level.unchecked, 0u);
    EXPECT_EQ(level.token_source, usage ? "usage of each chunk" : "one a chunk, corrected by the final usage");
  }
}

TEST(Bench, CountsChunksWithSeveralTokensAndWrongLengths) {
  ToyBehaviour behaviour;
  behaviour.tokens = 7;
  behaviour.tokens_per_chunk = 2;
  behaviour.prompt_tokens = 99;
  ToyServer server(behaviour);
  LevelReport level = RunUndisturbed(ConfigFor(server.url())).levels.at(0);
  EXPECT_NEAR(static_cast<double>(level.chunks_multi) / static_cast<double>(level.chunks), 0.75, 0.15);
  EXPECT_EQ(level.output_mismatches, level.prompt_mismatches);
  EXPECT_GT(level.output_mismatches, 3u);
  // Three pairs and one alone, 10 ms apart: 5 ms a token in a pair.
  EXPECT_LT(level.itl_token.mean, level.itl_chunk.mean);
}

TEST(Bench, SpeaksBentoMlsRawStream) {
  ToyBehaviour behaviour;
  behaviour.raw = true;
  ToyServer server(behaviour);
  BenchConfig config = ConfigFor(server.url());
  config.api = Api::kGenerate;
  LevelReport level = RunUndisturbed(config).levels.at(0);
  ExpectToyTimes(level);
  EXPECT_EQ(level.token_source, "one a chunk");
  EXPECT_GT(level.unchecked, 0u);
  EXPECT_NE(server.last_body().find("\"system_prompt\":\"\""), std::string::npos);
}

// A server that turns bad after the first request, which RunBench sends alone.
std::string ErrorsOf(Fault fault, double timeout_s = 10) {
  ToyBehaviour behaviour;
  behaviour.ttft = behaviour.itl = std::chrono::milliseconds(2);
  behaviour.fault = fault;
  ToyServer server(behaviour);
  BenchConfig config = ConfigFor(server.url());
  config.timeout_s = timeout_s;
  auto report = RunBench(config, nullptr);
  EXPECT_FALSE(report.ok());
  return report.ok() ? "" : report.error().message();
}

TEST(Bench, TellsWhatIsWrongBeforeTheFirstLevel) {
  EXPECT_NE(ErrorsOf(Fault::kStatus429).find("status 429: queue is full"), std::string::npos);
  EXPECT_NE(ErrorsOf(Fault::kCloseInside).find("closed: closed inside the answer"), std::string::npos);
  EXPECT_NE(ErrorsOf(Fault::kNoDone).find("closed: the stream ended without [DONE]"), std::string::npos);
  EXPECT_NE(ErrorsOf(Fault::kErrorData).find("stream error: device lost"), std::string::npos);
  EXPECT_NE(ErrorsOf(Fault::kGarbage).find("protocol: no HTTP/1.x status line"), std::string::npos);
  EXPECT_NE(ErrorsOf(Fault::kNotJson).find("protocol: an event that is no JSON"), std::string::npos);
  EXPECT_NE(ErrorsOf(Fault::kSilent, 0.3).find("timeout: no end within"), std::string::npos);
  std::string gone;
  {
    ToyServer server({});
    gone = server.url();
  }
  auto report = RunBench(ConfigFor(gone), nullptr);
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message().find("refused"), std::string::npos) << report.error().message();
}

TEST(Bench, RefusesBadSettingsByName) {
  auto field_of = [](auto change) {
    BenchConfig config = ConfigFor("127.0.0.1:1");
    change(config);
    auto report = RunBench(config, nullptr);
    return report.ok() ? std::string("ran") : report.error().field();
  };
  EXPECT_EQ(field_of([](BenchConfig& c) { c.users = {}; }), "users");
  EXPECT_EQ(field_of([](BenchConfig& c) { c.users = {0}; }), "users");
  EXPECT_EQ(field_of([](BenchConfig& c) { c.users = {100'001}; }), "users");
  EXPECT_EQ(field_of([](BenchConfig& c) { c.ramp_s = -1; }), "ramp");
  EXPECT_EQ(field_of([](BenchConfig& c) { c.duration_s = 0; }), "duration");
  EXPECT_EQ(field_of([](BenchConfig& c) { c.url = "https://x:1"; }), "url");
  EXPECT_EQ(field_of([](BenchConfig& c) { c.url = "http://127.0.0.1:99999"; }), "url");
  EXPECT_EQ(field_of([](BenchConfig& c) { c.url = "http://:80"; }), "url");
  EXPECT_EQ(field_of([](BenchConfig& c) { c.extra_json = "[]"; }), "extra_json");
  EXPECT_EQ(field_of([](BenchConfig& c) { c.model = "m", c.output_tokens = 0; }), "output_tokens");
}

TEST(Bench, StopsWhenToldAndReportsWhatThereIs) {
  ToyServer server({});
  std::atomic<bool> stop{false};
  BenchConfig config = ConfigFor(server.url());
  config.duration_s = 60;
  config.users = {1, 2};
  config.stop = &stop;
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(900));
    stop = true;
  });
  BenchReport report = MustRun(config);
  stopper.join();
  EXPECT_TRUE(report.stopped_early);
  ASSERT_EQ(report.levels.size(), 1u);
  EXPECT_LT(report.levels[0].window_s, 30);
}

TEST(Bench, SaysThatTheClientWasTheBottleneck) {
  LevelReport level;
  level.threads = 1;
  level.itl_chunk.p50 = 10;
  level.itl_chunk.p99 = 20;
  level.read_lag.p50 = 0.05;
  level.read_lag.p99 = 0.5;
  JudgeClient(level);
  EXPECT_FALSE(level.client_bottleneck);
  level.read_lag.p99 = 5;
  JudgeClient(level);
  EXPECT_FALSE(level.client_bottleneck);
  EXPECT_NE(level.client_verdict.find("in the tail"), std::string::npos);
  level.read_lag.p50 = 3;
  JudgeClient(level);
  EXPECT_TRUE(level.client_bottleneck);
  level = LevelReport();
  level.busiest_thread_share = 0.95;
  JudgeClient(level);
  EXPECT_TRUE(level.client_bottleneck);
  EXPECT_NE(level.client_verdict.find("--load_threads"), std::string::npos);
}

// The toy's delays behind serve::Service.
class ToyService final : public serve::Service {
 public:
  ~ToyService() override {
    for (std::thread& thread : threads_) thread.join();
  }
  Result<RequestId> Submit(serve::TextRequest request, std::shared_ptr<serve::TextSink> sink) override {
    if (refuse) return Error(Code::kOverloaded, "the queue is full");
    last = request;
    RequestId id{++ids_};
    threads_.emplace_back([this, id, sink = std::move(sink), tokens = *request.max_tokens] {
      auto begin = std::chrono::steady_clock::now();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      sink->OnPrompt({.id = id, .prompt_tokens = 100});
      for (int i = 0; i < tokens; ++i) {
        std::this_thread::sleep_until(begin + std::chrono::milliseconds(50 + 10 * i));
        serve::TextEvent event;
        event.text = " w";
        event.tokens_new = 1;
        if (i + 1 == tokens) event.reason = cancel_all ? FinishReason::kCancelled : FinishReason::kLength;
        sink->OnText(event);
      }
    });
    return id;
  }
  void Cancel(RequestId) override { ++cancels; }
  Result<std::vector<TokenId>> Tokenize(const serve::TextRequest& request) const override {
    const std::string& text = std::get<std::string>(request.input);
    return std::vector<TokenId>(static_cast<size_t>(std::count(text.begin(), text.end(), ' ')) + 2);
  }
  serve::ServiceStats stats() const override { return {}; }
  const serve::ServiceConfig& config() const override { return config_; }
  const text::Tokenizer& tokenizer() const override { CHECK(false); }
  Executor& executor() override { CHECK(false); }

  bool refuse = false, cancel_all = false;
  int cancels = 0;
  serve::TextRequest last;

 private:
  serve::ServiceConfig config_;
  uint64_t ids_ = 0;
  std::vector<std::thread> threads_;
};

TEST(Bench, MeasuresTheServiceInProcessByTheSameDefinitions) {
  ToyService service;
  BenchConfig config = ConfigFor("");
  config.service = &service;
  config.count_tokens = nullptr;  // by Service::Tokenize
  BenchReport report = RunUndisturbed(config);
  ExpectToyTimes(report.levels.at(0));
  EXPECT_NE(report.prompts.find("100 tokens exactly"), std::string::npos) << report.prompts;
  EXPECT_GE(static_cast<uint64_t>(service.cancels), report.levels[0].cut_off);
  EXPECT_TRUE(service.last.ignore_eos);
  EXPECT_EQ(service.last.sampling.min_tokens, 8);
  EXPECT_TRUE(service.last.sampling.greedy());
  EXPECT_NE(TextReport(report).find("in-process"), std::string::npos);
}

TEST(Burst, SeparatesContextFromGeneration) {
  ToyBehaviour behaviour;
  behaviour.ttft = std::chrono::milliseconds(100);
  behaviour.tokens = 20;
  ToyServer server(behaviour);
  BenchConfig config = ConfigFor(server.url());
  config.output_tokens = 20;
  auto report = RunBurst(config, 4, 3);
  ASSERT_TRUE(report.ok()) << report.error().message();
  ASSERT_EQ(report->runs.size(), 3u);
  // 4 prompts of 100 tokens in 100 ms at best; 4 tokens each 10 ms.
  EXPECT_LE(report->context_max, 4050);
  EXPECT_GE(report->context_median, 1000);
  EXPECT_GE(report->generation_median, 130);
  EXPECT_LE(report->generation_median, 600);
  EXPECT_LE(report->runs[0].generation_tokens, 76);
  EXPECT_NE(TextReport(*report).find("4 sequences"), std::string::npos);
  EXPECT_EQ(JsonReport(*report).at("runs").as_array().size(), 3u);
  EXPECT_EQ(RunBurst(config, 0, 1).error().field(), "burst");
}

TEST(Bench, TellsErrorsOfTheService) {
  ToyService service;
  BenchConfig config = ConfigFor("");
  config.service = &service;
  service.refuse = true;
  auto refused = RunBench(config, nullptr);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message().find("the queue is full"), std::string::npos);
  service.refuse = false;
  service.cancel_all = true;
  auto cancelled = RunBench(config, nullptr);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_NE(cancelled.error().message().find("finished by"), std::string::npos);
}

}  // namespace
}  // namespace ekiben::load
