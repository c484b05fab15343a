#include "package/model_store.h"

#include <openssl/rand.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <ctime>

#include "base/mapped_file.h"
#include "package/archive.h"

namespace ekiben {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPartMax = 63;
constexpr uint64_t kUnpackedBytesMax = uint64_t{1} << 40;

bool IsPart(std::string_view part) {
  auto alnum = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  if (part.empty() || part.size() > kPartMax || !alnum(part.front()) || !alnum(part.back())) return false;
  return std::all_of(part.begin(), part.end(), [&](char c) { return alnum(c) || c == '-' || c == '.' || c == '_'; });
}

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

// 16 characters of base32 over 10 bytes: 5 of time, so that versions sort by age, 5 of chance.
std::string NewVersion(const Clock& clock) {
  unsigned char bytes[10];
  auto ticks = static_cast<uint64_t>(clock.WallNow().count()) >> 24;  // 16.8 ms
  for (int i = 0; i < 5; ++i) bytes[i] = static_cast<unsigned char>(ticks >> (8 * (4 - i)));
  CHECK(RAND_bytes(bytes + 5, 5) == 1);
  static constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz234567";
  std::string out;
  uint32_t buffer = 0;
  int bits = 0;
  for (unsigned char byte : bytes) {
    buffer = buffer << 8 | byte;
    for (bits += 8; bits >= 5; bits -= 5) out += kAlphabet[buffer >> (bits - 5) & 31];
  }
  return out;
}

std::string NameFrom(const fs::path& source) {
  fs::path stem = source.filename().empty() ? source.parent_path().filename() : source.filename();
  if (stem.extension() == ".gguf" || stem.extension() == ".safetensors") stem = stem.stem();
  std::string name = Lower(stem.string());
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '-' && c != '.' && c != '_') c = '-';
  while (!name.empty() && std::isalnum(static_cast<unsigned char>(name.back())) == 0) name.pop_back();
  size_t first = 0;
  while (first < name.size() && std::isalnum(static_cast<unsigned char>(name[first])) == 0) ++first;
  return name.substr(first, kPartMax);
}

std::string IsoTime(const Clock& clock) {
  auto seconds = static_cast<std::time_t>(std::chrono::duration_cast<std::chrono::seconds>(clock.WallNow()).count());
  std::tm utc;
  ::gmtime_r(&seconds, &utc);
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &utc);
  return text;
}

uint64_t FolderBytes(const fs::path& folder) {
  uint64_t bytes = 0;
  std::error_code code;
  for (const auto& item : fs::recursive_directory_iterator(folder, code))
    if (item.is_regular_file(code)) bytes += item.file_size(code);
  return bytes;
}

StoredModel Describe(const std::string& name, const fs::path& path) {
  StoredModel model{{name, path.filename().string()}, path, "", FolderBytes(path), ""};
  try {  // yaml-cpp reports by exceptions; an entry with an unreadable model.yaml is still listed
    YAML::Node yaml = YAML::LoadFile((path / "model.yaml").string());
    model.module = yaml["module"].as<std::string>("");
    model.creation_time = yaml["creation_time"].as<std::string>("");
  } catch (const YAML::Exception&) {
  }
  return model;
}

std::string ModelYaml(const Tag& tag, const Clock& clock) {
  YAML::Emitter out;
  out << YAML::BeginMap << YAML::Key << "name" << YAML::Value << tag.name << YAML::Key << "version" << YAML::Value
      << tag.version << YAML::Key << "module" << YAML::Value << "ekiben" << YAML::Key << "labels" << YAML::Value
      << YAML::BeginMap << YAML::EndMap << YAML::Key << "options" << YAML::Value << YAML::BeginMap << YAML::EndMap
      << YAML::Key << "metadata" << YAML::Value << YAML::BeginMap << YAML::EndMap << YAML::Key << "context"
      << YAML::Value << YAML::BeginMap << YAML::Key << "framework_name" << YAML::Value << "ekiben" << YAML::Key
      << "framework_versions" << YAML::Value << YAML::BeginMap << YAML::EndMap << YAML::Key << "bentoml_version"
      << YAML::Value << "" << YAML::Key << "python_version" << YAML::Value << "" << YAML::EndMap << YAML::Key
      << "signatures" << YAML::Value << YAML::BeginMap << YAML::EndMap << YAML::Key << "api_version" << YAML::Value
      << "v1" << YAML::Key << "creation_time" << YAML::Value << YAML::DoubleQuoted << IsoTime(clock) << YAML::EndMap;
  return out.c_str();
}

