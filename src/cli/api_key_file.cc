#include "cli/api_key_file.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <yaml-cpp/yaml.h>

#include <set>

#include "base/log.h"

namespace ekiben::cli {
namespace {

Error FileError(const std::string& path, std::string_view what) {
  return Error(Code::kInvalid, fmt::format("api_key_file: {}: {}", path, what), "api_key_file");
}

Result<ApiKey> ReadEntry(const std::string& path, size_t index, const YAML::Node& node) {
  auto wrong = [&](std::string_view what) { return FileError(path, fmt::format("entry {}: {}", index + 1, what)); };
  if (!node.IsMap()) return wrong("a map with 'name' and 'key' is wanted");
  ApiKey out;
  for (const auto& field : node) {
    auto name = field.first.as<std::string>("");
    const YAML::Node& value = field.second;
    bool good = true;
    if (name == "name") {
      good = !(out.name = value.as<std::string>("")).empty();
    } else if (name == "key") {
      good = (out.key = value.as<std::string>("")).size() >= 8;
    } else if (name == "max_concurrency") {
      good = (out.max_concurrency = value.as<int32_t>(-1)) >= 0;
    } else if (name == "requests_per_minute") {
      out.requests_per_minute = value.as<double>(-1);
      good = out.requests_per_minute >= 0 && out.requests_per_minute <= 1e9;
    } else if (name == "admin") {
      good = value.as<std::string>("") == "true" || value.as<std::string>("") == "false";
      out.admin = value.as<bool>(false);
    } else {
      return wrong(fmt::format("'{}' is not one of name, key, max_concurrency, requests_per_minute, admin", name));
    }
    if (!good)
      return wrong(fmt::format("{}: not usable; a key has 8 characters or more, a limit is no less than 0", name));
  }
  if (out.name.empty() || out.key.empty()) return wrong("'name' and 'key' are wanted");
  return out;
}

}  // namespace

Result<std::vector<ApiKey>> ReadApiKeyFile(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return FileError(path, "cannot be read");
  if ((info.st_mode & (S_IRGRP | S_IROTH)) != 0)
    LOG_WARNING("api_key_file: {} can be read by other users of this machine; chmod 600", path);
  YAML::Node file;
  try {
    file = YAML::LoadFile(path);
  } catch (const YAML::Exception& e) {  // its text may quote a line of the file, so only the place is told
    return FileError(path, fmt::format("no YAML at line {}", e.mark.line + 1));
  }
  if (!file.IsSequence() || file.size() == 0) return FileError(path, "a list of keys is wanted, with one at least");
  std::vector<ApiKey> out;
  std::set<std::string> names, keys;
  for (size_t i = 0; i < file.size(); ++i) {
    ASSIGN_OR_RETURN(ApiKey key, ReadEntry(path, i, file[i]));
    if (!names.insert(key.name).second || !keys.insert(key.key).second)
      return FileError(path, fmt::format("entry {}: its name or key is another's", i + 1));
    out.push_back(std::move(key));
  }
  return out;
}

}  // namespace ekiben::cli
