// rank0.engine, the container of packed tensors (docs/engine-format.md):
//
//   0          magic "EKIBENG1"
//   8          u64 little-endian: length H of the header
//   16         header, H bytes of JSON: tensors, chunk digests
//   data_begin first multiple of 4096 past the header; every tensor starts at a multiple of 4096 from here, in order
//
// The header names for each tensor its packing, so that a reader without that packing refuses the file by name.
// Every 16 MiB of data has a SHA-256 in the header; the header's own SHA-256 stands in config.json.
// Thread: a writer is one thread's; reading is const.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"
#include "base/sha256.h"
#include "device/thread_pool.h"
#include "model/model.h"

namespace ekiben {

inline constexpr size_t kEngineAlignment = 4096;
inline constexpr size_t kEngineChunkBytes = size_t{16} << 20;

// Writes the file front to back, each tensor by all threads of the pool: its place is known before its bytes are, so
// that one tensor at a time is in memory and every byte is written once.
class EngineFileWriter {
 public:
  // `tensors` in the file's order, complete but for their data.
  static Result<std::unique_ptr<EngineFileWriter>> Create(const std::filesystem::path& path,
                                                          std::vector<EngineTensor> tensors, ThreadPool& pool);
  virtual ~EngineFileWriter() = default;
  // The next tensor's bytes, which may go when Add returns. REQUIRES: as many as were announced.
  virtual Result<void> Add(std::span<const std::byte> data) = 0;
  // Returns the header's SHA-256, in hex, for config.json. REQUIRES: every tensor was added.
  virtual Result<std::string> Finish() = 0;
};

enum class Verify : uint8_t;

// The packing of that name; an unknown one is an error that names it and the rebuild command.
Result<Packing> PackingNamed(std::string_view name);

// The tensors of a mapped file. Every offset and size is proven against the file and against the tensor's own geometry.
Result<EngineTensors> ReadEngineFile(const MappedFile& file, const std::string& header_sha256, Verify verify);

}  // namespace ekiben
