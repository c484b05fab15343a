#include "cli/repository_source.h"

#include <fmt/format.h>

#include "base/log.h"

namespace ekiben::cli {

Result<std::unique_ptr<RepositorySource>> RepositorySource::Create(std::string root, EngineSource engine,
                                                                   StackOptions stack) {
  RETURN_IF_ERROR(ScanModelRepository(root));
  return std::unique_ptr<RepositorySource>(new RepositorySource(std::move(root), std::move(engine), std::move(stack)));
}

std::vector<std::string> RepositorySource::Names() const {
  auto scanned = ScanModelRepository(root_);
  std::lock_guard lock(mutex_);
  if (scanned.ok()) {
    models_ = *std::move(scanned);
  } else {  // a folder that is away for a moment unloads nothing
    LOG_ERROR("{}", scanned.error().message());
  }
  std::vector<std::string> out;
  for (const RepositoryModel& model : models_) out.push_back(model.name);
  return out;
}

RepositoryModel RepositorySource::Found(const std::string& name) const {
  std::lock_guard lock(mutex_);
  for (const RepositoryModel& model : models_)
    if (model.name == name) return model;
  return {name, {}, "no such model in the repository", ""};
}

Result<std::unique_ptr<serve::ServedModel>> RepositorySource::Open(const std::string& name) {
  RepositoryModel model = Found(name);
  if (!model.reason.empty()) return Error(Code::kInvalid, model.reason, "model");
  EngineSource engine = engine_;
  engine.text = model.path.string();
  StackOptions options = stack_;
  options.served_model_name = name;
  ASSIGN_OR_RETURN(auto stack, Stack::Open(engine, options));
  for (const std::string& line : stack->Describe()) LOG_INFO("{}", line);
  return std::unique_ptr<serve::ServedModel>(std::move(stack));
}

std::string RepositorySource::ModelFor(const std::string& name) const {
  Names();
  std::lock_guard lock(mutex_);
  return ModelForName(models_, name);
}

std::string RepositorySource::Stamp(const std::string& name) const {
  return Found(name).stamp;
}

}  // namespace ekiben::cli
