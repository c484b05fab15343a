#include "compile/engine.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cstring>

#include "base/arithmetic.h"
#include "base/json.h"
#include "compile/engine_file.h"
#include "compile/engine_fingerprint.h"

namespace ekiben {
namespace {

constexpr size_t kConfigBytesMax = size_t{16} << 20;

Result<json::object> ReadObject(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(std::string text, ReadFile(path, kConfigBytesMax));
  auto value = ParseJson(text);
  if (!value.ok()) return std::move(value).error().Within(path.string());
  if (!value->is_object()) return Error(Code::kInvalid, fmt::format("{}: not a JSON object", path.string()));
  return value->get_object();
}

}  // namespace

Result<Engine> OpenEngine(const std::filesystem::path& path, Verify verify) {
  if (!std::filesystem::is_directory(path))
    return Error(Code::kNotFound, fmt::format("{}: no engine there; make one with `ekiben build CHECKPOINT -o {}`",
                                              path.string(), path.string()));
  ASSIGN_OR_RETURN(json::object config, ReadObject(path / "config.json"));
  ASSIGN_OR_RETURN(auto version, GetInt(config, "version", 0, INT32_MAX));
  if (version.value_or(0) != kEngineVersion)
    return Error(Code::kUnsupported,
                 fmt::format("{}: engine format version {}, this ekiben reads {}; run `ekiben build` again",
                             (path / "config.json").string(), version.value_or(0), kEngineVersion),
                 "version");
  ASSIGN_OR_RETURN(const json::object* pretrained, GetObject(config, "pretrained_config"));
  ASSIGN_OR_RETURN(const json::object* build, GetObject(config, "build_config"));
  ASSIGN_OR_RETURN(auto fingerprint, GetString(config, "fingerprint"));
  ASSIGN_OR_RETURN(auto header_sha256, GetString(config, "rank0_header_sha256"));
  if (pretrained == nullptr || build == nullptr || !fingerprint || !header_sha256)
    return Error(Code::kInvalid,
                 fmt::format("{}: pretrained_config, build_config, fingerprint or rank0_header_sha256 is "
                             "missing; run `ekiben build` again",
                             (path / "config.json").string()));
  ASSIGN_OR_RETURN(ModelConfig model, ModelConfigFromJson(*pretrained));
  RETURN_IF_ERROR(Validate(model));
  ASSIGN_OR_RETURN(BuildConfig build_config, BuildConfigFromJson(*build));
  RETURN_IF_ERROR(Validate(build_config, model));
  ASSIGN_OR_RETURN(MappedFile weights, MappedFile::Open(path / "rank0.engine"));
  weights.WillNeed();
  ASSIGN_OR_RETURN(EngineTensors tensors, ReadEngineFile(weights, *header_sha256, verify));
  text::TokenizerSpec tokenizer;
  if (std::filesystem::exists(path / "tokenizer.bin")) {
    ASSIGN_OR_RETURN(tokenizer, text::ReadTokenizerSpec((path / "tokenizer.bin").string()));
  }
  ASSIGN_OR_RETURN(json::object profiles, ReadObject(path / "profiles.json"));
  ASSIGN_OR_RETURN(const json::object* fp8, GetObject(config, "fp8"));
  return Engine{path,
                std::move(model),
                std::move(build_config),
                *std::move(fingerprint),
                std::move(tensors),
                std::move(tokenizer),
                std::move(profiles),
                fp8 != nullptr ? *fp8 : json::object(),
                std::move(weights),
                Buffer()};
}

void HoldInHugePages(Engine& engine) {
  std::vector<EngineTensor*> linears;
  for (auto& [name, tensor] : engine.tensors)
    if (tensor.kind == PackRule::Kind::kLinear) linears.push_back(&tensor);
  std::sort(linears.begin(), linears.end(),
            [](const EngineTensor* a, const EngineTensor* b) { return a->data < b->data; });
  size_t bytes = 0;
  for (const EngineTensor* tensor : linears) bytes += RoundUp(tensor->bytes, kEngineAlignment);
  engine.resident = Buffer(bytes);
  std::byte* at = engine.resident.data();
  for (EngineTensor* tensor : linears) {
    std::memcpy(at, tensor->data, tensor->bytes);
    tensor->data = at;
    at += RoundUp(tensor->bytes, kEngineAlignment);
  }
}

}  // namespace ekiben
