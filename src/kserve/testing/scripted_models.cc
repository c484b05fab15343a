#include "kserve/testing/scripted_models.h"

#include "base/check.h"

namespace ekiben::kserve::testing {

using serve::testing::ByteTokenizer;

ScriptedModel::ScriptedModel(std::string name, ScriptedModelOptions options, const Clock& clock)
    : name_(std::move(name)), loaded_at_(clock.WallNow()) {
  if (!options.executor.next_token) options.executor.next_token = serve::testing::EchoToken;
  serve::ServiceConfig& config = options.service;
  if (config.model_name.empty()) config.model_name = name_;
  if (config.max_seq_len == 0) config.max_seq_len = 256;
  if (config.max_input_len == 0) config.max_input_len = 200;
  config.vocab_size = ByteTokenizer::kVocabulary;
  facts_.dtype = "float32";
  facts_.architecture = "bytes";
  facts_.engine = "/engines/" + name_;
  facts_.max_batch_size = options.executor.max_batch_size;
  facts_.max_num_tokens = facts_.max_seq_len = config.max_seq_len;
  facts_.max_input_len = config.max_input_len;
  facts_.vocab_size = config.vocab_size;
  facts_.hidden_size = 1;
  facts_.tokens_per_block = 16;
  auto parsed = text::ChatTemplate::Parse(serve::testing::ByteChatTemplate());
  CHECK(parsed.ok(), "{}", parsed.error().message());
  chat_template_ = std::make_unique<text::ChatTemplate>(*std::move(parsed));
  executor_ = std::make_unique<serve::testing::ScriptedExecutor>(options.executor, clock);
  auto service = serve::Service::Create(*executor_, tokenizer_, chat_template_.get(), clock, config);
  CHECK(service.ok(), "{}", service.error().message());
  service_ = *std::move(service);
  if (options.run) executor_->Start();
}

ScriptedModel::~ScriptedModel() {
  executor_->Shutdown();
  service_.reset();
}

void ScriptedModels::Add(const std::string& name, ScriptedModelOptions options, bool loaded) {
  std::shared_ptr<ScriptedModel> model;
  if (loaded) model = std::make_shared<ScriptedModel>(name, options, clock_);
  std::lock_guard lock(mutex_);
  entries_.push_back({name, std::move(options), std::move(model)});
}

ScriptedModel& ScriptedModels::model(const std::string& name) {
  std::lock_guard lock(mutex_);
  Entry* entry = FindEntry(name);
  CHECK(entry != nullptr && entry->model != nullptr, "{}", name);
  return *entry->model;
}

ScriptedModels::Entry* ScriptedModels::FindEntry(std::string_view name) {
  for (Entry& entry : entries_)
    if (entry.name == name) return &entry;
  return nullptr;
}

std::shared_ptr<serve::ServedModel> ScriptedModels::Find(std::string_view name) const {
  std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_)
    if (entry.model != nullptr && (name.empty() || entry.name == name)) return entry.model;
  return nullptr;
}

std::vector<std::shared_ptr<serve::ServedModel>> ScriptedModels::Models() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<serve::ServedModel>> out;
  for (const Entry& entry : entries_)
    if (entry.model != nullptr) out.push_back(entry.model);
  return out;
}

std::vector<serve::ModelState> ScriptedModels::Index() const {
  using Kind = serve::ModelState::Kind;
  std::lock_guard lock(mutex_);
  std::vector<serve::ModelState> out;
  for (const Entry& entry : entries_) {
    bool ready = entry.model != nullptr;
    out.push_back({entry.name, "1", ready ? Kind::kReady : Kind::kUnavailable, ready ? "" : "unloaded"});
  }
  return out;
}

Result<void> ScriptedModels::Load(std::string_view name) {
  std::shared_ptr<ScriptedModel> before;  // destroyed outside the lock
  std::lock_guard lock(mutex_);
  Entry* entry = FindEntry(name);
  if (entry == nullptr) return Error(Code::kNotFound, "failed to load '" + std::string(name) + "', no such model");
  before = std::move(entry->model);
  entry->model = std::make_shared<ScriptedModel>(entry->name, entry->options, clock_);
  return {};
}

Result<void> ScriptedModels::Unload(std::string_view name) {
  std::shared_ptr<ScriptedModel> before;
  std::lock_guard lock(mutex_);
  Entry* entry = FindEntry(name);
  if (entry == nullptr || entry->model == nullptr)
    return Error(Code::kNotFound, "failed to unload '" + std::string(name) + "', no such model is loaded");
  before = std::move(entry->model);
  return {};
}

}  // namespace ekiben::kserve::testing
