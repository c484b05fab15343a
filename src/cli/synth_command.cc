#include <CLI/Config.hpp>
#include <cstdio>

#include <fmt/ranges.h>

#include "base/human.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "weights/published_shapes.h"
#include "weights/synthetic_checkpoint.h"

namespace ekiben::cli {
namespace {

struct SynthOptions {
  std::string shape, output;
  uint64_t seed = 1;
};

Result<void> Run(const SynthOptions& options) {
  const Clock& clock = SystemClock::Get();
  Nanos begin = clock.Now();
  ProgressLine line("synth", "MB", clock);
  int64_t bytes = 0;
  RETURN_IF_ERROR(
      WriteSyntheticCheckpoint(options.shape, options.seed, options.output, [&](int64_t done, int64_t total) {
        bytes = total;
        line.Update(done / 1'000'000, total / 1'000'000);
      }));
  line.Done(fmt::format("{} -> {}, {} of weights, {}", options.shape, options.output,
                        HumanBytes(static_cast<size_t>(bytes)), HumanDuration(clock.Now() - begin)));
  return {};
}

}  // namespace

void AddSynthCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<SynthOptions>();
  CLI::App* command = app.add_subcommand(
      "synth", "Write a checkpoint of a published shape with random weights and a made-up vocabulary");
  command->footer(
      "For measuring shapes whose weights are not at hand. serve, generate and bench with --synth SHAPE --device cuda\n"
      "make the weights on the GPU instead, without a file.");
  command->add_option("SHAPE", options->shape, fmt::format("{}", fmt::join(PublishedShapeNames(), ", ")))->required();
  command->add_option("-o,--output", options->output, "The checkpoint's folder")->required();
  command->add_option("--seed", options->seed, "Same seed, same weights")->capture_default_str();
  command->callback([options, &outcome] { outcome.result = Run(*options); });
}

}  // namespace ekiben::cli
