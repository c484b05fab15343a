// The recorded logits of tests/golden, and SmolLM2's checkpoint, for tests.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "model/golden_file.h"
#include "weights/checkpoint.h"

namespace ekiben {

// `source`: the repository.
inline std::vector<GoldenFile> GoldenFilesOf(const std::filesystem::path& source, const std::string& name) {
  auto files = OpenGoldenFiles(source / "tests" / "golden" / name);
  EXPECT_TRUE(files.ok()) << files.error().message();
  return files.ok() ? *std::move(files) : std::vector<GoldenFile>();
}

// Null where EKIBEN_TEST_MODEL does not name SmolLM2's GGUF file.
inline std::unique_ptr<Checkpoint> OpenSmolLm2() {
  const char* path = std::getenv("EKIBEN_TEST_MODEL");
  if (path == nullptr) return nullptr;
  auto opened = OpenCheckpoint(path);
  EXPECT_TRUE(opened.ok()) << opened.error().message();
  return opened.ok() ? std::make_unique<Checkpoint>(*std::move(opened)) : std::make_unique<Checkpoint>();
}

}  // namespace ekiben
