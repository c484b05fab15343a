// A core whose answers the model's name chooses, so that a test of the wire decides what comes and when:
//   echo        one response: the inputs as they came, parameters too
//   tokens      decoupled: parameter `count` responses "t0 ", "t1 ", ..., the last one final; `bytes` pads each
//   empty_final as tokens, and then an empty final response
//   held        no answer until it is cancelled
//   refuse      Infer itself fails: kOverloaded
//   fail        a response, then kInternal
// Answers come from one thread of its own, as they do in the product. Thread: any.
#pragma once
#include <atomic>
#include <functional>
#include <thread>

#include "base/bounded_queue.h"
#include "kserve/inference.h"
#include "kserve/shared_memory.h"

namespace ekiben::rpc {

class ScriptedInference final : public kserve::InferenceServer {
 public:
  ScriptedInference();
  ~ScriptedInference() override;

  int64_t running() const { return running_; }
  int64_t cancelled() const { return cancelled_; }

  const std::vector<std::string>& extensions() const override { return extensions_; }
  bool Live() const override { return true; }
  bool Ready() const override { return !draining_; }
  void BeginDrain() override { draining_ = true; }
  Result<bool> ModelReady(const std::string& name, const std::string& version) const override;
  Result<kserve::ModelMetadata> Metadata(const std::string& name, const std::string& version) const override;
  Result<json::object> ModelConfig(const std::string& name, const std::string& version) const override;
  Result<std::vector<kserve::ModelStatistics>> Statistics(const std::string& name,
                                                          const std::string& version) const override;
  Result<std::vector<serve::ModelState>> Index(bool ready_only) const override;
  Result<void> Load(const std::string& name, const kserve::Parameters& parameters) override;
  Result<void> Unload(const std::string& name, const kserve::Parameters& parameters) override;
  Result<std::map<std::string, std::vector<std::string>>> TraceSettings(
      const std::string& model, const std::map<std::string, std::vector<std::string>>& changes) override;
  Result<std::map<std::string, kserve::Setting>> LogSettings(
      const std::map<std::string, kserve::Setting>& changes) override;
  Result<std::shared_ptr<kserve::Inference>> Infer(kserve::InferRequest request,
                                                   std::shared_ptr<kserve::InferSink> sink) override;
  kserve::SharedMemory& shared_memory() override { return shared_memory_; }
  std::string MetricsText() const override { return {}; }
  std::optional<LoadReport> CurrentLoad() const override { return std::nullopt; }

 private:
  class Held;
  void Run(const kserve::InferRequest& request, kserve::InferSink& sink, const Held& held);

  const std::vector<std::string> extensions_ = {"parameters", "statistics"};
  kserve::SharedMemory shared_memory_{"/ekiben_test_"};
  std::atomic<bool> draining_{false};
  std::atomic<int64_t> running_{0}, cancelled_{0};
  std::map<std::string, std::vector<std::string>> trace_ = {{"trace_rate", {"1000"}}};
  std::map<std::string, kserve::Setting> log_ = {{"log_info", true}, {"log_verbose_level", uint32_t{0}}};
  BoundedQueue<std::function<void()>> jobs_{4096};
  std::thread thread_;
};

}  // namespace ekiben::rpc