// Copies a checkpoint into `target`, or unpacks an archive there.
Result<void> CopyIn(const fs::path& source, const fs::path& target) {
  std::error_code code;
  fs::create_directories(target, code);
  if (code) return Error(Code::kInternal, fmt::format("{}: cannot create: {}", target.string(), code.message()));
  if (fs::is_directory(source)) {
    fs::copy(source, target, fs::copy_options::recursive, code);
  } else if (source.extension() == ".gguf" || source.extension() == ".safetensors") {
    fs::copy_file(source, target / source.filename(), code);
    fs::path config = source.parent_path() / "config.json";
    if (!code && source.extension() == ".safetensors" && fs::exists(config))
      fs::copy_file(config, target / "config.json", code);
  } else {
    return UnpackArchive(source, target, kUnpackedBytesMax);
  }
  if (code) return Error(Code::kInternal, fmt::format("{}: cannot copy: {}", source.string(), code.message()));
  return {};
}

// The tag that an exported entry carries in its model.yaml; empty for a plain checkpoint.
Tag TagInside(const fs::path& folder) {
  Tag tag;
  try {
    YAML::Node yaml = YAML::LoadFile((folder / "model.yaml").string());
    tag = {yaml["name"].as<std::string>(""), yaml["version"].as<std::string>("")};
  } catch (const YAML::Exception&) {
  }
  return IsPart(tag.name) && IsPart(tag.version) ? tag : Tag{};
}

}  // namespace

Result<Tag> ParseTag(std::string_view text) {
  std::string lowered = Lower(text);
  size_t colon = lowered.find(':');
  Tag tag{lowered.substr(0, colon), colon == std::string::npos ? "" : lowered.substr(colon + 1)};
  if (!IsPart(tag.name) || (colon != std::string::npos && !IsPart(tag.version)))
    return Error(Code::kInvalid,
                 fmt::format("tag '{}': wanted name[:version], each at most {} of letters, digits, '-', "
                             "'.', '_', beginning and ending with a letter or digit",
                             text, kPartMax),
                 "tag");
  return tag;
}

fs::path ModelStore::DefaultRoot() {
  for (const char* variable : {"EKIBEN_HOME", "BENTOML_HOME"})
    if (const char* value = std::getenv(variable); value != nullptr && *value != '\0') return value;
  const char* home = std::getenv("HOME");
  return fs::path(home != nullptr ? home : ".") / "bentoml";
}

Result<std::vector<StoredModel>> ModelStore::List(const std::string& name) const {
  std::vector<StoredModel> out;
  std::error_code code;
  for (const auto& named : fs::directory_iterator(ModelsFolder(), code)) {
    std::string entry = named.path().filename().string();
    if (!named.is_directory() || !IsPart(entry) || (!name.empty() && entry != name)) continue;
    for (const auto& version : fs::directory_iterator(named.path(), code))
      if (version.is_directory() && IsPart(version.path().filename().string()))
        out.push_back(Describe(entry, version.path()));
  }
  std::sort(out.begin(), out.end(), [](const StoredModel& a, const StoredModel& b) {
    return std::tie(a.creation_time, a.tag.version) > std::tie(b.creation_time, b.tag.version);
  });
  return out;
}

Result<StoredModel> ModelStore::Get(std::string_view text) const {
  ASSIGN_OR_RETURN(Tag tag, ParseTag(text));
  fs::path folder = ModelsFolder() / tag.name;
  if (tag.version.empty() || tag.version == "latest") {
    if (auto latest = ReadFile(folder / "latest", kPartMax + 1); latest.ok()) {
      std::string version = *latest;
      while (!version.empty() && std::isspace(static_cast<unsigned char>(version.back())) != 0) version.pop_back();
      if (IsPart(version) && fs::is_directory(folder / version)) return Describe(tag.name, folder / version);
    }
    ASSIGN_OR_RETURN(std::vector<StoredModel> all, List(tag.name));
    if (!all.empty()) return all.front();
    return Error(Code::kNotFound,
                 fmt::format("no model '{}' in {}; see `ekiben models list`", tag.name, ModelsFolder().string()));
  }
  if (fs::is_directory(folder / tag.version)) return Describe(tag.name, folder / tag.version);
  std::vector<fs::path> matches;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder, code))
    if (entry.is_directory() && entry.path().filename().string().starts_with(tag.version)) matches.push_back(entry);
  if (matches.size() == 1) return Describe(tag.name, matches.front());
  return Error(Code::kNotFound, fmt::format("no model '{}' in {}: {} versions match; see `ekiben models list {}`",
                                            tag.Text(), ModelsFolder().string(), matches.size(), tag.name));
}

