#include "kserve/model_names.h"

#include <fmt/format.h>

#include <optional>

namespace ekiben::kserve {
namespace {

std::optional<Part> PartOf(std::string_view name) {
  for (int i = 0; i < kPartCount; ++i)
    if (SchemaOf(static_cast<Part>(i)).name == name) return static_cast<Part>(i);
  return std::nullopt;
}

struct Split {
  std::string engine;
  Part part;
};

// NAME_part.
std::optional<Split> SplitName(std::string_view name) {
  for (int i = 0; i < kPartCount; ++i) {
    std::string suffix = "_" + std::string(SchemaOf(static_cast<Part>(i)).name);
    if (name.size() > suffix.size() && name.ends_with(suffix))
      return Split{std::string(name.substr(0, name.size() - suffix.size())), static_cast<Part>(i)};
  }
  return std::nullopt;
}

// The engine behind the five names: an existing deployment's repository calls it by one of them.
std::shared_ptr<serve::ServedModel> PipelineEngine(const serve::ModelRegistry& registry) {
  auto named = registry.Find(SchemaOf(Part::kTensorRtLlm).name);
  return named != nullptr ? named : registry.Find("");
}

std::string PrefixOf(const serve::ModelRegistry& registry, const serve::ServedModel& model) {
  return PipelineEngine(registry).get() == &model ? std::string() : model.name() + "_";
}

}  // namespace

Result<NamedModel> FindModel(const serve::ModelRegistry& registry, const std::string& name,
                             const std::string& version) {
  NamedModel out;
  if (auto part = PartOf(name)) {
    out = {PipelineEngine(registry), *part, ""};
  } else if (auto model = name.empty() ? nullptr : registry.Find(name)) {
    std::string prefix = PrefixOf(registry, *model);
    out = {std::move(model), Part::kBls, std::move(prefix)};
  } else if (auto split = SplitName(name)) {
    model = registry.Find(split->engine);
    if (model != nullptr) out = {model, split->part, PrefixOf(registry, *model)};
  }
  if (out.model == nullptr)
    return Error(Code::kNotFound, fmt::format("Request for unknown model: '{}' is not found", name.substr(0, 200)),
                 "model");
  if (!version.empty() && version != "1")
    return Error(Code::kNotFound,
                 fmt::format("Request for unknown model: '{}' version {} is not found", name.substr(0, 200),
                             version.substr(0, 20)),
                 "version");
  return out;
}

std::vector<NamedModel> AllModels(const serve::ModelRegistry& registry) {
  std::vector<NamedModel> out;
  for (const auto& model : registry.Models()) {
    std::string prefix = PrefixOf(registry, *model);
    for (int i = 0; i < kPartCount; ++i) out.push_back({model, static_cast<Part>(i), prefix});
  }
  return out;
}

std::string EngineOfPart(const serve::ModelRegistry& registry, const std::string& name) {
  for (const NamedModel& named : AllModels(registry))
    if (named.canonical() == name) return named.model->name();
  return {};
}

}  // namespace ekiben::kserve
