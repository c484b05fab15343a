// Statistics and nv_* metrics after a scripted sequence of requests, every value computed by hand. The clock moves only
// where the script says: in the executor, 3 ms after a token was let go, once the response before it was heard.
#include "kserve/statistics.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <future>

#include "kserve/inference.h"
#include "serve/testing/scripted_model.h"

namespace ekiben::kserve {
namespace {

using namespace std::chrono_literals;

class Script final : public InferSink {
 public:
  void OnResponse(InferResponse response) override {
    bool final = response.final;
    {
      std::lock_guard lock(mutex_);
      ++responses_;
    }
    heard_.notify_all();
    if (final) done.set_value();
  }
  void OnError(const Error& e) override {
    error = e;
    done.set_value();
  }
  void WaitFor(int32_t responses) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(heard_.wait_for(lock, 20s, [&] { return responses_ >= responses; }));
  }
  std::promise<void> done;
  std::optional<Error> error;

 private:
  std::mutex mutex_;
  std::condition_variable heard_;
  int32_t responses_ = 0;
};

class StatisticsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    serve::testing::ScriptedModelOptions options;
    options.name = "bytes";
    options.clock = &clock;
    clock.Advance(1s);
    options.facts.tokens_per_block = 16;
    options.executor.next_token = [this](const Request&, int32_t, int32_t position) {
      if (stream) script->WaitFor(position);
      clock.Advance(3ms);
      return 'a' + position;
    };
    std::vector<serve::testing::ScriptedModelOptions> all = {std::move(options)};
    models =
        std::make_unique<serve::LoadedModels>(std::make_unique<serve::testing::ScriptedSource>(std::move(all)), false);
    ASSERT_TRUE(models->Open("bytes").ok());
    server = InferenceServer::Create(*models, clock, {});
  }
  void TearDown() override { models.reset(); }

  void Run(const std::string& model, std::vector<Tensor> inputs, bool streams) {
    InferRequest request;
    request.model_name = model;
    request.may_stream = stream = streams;
    request.inputs = std::move(inputs);
    script = std::make_shared<Script>();
    ASSERT_TRUE(server->Infer(std::move(request), script).ok());
    ASSERT_EQ(script->done.get_future().wait_for(20s), std::future_status::ready);
  }
  static std::vector<Tensor> Text(int32_t max_tokens, bool stream) {
    return {BytesTensor("text_input", {1}, {"prompt of 18 bytes"}), Int32Tensor("max_tokens", {1}, {max_tokens}),
            Tensor{"stream", DataType::kBool, {1}, std::string(1, stream ? '\1' : '\0')}};
  }

  FakeClock clock;
  bool stream = false;
  std::shared_ptr<Script> script;
  std::unique_ptr<InferenceServer> server;
  std::unique_ptr<serve::LoadedModels> models;
};

