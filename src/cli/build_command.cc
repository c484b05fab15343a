#include <CLI/Config.hpp>
#include <boost/json.hpp>
#include <cstdio>

#include "base/human.h"
#include "cli/commands.h"
#include "cli/engine_source.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "compile/run_limits.h"

namespace ekiben::cli {
namespace {

struct BuildOptions {
  std::string checkpoint, output;
  BuildConfig build;
  RunLimits limits;
  bool json = false;
};

Result<void> Run(const BuildOptions& options) {
  const Clock& clock = SystemClock::Get();
  Nanos begin = clock.Now();
  ASSIGN_OR_RETURN(std::filesystem::path path, ResolveCheckpoint(options.checkpoint));
  ASSIGN_OR_RETURN(Checkpoint checkpoint, OpenCheckpoint(path));
  RETURN_IF_ERROR(RequireTokenizer(checkpoint));
  ProgressLine line("build", "steps", clock);
  RETURN_IF_ERROR(BuildAndProfile(checkpoint, WithLimits(options.build, options.limits), options.output, line));
  ASSIGN_OR_RETURN(Engine engine, OpenEngine(options.output, Verify::kAll));
  std::map<std::string, int64_t> parameters;
  for (const auto& [name, tensor] : engine.tensors) {
    std::string type(tensor.kind == PackRule::Kind::kLinear ? Name(tensor.packing) : Name(tensor.dtype));
    parameters[type] += tensor.rows * tensor.columns;
  }
  std::string summary;
  json::object packed;
  for (const auto& [type, count] : parameters) {
    summary += fmt::format("{}{} {}", summary.empty() ? "" : ", ", type, HumanCount(static_cast<double>(count)));
    packed[type] = count;
  }
  double seconds = Seconds(clock.Now() - begin);
  line.Done(fmt::format("{} -> {}, {} ({}), {:.1f} s", path.string(), options.output,
                        HumanBytes(engine.weights.bytes().size()), summary, seconds));
  if (options.json) {
    json::object out{{"engine", options.output},
                     {"fingerprint", engine.fingerprint},
                     {"seconds", seconds},
                     {"bytes", engine.weights.bytes().size()},
                     {"parameters", std::move(packed)},
                     {"build_config", ToJson(engine.build)}};
    std::printf("%s\n", json::serialize(out).c_str());
  }
  return {};
}

}  // namespace

void AddBuildCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<BuildOptions>();
  CLI::App* command = app.add_subcommand("build", "Make an engine from a checkpoint");
  command->add_option("CHECKPOINT", options->checkpoint, "GGUF file, Hugging Face folder or store tag")->required();
  command->add_option("-o,--output", options->output, "The engine's folder; an engine there is replaced")->required();
  command->add_flag("--json", options->json, "One JSON object on standard output");
  AddBuildOptions(*command, options->build, options->limits);
  command->callback([options, &outcome] { outcome.result = Run(*options); });
}

}  // namespace ekiben::cli
