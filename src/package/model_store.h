// Models by name and version, in BentoML's layout, so that its tools and ours see the same entries:
//   $ROOT/models/<name>/<version>/   model.yaml and the model's files
//   $ROOT/models/<name>/latest       text: the newest version
// ROOT: $EKIBEN_HOME, else $BENTOML_HOME, else ~/bentoml.
// Tag: name[:version]; no version or "latest" is the newest; a unique prefix of a version matches. Each part has at
// most 63 characters of [a-z0-9]([-._a-z0-9]*[a-z0-9])?, upper case is lowered. Thread: any; an entry appears by
// rename. Errors name the tag and what is there instead.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace ekiben {

struct Tag {
  std::string name, version;  // version may be empty or "latest"
  std::string Text() const { return version.empty() ? name : name + ":" + version; }
};
Result<Tag> ParseTag(std::string_view text);

struct StoredModel {
  Tag tag;  // with the real version
  std::filesystem::path path;
  std::string module;  // "ekiben", or what made it
  uint64_t bytes = 0;
  std::string creation_time;  // ISO 8601, UTC
};

class ModelStore {
 public:
  explicit ModelStore(std::filesystem::path root) : root_(std::move(root)) {}
  // The root that the environment names.
  static std::filesystem::path DefaultRoot();

  // Newest first; all names when `name` is empty.
  Result<std::vector<StoredModel>> List(const std::string& name) const;
  Result<StoredModel> Get(std::string_view tag) const;
  // The file or folder inside an entry to open as a checkpoint: its .gguf, or the folder itself.
  Result<std::filesystem::path> CheckpointOf(const StoredModel& model) const;

  // `source`: a checkpoint (file or folder), or an archive or folder that Export wrote. `tag` may be empty: the name is
  // then made from the source's, the version is new. Importing an existing version is refused.
  Result<StoredModel> Import(const std::filesystem::path& source, std::string_view tag, const Clock& clock);
  // Writes <name>-<version>.bentomodel into `target` if that is a folder, else the file named, by its ending.
  Result<std::filesystem::path> Export(std::string_view tag, const std::filesystem::path& target) const;
  Result<StoredModel> Delete(std::string_view tag);

 private:
  std::filesystem::path ModelsFolder() const { return root_ / "models"; }
  Result<void> UpdateLatest(const std::string& name);
  std::filesystem::path root_;
};

}  // namespace ekiben
