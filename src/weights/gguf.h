// A GGUF file (versions 2 and 3, little-endian), read in place: its metadata and tensor table as views into the bytes,
// and what they say as a ModelConfig, a TokenizerSpec and a Checkpoint.
// After ParseGguf every view lies inside the file: string lengths, array counts, tensor extents and offsets are proven
// against the bytes left, with checked arithmetic, before they are used; memory taken is a small multiple of the bytes
// read. Errors name file, byte offset and field.
// Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
// Thread: immutable after ParseGguf; pure functions.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/result.h"
#include "text/tokenizer_spec.h"
#include "weights/checkpoint.h"
#include "weights/model_config.h"

namespace ekiben {

enum class GgufKind : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };
std::string_view Name(GgufKind kind);

// One metadata value. `data` is the payload: a scalar's bytes, a string's text, an array's elements one after another.
struct GgufValue {
  GgufKind kind = GgufKind::kU8;
  GgufKind element = GgufKind::kU8;  // of an array; never kArray
  uint64_t count = 0;                // of an array
  std::span<const std::byte> data;
  uint64_t offset = 0;  // of the value in the file, for messages
};

struct GgufTensor {
  std::string_view name;
  uint32_t type = 0;           // GGML's number
  std::string_view type_name;  // "q4_1", "iq2_xs"
  std::optional<DType> dtype;  // absent: a type that we list and cannot compute with
  std::vector<int64_t> shape;  // outermost first, the reverse of the file's order
  uint64_t offset = 0;         // from the file's start
  std::span<const std::byte> data;
};

struct GgufFile {
  std::string label;  // the path, for messages
  uint32_t version = 0;
  uint64_t alignment = 32;
  uint64_t data_offset = 0;  // where tensor data begins; everything before is header
  std::span<const std::byte> bytes;
  std::map<std::string_view, GgufValue> metadata;
  std::vector<GgufTensor> tensors;  // in file order
  std::map<std::string_view, size_t> tensor_index;

  const GgufTensor* FindTensor(std::string_view name) const;

  // nullopt / nullptr: absent. Error: present with another kind or out of [low, high]; it names file, offset and key.
  Result<std::optional<int64_t>> Int(std::string_view key, int64_t low, int64_t high) const;
  Result<std::optional<double>> Number(std::string_view key) const;
  Result<std::optional<bool>> Bool(std::string_view key) const;
  Result<std::optional<std::string_view>> String(std::string_view key) const;
  Result<const GgufValue*> Array(std::string_view key, GgufKind element) const;
  Error FieldError(std::string_view key, std::string_view message) const;
};

// The strings of an array of strings, in order.
std::vector<std::string_view> GgufStrings(const GgufValue& array);
// Element `i` of an array of 4-byte numbers.
template <class T>
T GgufElement(const GgufValue& array, uint64_t i) {
  static_assert(sizeof(T) == 4);
  T value;
  __builtin_memcpy(&value, array.data.data() + i * 4, 4);
  return value;
}

// `bytes` must outlive the result. `label` names the file in messages.
Result<GgufFile> ParseGguf(std::span<const std::byte> bytes, std::string_view label);

// Architectures that GGUF files of ours may have: {"llama", "qwen2"}. An error lists them.
Result<ModelConfig> GgufModelConfig(const GgufFile& file);
// tokenizer.ggml.* as a spec.
Result<text::TokenizerSpec> GgufTokenizer(const GgufFile& file);
// "blk.3.attn_q.weight" as "model.layers.3.self_attn.q_proj.weight"; empty when there is no such tensor in the family.
std::string HuggingFaceName(std::string_view gguf_name);
// All of it. The tensors point into the file's bytes; `files` is left to the caller.
Result<Checkpoint> GgufCheckpoint(const GgufFile& file, const std::filesystem::path& path);

}  // namespace ekiben
