#include "weights/huggingface_folder.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>

#include "text/tokenizer_files.h"
#include "weights/file_error.h"
#include "weights/fingerprint.h"

namespace ekiben {
namespace {

namespace fs = std::filesystem;

constexpr size_t kIndexBytesMax = size_t{64} << 20;
constexpr size_t kConfigBytesMax = size_t{16} << 20;
constexpr std::string_view kIndexName = "model.safetensors.index.json";

// What decides how text becomes tokens and when a turn ends: a change of one is another checkpoint.
constexpr std::array<std::string_view, 13> kSmallFiles = {"config.json",
                                                          "generation_config.json",
                                                          "tokenizer_config.json",
                                                          "special_tokens_map.json",
                                                          "tokenizer.json",
                                                          "tokenizer.model",
                                                          "added_tokens.json",
                                                          "vocab.json",
                                                          "merges.txt",
                                                          "tekken.json",
                                                          "chat_template.jinja",
                                                          "chat_template.json",
                                                          "qwen.tiktoken"};

Result<void> AddFile(const fs::path& path, SafetensorsSet& set) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  ASSIGN_OR_RETURN(SafetensorsFile table, ParseSafetensors(file.bytes(), path.string()));
  set.files.push_back(std::move(file));
  set.tables.push_back(std::move(table));
  return {};
}

Result<SafetensorsSet> OpenOne(const fs::path& path) {
  SafetensorsSet set;
  RETURN_IF_ERROR(AddFile(path, set));
  for (const auto& [name, tensor] : set.tables[0].tensors) set.tensors.emplace(name, SafetensorsSet::Place{&tensor, 0});
  return set;
}

Result<SafetensorsSet> OpenShards(const fs::path& folder) {
  fs::path index_path = folder / kIndexName;
  ASSIGN_OR_RETURN(std::string text, ReadFile(index_path, kIndexBytesMax));
  ASSIGN_OR_RETURN(auto shard_of, ParseShardIndex(text, index_path.string()));
  std::map<std::string_view, size_t> number_of;
  for (const auto& [name, shard] : shard_of) number_of.emplace(shard, 0);
  SafetensorsSet set;
  for (auto& [shard, number] : number_of) {
    number = set.files.size();
    RETURN_IF_ERROR(AddFile(folder / shard, set));
  }
  for (const auto& [name, shard] : shard_of) {
    size_t number = number_of.at(shard);
    auto found = set.tables[number].tensors.find(name);
    if (found == set.tables[number].tensors.end())
      return Error(Code::kInvalid,
                   fmt::format("{}: weight_map.{}: {} holds no such tensor", index_path.string(), PrintableName(name),
                               PrintableName(shard)),
                   "weight_map");
    set.tensors.emplace(found->first, SafetensorsSet::Place{&found->second, number});
  }
  return set;
}

Result<fs::path> SingleFile(const fs::path& folder) {
  fs::path found;
  std::error_code code;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, code)) {
    if (entry.path().extension() != ".safetensors") continue;
    if (entry.path().filename() == "model.safetensors") return entry.path();
    if (!found.empty())
      return Error(Code::kInvalid,
                   fmt::format("{}: several .safetensors files and no {}", folder.string(), kIndexName));
    found = entry.path();
  }
  if (found.empty())
    return Error(Code::kNotFound, fmt::format("{}: no .safetensors file (other weight formats are not supported; "
                                              "convert with transformers' save_pretrained)",
                                              folder.string()));
  return found;
}

// eos_token_id: a number or a list of them.
void AddEndIds(const json::object& object, int32_t vocab_size, std::vector<int32_t>& end_ids) {
  const json::value* value = object.if_contains("eos_token_id");
  if (value == nullptr) return;
  auto add = [&](const json::value& id) {
    if (id.is_int64() && id.get_int64() >= 0 && id.get_int64() < vocab_size)
      end_ids.push_back(static_cast<int32_t>(id.get_int64()));
  };
  if (value->is_array()) {
    for (const json::value& id : value->get_array()) add(id);
  } else {
    add(*value);
  }
}

