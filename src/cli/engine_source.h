// ENGINE, a checkpoint or a store tag: whatever a user names, an engine comes out. What is no engine yet is built once
// into the cache ($EKIBEN_CACHE, else ~/.cache/ekiben) under the hash of checkpoint, packing and instruction set; two
// processes that want the same one build it once (a file lock). Limits are the run's (compile/run_limits.h).
// Thread: main's.
#pragma once
#include <filesystem>
#include <string>

#include "cli/terminal.h"
#include "compile/engine.h"
#include "compile/run_limits.h"

namespace ekiben::cli {

struct EngineSource {
  std::string text;   // as the user wrote it
  std::string synth;  // instead: a published shape (weights/published_shapes.h), an engine without tensors
  uint64_t synth_seed = 1;
  bool takes_text = true;      // false: what is built for this run may lack a tokenizer
  std::string device = "cpu";  // cpu | cuda | fake, which takes an engine of either
  BuildConfig build;           // when a build is needed; its device and limits are not read
  RunLimits limits;
};

// The engine, verified and under the limits asked for, and the name that the API calls the model by.
struct OpenedEngine {
  Engine engine;
  std::string model_name;
};
Result<OpenedEngine> OpenEngineSource(const EngineSource& source);
// That name, before it is opened: the shape of --synth, the tag, or the file's or folder's name.
std::string ModelNameOf(const EngineSource& source);

// Refuses a checkpoint whose tokenizer is missing or not understood: of it comes an engine that takes no text.
Result<void> RequireTokenizer(const Checkpoint& checkpoint);

// BuildEngine, and for cuda its profile where this machine has the GPU; what happens is shown on `line`.
Result<void> BuildAndProfile(const Checkpoint& checkpoint, const BuildConfig& build,
                             const std::filesystem::path& engine, ProgressLine& line);

// A checkpoint's path for a checkpoint path or store tag.
Result<std::filesystem::path> ResolveCheckpoint(const std::string& text);

}  // namespace ekiben::cli