// Each token is let go, and 3 ms pass until it is heard: four tokens are 12 ms, of which the last 3 are output.
TEST_F(StatisticsTest, EveryValueOfAScriptedSequence) {
  Run("ensemble", Text(4, true), true);    // 12 ms, 4 responses
  Run("ensemble", Text(2, false), false);  // 6 ms, 1 response
  Run("tensorrt_llm",
      {Int32Tensor("input_ids", {2}, {'x', 'y'}), Int32Tensor("input_lengths", {1}, {2}),
       Int32Tensor("request_output_len", {1}, {1})},
      false);  // 3 ms
  InferRequest wrong;
  wrong.model_name = "ensemble";
  EXPECT_FALSE(server->Infer(std::move(wrong), std::make_shared<Script>()).ok());

  ModelStatistics ensemble = server->Statistics("ensemble", "")->at(0);
  EXPECT_EQ(ensemble.inference_count, 2u);
  EXPECT_EQ(ensemble.execution_count, 2u);
  EXPECT_EQ(ensemble.success.count, 2u);
  EXPECT_EQ(ensemble.success.ns, 18'000'000u);
  EXPECT_EQ(ensemble.fail.count, 1u);
  EXPECT_EQ(ensemble.queue.ns, 0u);
  EXPECT_EQ(ensemble.compute_infer.ns, 12'000'000u);  // to the last token: 9 and 3
  EXPECT_EQ(ensemble.compute_output.ns, 6'000'000u);  // from there: 3 and 3
  EXPECT_EQ(ensemble.last_inference_ms, 1'700'000'001'018u);
  ASSERT_EQ(ensemble.batches.size(), 1u);
  EXPECT_EQ(ensemble.batches[0].compute_infer.count, 2u);
  // Responses 0 of both requests: let go at 0 and heard at 3 ms; at 3 and heard at 6 ms, in one piece. Then each 3 ms
  // after the one before.
  EXPECT_EQ(ensemble.responses.at("0").success.count, 2u);
  EXPECT_EQ(ensemble.responses.at("0").compute_infer.ns, 3'000'000u);
  EXPECT_EQ(ensemble.responses.at("0").compute_output.ns, 6'000'000u);
  EXPECT_EQ(ensemble.responses.at("3").compute_infer.ns, 3'000'000u);
  EXPECT_EQ(ensemble.responses.at("3").success.ns, 6'000'000u);
  EXPECT_EQ(ensemble.responses.at("0").fail.count, 1u);
  EXPECT_FALSE(ensemble.responses.contains("4"));

  std::string text = server->MetricsText();
  auto expect = [&](const std::string& line) { EXPECT_NE(text.find(line + "\n"), std::string::npos) << line; };
  const std::string kEnsemble = "{model=\"ensemble\",version=\"1\"} ";
  const std::string kEngine = "{model=\"tensorrt_llm\",version=\"1\"} ";
  expect("nv_inference_request_success" + kEnsemble + "2");
  expect("nv_inference_request_success" + kEngine + "3");  // two of the ensemble's, one of its own
  expect("nv_inference_request_success{model=\"preprocessing\",version=\"1\"} 2");
  expect("nv_inference_request_success{model=\"postprocessing\",version=\"1\"} 2");
  expect("nv_inference_request_success{model=\"tensorrt_llm_bls\",version=\"1\"} 0");
  expect("nv_inference_request_failure{reason=\"OTHER\",model=\"ensemble\",version=\"1\"} 1");
  expect("nv_inference_request_failure{reason=\"CANCELED\",model=\"ensemble\",version=\"1\"} 0");
  expect("nv_inference_count" + kEngine + "3");
  expect("nv_inference_exec_count" + kEnsemble + "2");
  expect("nv_inference_request_duration_us" + kEnsemble + "18000");
  expect("nv_inference_request_duration_us" + kEngine + "12000");  // 9 + 3 + 0: to the last token
  expect("nv_inference_queue_duration_us" + kEnsemble + "0");
  expect("nv_inference_compute_input_duration_us" + kEnsemble + "0");
  expect("nv_inference_compute_infer_duration_us" + kEnsemble + "12000");
  expect("nv_inference_compute_output_duration_us" + kEnsemble + "6000");
  expect("nv_inference_compute_infer_duration_us{model=\"postprocessing\",version=\"1\"} 6000");
  expect("nv_inference_pending_request_count" + kEnsemble + "0");
  expect("nv_inference_first_response_histogram_ms_bucket{le=\"100\",model=\"ensemble\",version=\"1\"} 2");
  expect("nv_inference_first_response_histogram_ms_sum" + kEnsemble + "9");  // 3 and 6 ms
  expect("nv_inference_first_response_histogram_ms_count" + kEnsemble + "2");
  expect("nv_trt_llm_request_metrics{request_type=\"max\",model=\"tensorrt_llm\",version=\"1\"} 64");
  expect("nv_trt_llm_request_metrics{request_type=\"waiting\",model=\"tensorrt_llm\",version=\"1\"} 0");
  expect("nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\",model=\"tensorrt_llm\",version=\"1\"} 100");
  expect("nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"free\",model=\"tensorrt_llm\",version=\"1\"} 100");
  expect(
      "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"tokens_per\",model=\"tensorrt_llm\",version=\"1\"} 16");
  expect("nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"tensorrt_llm\",version=\"1\"} 0");
  expect("nv_trt_llm_general_metrics{general_type=\"timestamp\",model=\"tensorrt_llm\",version=\"1\"} 1700000001");
  // Prompts of 18, 18 and 2 tokens; 4 + 2 + 1 tokens out.
  expect(
      "nv_llm_input_token_len_bucket{response_metric_type=\"total_input_tokens\",le=\"10\",model=\"tensorrt_llm\","
      "version=\"1\"} 1");
  expect(
      "nv_llm_input_token_len_bucket{response_metric_type=\"total_input_tokens\",le=\"50\",model=\"tensorrt_llm\","
      "version=\"1\"} 3");
  expect(
      "nv_llm_input_token_len_sum{response_metric_type=\"total_input_tokens\",model=\"tensorrt_llm\",version=\"1\"} "
      "38");
  expect(
      "nv_llm_output_token_len_sum{response_metric_type=\"total_output_tokens\",model=\"tensorrt_llm\",version=\"1\"} "
      "7");
}

// What the picture in statistics.h says, share by share.
TEST(Statistics, SharesOfTheTime) {
  Statistics statistics;
  Statistics::Success success;
  success.part = Part::kBls;
  success.prefix = "other_";
  success.times = {10us, 11us, 13us, 17us, 25us, 41us};
  success.batch = 3;
  statistics.Succeeded(success);
  auto of = [&](const char* part) { return statistics.Of("other_" + std::string(part)).statistics; };
  EXPECT_EQ(of("tensorrt_llm_bls").queue.ns, 5'000u);
  EXPECT_EQ(of("tensorrt_llm_bls").compute_input.ns, 2'000u);
  EXPECT_EQ(of("tensorrt_llm_bls").compute_infer.ns, 8'000u);
  EXPECT_EQ(of("tensorrt_llm_bls").compute_output.ns, 16'000u);
  EXPECT_EQ(of("tensorrt_llm_bls").success.ns, 31'000u);
  EXPECT_EQ(of("tensorrt_llm_bls").inference_count, 3u);
  EXPECT_EQ(of("preprocessing").queue.ns, 1'000u);
  EXPECT_EQ(of("preprocessing").compute_infer.ns, 2'000u);
  EXPECT_EQ(of("tensorrt_llm").queue.ns, 4'000u);
  EXPECT_EQ(of("tensorrt_llm").compute_infer.ns, 8'000u);
  EXPECT_EQ(of("postprocessing").compute_infer.ns, 16'000u);
  EXPECT_EQ(of("ensemble").success.count, 0u);
  statistics.Failed(Part::kTensorRtLlm, "", FailureOf(Code::kCancelled), 7us, 2);
  EXPECT_EQ(statistics.Of("tensorrt_llm").statistics.responses.at("2").cancel.ns, 7'000u);
  EXPECT_EQ(statistics.Of("tensorrt_llm").failures[static_cast<size_t>(FailureReason::kCanceled)], 1u);
  statistics.Pending(Part::kEnsemble, "", 1);
  EXPECT_EQ(statistics.Of("ensemble").pending, 1);
}

}  // namespace
}  // namespace ekiben::kserve
