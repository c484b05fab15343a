// Which model of this server a name means. The engine that is called tensorrt_llm, else
// the default one, answers as Triton's five names; any engine NAME, and each
// of its aliases, answers as NAME (its tensorrt_llm_bls) and as NAME_ensemble, NAME_preprocessing, ...
// Thread: any.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "kserve/model_schema.h"
#include "serve/model_registry.h"

namespace ekiben::kserve {

struct NamedModel {
  std::shared_ptr<serve::ServedModel> model;
  Part part = Part::kEnsemble;
  std::string prefix;  // of its parts' canonical names: "" for the default engine, else "NAME_"

  std::string canonical() const { return prefix + std::string(SchemaOf(part).name); }
};

// kNotFound, in Triton's words. An empty version is the newest; there is one, "1".
Result<NamedModel> FindModel(const serve::ModelRegistry& registry, const std::string& name, const std::string& version);
// All that are ready, by canonical name.
std::vector<NamedModel> AllModels(const serve::ModelRegistry& registry);
// The engine that `name` is a part of, and empty for one that is no part's name.
std::string EngineOfPart(const serve::ModelRegistry& registry, const std::string& name);

}  // namespace ekiben::kserve
