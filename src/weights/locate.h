// What kind of checkpoint a path names: told by a file's first bytes or a folder's content, not by a name alone.
// Thread: pure function.
#pragma once
#include <filesystem>

#include "base/result.h"

namespace ekiben {

struct CheckpointLocation {
  enum class Kind : uint8_t { kGguf, kSafetensorsFile, kHuggingFaceFolder } kind;
  std::filesystem::path path;  // of the file, or of the folder
};

// A folder with config.json is a Hugging Face folder; without, one that holds exactly one .gguf file.
Result<CheckpointLocation> LocateCheckpoint(const std::filesystem::path& path);

}  // namespace ekiben
