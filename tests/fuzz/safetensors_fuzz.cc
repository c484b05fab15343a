// The first byte picks the reader: a safetensors file or a shard index.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/check.h"
#include "weights/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ekiben;
  if (size == 0) return 0;
  if (data[0] == 'i') {
    auto index = ParseShardIndex({reinterpret_cast<const char*>(data) + 1, size - 1}, "index");
    if (!index.ok()) return 0;
    for (const auto& [name, shard] : *index) CHECK(shard.find('/') == std::string::npos && shard[0] != '.');
    return 0;
  }
  std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  Result<SafetensorsFile> file = ParseSafetensors(bytes, "input");
  if (!file.ok()) {
    CHECK(file.error().message().starts_with("input: byte "));
    return 0;
  }
  uint64_t total = 0;
  for (const auto& [name, tensor] : file->tensors) {
    CHECK(tensor.offset >= file->data_offset && tensor.offset + tensor.data.size() <= bytes.size());
    total += tensor.data.size();
  }
  CHECK_EQ(total, bytes.size() - file->data_offset);
  return 0;
}
