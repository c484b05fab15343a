#include "cli/command_line.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
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

// One line for a command line that does not parse: what is wrong, and where the right words are.
std::string OneLine(const CLI::App& app, const CLI::Error& error) {
  std::string what = error.what();
  std::string command = app.get_name();
  for (const CLI::App* chosen : app.get_subcommands()) command += " " + chosen->get_name();
  constexpr std::string_view kConversion = "Could not convert: ";
  if (what.starts_with(kConversion)) {
    what = what.substr(kConversion.size());
    if (size_t equals = what.find(" = "); equals != std::string::npos)
      what = what.substr(0, equals) + ": '" + what.substr(equals + 3) + "' is not a value it takes";
  }
  std::string text = "ekiben: error: " + what + "; see `" + command + " --help`\n";
  std::replace(text.begin(), text.end() - 1, '\n', ' ');
  return text;
}

std::string CommandNames(const CLI::App& app) {
  std::string out;
  for (const CLI::App* command : app.get_subcommands({})) out += (out.empty() ? "" : ", ") + command->get_name();
  return out;
}

// The first word, when it is no option and names no command; else empty.
std::string UnknownCommand(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return {};
  for (const CLI::App* command : app.get_subcommands({}))
    if (command->get_name() == argv[1]) return {};
  return argv[1];
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
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) { return OneLine(*failed, error); });
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
  AddSynthCommand(app, outcome);
  AddModelsCommand(app, outcome);
  AddInspectCommand(app, outcome);
  AddCheckCommand(app, outcome);
  AddKernelsCommand(app, outcome);
  app.parse_complete_callback([&] { CHECK(StartLogging(log_level).ok(), "the option's check lets only levels pass"); });
  if (std::string word = UnknownCommand(app, argc, argv); !word.empty()) {
    fmt::print(stderr, "ekiben: error: '{}' is no command; it is one of {}\n", word, CommandNames(app));
    return 2;
  }
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