Result<fs::path> ModelStore::CheckpointOf(const StoredModel& model) const {
  std::vector<fs::path> ggufs;
  for (const auto& item : fs::directory_iterator(model.path))
    if (item.path().extension() == ".gguf") ggufs.push_back(item.path());
  if (ggufs.size() > 1)
    return Error(Code::kInvalid,
                 fmt::format("{}: holds {} .gguf files; name one by its path", model.tag.Text(), ggufs.size()));
  return ggufs.empty() ? model.path : ggufs.front();
}

Result<StoredModel> ModelStore::Import(const fs::path& source, std::string_view tag_text, const Clock& clock) {
  if (!fs::exists(source)) return Error(Code::kNotFound, fmt::format("{}: no such file or folder", source.string()));
  fs::path incoming = ModelsFolder() / fmt::format(".incoming.{}", ::getpid());
  std::error_code code;
  fs::remove_all(incoming, code);
  auto bring = [&]() -> Result<StoredModel> {
    RETURN_IF_ERROR(CopyIn(source, incoming));
    Tag tag;
    if (!tag_text.empty()) {
      ASSIGN_OR_RETURN(tag, ParseTag(tag_text));
    } else {
      tag = TagInside(incoming);
      if (tag.name.empty()) tag.name = NameFrom(source);
    }
    if (!IsPart(tag.name))
      return Error(Code::kInvalid, fmt::format("{}: no name can be made of it; give one with --tag", source.string()));
    if (tag.version.empty() || tag.version == "latest") tag.version = NewVersion(clock);
    RETURN_IF_ERROR(WriteFileAtomic(incoming / "model.yaml", ModelYaml(tag, clock)));
    fs::path target = ModelsFolder() / tag.name / tag.version;
    if (fs::exists(target))
      return Error(Code::kInvalid,
                   fmt::format("{}: is already in the store; delete it first or give another version", tag.Text()));
    fs::create_directories(target.parent_path(), code);
    fs::rename(incoming, target, code);
    if (code) return Error(Code::kInternal, fmt::format("{}: cannot create: {}", target.string(), code.message()));
    RETURN_IF_ERROR(WriteFileAtomic(target.parent_path() / "latest", tag.version));
    return Describe(tag.name, target);
  };
  Result<StoredModel> result = bring();
  fs::remove_all(incoming, code);
  return result;
}

Result<fs::path> ModelStore::Export(std::string_view tag, const fs::path& target) const {
  ASSIGN_OR_RETURN(StoredModel model, Get(tag));
  fs::path file = target;
  if (fs::is_directory(target)) file = target / fmt::format("{}-{}.bentomodel", model.tag.name, model.tag.version);
  RETURN_IF_ERROR(PackFolder(model.path, file));
  return file;
}

Result<StoredModel> ModelStore::Delete(std::string_view tag) {
  ASSIGN_OR_RETURN(StoredModel model, Get(tag));
  std::error_code code;
  fs::remove_all(model.path, code);
  if (code) return Error(Code::kInternal, fmt::format("{}: cannot delete: {}", model.path.string(), code.message()));
  RETURN_IF_ERROR(UpdateLatest(model.tag.name));
  return model;
}

Result<void> ModelStore::UpdateLatest(const std::string& name) {
  fs::path folder = ModelsFolder() / name;
  ASSIGN_OR_RETURN(std::vector<StoredModel> left, List(name));
  if (!left.empty()) return WriteFileAtomic(folder / "latest", left.front().tag.version);
  std::error_code code;
  fs::remove_all(folder, code);
  return {};
}

}  // namespace ekiben
