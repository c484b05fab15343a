// A model of doubles: the byte tokenizer and a scripted executor under a real service; and a source of several, for
// what a registry does. Thread: as the real ones.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "serve/loaded_models.h"
#include "serve/service.h"
#include "serve/testing/byte_tokenizer.h"
#include "serve/testing/scripted_executor.h"
#include "text/chat_template.h"

namespace ekiben::serve::testing {

struct ScriptedModelOptions {
  std::string name = "test-model";
  std::vector<std::string> aliases;
  ServiceConfig service;     // limits that are 0 are filled
  ScriptedOptions executor;  // next_token: EchoToken when empty
  EngineFacts facts;         // limits and vocabulary are the service's
  const Clock* clock = &SystemClock::Get();
  bool start = true;  // false: the test starts the executor
};

class ScriptedModel final : public ServedModel {
 public:
  static Result<std::unique_ptr<ScriptedModel>> Create(ScriptedModelOptions options);
  ~ScriptedModel() override;

  const std::string& name() const override { return options_.name; }
  const std::vector<std::string>& aliases() const override { return options_.aliases; }
  Service& service() override { return *service_; }
  const EngineFacts& facts() const override { return options_.facts; }
  Nanos loaded_at() const override { return loaded_at_; }
  ScriptedExecutor& executor() { return *executor_; }

 private:
  explicit ScriptedModel(ScriptedModelOptions options);
  ScriptedModelOptions options_;
  const Nanos loaded_at_;
  ByteTokenizer tokenizer_;
  std::unique_ptr<text::ChatTemplate> chat_template_;
  std::unique_ptr<ScriptedExecutor> executor_;
  std::unique_ptr<Service> service_;
};

// Models by name, each made anew at every Open.
class ScriptedSource final : public ModelSource {
 public:
  explicit ScriptedSource(std::vector<ScriptedModelOptions> models) : models_(std::move(models)) {}
  std::vector<std::string> Names() const override;
  Result<std::unique_ptr<ServedModel>> Open(const std::string& name) override;
  std::string Stamp(const std::string& name) const override;

 private:
  const std::vector<ScriptedModelOptions> models_;
};

}  // namespace ekiben::serve::testing
