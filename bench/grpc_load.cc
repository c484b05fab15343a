// A load client of ModelStreamInfer for bench/edge_speed.py: keeps streams busy with one request after the other,
// counts messages, prints one JSON object.
//
//   grpc_load --target 127.0.0.1:8001 --streams 100 --connections 4 --output_tokens 256 --ramp 1 --duration 5
//
// A stream is what tritonclient's start_stream opens: it lives as long as the run, and its next request is written when
// the last answer of the one before has come. Every message is parsed; one that carries outputs is counted, which is a
// token of `ensemble` with `stream` unless its text waits for the next (half a character). Threads: libgrpc++'s
// callback threads; a Stream's reactions do not overlap. CPU seconds are this process's, from the first stream to the
// last.
#include <fmt/format.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#include "proto/grpc_service.pb.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string target, model = "ensemble", prompt = "Once upon a time there was a train that went to the sea";
  int streams = 100, connections = 4, output_tokens = 256;
  double ramp_s = 1, duration_s = 5;
};

struct Shared {
  std::atomic<uint64_t> messages{0}, bytes{0};
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::condition_variable ended;
  // Guarded by mutex.
  int running = 0;
  uint64_t requests = 0;
  int messages_min = std::numeric_limits<int>::max(), messages_max = 0;  // of one request
  std::vector<double> first_ms;
  std::string error;
};

void AddInput(inference::ModelInferRequest& request, const char* name, const char* type, std::string data) {
  auto* input = request.add_inputs();
  input->set_name(name);
  input->set_datatype(type);
  input->add_shape(1);
  input->add_shape(1);
  request.add_raw_input_contents(std::move(data));
}

template <class Value>
std::string Raw(Value value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

grpc::ByteBuffer RequestBytes(const Options& options) {
  inference::ModelInferRequest request;
  request.set_model_name(options.model);
  request.set_id("1");
  AddInput(request, "text_input", "BYTES", Raw(static_cast<uint32_t>(options.prompt.size())) + options.prompt);
  AddInput(request, "max_tokens", "INT32", Raw(int32_t{options.output_tokens}));
  AddInput(request, "min_length", "INT32", Raw(int32_t{options.output_tokens}));
  AddInput(request, "stream", "BOOL", std::string(1, '\1'));
  request.add_outputs()->set_name("text_output");
  (*request.mutable_parameters())["triton_enable_empty_final_response"].set_bool_param(true);
  grpc::Slice slice(request.SerializeAsString());
  return {&slice, 1};
}

class Stream final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Stream(const Options& options, Shared& shared, grpc::GenericStub& stub)
      : shared_(shared), request_(RequestBytes(options)) {
    stub.PrepareBidiStreamingCall(&context_, "/inference.GRPCInferenceService/ModelStreamInfer", grpc::StubOptions(),
                                  this);
    Ask();
    StartRead(&answer_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (std::string error = Count(); !error.empty()) {
      Note(error);
      context_.TryCancel();
    }
    StartRead(&answer_);
  }

  void OnDone(const grpc::Status& status) override {
    if (!status.ok()) Note(status.error_message());
    std::lock_guard lock(shared_.mutex);
    shared_.requests += requests_;
    shared_.messages_min = std::min(shared_.messages_min, messages_min_);
    shared_.messages_max = std::max(shared_.messages_max, messages_max_);
    shared_.first_ms.insert(shared_.first_ms.end(), first_ms_.begin(), first_ms_.end());
    --shared_.running;
    shared_.ended.notify_all();
  }

 private:
  void Ask() {
    asked_ = Clock::now();
    of_request_ = 0;
    StartWrite(&request_);
  }

  // One message; what is wrong with it, or nothing.
  std::string Count() {
    grpc::Slice slice;
    if (!answer_.TrySingleSlice(&slice).ok() && !answer_.DumpToSingleSlice(&slice).ok())
      return "a message without bytes";
    if (!message_.ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) return "a message that does not parse";
    if (!message_.error_message().empty()) return message_.error_message();
    const inference::ModelInferResponse& response = message_.infer_response();
    if (response.outputs_size() > 0) {
      if (++of_request_ == 1)
        first_ms_.push_back(std::chrono::duration<double, std::milli>(Clock::now() - asked_).count());
      shared_.messages.fetch_add(1, std::memory_order_relaxed);
      shared_.bytes.fetch_add(slice.size(), std::memory_order_relaxed);
    }
    auto final = response.parameters().find("triton_final_response");
    if (final == response.parameters().end()) return "no triton_final_response";
    if (!final->second.bool_param()) return {};
    ++requests_;
    messages_min_ = std::min(messages_min_, of_request_);
    messages_max_ = std::max(messages_max_, of_request_);
    if (shared_.stopping) {
      StartWritesDone();
    } else {
      Ask();
    }
    return {};
  }

  void Note(const std::string& error) {
    std::lock_guard lock(shared_.mutex);
    if (shared_.error.empty()) shared_.error = error;
  }

  Shared& shared_;
  grpc::ClientContext context_;
  grpc::ByteBuffer request_, answer_;
  inference::ModelStreamInferResponse message_;
  Clock::time_point asked_;
  int of_request_ = 0;
  uint64_t requests_ = 0;
  int messages_min_ = std::numeric_limits<int>::max(), messages_max_ = 0;
  std::vector<double> first_ms_;
};

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Quantile(const std::vector<double>& sorted, double q) {
  return sorted.empty() ? 0 : sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1))];
}

