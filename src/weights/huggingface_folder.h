// A Hugging Face checkpoint on disk: safetensors (one file, or shards and their index) with config.json and the
// tokenizer's files beside them.
// Thread: immutable after opening; pure functions.
#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/result.h"
#include "weights/checkpoint.h"
#include "weights/safetensors.h"

namespace ekiben {

// The safetensors files of one model, and which of their tensors belong to it (with an index: those that it names).
struct SafetensorsSet {
  std::vector<MappedFile> files;
  std::vector<SafetensorsFile> tables;  // one a file
  struct Place {
    const SafetensorsTensor* tensor;
    size_t file;
  };
  std::map<std::string_view, Place> tensors;  // views into `tables`
};

// `path`: one .safetensors file, or a folder with model.safetensors.index.json, model.safetensors or a single
// *.safetensors, looked for in this order.
Result<SafetensorsSet> OpenSafetensorsSet(const std::filesystem::path& path);

// A JSON object in a small file of the folder; an absent file is kNotFound.
Result<json::object> ReadJsonObject(const std::filesystem::path& path);

// `path` as above; config.json lies in the folder or beside the file.
Result<Checkpoint> OpenHuggingFace(const std::filesystem::path& path);

}  // namespace ekiben
