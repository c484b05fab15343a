// The models that `serve` was told of, by name, as a registry opens them: each a Stack over its engine, with its part
// of the machine's cores and memory. Thread: as ModelSource says.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "cli/engine_source.h"
#include "cli/stack.h"
#include "serve/loaded_models.h"

namespace ekiben::cli {

struct NamedModel {
  std::string name;
  std::string text;  // what EngineSource::text takes
};

// "name=ENGINE", as --model has it. The name is what clients say, so it holds no blanks and no '='.
Result<NamedModel> ParseNamedModel(const std::string& text);

class StackSource final : public serve::ModelSource {
 public:
  // `engine` and `stack` hold for every model but for text, synth and name. `first`: the positional MODEL or --synth,
  // with `stack.served_model_name`; it takes its own name where that is empty.
  static Result<std::unique_ptr<StackSource>> Create(EngineSource engine, StackOptions stack,
                                                     std::vector<NamedModel> models);

  std::vector<std::string> Names() const override;
  Result<std::unique_ptr<serve::ServedModel>> Open(const std::string& name) override;
  std::string Stamp(const std::string& name) const override;

 private:
  struct Item {
    std::string name;
    EngineSource engine;
  };
  StackSource(StackOptions stack, std::vector<Item> items) : stack_(std::move(stack)), items_(std::move(items)) {}

  const StackOptions stack_;
  const std::vector<Item> items_;
};

}  // namespace ekiben::cli
