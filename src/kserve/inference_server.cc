#include <fmt/format.h>

#include <atomic>
#include <boost/json.hpp>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "base/bounded_queue.h"
#include "base/log.h"
#include "executor/executor.h"
#include "kserve/generation.h"
#include "kserve/inference.h"
#include "kserve/metrics_text.h"
#include "kserve/model_names.h"
#include "kserve/output_forms.h"
#include "kserve/shared_memory.h"
#include "kserve/text_stages.h"
#include "kserve/tracer.h"
#include "serve/service.h"

namespace ekiben::kserve {
namespace {

constexpr size_t kTextJobsMax = 256;
constexpr size_t kRequestIdBytesMax = 1024;

// A call of preprocessing or postprocessing: cancelled before its turn, it does not run.
class TextInference final : public Inference {
 public:
  void Cancel() override { cancelled_.store(true, std::memory_order_release); }
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }

 private:
  std::atomic<bool> cancelled_{false};
};

// `stop` of another request: done at once.
class EndedInference final : public Inference {
 public:
  void Cancel() override {}
};

class Server final : public InferenceServer {
 public:
  Server(serve::ModelRegistry& registry, const Clock& clock, Config config)
      : registry_(registry),
        clock_(clock),
        config_(std::move(config)),
        extensions_({"model_repository", "model_repository(unload_dependents)", "schedule_policy",
                     "model_configuration", "binary_tensor_data", "classification", "parameters", "statistics", "trace",
                     "logging"}),
        shared_memory_(config_.shared_memory_prefix) {
    if (shared_memory_.offered()) extensions_.push_back("system_shared_memory");
    worker_ = std::thread([this] {
      while (auto job = text_jobs_.Pop()) (*job)();
    });
  }
  ~Server() override {
    text_jobs_.Close();
    worker_.join();
  }

  const std::vector<std::string>& extensions() const override { return extensions_; }
  SharedMemory& shared_memory() override { return shared_memory_; }
  bool Live() const override { return true; }
  bool Ready() const override;
  void BeginDrain() override { draining_ = true; }

  Result<bool> ModelReady(const std::string& name, const std::string& version) const override;
  Result<ModelMetadata> Metadata(const std::string& name, const std::string& version) const override;
  Result<json::object> ModelConfig(const std::string& name, const std::string& version) const override;
  Result<std::vector<ModelStatistics>> Statistics(const std::string& name, const std::string& version) const override;

  Result<std::vector<serve::ModelState>> Index(bool ready_only) const override;
  Result<void> Load(const std::string& name, const Parameters& parameters) override;
  Result<void> Unload(const std::string& name, const Parameters& parameters) override;

  Result<Tracer::Settings> TraceSettings(const std::string& model, const Tracer::Settings& changes) override;
  Result<std::map<std::string, Setting>> LogSettings(const std::map<std::string, Setting>& changes) override;

  Result<std::shared_ptr<Inference>> Infer(InferRequest request, std::shared_ptr<InferSink> sink) override;
  std::string MetricsText() const override;
  std::optional<LoadReport> CurrentLoad() const override;

 private:
  Result<void> CheckOutputs(const InferRequest& request, const ModelSchema& schema) const;
  Result<std::shared_ptr<Inference>> Generate(const NamedModel& named, const Inputs& inputs, InferRequest& request,
                                              OutputForms forms, std::shared_ptr<InferSink> sink);
  Result<std::shared_ptr<Inference>> StopOther(const InferRequest& request, InferSink& sink);
  Result<std::shared_ptr<Inference>> RunText(NamedModel named, InferRequest request, OutputForms forms,
                                             std::shared_ptr<InferSink> sink);
  void RunTextNow(const NamedModel& named, const InferRequest& request, const OutputForms& forms, InferSink& sink,
                  StageTimes times);
  void Forget(const std::string& id, const Generation* generation);

