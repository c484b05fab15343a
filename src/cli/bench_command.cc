#include <CLI/Config.hpp>
#include <atomic>
#include <boost/json.hpp>
#include <csignal>
#include <cstdio>
#include <map>

#include "cli/commands.h"
#include "cli/options.h"
#include "cli/stack.h"
#include "load/bench.h"
#include "load/burst.h"

namespace ekiben::cli {
namespace {

struct BenchOptions {
  load::BenchConfig bench;
  EngineSource source;
  StackOptions stack;
  std::string in_process, output;
  uint64_t seed = 0;
  int32_t burst = 0, repeat = 3;
  bool json = false;
};

std::atomic<bool> interrupted = false;

Result<void> Print(const BenchOptions& options, const json::object& report, const std::string& text) {
  std::string json_text = json::serialize(report);
  if (!options.output.empty()) RETURN_IF_ERROR(WriteFileAtomic(options.output, json_text + "\n"));
  fmt::print("{}\n", options.json ? json_text : text);
  return {};
}

Result<void> Run(const BenchOptions& options, const std::string& command_line) {
  load::BenchConfig config = options.bench;
  config.command = command_line;
  config.stop = &interrupted;
  std::signal(SIGINT, [](int) { interrupted = true; });
  std::unique_ptr<Stack> stack;
  if (!options.in_process.empty() || !options.source.synth.empty()) {
    EngineSource source = options.source;
    source.text = options.in_process;
    ASSIGN_OR_RETURN(stack, Stack::Open(source, options.stack));
    for (const std::string& line : stack->Describe()) fmt::print(stderr, "{}\n", line);
    config.service = &stack->service();
  }
  if (options.burst > 0) {
    ASSIGN_OR_RETURN(load::BurstReport report, load::RunBurst(config, options.burst, options.repeat));
    return Print(options, load::JsonReport(report), load::TextReport(report));
  }
  ASSIGN_OR_RETURN(load::BenchReport report, load::RunBench(config, [](const load::BenchProgress& progress) {
                     fmt::print(stderr, "{}\n", load::ProgressLine(progress));
                   }));
  return Print(options, load::JsonReport(report), load::TextReport(report));
}

}  // namespace

void AddBenchCommand(CLI::App& app, Outcome& outcome) {
  static const std::map<std::string, load::Api> kApis = {
      {"completions", load::Api::kCompletions}, {"chat", load::Api::kChat}, {"generate", load::Api::kGenerate}};
  auto options = std::make_shared<BenchOptions>();
  load::BenchConfig& b = options->bench;
  CLI::App* command = app.add_subcommand("bench", "Load a server, or an engine in this process, like a crowd of users");
  command->footer("What each number means: docs/benchmarking.md.");
  auto add = [](CLI::Option* option) { return option->capture_default_str(); };
  add(command->add_option("--url", b.url, "The server"));
  command->add_option("--in-process", options->in_process, "No HTTP: this engine, checkpoint or tag in this process");
  AddChoice(*command, "--api", b.api, kApis, "completions, chat (OpenAI) or generate (BentoML)");
  command->add_option("--model", b.model, "Name in the request; absent: the first of /v1/models");
  add(command->add_option("--users", b.users, "Levels of closed-loop users, one after the other")->delimiter(','));
  add(command->add_option("--ramp", b.ramp_s, "Seconds over which a level's users arrive"));
  add(command->add_option("--duration", b.duration_s, "Measured seconds of a level, after its ramp"));
  add(command->add_option("--burst", options->burst,
                          "Instead of users: that many requests at once, context and generation measured apart"));
  add(command->add_option("--repeat", options->repeat, "Bursts; the medians are reported"));
  add(command->add_option("--prompt_tokens", b.prompt_tokens, "Length of the random prompts"));
  add(command->add_option("--prompt_tokens_min", b.prompt_tokens_min,
                          "Draw each prompt's length evenly from here to prompt_tokens; 0: all of one length"));
  add(command->add_option("--output_tokens", b.output_tokens, "max_tokens of each request"));
  add(command->add_option("--shared_prefix_tokens", b.shared_prefix_tokens, "First tokens that all prompts share"));
  command->add_flag("--steady_start", b.steady_start,
                    "Each user's first request begins somewhere in its answer, the part before in its prompt: a short "
                    "window then sees lengths as spread as after many requests");
  command->add_option("--prompts_file", b.prompts_file, "JSONL of prompts or messages instead of random words");
  command->add_flag("--ignore_eos", b.ignore_eos, "Ask for exactly output_tokens and count other lengths");
  add(command->add_option("--temperature", b.temperature, "Of every request"));
  add(command->add_option("--think", b.think_s, "Seconds between a user's requests"));
  add(command->add_option("--timeout", b.timeout_s, "Seconds for one request"));
  command->add_option("--seed", options->seed, "Of the prompts; absent: from the clock, so no run repeats another's");
  command->add_option("--extra_json", b.extra_json, "Members added to each request body, as a JSON object");
  command->add_option("--api_key", b.api_key, "Bearer token");
  add(command->add_option("--load_threads", b.threads, "Client threads; 0: a quarter of the cores"));
  command->add_option("--output", options->output, "Also write the JSON report to this file");
  command->add_option("--commit", b.commit, "Repeated in the report");
  command->add_flag("--json", options->json, "The report as JSON on standard output");
  AddDeviceOptions(*command, options->source);
  AddEngineOptions(*command, options->source);
  AddRuntimeOptions(*command, options->stack);
  command->callback([options, command, &outcome] {
    if (command->count("--seed") > 0) options->bench.seed = options->seed;
    std::string line = "ekiben bench";
    for (const CLI::Option* option : command->get_options())
      for (const std::string& value : option->results())
        line += " " + option->get_name() + (option->get_items_expected_max() > 0 ? " " + value : "");
    outcome.result = Run(*options, line);
  });
}

}  // namespace ekiben::cli
