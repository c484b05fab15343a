// Everything that opening a GGUF file does, over bytes in memory, and a look at every byte of what was accepted.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "weights/fingerprint.h"
#include "weights/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ekiben;
  std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  Result<GgufFile> file = ParseGguf(bytes, "input.gguf");
  if (!file.ok()) {
    CHECK(file.error().message().starts_with("input.gguf: "));
    return 0;
  }
  for (const auto& [key, value] : file->metadata)
    if (value.kind == GgufKind::kArray && value.element == GgufKind::kString) (void)GgufStrings(value);
  (void)GgufTokenizer(*file);
  Result<Checkpoint> checkpoint = GgufCheckpoint(*file, "input.gguf");
  if (!checkpoint.ok()) return 0;
  CHECK(Validate(checkpoint->config).ok());
  (void)Fingerprint(checkpoint->tensors, {bytes.first(file->data_offset < size ? file->data_offset : size)});
  for (const auto& [name, tensor] : checkpoint->tensors) {
    int64_t row = tensor.shape.back();
    if (row > int64_t{1} << 16) continue;
    std::vector<float> values(static_cast<size_t>(row));
    Dequantize(tensor.dtype, tensor.data, row, values.data());
  }
  return 0;
}
