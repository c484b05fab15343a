#include "package/model_repository.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <optional>

#include "package/protobuf_text.h"

namespace ekiben {
namespace {

bool IsPipelinePart(std::string_view name) {
  return name == "ensemble" || name == "preprocessing" || name == "postprocessing" || name == "tensorrt_llm_bls";
}

namespace fs = std::filesystem;

constexpr size_t kModelsMax = 1024;
constexpr size_t kStampedFilesMax = 4096;

Result<std::string> ReadText(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text(kTextBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad() || (!in && in.gcount() == 0 && !in.eof())) return Error(Code::kInvalid, "cannot be read");
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

std::vector<fs::path> Children(const fs::path& folder) {
  std::vector<fs::path> out;
  std::error_code code;
  for (fs::directory_iterator it(folder, code), end; !code && it != end; it.increment(code)) out.push_back(it->path());
  std::sort(out.begin(), out.end());
  return out;
}

bool IsFolder(const fs::path& path) {
  std::error_code code;
  return fs::is_directory(path, code);
}

bool IsFile(const fs::path& path) {
  std::error_code code;
  return fs::is_regular_file(path, code);
}

bool IsModel(const fs::path& path) {
  return IsFile(path / "rank0.engine") || IsFile(path / "config.json") || (IsFile(path) && path.extension() == ".gguf");
}

std::string Parameter(const std::vector<TextField>& config, std::string_view name) {
  for (const TextField& field : config) {
    if (field.name != "parameters" || TextValue(field.fields, "key") != name) continue;
    for (const TextField& value : field.fields)
      if (value.name == "value") return TextValue(value.fields, "string_value");
  }
  return {};
}

// 0: no version's folder has such a name.
uint64_t VersionOf(const std::string& name) {
  bool number = !name.empty() && name.size() < 19 && name.front() != '0' &&
                std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
  return number ? std::stoull(name) : 0;
}

// The one version of a model that is served: `specific` names it, 0 is the highest.
Result<uint64_t> ReadVersionPolicy(const std::vector<TextField>& config) {
  uint64_t specific = 0;
  auto wrong = [](std::string_view field, std::string_view value) {
    return Error(Code::kInvalid,
                 fmt::format("config.pbtxt: version_policy: {}: '{}' is not offered; latest {{ num_versions: 1 }} and "
                             "specific {{ versions: [one] }} are",
                             field, value.substr(0, 200)));
  };
  for (const TextField& field : config) {
    if (field.name != "version_policy") continue;
    if (!field.value.empty()) return wrong("version_policy", field.value);
    if (field.fields.size() > 1) return wrong(field.fields[1].name, "a second policy");
    for (const TextField& policy : field.fields) {
      const bool latest = policy.name == "latest", one = policy.name == "specific";
      if (!latest && !one) return wrong(policy.name, policy.value.empty() ? "{}" : policy.value);
      if (!policy.value.empty()) return wrong(policy.name, policy.value);
      std::string versions;
      for (const TextField& member : policy.fields) {
        if (member.name != (latest ? "num_versions" : "versions")) return wrong(policy.name, member.name);
        versions += (versions.empty() ? "" : ", ") + member.value;
      }
      // a num_versions that is left out is 1
      if (latest && !versions.empty() && versions != "1") return wrong("latest: num_versions", versions);
      if (one && VersionOf(versions) == 0) return wrong("specific: versions", versions);
      specific = one ? VersionOf(versions) : 0;
    }
  }
  return specific;
}

// The folder of the version that is served (ReadVersionPolicy); none: empty.
fs::path VersionFolder(const fs::path& folder, uint64_t specific) {
  if (specific != 0) {
    fs::path out = folder / std::to_string(specific);
    return IsFolder(out) ? out : fs::path();
  }
  fs::path out;
  uint64_t newest = 0;
  for (const fs::path& child : Children(folder)) {
    uint64_t version = VersionOf(child.filename().string());
    if (version <= newest || !IsFolder(child)) continue;
    newest = version;
    out = child;
  }
  return out;
}

Result<fs::path> InVersion(const fs::path& folder, uint64_t specific) {
  fs::path version = VersionFolder(folder, specific);
  if (version.empty() && specific != 0)
    return Error(Code::kInvalid, fmt::format("config.pbtxt: version_policy: specific: no folder '{}'", specific));
  if (version.empty())
    return Error(Code::kInvalid, "no version folder (1/) and no parameter engine_dir or gpt_model_path");
  if (IsModel(version)) return version;
  std::vector<fs::path> found;
  for (const fs::path& child : Children(version))
    if (IsModel(child)) found.push_back(child);
  if (found.size() == 1) return found.front();
  return Error(Code::kInvalid,
               fmt::format("{}: {} in it; an engine, a checkpoint or one *.gguf is wanted", version.string(),
                           found.empty() ? "no model is" : fmt::format("{} models are", found.size())));
}

struct Config {
  std::vector<TextField> fields;
  bool part = false;     // of the pipeline
  uint64_t version = 0;  // 0: the highest
};

Result<Config> ReadConfig(const fs::path& folder) {
  Config out;
  const std::string name = folder.filename().string();
  const fs::path file = folder / "config.pbtxt";
  if (!IsFile(file)) return out;
  auto text = ReadText(file);
  if (!text.ok()) return std::move(text).error().Within("config.pbtxt");
  auto fields = ParseProtobufText(*text);
  if (!fields.ok()) return std::move(fields).error().Within("config.pbtxt");
  out.fields = *std::move(fields);
  const std::string said = TextValue(out.fields, "name"), backend = TextValue(out.fields, "backend"),
                    platform = TextValue(out.fields, "platform");
  if (!said.empty() && said != name)
    return Error(Code::kInvalid,
                 fmt::format("config.pbtxt: name: '{}' is not the folder's name '{}'", said.substr(0, 200), name));
  out.part = IsPipelinePart(name) && (platform == "ensemble" || backend == "python");
  if (out.part) return out;
  if (!platform.empty())
    return Error(Code::kInvalid,
                 fmt::format("config.pbtxt: platform: '{}' is not offered; leave it out", platform.substr(0, 200)));
  if (!backend.empty() && backend != "ekiben" && backend != "tensorrtllm")
    return Error(Code::kInvalid, fmt::format("config.pbtxt: backend: '{}' is not offered; ekiben and tensorrtllm are",
                                             backend.substr(0, 200)));
  ASSIGN_OR_RETURN(out.version, ReadVersionPolicy(out.fields));
  return out;
}

Result<fs::path> PathOf(const fs::path& folder, const Config& config) {
  for (const char* key : {"engine_dir", "gpt_model_path"}) {
    std::string value = Parameter(config.fields, key);
    if (value.empty()) continue;
    if (value.find("${") != std::string::npos)
      return Error(Code::kInvalid,
                   fmt::format("config.pbtxt: {}: '{}' is a place that nobody filled in", key, value.substr(0, 200)));
    fs::path path = folder / value;  // an absolute one stays as it is
    if (IsModel(path)) return path;
    return Error(Code::kInvalid,
                 fmt::format("config.pbtxt: {}: {} is no engine of ekiben's and no checkpoint", key, path.string()));
  }
  return InVersion(folder, config.version);
}

void Stamp(const fs::path& path, std::string& out) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return;
  out += fmt::format("{}:{}:{}:{}.{}\n", path.string(), info.st_ino, info.st_size, info.st_mtim.tv_sec,
                     info.st_mtim.tv_nsec);
}

std::string StampOf(const fs::path& folder, const fs::path& model, uint64_t specific) {
  std::string out;
  Stamp(folder / "config.pbtxt", out);
  if (model.empty()) return out + VersionFolder(folder, specific).string();
  Stamp(model, out);
  std::vector<fs::path> files = Children(model);
  files.resize(std::min(files.size(), kStampedFilesMax));
  for (const fs::path& file : files) Stamp(file, out);
  return out;
}

// None for a part of the pipeline.
std::optional<RepositoryModel> ReadModel(const fs::path& folder) {
  RepositoryModel out{folder.filename().string(), {}, {}, {}};
  auto config = ReadConfig(folder);
  if (config.ok() && config->part) return std::nullopt;
  auto path = config.ok() ? PathOf(folder, *config) : Result<fs::path>(config.error());
  if (path.ok()) {
    out.path = *std::move(path);
  } else {
    out.reason = path.error().message();
  }
  out.stamp = StampOf(folder, out.path, config.ok() ? config->version : 0) + out.reason;
  return out;
}

}  // namespace

std::string ModelForName(const std::vector<RepositoryModel>& models, const std::string& name) {
  bool model = std::any_of(models.begin(), models.end(), [&](const RepositoryModel& m) { return m.name == name; });
  return !model && IsPipelinePart(name) ? std::string(kPipelineEngine) : name;
}

Result<std::vector<RepositoryModel>> ScanModelRepository(const fs::path& root) {
  if (!IsFolder(root))
    return Error(Code::kNotFound, fmt::format("model_repository: {}: no such folder", root.string()),
                 "model_repository");
  std::vector<RepositoryModel> out;
  std::vector<std::string> parts;
  for (const fs::path& child : Children(root)) {
    std::string name = child.filename().string();
    if (!IsFolder(child) || name.front() == '.') continue;
    if (out.size() == kModelsMax)
      return Error(Code::kInvalid, fmt::format("model_repository: {}: more than {} models", root.string(), kModelsMax),
                   "model_repository");
    if (auto model = ReadModel(child)) {
      out.push_back(*std::move(model));
    } else {
      parts.push_back(name);
    }
  }
  auto engine = std::find_if(out.begin(), out.end(), [](const auto& model) { return model.name == kPipelineEngine; });
  if (engine != out.end()) {
    std::rotate(out.begin(), engine, engine + 1);
    return out;
  }
  for (std::string& part : parts)
    out.push_back(
        {std::move(part), {}, "a part of tensorrt_llm's pipeline, and this repository has no tensorrt_llm", "part"});
  return out;
}

}  // namespace ekiben
