#include "cli/stack_source.h"

#include <algorithm>

#include "base/log.h"

namespace ekiben::cli {

Result<NamedModel> ParseNamedModel(const std::string& text) {
  size_t equals = text.find('=');
  NamedModel out{text.substr(0, equals), equals == std::string::npos ? "" : text.substr(equals + 1)};
  if (out.name.empty() || out.text.empty() || out.name.find_first_of(" \t\n") != std::string::npos)
    return Error(Code::kInvalid, fmt::format("model: '{}' is not NAME=ENGINE, e.g. chat=/engines/llama-8b", text),
                 "model");
  return out;
}

Result<std::unique_ptr<StackSource>> StackSource::Create(EngineSource engine, StackOptions stack,
                                                         std::vector<NamedModel> models) {
  std::vector<Item> items;
  if (!engine.text.empty() || !engine.synth.empty() || models.empty())
    items.push_back({stack.served_model_name.empty() ? ModelNameOf(engine) : stack.served_model_name, engine});
  engine.synth.clear();
  for (NamedModel& model : models) {
    bool twice = std::any_of(items.begin(), items.end(), [&](const Item& item) { return item.name == model.name; });
    if (twice) return Error(Code::kInvalid, fmt::format("model: the name '{}' is given twice", model.name), "model");
    engine.text = std::move(model.text);
    items.push_back({std::move(model.name), engine});
  }
  stack.models = static_cast<int32_t>(items.size());
  return std::unique_ptr<StackSource>(new StackSource(std::move(stack), std::move(items)));
}

std::vector<std::string> StackSource::Names() const {
  std::vector<std::string> out;
  for (const Item& item : items_) out.push_back(item.name);
  return out;
}

Result<std::unique_ptr<serve::ServedModel>> StackSource::Open(const std::string& name) {
  for (const Item& item : items_) {
    if (item.name != name) continue;
    StackOptions options = stack_;
    options.served_model_name = name;
    ASSIGN_OR_RETURN(auto stack, Stack::Open(item.engine, options));
    for (const std::string& line : stack->Describe()) LOG_INFO("{}", line);
    return std::unique_ptr<serve::ServedModel>(std::move(stack));
  }
  return Error(Code::kNotFound, fmt::format("'{}': no such model", name), "model");
}

std::string StackSource::Stamp(const std::string&) const {
  return {};
}

}  // namespace ekiben::cli
