// The identity of an engine: same checkpoint, options, format and instruction set, same engine. The cache's key.
#pragma once
#include <string>

#include "compile/engine.h"

namespace ekiben {

// Of engine directories; a reader refuses any other.
inline constexpr int32_t kEngineVersion = 1;

std::string EngineFingerprint(const Checkpoint& checkpoint, const BuildConfig& build);  // 64 hex digits

// Validates, and replaces zeros by what they stand for.
Result<BuildConfig> ResolveBuildConfig(BuildConfig build, const ModelConfig& model);

}  // namespace ekiben
