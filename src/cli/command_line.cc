#include "cli/command_line.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>

#include "base/log.h"
#include "cli/commands.h"

namespace ekiben::cli {
namespace {

int ExitCodeOf(const Error& error) {
  switch (error.code()) {
    case Code::kInvalid:
    case Code::kNotFound:
    case Code::kUnsupported: return 2;
    default: return 1;
  }
}

}  // namespace

int RunCommandLine(int argc, char** argv) {
  CLI::App app{
      "ekiben builds an inference engine from a language-model checkpoint, serves it with in-flight batching,\n"
      "and loads it like a crowd of users."};
  app.name("ekiben");
  app.set_version_flag("--version", "ekiben 0.1.0");
  app.require_subcommand(1);
  app.get_formatter()->column_width(44);
  app.failure_message(CLI::FailureMessage::simple);
  app.footer("Each command has its own --help, with defaults.");
  std::string log_level = "info";
  app.add_option("--log_level", log_level, "trace, debug, info, warning, error or off")
      ->capture_default_str()
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "off"}));
  Outcome outcome;
  AddBuildCommand(app, outcome);
  AddServeCommand(app, outcome);
  AddChatCommand(app, outcome);
  AddGenerateCommand(app, outcome);
  AddBenchCommand(app, outcome);
  AddModelsCommand(app, outcome);
  AddInspectCommand(app, outcome);
  AddCheckCommand(app, outcome);
  AddKernelsCommand(app, outcome);
  app.parse_complete_callback([&] { CHECK(StartLogging(log_level).ok(), "the option's check lets only levels pass"); });
  try {  // CLI11 reports by exceptions; they end here
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  int code = outcome.exit_code;
  if (!outcome.result.ok()) {
    StopLogging();
    std::fprintf(stderr, "ekiben: error: %s\n", outcome.result.error().message().c_str());
    return ExitCodeOf(outcome.result.error());
  }
  StopLogging();
  return code;
}

}  // namespace ekiben::cli
