// A file mapped read-only. Checkpoints and engines are read in place; their pages are the page cache's.
// A file that another process truncates while it is mapped raises SIGBUS: the store's folders are ours to guard.
// Thread: the bytes are immutable and may be read by all.
#pragma once
#include <cstddef>
#include <filesystem>
#include <span>

#include "base/result.h"

namespace ekiben {

class MappedFile {
 public:
  MappedFile() = default;  // no file, no bytes
  static Result<MappedFile> Open(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  // Asks the kernel to read ahead; a hint, never an error.
  void WillNeed() const;

 private:
  MappedFile(std::filesystem::path path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole of a small file. Refuses one larger than `bytes_max`, naming both sizes.
Result<std::string> ReadFile(const std::filesystem::path& path, size_t bytes_max);
// Writes beside the target, syncs file and folder, renames: a crash leaves the old file or the new one.
Result<void> WriteFileAtomic(const std::filesystem::path& path, std::string_view bytes);

}  // namespace ekiben
