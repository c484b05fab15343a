// A registry of engines over the doubles of serve/testing, for tests of what stands on KServe's inference: here, on
// HTTP (api/) and on gRPC (rpc/). Models are loaded and unloaded by name as the real one does it.
// Thread: as serve/model_registry.h.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "serve/model_registry.h"
#include "serve/service.h"
#include "serve/testing/byte_tokenizer.h"
#include "serve/testing/scripted_executor.h"

namespace ekiben::kserve::testing {

struct ScriptedModelOptions {
  serve::testing::ScriptedOptions executor;  // next_token: EchoToken when empty
  serve::ServiceConfig service;              // limits filled where zero: 256 tokens in all, 200 of prompt
  bool run = true;                           // false: the test calls executor().Start or Step
};

class ScriptedModel final : public serve::ServedModel {
 public:
  ScriptedModel(std::string name, ScriptedModelOptions options, const Clock& clock);
  ~ScriptedModel() override;

  const std::string& name() const override { return name_; }
  const std::vector<std::string>& aliases() const override { return aliases_; }
  serve::Service& service() override { return *service_; }
  const serve::EngineFacts& facts() const override { return facts_; }
  Nanos loaded_at() const override { return loaded_at_; }
  serve::testing::ScriptedExecutor& executor() { return *executor_; }

 private:
  const std::string name_;
  const std::vector<std::string> aliases_;
  const Nanos loaded_at_;
  serve::EngineFacts facts_;
  serve::testing::ByteTokenizer tokenizer_;
  std::unique_ptr<text::ChatTemplate> chat_template_;
  std::unique_ptr<serve::testing::ScriptedExecutor> executor_;
  std::unique_ptr<serve::Service> service_;
};

class ScriptedModels final : public serve::ModelRegistry {
 public:
  explicit ScriptedModels(const Clock& clock) : clock_(clock) {}

  // The first one is the default. `loaded` false: it stands in the index and can be loaded.
  void Add(const std::string& name, ScriptedModelOptions options = {}, bool loaded = true);
  ScriptedModel& model(const std::string& name);

  std::shared_ptr<serve::ServedModel> Find(std::string_view name) const override;
  std::vector<std::shared_ptr<serve::ServedModel>> Models() const override;
  std::vector<serve::ModelState> Index() const override;
  Result<void> Load(std::string_view name) override;
  Result<void> Unload(std::string_view name) override;

 private:
  struct Entry {
    std::string name;
    ScriptedModelOptions options;
    std::shared_ptr<ScriptedModel> model;  // null: not loaded
  };
  Entry* FindEntry(std::string_view name);

  const Clock& clock_;
  mutable std::mutex mutex_;
  std::vector<Entry> entries_;
};

}  // namespace ekiben::kserve::testing
