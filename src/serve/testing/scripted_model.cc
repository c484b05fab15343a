#include "serve/testing/scripted_model.h"

namespace ekiben::serve::testing {

ScriptedModel::ScriptedModel(ScriptedModelOptions options)
    : options_(std::move(options)), loaded_at_(options_.clock->WallNow()) {}

Result<std::unique_ptr<ScriptedModel>> ScriptedModel::Create(ScriptedModelOptions options) {
  if (!options.executor.next_token) options.executor.next_token = EchoToken;
  options.service.model_name = options.name;
  options.service.vocab_size = ByteTokenizer::kVocabulary;
  if (options.service.max_seq_len == 0) options.service.max_seq_len = 4096;
  if (options.service.max_input_len == 0) options.service.max_input_len = 4000;
  options.service.max_queue_size = options.executor.max_queue_size;
  options.facts.vocab_size = options.service.vocab_size;
  options.facts.max_seq_len = options.service.max_seq_len;
  options.facts.max_input_len = options.service.max_input_len;
  options.facts.max_batch_size = options.executor.max_batch_size;
  auto out = std::unique_ptr<ScriptedModel>(new ScriptedModel(std::move(options)));
  out->executor_ = std::make_unique<ScriptedExecutor>(out->options_.executor, *out->options_.clock);
  ASSIGN_OR_RETURN(auto parsed, text::ChatTemplate::Parse(ByteChatTemplate()));
  out->chat_template_ = std::make_unique<text::ChatTemplate>(std::move(parsed));
  ASSIGN_OR_RETURN(out->service_, Service::Create(*out->executor_, out->tokenizer_, out->chat_template_.get(),
                                                  *out->options_.clock, out->options_.service));
  if (out->options_.start) out->executor_->Start();
  return out;
}

ScriptedModel::~ScriptedModel() {
  if (executor_ != nullptr) executor_->Shutdown();
  service_.reset();
}

std::vector<std::string> ScriptedSource::Names() const {
  std::vector<std::string> out;
  for (const auto& model : models_) out.push_back(model.name);
  return out;
}

Result<std::unique_ptr<ServedModel>> ScriptedSource::Open(const std::string& name) {
  for (const auto& model : models_) {
    if (model.name != name) continue;
    ASSIGN_OR_RETURN(auto made, ScriptedModel::Create(model));
    return std::unique_ptr<ServedModel>(std::move(made));
  }
  return Error(Code::kNotFound, "no such model: " + name);
}

std::string ScriptedSource::Stamp(const std::string& name) const {
  return name;
}

}  // namespace ekiben::serve::testing
