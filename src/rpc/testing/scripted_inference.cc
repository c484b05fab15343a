#include "rpc/testing/scripted_inference.h"

#include <boost/json.hpp>

namespace ekiben::rpc {
namespace {

bool IsModel(const std::string& name) {
  for (const char* model : {"echo", "tokens", "empty_final", "held", "refuse", "fail"})
    if (name == model) return true;
  return false;
}

Error NoModel(const std::string& name) {
  return Error(Code::kNotFound, fmt::format("no model '{}'", name), "model_name");
}

int64_t IntParameter(const kserve::InferRequest& request, const char* name, int64_t otherwise) {
  auto found = request.parameters.find(name);
  if (found == request.parameters.end()) return otherwise;
  const int64_t* value = std::get_if<int64_t>(&found->second);
  return value != nullptr ? *value : otherwise;
}

kserve::InferResponse ResponseTo(const kserve::InferRequest& request) {
  return {request.model_name, "1", request.id, {}, {}, false};
}

}  // namespace

class ScriptedInference::Held final : public kserve::Inference {
 public:
  Held(ScriptedInference& server, std::shared_ptr<kserve::InferSink> sink) : server_(server), sink_(std::move(sink)) {
    ++server_.running_;
  }
  void Cancel() override {
    cancelled_ = true;
    if (held_) End(Error(Code::kCancelled, "cancelled"));
  }
  // Once: the end of a request.
  void End(const Error& error) {
    if (ended_.exchange(true)) return;
    ++server_.cancelled_;
    Ended();
    sink_->OnError(error);
  }
  void Ended() { --server_.running_; }
  bool cancelled() const { return cancelled_; }
  void set_held() { held_ = true; }

 private:
  ScriptedInference& server_;
  std::shared_ptr<kserve::InferSink> sink_;
  std::atomic<bool> cancelled_{false}, held_{false}, ended_{false};
};

ScriptedInference::ScriptedInference() {
  thread_ = std::thread([this] {
    while (auto job = jobs_.Pop()) (*job)();
  });
}
ScriptedInference::~ScriptedInference() {
  jobs_.Close();
  thread_.join();
}

Result<std::shared_ptr<kserve::Inference>> ScriptedInference::Infer(kserve::InferRequest request,
                                                                    std::shared_ptr<kserve::InferSink> sink) {
  if (!IsModel(request.model_name)) return NoModel(request.model_name);
  if (draining_) return Error(Code::kUnavailable, "draining");
  if (request.model_name == "refuse") return Error(Code::kOverloaded, "64 requests wait already");
  if (request.model_name != "echo" && !request.may_stream)
    return Error(Code::kUnsupported, fmt::format("model '{}' is decoupled: use ModelStreamInfer", request.model_name));
  auto held = std::make_shared<Held>(*this, sink);
  if (request.model_name == "held") {
    held->set_held();
    return std::shared_ptr<kserve::Inference>(held);
  }
  bool queued = jobs_.TryPush([this, request = std::move(request), sink, held] { Run(request, *sink, *held); });
  CHECK(queued);
  return std::shared_ptr<kserve::Inference>(held);
}

void ScriptedInference::Run(const kserve::InferRequest& request, kserve::InferSink& sink, const Held& held) {
  if (request.model_name == "echo") {
    auto response = ResponseTo(request);
    response.parameters = request.parameters;
    response.outputs = request.inputs;
    response.final = true;
    --running_;
    return sink.OnResponse(std::move(response));
  }
  int64_t count = IntParameter(request, "count", 3), bytes = IntParameter(request, "bytes", 0);
  bool empty_final = request.model_name == "empty_final", fail = request.model_name == "fail";
  for (int64_t i = 0; i < count; ++i) {
    if (held.cancelled()) {
      ++cancelled_;
      --running_;
      return sink.OnError(Error(Code::kCancelled, "cancelled"));
    }
    auto response = ResponseTo(request);
    std::string text = fmt::format("t{} ", i);
    text.resize(std::max(text.size(), static_cast<size_t>(bytes)), '.');
    response.outputs.push_back(kserve::BytesTensor("text_output", {1}, {text}));
    response.final = i + 1 == count && !empty_final && !fail;
    if (response.final) --running_;
    sink.OnResponse(std::move(response));
  }
  if (fail) {
    --running_;
    return sink.OnError(Error(Code::kInternal, "the device is gone"));
  }
  if (!empty_final) return;
  auto last = ResponseTo(request);
  last.final = true;
  --running_;
  sink.OnResponse(std::move(last));
}

Result<bool> ScriptedInference::ModelReady(const std::string& name, const std::string&) const {
  if (!IsModel(name)) return NoModel(name);
  return true;
}

Result<kserve::ModelMetadata> ScriptedInference::Metadata(const std::string& name, const std::string&) const {
  if (!IsModel(name)) return NoModel(name);
  return kserve::ModelMetadata{
      name,
      "ensemble",
      {"1"},
      {{"text_input", kserve::DataType::kBytes, {-1}, false}, {"max_tokens", kserve::DataType::kInt32, {-1}, false}},
      {{"text_output", kserve::DataType::kBytes, {-1}, false}}};
}

Result<json::object> ScriptedInference::ModelConfig(const std::string& name, const std::string&) const {
  if (!IsModel(name)) return NoModel(name);
  return json::parse(R"({"name":"tokens","platform":"ensemble","max_batch_size":8,"backend":"ekiben",
    "input":[{"name":"text_input","data_type":"TYPE_STRING","dims":["-1"],"optional":true}],
    "parameters":{"decoupled_mode":{"string_value":"true"}},"unknown_part":{"x":1},
    "model_transaction_policy":{"decoupled":true}})")
      .as_object();
}

Result<std::vector<kserve::ModelStatistics>> ScriptedInference::Statistics(const std::string& name,
                                                                           const std::string&) const {
  if (!name.empty() && !IsModel(name)) return NoModel(name);
  kserve::ModelStatistics model;
  model.name = name.empty() ? "echo" : name;
  model.version = "1";
  model.inference_count = 7;
  model.success = {3, 4000};
  model.batches.push_back({2, {1, 10}, {1, 20}, {1, 30}});
  model.responses["0"].success = {5, 50};
  return std::vector<kserve::ModelStatistics>{model};
}

Result<std::vector<serve::ModelState>> ScriptedInference::Index(bool ready_only) const {
  std::vector<serve::ModelState> all = {{"echo", "1", serve::ModelState::Kind::kReady, ""}};
  if (!ready_only) all.push_back({"away", "1", serve::ModelState::Kind::kUnavailable, "unloaded"});
  return all;
}

Result<void> ScriptedInference::Load(const std::string& name, const kserve::Parameters& parameters) {
  if (!IsModel(name)) return NoModel(name);
  if (parameters.contains("config")) return Error(Code::kUnsupported, "config: a model brings its own", "config");
  return {};
}

Result<void> ScriptedInference::Unload(const std::string& name, const kserve::Parameters& parameters) {
  return Load(name, parameters);
}

Result<std::map<std::string, std::vector<std::string>>> ScriptedInference::TraceSettings(
    const std::string&, const std::map<std::string, std::vector<std::string>>& changes) {
  for (const auto& [name, values] : changes) trace_[name] = values;
  return trace_;
}

Result<std::map<std::string, kserve::Setting>> ScriptedInference::LogSettings(
    const std::map<std::string, kserve::Setting>& changes) {
  for (const auto& [name, value] : changes) log_[name] = value;
  return log_;
}

}  // namespace ekiben::rpc
