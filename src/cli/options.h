// Groups of options that several commands share, under TensorRT-LLM's names, with their defaults in --help.
// Thread: main's.
#pragma once
#include <CLI/App.hpp>
#include <map>
#include <string>

#include "cli/engine_source.h"
#include "cli/stack.h"
#include "compile/engine.h"

namespace ekiben::cli {

// enable | disable | true | false.
void AddSwitch(CLI::App& app, const std::string& name, bool& value, const std::string& help);

// One of the names in `choices`, which outlive the option; `value` shows the default by its name. A template over enums
// because CLI11's own transformer answers a wrong name with the enum's unprintable values.
template <class Enum>
CLI::Option* AddChoice(CLI::App& app, const std::string& name, Enum& value, const std::map<std::string, Enum>& choices,
                       const std::string& help) {
  std::string names, chosen;
  for (const auto& [text, choice] : choices) {
    names += (names.empty() ? "" : ", ") + text;
    if (choice == value) chosen = text;
  }
  auto known = [&choices, names](const std::string& text) {
    return choices.contains(text) ? std::string() : "'" + text + "' is not one of " + names;
  };
  auto set = [&value, &choices](const std::string& text) { value = choices.at(text); };
  return app.add_option_function<std::string>(name, set, help)
      ->check(known, "")
      ->type_name("TEXT")
      ->default_str(chosen);
}

// bfloat16 and float32, as other tools say, for an option whose own names are bf16 and f32.
CLI::Option* AcceptLongDTypes(CLI::Option* option);

// Everything that an engine is built with.
void AddBuildOptions(CLI::App& app, BuildConfig& build, RunLimits& limits);
// Executor, cache, threads, instances.
void AddRuntimeOptions(CLI::App& app, StackOptions& options);
// What a run may ask of its engine: lower limits, and how it is built where it is not an engine yet.
void AddEngineOptions(CLI::App& app, EngineSource& source);
// The device that the model runs on, and --synth, whose weights are made there. Not of commands that only the CPU
// serves.
void AddDeviceOptions(CLI::App& app, EngineSource& source);
// The positional MODEL; not required, because --synth may stand for it.
CLI::Option* AddModel(CLI::App& app, EngineSource& source);
// All three.
void AddEngineSource(CLI::App& app, EngineSource& source);

}  // namespace ekiben::cli
