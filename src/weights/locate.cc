#include "weights/locate.h"

#include <cstring>

#include "base/mapped_file.h"

namespace ekiben {
namespace {

namespace fs = std::filesystem;
using Kind = CheckpointLocation::Kind;

Result<CheckpointLocation> LocateInFolder(const fs::path& folder) {
  std::error_code code;
  if (fs::exists(folder / "config.json", code)) return CheckpointLocation{Kind::kHuggingFaceFolder, folder};
  fs::path gguf;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, code)) {
    if (entry.path().extension() != ".gguf") continue;
    if (!gguf.empty())
      return Error(Code::kInvalid, fmt::format("{}: several .gguf files ({} and {}); name one of them", folder.string(),
                                               gguf.filename().string(), entry.path().filename().string()));
    gguf = entry.path();
  }
  if (code) return Error(Code::kInvalid, fmt::format("{}: cannot list: {}", folder.string(), code.message()));
  if (gguf.empty())
    return Error(Code::kNotFound, fmt::format("{}: no config.json and no .gguf file in this folder", folder.string()));
  return CheckpointLocation{Kind::kGguf, gguf};
}

}  // namespace

Result<CheckpointLocation> LocateCheckpoint(const fs::path& path) {
  std::error_code code;
  if (fs::is_directory(path, code)) return LocateInFolder(path);
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  std::span<const std::byte> bytes = file.bytes();
  if (bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0) return CheckpointLocation{Kind::kGguf, path};
  // A safetensors header opens with its length and '{'.
  if (path.extension() == ".safetensors" || (bytes.size() > 8 && bytes[8] == std::byte{'{'}))
    return CheckpointLocation{Kind::kSafetensorsFile, path};
  return Error(Code::kUnsupported,
               fmt::format("{}: neither a GGUF file (magic 'GGUF') nor a safetensors file", path.string()));
}

}  // namespace ekiben
