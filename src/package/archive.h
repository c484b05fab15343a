// Folders in and out of archives (libarchive): tar, tar.gz, tar.xz, tar.bz2, zip by the file's ending; reading detects.
// An archive from outside is not trusted: absolute names, "..", links and special files are refused by name, and the
// total size is bounded before it is written.
// Thread: pure functions over the file system.
#pragma once
#include <cstdint>
#include <filesystem>

#include "base/result.h"

namespace ekiben {

// Writes the files of `folder` (relative names) to `archive`. The ending picks the format; .bentomodel is tar.xz.
Result<void> PackFolder(const std::filesystem::path& folder, const std::filesystem::path& archive);
// `target` must exist and be empty. bytes_max bounds the sum of all files.
Result<void> UnpackArchive(const std::filesystem::path& archive, const std::filesystem::path& target,
                           uint64_t bytes_max);

}  // namespace ekiben
