// Everything that answers requests, wired from an engine: model -> backend -> executor -> service. What `serve`,
// `chat`, `generate` and `bench --in-process` share. Thread: built and destroyed on main's; the service is then used
// from any.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/cpu_backend.h"
#include "base/clock.h"
#include "cli/engine_source.h"
#include "compile/engine.h"
#include "executor/executor.h"
#include "ops/linear_tuning.h"
#include "serve/model_registry.h"
#include "serve/service.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace ekiben::cli {

struct StackOptions {
  ExecutorConfig executor;
  std::string itl_budget_ms = "auto";                // auto, off or milliseconds
  std::string context_admission_policy = "auto";     // auto, paced or greedy
  std::optional<double> step_timeout_s;              // none: a minute on cuda, no limit elsewhere
  int32_t threads = 0;                               // 0: one for each core
  std::optional<double> kv_cache_free_mem_fraction;  // nullopt: the device's default
  int64_t max_tokens_in_paged_kv_cache = 0;
  std::string kv_cache_dtype = "auto";
  bool weights_in_huge_pages = true;
  double fake_step_ms = 0;  // of the fake device: a step takes so long; 0: no time
  int32_t preprocessing_instance_count = 1, postprocessing_instance_count = 1;
  std::string served_model_name;  // empty: the engine's
  int32_t models = 1;             // that share this machine: each has that part of cores and cache
};

class Stack final : public serve::ServedModel {
 public:
  // Opens the engine and verifies it, allocates everything large, starts the executor.
  static Result<std::unique_ptr<Stack>> Open(const EngineSource& source, const StackOptions& options);
  ~Stack() override;

  const std::string& name() const override { return model_name_; }
  const std::vector<std::string>& aliases() const override { return aliases_; }
  serve::Service& service() override { return *service_; }
  const serve::EngineFacts& facts() const override { return facts_; }
  Nanos loaded_at() const override { return loaded_at_; }
  Executor& executor() { return *executor_; }
  const BackendInfo& backend_info() const { return backend_->info(); }
  const text::Tokenizer& tokenizer() const { return *tokenizer_; }
  const text::ChatTemplate* chat_template() const { return chat_template_ ? &*chat_template_ : nullptr; }
  const Engine& engine() const { return engine_; }
  // Lines for people: what runs, where, and where the memory went.
  std::vector<std::string> Describe() const;

 private:
  explicit Stack(Engine engine) : engine_(std::move(engine)) {}
  Result<void> OpenText();
  Result<void> OpenBackend(const EngineSource& source, const StackOptions& options, const ModelConfig& model,
                           ExecutorConfig& executor);  // executor.step_costs: what warming up measured
  Engine engine_;
  std::string model_name_;
  std::vector<std::string> aliases_;
  serve::EngineFacts facts_;
  Nanos loaded_at_{};
  LinearTuning tuning_;
  std::unique_ptr<text::Tokenizer> tokenizer_;
  std::optional<text::ChatTemplate> chat_template_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Backend> backend_;
  std::vector<MemoryLine> memory_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<serve::Service> service_;
};

}  // namespace ekiben::cli
