// Every command adds itself to the application: its options with their defaults, and what to run.
// A command's error is returned through `outcome`; command_line.cc prints it and picks the exit code.
// Thread: main's.
#pragma once
#include <CLI/App.hpp>

#include "base/result.h"

namespace ekiben::cli {

// What the chosen command answered; nullopt while none ran.
struct Outcome {
  Result<void> result;
  int exit_code = 0;  // when result is ok: 0, or 1 for "done, and the answer is no" (check)
};

void AddBuildCommand(CLI::App& app, Outcome& outcome);
void AddServeCommand(CLI::App& app, Outcome& outcome);
void AddChatCommand(CLI::App& app, Outcome& outcome);
void AddGenerateCommand(CLI::App& app, Outcome& outcome);
void AddBenchCommand(CLI::App& app, Outcome& outcome);
void AddSynthCommand(CLI::App& app, Outcome& outcome);
void AddModelsCommand(CLI::App& app, Outcome& outcome);
void AddInspectCommand(CLI::App& app, Outcome& outcome);
void AddCheckCommand(CLI::App& app, Outcome& outcome);
void AddKernelsCommand(CLI::App& app, Outcome& outcome);

}  // namespace ekiben::cli
