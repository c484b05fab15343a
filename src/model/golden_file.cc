#include "model/golden_file.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstring>

#include <fmt/format.h>

#include "base/json.h"

namespace ekiben {
namespace {

constexpr std::string_view kMagic = "EKGOLD1\n";
constexpr int64_t kVocabMax = 1 << 24, kTokensMax = 1 << 20;

Error Wrong(const std::filesystem::path& path, std::string_view what) {
  return Error(Code::kInvalid,
               fmt::format("{}: {}; make it again with tests/golden/make_golden.py", path.string(), what));
}

Result<std::vector<int32_t>> Integers(const json::object& header, std::string_view key, int64_t below) {
  ASSIGN_OR_RETURN(const json::array* array, GetArray(header, key));
  if (array == nullptr) return Error(Code::kInvalid, fmt::format("'{}' is missing", key), std::string(key));
  std::vector<int32_t> out;
  for (const json::value& value : *array) {
    const int64_t* number = value.if_int64();
    if (number == nullptr || *number < 0 || *number >= below) {
      return Error(Code::kInvalid, fmt::format("'{}' holds a value that is not in [0, {})", key, below),
                   std::string(key));
    }
    out.push_back(static_cast<int32_t>(*number));
  }
  return out;
}

Result<int32_t> Integer(const json::object& header, std::string_view key, int64_t low, int64_t high) {
  ASSIGN_OR_RETURN(std::optional<int64_t> value, GetInt(header, key, low, high));
  if (!value) return Error(Code::kInvalid, fmt::format("'{}' is missing", key), std::string(key));
  return static_cast<int32_t>(*value);
}

Result<void> ReadHeader(std::string_view text, GoldenFile& out) {
  ASSIGN_OR_RETURN(json::value value, ParseJson(text));
  const json::object* header = value.if_object();
  if (header == nullptr) return Error(Code::kInvalid, "the header is not a JSON object");
  ASSIGN_OR_RETURN(out.vocab_size, Integer(*header, "vocab_size", 1, kVocabMax));
  ASSIGN_OR_RETURN(out.top, Integer(*header, "top", 1, out.vocab_size));
  ASSIGN_OR_RETURN(out.token_ids, Integers(*header, "token_ids", out.vocab_size));
  if (std::ssize(out.token_ids) > kTokensMax) return Error(Code::kInvalid, "too many tokens");
  ASSIGN_OR_RETURN(out.prompt_tokens, Integer(*header, "prompt_tokens", 1, std::ssize(out.token_ids)));
  ASSIGN_OR_RETURN(out.full_positions, Integers(*header, "full_positions", std::ssize(out.token_ids)));
  return {};
}

}  // namespace

Result<GoldenFile> OpenGoldenFile(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  std::span<const std::byte> bytes = file.bytes();
  if (bytes.size() < 12 || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return Wrong(path, "not a golden file");
  }
  uint32_t header_bytes;
  std::memcpy(&header_bytes, bytes.data() + 8, 4);
  if (header_bytes > bytes.size() - 12 || header_bytes % 4 != 0)
    return Wrong(path, "the header is longer than the file");
  GoldenFile out{.file = std::move(file)};
  auto read = ReadHeader({reinterpret_cast<const char*>(bytes.data()) + 12, header_bytes}, out);
  if (!read.ok()) return Wrong(path, read.error().message());

  // Every factor is bounded above, so the products fit 64 bits.
  size_t tokens = out.token_ids.size(), top = static_cast<size_t>(out.top);
  size_t full = out.full_positions.size() * static_cast<size_t>(out.vocab_size);
  size_t words = tokens + 2 * tokens * top + full;
  if (bytes.size() - 12 - header_bytes != words * 4) return Wrong(path, "the file is not as long as its header says");
  const auto* at = reinterpret_cast<const float*>(bytes.data() + 12 + header_bytes);
  out.log_sum_exp = {at, tokens};
  out.top_ids = {reinterpret_cast<const int32_t*>(at + tokens), tokens * top};
  out.top_logits = {at + tokens + tokens * top, tokens * top};
  out.full_logits = {at + tokens + 2 * tokens * top, full};
  auto outside = [&](int32_t id) { return id < 0 || id >= out.vocab_size; };
  if (std::any_of(out.top_ids.begin(), out.top_ids.end(), outside)) return Wrong(path, "a token id is out of range");
  out.path = path;
  return out;
}

Result<std::vector<GoldenFile>> OpenGoldenFiles(const std::filesystem::path& path) {
  std::vector<std::filesystem::path> paths;
  if (std::filesystem::is_directory(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.path().extension() == ".golden") paths.push_back(entry.path());
    std::ranges::sort(paths);
  } else if (std::filesystem::exists(path)) {
    paths.push_back(path);
  }
  if (paths.empty())
    return Error(Code::kNotFound,
                 fmt::format("{}: no .golden file there; tests/golden/make_golden.py makes them", path.string()));
  std::vector<GoldenFile> out;
  for (const std::filesystem::path& each : paths) {
    ASSIGN_OR_RETURN(GoldenFile file, OpenGoldenFile(each));
    out.push_back(std::move(file));
  }
  return out;
}

}  // namespace ekiben
