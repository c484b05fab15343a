// A safetensors file, read in place: its table of tensors as views into the bytes.
// After ParseSafetensors the tensors tile the data section exactly (no hole, no overlap), each as long as its shape and
// dtype say, and no name occurs twice. Errors name file, byte offset and field.
// Source: https://github.com/huggingface/safetensors#format
// Thread: immutable after ParseSafetensors; pure functions.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/result.h"

namespace ekiben {

struct SafetensorsTensor {
  std::string type_name;       // as written: "F32", "BF16", "F8_E4M3"
  std::optional<DType> dtype;  // absent: a type that we list and cannot compute with
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // from the file's start
  std::span<const std::byte> data;
};

struct SafetensorsFile {
  std::string label;
  uint64_t data_offset = 0;
  std::map<std::string, SafetensorsTensor, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
};

// `bytes` must outlive the result. `label` names the file in messages.
Result<SafetensorsFile> ParseSafetensors(std::span<const std::byte> bytes, std::string_view label);

// model.safetensors.index.json: the shard of each tensor. Shards are plain names of .safetensors files of the same
// folder: nothing that could point outside of it.
Result<std::map<std::string, std::string, std::less<>>> ParseShardIndex(std::string_view text, std::string_view label);

}  // namespace ekiben