int Run(const Options& options) {
  Shared shared;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
  for (int i = 0; i < options.connections; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    stubs.push_back(std::make_unique<grpc::GenericStub>(
        grpc::CreateCustomChannel(options.target, grpc::InsecureChannelCredentials(), arguments)));
  }
  double cpu = CpuSeconds();
  auto begin = Clock::now();
  shared.running = options.streams;
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < options.streams; ++i)
    streams.push_back(std::make_unique<Stream>(options, shared, *stubs[static_cast<size_t>(i % options.connections)]));
  std::this_thread::sleep_for(std::chrono::duration<double>(options.ramp_s));
  uint64_t before = shared.messages;
  auto from = Clock::now();
  std::this_thread::sleep_for(std::chrono::duration<double>(options.duration_s));
  uint64_t counted = shared.messages - before;
  double window = std::chrono::duration<double>(Clock::now() - from).count();
  shared.stopping = true;
  std::unique_lock lock(shared.mutex);
  if (!shared.ended.wait_for(lock, std::chrono::seconds(120), [&] { return shared.running == 0; })) {
    fmt::print(stderr, "{} streams did not end\n", shared.running);
    std::_Exit(1);
  }
  double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  cpu = CpuSeconds() - cpu;
  std::sort(shared.first_ms.begin(), shared.first_ms.end());
  if (!shared.error.empty()) fmt::print(stderr, "{}\n", shared.error);
  fmt::print(
      "{{\"messages_per_s\": {:.1f}, \"messages_total\": {}, \"requests\": {}, \"messages_of_a_request\": [{}, {}], "
      "\"bytes_per_message\": "
      "{:.1f}, "
      "\"ttft_ms\": {{\"p50\": {:.3f}, \"p99\": {:.3f}}}, \"seconds\": {:.3f}, \"client_cpu_s\": {:.3f}, "
      "\"client_us_per_message\": {:.3f}}}\n",
      static_cast<double>(counted) / window, shared.messages.load(), shared.requests, shared.messages_min,
      shared.messages_max,
      static_cast<double>(shared.bytes) / static_cast<double>(std::max<uint64_t>(shared.messages, 1)),
      Quantile(shared.first_ms, 0.5), Quantile(shared.first_ms, 0.99), seconds, cpu,
      1e6 * cpu / static_cast<double>(std::max<uint64_t>(shared.messages, 1)));
  return shared.error.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Load on ModelStreamInfer; one JSON object on stdout");
  app.add_option("--target", options.target, "host:port")->required();
  app.add_option("--model", options.model);
  app.add_option("--prompt", options.prompt);
  app.add_option("--streams", options.streams)->check(CLI::Range(1, 100000));
  app.add_option("--connections", options.connections)->check(CLI::Range(1, 1000));
  app.add_option("--output_tokens", options.output_tokens)->check(CLI::Range(1, 1000000));
  app.add_option("--ramp", options.ramp_s, "seconds before tokens a second are counted");
  app.add_option("--duration", options.duration_s, "seconds in which they are");
  CLI11_PARSE(app, argc, argv);
  return Run(options);
}
