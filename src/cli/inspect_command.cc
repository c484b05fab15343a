#include <CLI/Config.hpp>
#include <boost/json.hpp>
#include <cstdio>

#include "base/human.h"
#include "cli/commands.h"
#include "cli/engine_source.h"
#include "compile/cuda_profile.h"
#include "compile/engine.h"

namespace ekiben::cli {
namespace {

struct InspectOptions {
  std::string path;
  bool json = false, tensors = false;
};

json::object InspectEngine(const Engine& engine) {
  json::object out{{"format", "ekiben engine"},
                   {"fingerprint", engine.fingerprint},
                   {"pretrained_config", ToJson(engine.model)},
                   {"build_config", ToJson(engine.build)},
                   {"profiles", engine.profiles}};
  if (!engine.fp8.empty()) out["fp8"] = engine.fp8;
  json::array tensors;
  for (const auto& [name, tensor] : engine.tensors)
    tensors.push_back({{"name", name},
                       {"dtype", tensor.kind == PackRule::Kind::kLinear ? Name(tensor.packing) : Name(tensor.dtype)},
                       {"shape", {tensor.rows, tensor.columns}},
                       {"bytes", tensor.bytes}});
  out["tensors"] = std::move(tensors);
  return out;
}

// Nested values on one line each: "build_config.dtype  auto".
void PrintFlat(const std::string& prefix, const json::value& value) {
  if (value.is_object()) {
    for (const auto& [key, child] : value.get_object())
      PrintFlat(prefix.empty() ? std::string(key) : prefix + "." + std::string(key), child);
    return;
  }
  std::string text = value.is_string() ? std::string(value.get_string()) : json::serialize(value);
  constexpr size_t kTextMax = 160;
  if (text.size() > kTextMax) text = text.substr(0, kTextMax) + fmt::format("... ({} characters)", text.size());
  for (char& c : text)
    if (c == '\n') c = ' ';
  fmt::print("{:<52} {}\n", prefix, text);
}

Result<void> Run(const InspectOptions& options) {
  json::object out;
  std::optional<CudaLinearPlan> plan;
  if (std::filesystem::exists(std::filesystem::path(options.path) / "rank0.engine")) {
    ASSIGN_OR_RETURN(Engine engine, OpenEngine(options.path, Verify::kAll));
    out = InspectEngine(engine);
    ASSIGN_OR_RETURN(plan, ReadCudaProfile(engine.profiles));
  } else {
    ASSIGN_OR_RETURN(std::filesystem::path path, ResolveCheckpoint(options.path));
    ASSIGN_OR_RETURN(out, InspectFile(path));
  }
  if (options.json) {
    std::printf("%s\n", json::serialize(out).c_str());
    return {};
  }
  if (plan) {
    out["profiles"] = {{"device", plan->device}, {"library", plan->library}, {"dtype", plan->fp8 ? "fp8" : "bf16"}};
  }
  json::value tensors = out.contains("tensors") ? out.at("tensors") : json::value();
  out.erase("tensors");
  PrintFlat("", out);
  if (plan)
    for (const CudaLinearBucket& bucket : plan->buckets)
      fmt::print("{:<52} {}\n", "profiles.linears", Describe(bucket, plan->for_all));
  if (tensors.is_array()) {
    if (options.tensors) {
      for (const json::value& tensor : tensors.get_array()) fmt::print("{}\n", json::serialize(tensor));
    } else {
      fmt::print("{:<52} {} (list them with --tensors)\n", "tensors", tensors.get_array().size());
    }
  }
  return {};
}

}  // namespace

void AddInspectCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = app.add_subcommand("inspect", "What a GGUF, safetensors or engine holds");
  command->add_option("FILE", options->path, "A file, a folder or a store tag")->required();
  command->add_flag("--json", options->json, "JSON on standard output");
  command->add_flag("--tensors", options->tensors, "List every tensor");
  command->callback([options, &outcome] { outcome.result = Run(*options); });
}

}  // namespace ekiben::cli
