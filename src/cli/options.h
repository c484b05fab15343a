// Groups of options that several commands share, under TensorRT-LLM's names, with their defaults in --help.
// Thread: main's.
#pragma once
#include <CLI/App.hpp>
#include <string>

#include "cli/engine_source.h"
#include "cli/stack.h"
#include "compile/engine.h"

namespace ekiben::cli {

// enable | disable | true | false.
void AddSwitch(CLI::App& app, const std::string& name, bool& value, const std::string& help);

// Everything that an engine is built with.
void AddBuildOptions(CLI::App& app, BuildConfig& build);
// Executor, cache, threads, instances.
void AddRuntimeOptions(CLI::App& app, StackOptions& options);
// What a run may ask of its engine: lower limits, and how it is built where it is not an engine yet.
void AddEngineOptions(CLI::App& app, EngineSource& source);
// The positional MODEL and the options above.
void AddEngineSource(CLI::App& app, EngineSource& source);

}  // namespace ekiben::cli
