// The models of `serve --model_repository`, as a registry opens them: each a Stack over what its folder names. The disk
// is read when names are asked for; what is opened and compared afterwards is what was found then.
// Thread: any.
#pragma once
#include <mutex>
#include <string>
#include <vector>

#include "cli/engine_source.h"
#include "cli/stack.h"
#include "package/model_repository.h"
#include "serve/loaded_models.h"

namespace ekiben::cli {

class RepositorySource final : public serve::ModelSource {
 public:
  // `engine` and `stack` hold for every model but for text and name; `stack.models` says how many share the machine.
  // Errors: no folder at `root`.
  static Result<std::unique_ptr<RepositorySource>> Create(std::string root, EngineSource engine, StackOptions stack);

  std::vector<std::string> Names() const override;
  Result<std::unique_ptr<serve::ServedModel>> Open(const std::string& name) override;
  std::string Stamp(const std::string& name) const override;
  std::string ModelFor(const std::string& name) const override;

 private:
  RepositorySource(std::string root, EngineSource engine, StackOptions stack)
      : root_(std::move(root)), engine_(std::move(engine)), stack_(std::move(stack)) {}
  RepositoryModel Found(const std::string& name) const;

  const std::string root_;
  const EngineSource engine_;
  const StackOptions stack_;
  mutable std::mutex mutex_;
  mutable std::vector<RepositoryModel> models_;  // of the last scan; guarded by mutex_
};

}  // namespace ekiben::cli