  serve::ModelRegistry& registry_;
  const Clock& clock_;
  const Config config_;
  std::vector<std::string> extensions_;
  SharedMemory shared_memory_;
  kserve::Statistics statistics_;
  Tracer tracer_;
  std::atomic<bool> draining_{false};
  std::mutex running_mutex_;                                                                               // running_
  std::unordered_multimap<std::string, std::pair<const Generation*, std::weak_ptr<Generation>>> running_;  // by id
  BoundedQueue<std::function<void()>> text_jobs_{kTextJobsMax};
  std::thread worker_;
};

// ---- what there is

bool Server::Ready() const {
  if (draining_) return false;
  auto models = registry_.Models();
  return !models.empty() && std::all_of(models.begin(), models.end(),
                                        [](const auto& model) { return model->service().executor().healthy(); });
}

Result<bool> Server::ModelReady(const std::string& name, const std::string& version) const {
  auto named = FindModel(registry_, name, version);
  if (named.ok()) return !draining_ && named->model->service().executor().healthy();
  for (const serve::ModelState& state : registry_.Index())
    if (state.name == name) return false;
  return named.error();
}

Result<ModelMetadata> Server::Metadata(const std::string& name, const std::string& version) const {
  ASSIGN_OR_RETURN(NamedModel named, FindModel(registry_, name, version));
  return MetadataOf(SchemaOf(named.part), name);
}

Result<json::object> Server::ModelConfig(const std::string& name, const std::string& version) const {
  ASSIGN_OR_RETURN(NamedModel named, FindModel(registry_, name, version));
  const serve::ServiceConfig& service = named.model->service().config();
  ModelOptions options{config_.accumulate_tokens, config_.exclude_input_in_output, service.preprocessing_instance_count,
                       service.postprocessing_instance_count};
  return ConfigOf(SchemaOf(named.part), name, named.prefix, named.model->facts(), options);
}

Result<std::vector<ModelStatistics>> Server::Statistics(const std::string& name, const std::string& version) const {
  std::vector<ModelStatistics> out;
  if (!name.empty()) {
    ASSIGN_OR_RETURN(NamedModel named, FindModel(registry_, name, version));
    out.push_back(statistics_.Of(named.canonical()).statistics);
    out.back().name = name;
    return out;
  }
  for (const NamedModel& named : AllModels(registry_)) out.push_back(statistics_.Of(named.canonical()).statistics);
  return out;
}

// The engines, which can be loaded and unloaded, and the models that the loaded ones answer as.
Result<std::vector<serve::ModelState>> Server::Index(bool ready_only) const {
  using Kind = serve::ModelState::Kind;
  std::vector<serve::ModelState> out;
  for (serve::ModelState& state : registry_.Index())
    if (!ready_only || state.kind == Kind::kReady) out.push_back(std::move(state));
  for (const NamedModel& named : AllModels(registry_))  // an engine may have the name of its part
    if (named.canonical() != named.model->name()) out.push_back({named.canonical(), "1", Kind::kReady, ""});
  return out;
}

Result<void> Server::Load(const std::string& name, const Parameters& parameters) {
  for (const auto& [key, value] : parameters)
    if (key == "config" || key.starts_with("file:"))
      return Error(Code::kUnsupported,
                   fmt::format("{}: models are read from this machine's disk, not from a request", key.substr(0, 100)),
                   key);
  return registry_.Load(name);
}

Result<void> Server::Unload(const std::string& name, const Parameters&) {
  std::vector<serve::ModelState> engines = registry_.Index();
  bool engine = std::any_of(engines.begin(), engines.end(), [&](const auto& state) { return state.name == name; });
  std::string whole = engine ? "" : EngineOfPart(registry_, name);  // an engine may have a part's name
  if (!whole.empty())
    return Error(Code::kUnsupported,
                 fmt::format("'{}' is a part of the engine '{}', which is unloaded as a whole", name, whole));
  return registry_.Unload(name);
}

// ---- settings

Result<Tracer::Settings> Server::TraceSettings(const std::string& model, const Tracer::Settings& changes) {
  if (!model.empty()) {
    ASSIGN_OR_RETURN(NamedModel named, FindModel(registry_, model, ""));
    if (!changes.empty())
      return Error(
          Code::kUnsupported,
          fmt::format("trace settings are the server's, not those of '{}'; use /v2/trace/setting", named.canonical()));
  }
  return tracer_.Change(changes);
}

Result<std::map<std::string, Setting>> Server::LogSettings(const std::map<std::string, Setting>& changes) {
  ekiben::LogSettings now = CurrentLogSettings();
  struct {
    const char* name;
    bool* value;
  } const flags[] = {{"log_info", &now.info}, {"log_warning", &now.warning}, {"log_error", &now.error}};
  for (const auto& [name, value] : changes) {
    auto wrong = [&, field = name](const char* wanted) {
      return Error(Code::kInvalid, fmt::format("{}: {} is wanted", field, wanted), field);
    };
    if (name == "log_file")
      return Error(Code::kUnsupported, "log file location can not be updated through network protocol", name);
    auto flag =
        std::find_if(std::begin(flags), std::end(flags), [&name = name](const auto& f) { return f.name == name; });
    if (flag != std::end(flags)) {
      if (!std::holds_alternative<bool>(value)) return wrong("true or false");
      *flag->value = std::get<bool>(value);
    } else if (name == "log_verbose_level") {
      if (!std::holds_alternative<uint32_t>(value)) return wrong("a whole number from 0 on");
      now.verbose_level = std::get<uint32_t>(value);
    } else if (name == "log_format") {
      if (!std::holds_alternative<std::string>(value)) return wrong("a string");
      now.format = std::get<std::string>(value);
    } else {
      return Error(Code::kInvalid, fmt::format("{}: is no log setting", name.substr(0, 100)), name);
    }
  }
  if (!changes.empty()) RETURN_IF_ERROR(ChangeLogSettings(now));
  return std::map<std::string, Setting>{{"log_file", std::string()},
                                        {"log_info", now.info},
                                        {"log_warning", now.warning},
                                        {"log_error", now.error},
                                        {"log_verbose_level", now.verbose_level},
                                        {"log_format", now.format}};
}

// ---- inference

Result<void> Server::CheckOutputs(const InferRequest& request, const ModelSchema& schema) const {
  for (const RequestedOutput& output : request.outputs) {
    if (schema.Output(output.name) == nullptr)
      return Error(
          Code::kInvalid,
          fmt::format("unexpected inference output '{}' for model '{}'", output.name.substr(0, 200), schema.name),
          output.name);
  }
  if (schema.part != Part::kTensorRtLlm || request.outputs.empty()) return {};
  for (const char* wanted : {"output_ids", "sequence_length"})
    if (std::none_of(request.outputs.begin(), request.outputs.end(),
                     [&](const RequestedOutput& o) { return o.name == wanted; }))
      return Error(Code::kInvalid, fmt::format("output '{}' must be among the requested ones", wanted), wanted);
  return {};
}

Result<std::shared_ptr<Inference>> Server::Infer(InferRequest request, std::shared_ptr<InferSink> sink) {
  if (draining_) return Error(Code::kUnavailable, "the server is shutting down");
  if (request.id.size() > kRequestIdBytesMax)
    return Error(Code::kInvalid, fmt::format("id: {} bytes, the limit is {}", request.id.size(), kRequestIdBytesMax),
                 "id");
  ASSIGN_OR_RETURN(NamedModel named, FindModel(registry_, request.model_name, request.model_version));
  const ModelSchema& schema = SchemaOf(named.part);
  auto begun = [&]() -> Result<std::shared_ptr<Inference>> {
    RETURN_IF_ERROR(CheckOutputs(request, schema));
    ASSIGN_OR_RETURN(OutputForms forms, OutputForms::Create(request.outputs, schema, shared_memory_));
    RETURN_IF_ERROR(shared_memory_.Fill(request.inputs));
    ASSIGN_OR_RETURN(Inputs inputs, Inputs::Create(request, schema, named.model->facts().max_batch_size));
    if (!schema.decoupled) return RunText(named, std::move(request), std::move(forms), sink);
    if (named.part == Part::kTensorRtLlm && inputs.Bool("stop", 0).value_or(false)) return StopOther(request, *sink);
    return Generate(named, inputs, request, std::move(forms), sink);
  }();
  if (!begun.ok() && begun.error().code() != Code::kOverloaded && begun.error().code() != Code::kUnavailable)
    statistics_.Failed(named.part, named.prefix, FailureOf(begun.error().code()), Nanos(0), 0);
  return begun;
}

Result<std::shared_ptr<Inference>> Server::Generate(const NamedModel& named, const Inputs& inputs,
                                                    InferRequest& request, OutputForms forms,
                                                    std::shared_ptr<InferSink> sink) {
  PlanContext context{request.parameters, named.model->facts(), named.model->service().tokenizer(),
                      config_.exclude_input_in_output};
  ASSIGN_OR_RETURN(GenerationPlan plan,
                   named.part == Part::kTensorRtLlm ? PlanFromTokens(inputs, context) : PlanFromText(inputs, context));
  if (plan.stream && !request.may_stream)
    return Error(Code::kUnsupported,
                 "stream: Streaming is only supported if model is deployed using decoupled mode; a request with one "
                 "answer cannot stream, use generate_stream or ModelStreamInfer",
                 "stream");
  Generation::Config config;
  config.model = named.model;
  config.part = named.part;
  config.prefix = named.prefix;
  config.head.model_name = request.model_name;
  config.head.model_version = "1";
  config.head.id = request.id;
  if (named.part == Part::kEnsemble)  // as Triton's ensembles show
    config.head.parameters = {{"sequence_id", int64_t{0}}, {"sequence_start", false}, {"sequence_end", false}};
  config.outputs = std::move(request.outputs);
  config.forms = std::move(forms);
  config.may_stream = request.may_stream;
  config.accumulate_text = config_.accumulate_tokens && named.part == Part::kBls && plan.stream;
  // The holder is filled before Begin, and `ended` runs after it at the earliest.
  auto holder = std::make_shared<const Generation*>(nullptr);
  auto ended = [this, holder, id = request.id, model = request.model_name](const StageTimes& times) {
    tracer_.Record(model, id, times);
    if (!id.empty()) Forget(id, *holder);
  };
  auto generation = std::make_shared<Generation>(std::move(config), std::move(plan), clock_, statistics_,
                                                 std::move(sink), std::move(ended));
  *holder = generation.get();
  if (!request.id.empty()) {
    std::lock_guard lock(running_mutex_);
    running_.emplace(request.id, std::pair(generation.get(), std::weak_ptr(generation)));
  }
  auto begun = generation->Begin();
  if (!begun.ok()) {
    if (!request.id.empty()) Forget(request.id, generation.get());
    return begun.error();
  }
  return std::shared_ptr<Inference>(std::move(generation));
}

void Server::Forget(const std::string& id, const Generation* generation) {
  std::lock_guard lock(running_mutex_);
  auto [first, last] = running_.equal_range(id);
  for (auto it = first; it != last; ++it) {
    if (it->second.first != generation) continue;
    running_.erase(it);
    return;
  }
}

Result<std::shared_ptr<Inference>> Server::StopOther(const InferRequest& request, InferSink& sink) {
  if (request.id.empty())
    return Error(Code::kInvalid, "stop: cannot stop a request without an id; send the id of the one to stop", "id");
  std::vector<std::shared_ptr<Generation>> found;
  {
    std::lock_guard lock(running_mutex_);
    auto [first, last] = running_.equal_range(request.id);
    for (auto it = first; it != last; ++it)
      if (auto generation = it->second.second.lock()) found.push_back(std::move(generation));
  }
  for (const auto& generation : found) generation->StopQuietly();
  InferResponse response;
  response.model_name = request.model_name;
  response.model_version = "1";
  response.id = request.id;
  response.final = true;
  sink.OnResponse(std::move(response));
  return std::shared_ptr<Inference>(std::make_shared<EndedInference>());
}

Result<std::shared_ptr<Inference>> Server::RunText(NamedModel named, InferRequest request, OutputForms forms,
                                                   std::shared_ptr<InferSink> sink) {
  StageTimes times;
  times.arrival = clock_.Now();
  auto inference = std::make_shared<TextInference>();
  Part part = named.part;
  std::string prefix = named.prefix;
  auto job = [this, named = std::move(named), request = std::make_shared<InferRequest>(std::move(request)),
              forms = std::move(forms), sink = std::move(sink), inference, times]() mutable {
    statistics_.Pending(named.part, named.prefix, -1);
    if (inference->cancelled()) {
      statistics_.Failed(named.part, named.prefix, FailureReason::kCanceled, clock_.Now() - times.arrival, 0);
      return sink->OnError(Error(Code::kCancelled, "the request was cancelled"));
    }
    times.taken = clock_.Now();
    RunTextNow(named, *request, forms, *sink, times);
  };
  statistics_.Pending(part, prefix, 1);
  if (text_jobs_.TryPush(std::move(job))) return std::shared_ptr<Inference>(std::move(inference));
  statistics_.Pending(part, prefix, -1);
  statistics_.Failed(part, prefix, FailureReason::kRejected, Nanos(0), 0);
  return Error(Code::kOverloaded,
               fmt::format("{} calls wait for {} already; try again", kTextJobsMax, SchemaOf(part).name));
}

void Server::RunTextNow(const NamedModel& named, const InferRequest& request, const OutputForms& forms, InferSink& sink,
                        StageTimes times) {
  const ModelSchema& schema = SchemaOf(named.part);
  auto made = [&]() -> Result<std::vector<Tensor>> {
    ASSIGN_OR_RETURN(Inputs inputs, Inputs::Create(request, schema, named.model->facts().max_batch_size));
    try {
      ASSIGN_OR_RETURN(std::vector<Tensor> all, named.part == Part::kPreprocessing ? Preprocess(inputs, *named.model)
                                                                                   : Postprocess(inputs, *named.model));
      std::erase_if(all, [&](const Tensor& tensor) { return !Wants(request.outputs, tensor.name); });
      RETURN_IF_ERROR(forms.Apply(all));
      return all;
    } catch (const std::exception& e) {  // a library ran out of memory: this request fails, the server goes on
      return Error(Code::kInternal, fmt::format("{} failed: {}", schema.name, e.what()));
    }
  }();
  times.end = clock_.Now();
  if (!made.ok()) {
    statistics_.Failed(named.part, named.prefix, FailureOf(made.error().code()), times.end - times.arrival, 0);
    return sink.OnError(made.error());
  }
  kserve::Statistics::Success success;
  success.part = named.part;
  success.prefix = named.prefix;
  success.times = times;
  // Each alone is a model whose work stands in its own place of the ensemble's time.
  success.times.submitted = success.times.end;
  success.times.last_token = named.part == Part::kPostprocessing ? times.taken : times.end;
  success.wall = clock_.WallNow();
  statistics_.Succeeded(success);
  tracer_.Record(request.model_name, request.id, success.times);
  InferResponse response;
  response.model_name = request.model_name;
  response.model_version = "1";
  response.id = request.id;
  response.final = true;
  response.outputs = *std::move(made);
  sink.OnResponse(std::move(response));
}

// ---- numbers

std::string Server::MetricsText() const {
  std::vector<ModelReading> readings;
  for (const NamedModel& named : AllModels(registry_))
    readings.push_back({named, statistics_.Of(named.canonical()), named.model->service().executor().stats()});
  return MetricsTextOf(readings, clock_.WallNow());
}

std::optional<InferenceServer::LoadReport> Server::CurrentLoad() const {
  auto model = registry_.Find("");
  if (model == nullptr) return std::nullopt;
  ExecutorStats stats = model->service().executor().stats();
  LoadReport out;
  if (stats.blocks_total > 0) out.kv_cache_utilization = static_cast<double>(stats.blocks_used) / stats.blocks_total;
  out.max_token_capacity =
      static_cast<uint64_t>(stats.blocks_total) * static_cast<uint64_t>(model->facts().tokens_per_block);
  return out;
}

}  // namespace

bool Wants(const std::vector<RequestedOutput>& outputs, std::string_view name) {
  return outputs.empty() ||
         std::any_of(outputs.begin(), outputs.end(), [&](const RequestedOutput& o) { return o.name == name; });
}

std::unique_ptr<InferenceServer> InferenceServer::Create(serve::ModelRegistry& registry, const Clock& clock,
                                                         Config config) {
  return std::make_unique<Server>(registry, clock, std::move(config));
}

}  // namespace ekiben::kserve
