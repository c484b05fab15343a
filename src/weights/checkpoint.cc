#include "weights/checkpoint.h"

#include <algorithm>

#include "weights/file_error.h"
#include "weights/fingerprint.h"
#include "weights/gguf.h"
#include "weights/huggingface_folder.h"
#include "weights/locate.h"

namespace ekiben {
namespace {

Result<Checkpoint> OpenGguf(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  ASSIGN_OR_RETURN(GgufFile file, ParseGguf(mapped.bytes(), path.string()));
  ASSIGN_OR_RETURN(Checkpoint checkpoint, GgufCheckpoint(file, path));
  size_t header_bytes = std::min<size_t>(file.data_offset, mapped.bytes().size());
  checkpoint.fingerprint = Fingerprint(checkpoint.tensors, {mapped.bytes().first(header_bytes)});
  checkpoint.files.push_back(std::move(mapped));  // the mapping's address does not change
  return checkpoint;
}

}  // namespace

Result<const CheckpointTensor*> Checkpoint::Tensor(std::string_view name) const {
  auto found = tensors.find(name);
  if (found == tensors.end())
    return Error(Code::kInvalid, fmt::format("{}: tensor {}: absent", path.string(), PrintableName(name)),
                 std::string(name));
  return &found->second;
}

Result<Checkpoint> OpenCheckpoint(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(CheckpointLocation location, LocateCheckpoint(path));
  return location.kind == CheckpointLocation::Kind::kGguf ? OpenGguf(location.path) : OpenHuggingFace(location.path);
}

}  // namespace ekiben
