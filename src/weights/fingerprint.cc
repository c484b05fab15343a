#include "weights/fingerprint.h"

#include "base/sha256.h"

namespace ekiben {
namespace {

constexpr size_t kSampleBytes = 4096;

// Lengths go before contents, so that no two inputs run together into the same bytes.
void UpdateSized(Sha256& hash, std::span<const std::byte> bytes) {
  uint64_t size = bytes.size();
  hash.Update(std::as_bytes(std::span(&size, 1)));
  hash.Update(bytes);
}

}  // namespace

std::string Fingerprint(const std::map<std::string, CheckpointTensor, std::less<>>& tensors,
                        const std::vector<std::span<const std::byte>>& headers) {
  Sha256 hash;
  for (std::span<const std::byte> header : headers) UpdateSized(hash, header);
  for (const auto& [name, tensor] : tensors) {
    UpdateSized(hash, std::as_bytes(std::span(name)));
    UpdateSized(hash, std::as_bytes(std::span(Name(tensor.dtype))));
    UpdateSized(hash, std::as_bytes(std::span(tensor.shape)));
    std::span<const std::byte> data(tensor.data, tensor.bytes);
    uint64_t size = data.size();
    hash.Update(std::as_bytes(std::span(&size, 1)));
    if (size <= 3 * kSampleBytes) {
      hash.Update(data);
      continue;
    }
    hash.Update(data.first(kSampleBytes));
    hash.Update(data.subspan(size / 2, kSampleBytes));
    hash.Update(data.last(kSampleBytes));
  }
  return Hex(hash.Finish());
}

}  // namespace ekiben