Result<void> ReadTokenizer(const fs::path& folder, const json::object& config, Checkpoint& checkpoint) {
  Result<text::TokenizerSpec> tokenizer = text::LoadTokenizerFolder(folder);
  checkpoint.has_tokenizer = tokenizer.ok();
  if (tokenizer.ok()) {
    checkpoint.tokenizer = *std::move(tokenizer);
  } else {
    checkpoint.tokenizer_error = tokenizer.error().message();
  }
  std::vector<int32_t>& end_ids = checkpoint.tokenizer.end_ids;
  AddEndIds(config, checkpoint.config.vocab_size, end_ids);
  Result<json::object> generation = ReadJsonObject(folder / "generation_config.json");
  if (!generation.ok() && generation.error().code() != Code::kNotFound) return std::move(generation).error();
  if (generation.ok()) AddEndIds(*generation, checkpoint.config.vocab_size, end_ids);
  std::sort(end_ids.begin(), end_ids.end());
  end_ids.erase(std::unique(end_ids.begin(), end_ids.end()), end_ids.end());
  return {};
}

std::string NameOfFolder(const fs::path& folder) {
  std::error_code code;
  fs::path whole = fs::weakly_canonical(folder, code);
  return (whole.has_filename() ? whole : whole.parent_path()).filename().string();  // "model/" ends in an empty name
}

Result<void> AddTensors(const SafetensorsSet& set, Checkpoint& checkpoint) {
  for (const auto& [name, place] : set.tensors) {
    const SafetensorsTensor& tensor = *place.tensor;
    if (!tensor.dtype)
      return FileError(set.tables[place.file].label, tensor.offset, "tensor " + PrintableName(name),
                       fmt::format("dtype {} is not supported (F32, F16 and BF16 are)", tensor.type_name),
                       Code::kUnsupported);
    checkpoint.tensors.emplace(std::string(name), CheckpointTensor{.name = std::string(name),
                                                                   .dtype = *tensor.dtype,
                                                                   .shape = tensor.shape,
                                                                   .data = tensor.data.data(),
                                                                   .bytes = tensor.data.size()});
  }
  return {};
}

Result<std::string> FolderFingerprint(const fs::path& folder, const SafetensorsSet& set, const Checkpoint& checkpoint) {
  std::vector<MappedFile> small;
  std::vector<std::span<const std::byte>> headers;
  for (std::string_view name : kSmallFiles) {
    Result<MappedFile> file = MappedFile::Open(folder / name);
    if (!file.ok()) continue;  // absent; what is needed of it was read before
    headers.push_back(std::as_bytes(std::span(name)));
    small.push_back(*std::move(file));
    headers.push_back(small.back().bytes());
  }
  for (size_t i = 0; i < set.files.size(); ++i)
    headers.push_back(set.files[i].bytes().first(set.tables[i].data_offset));
  return Fingerprint(checkpoint.tensors, headers);
}

}  // namespace

Result<SafetensorsSet> OpenSafetensorsSet(const fs::path& path) {
  std::error_code code;
  if (!fs::is_directory(path, code)) return OpenOne(path);
  if (fs::exists(path / kIndexName, code)) return OpenShards(path);
  ASSIGN_OR_RETURN(fs::path file, SingleFile(path));
  return OpenOne(file);
}

Result<json::object> ReadJsonObject(const fs::path& path) {
  ASSIGN_OR_RETURN(std::string text, ReadFile(path, kConfigBytesMax));
  Result<json::value> value = ParseJson(text);
  if (!value.ok()) return std::move(value).error().Within(path.string());
  if (!value->is_object())
    return Error(Code::kInvalid, fmt::format("{}: an object is wanted, got {}", path.string(), KindName(*value)));
  return value->get_object();
}

Result<Checkpoint> OpenHuggingFace(const fs::path& path) {
  std::error_code code;
  fs::path folder = fs::is_directory(path, code) ? path : path.parent_path();
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.format = "safetensors";
  fs::path config_path = folder / "config.json";
  ASSIGN_OR_RETURN(json::object object, ReadJsonObject(config_path));
  Result<ModelConfig> config = ModelConfigFromHuggingFace(object);
  if (!config.ok()) return std::move(config).error().Within(config_path.string());
  checkpoint.config = *std::move(config);
  if (checkpoint.config.name.empty()) checkpoint.config.name = NameOfFolder(folder);

  ASSIGN_OR_RETURN(SafetensorsSet set, OpenSafetensorsSet(path));
  RETURN_IF_ERROR(AddTensors(set, checkpoint));
  // An old config.json may not say; without a head of its own the model uses the embedding.
  if (!object.contains("tie_word_embeddings") && !checkpoint.tensors.contains("lm_head.weight"))
    checkpoint.config.tie_word_embeddings = true;
  RETURN_IF_ERROR(ReadTokenizer(folder, object, checkpoint));
  ASSIGN_OR_RETURN(checkpoint.fingerprint, FolderFingerprint(folder, set, checkpoint));
  checkpoint.files = std::move(set.files);
  return checkpoint;
}

}  // namespace ekiben
