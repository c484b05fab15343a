// What `ekiben inspect` prints. A file is described as far as it can be read: an architecture or tokenizer that we do
// not know is an entry of the answer, a file whose structure is broken is an error.
#include <boost/json.hpp>
#include <cmath>
#include <cstring>

#include "text/tokenizer_files.h"
#include "weights/checkpoint.h"
#include "weights/gguf.h"
#include "weights/huggingface_folder.h"
#include "weights/locate.h"
#include "weights/safetensors.h"

namespace ekiben {
namespace {

constexpr uint64_t kArrayShownMax = 16;  // longer arrays are shown by their first elements and count
constexpr uint64_t kArrayFirst = 8;

// Length of the UTF-8 sequence at text[i], 0 when it is none (overlong forms, surrogates and > U+10FFFF included).
size_t Utf8Length(std::string_view text, size_t i) {
  auto byte = [&](size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
  auto follows = [&](size_t k) { return (byte(k) & 0xc0) == 0x80; };
  unsigned lead = byte(i);
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf && follows(i + 1)) return 2;
  if (lead >= 0xe0 && lead <= 0xef && follows(i + 1) && follows(i + 2))
    return (lead == 0xe0 && byte(i + 1) < 0xa0) || (lead == 0xed && byte(i + 1) > 0x9f) ? 0 : 3;
  if (lead >= 0xf0 && lead <= 0xf4 && follows(i + 1) && follows(i + 2) && follows(i + 3))
    return (lead == 0xf0 && byte(i + 1) < 0x90) || (lead == 0xf4 && byte(i + 1) > 0x8f) ? 0 : 4;
  return 0;
}

// JSON holds UTF-8; a file may hold anything.
std::string Utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    size_t length = Utf8Length(text, i);
    out.append(length == 0 ? "\xef\xbf\xbd" : text.substr(i, length));
    i += length == 0 ? 1 : length;
  }
  return out;
}

json::value NumberValue(double number) {
  if (std::isfinite(number)) return number;
  return json::value(fmt::format("{}", number));  // JSON has no NaN
}

template <class T>
T Load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

json::value ScalarValue(GgufKind kind, const std::byte* at) {
  switch (kind) {
    case GgufKind::kU8: return Load<uint8_t>(at);
    case GgufKind::kI8: return Load<int8_t>(at);
    case GgufKind::kU16: return Load<uint16_t>(at);
    case GgufKind::kI16: return Load<int16_t>(at);
    case GgufKind::kU32: return Load<uint32_t>(at);
    case GgufKind::kI32: return Load<int32_t>(at);
    case GgufKind::kU64: return Load<uint64_t>(at);
    case GgufKind::kI64: return Load<int64_t>(at);
    case GgufKind::kF32: return NumberValue(Load<float>(at));
    case GgufKind::kF64: return NumberValue(Load<double>(at));
    case GgufKind::kBool: return Load<uint8_t>(at) != 0;
    case GgufKind::kString:
    case GgufKind::kArray: break;
  }
  return nullptr;
}

json::value ArrayValue(const GgufValue& value) {
  uint64_t shown = value.count > kArrayShownMax ? kArrayFirst : value.count;
  json::array elements;
  const std::byte* at = value.data.data();
  for (uint64_t i = 0; i < shown; ++i) {
    if (value.element == GgufKind::kString) {
      auto size = Load<uint64_t>(at);
      elements.emplace_back(Utf8({reinterpret_cast<const char*>(at + 8), size}));
      at += 8 + size;
    } else {
      elements.push_back(ScalarValue(value.element, at));
      at += value.data.size() / value.count;
    }
  }
  if (shown == value.count) return elements;
  return json::object{{"type", Name(value.element)}, {"count", value.count}, {"first", std::move(elements)}};
}

json::value MetadataValue(const GgufValue& value) {
  if (value.kind == GgufKind::kArray) return ArrayValue(value);
  if (value.kind == GgufKind::kString)
    return json::value(Utf8({reinterpret_cast<const char*>(value.data.data()), value.data.size()}));
  return ScalarValue(value.kind, value.data.data());
}

std::string_view NameOf(text::Model model) {
  switch (model) {
    case text::Model::kByteLevelBpe: return "byte-level BPE";
    case text::Model::kTiktokenBpe: return "tiktoken BPE";
    case text::Model::kSentencePieceBpe: return "SentencePiece BPE";
  }
  return "?";
}

void DescribeConfig(const Result<ModelConfig>& config, json::object& out) {
  if (config.ok()) {
    out["config"] = ToJson(*config);
  } else {
    out["config_error"] = Utf8(config.error().message());
  }
}

void DescribeTokenizer(const Result<text::TokenizerSpec>& spec, json::object& out) {
  if (!spec.ok()) {
    out["tokenizer_error"] = Utf8(spec.error().message());
    return;
  }
  json::array ends;
  for (int32_t id : spec->end_ids) ends.emplace_back(id);
  out["tokenizer"] = {{"model", NameOf(spec->model)},
                      {"tokens", spec->tokens.size()},
                      {"merges", spec->merges.size()},
                      {"added", spec->added.size()},
                      {"bos", spec->bos},
                      {"eos", spec->eos},
                      {"unk", spec->unk},
                      {"pad", spec->pad},
                      {"add_bos", spec->add_bos},
                      {"add_eos", spec->add_eos},
                      {"end_ids", std::move(ends)},
                      {"chat_template", !spec->chat_template.empty()}};
}

// The tensor table and its sums, in the order of the calls.
class TensorList {
 public:
  void Add(std::string_view name, std::string_view dtype, const std::vector<int64_t>& shape, uint64_t offset,
           uint64_t bytes, std::string_view file) {
    uint64_t elements = 1;
    json::array extents;
    for (int64_t extent : shape) {
      elements *= static_cast<uint64_t>(extent);  // proven to fit by the reader
      extents.emplace_back(extent);
    }
    json::object row{
        {"name", Utf8(name)}, {"dtype", dtype}, {"shape", std::move(extents)}, {"offset", offset}, {"bytes", bytes}};
    if (!file.empty()) row["file"] = Utf8(file);
    rows_.push_back(std::move(row));
    Total& total = totals_[std::string(dtype)];
    ++total.tensors;
    total.parameters += elements;
    total.bytes += bytes;
  }

  void Write(json::object& out) {
    uint64_t parameters = 0, bytes = 0;
    json::object totals;
    for (const auto& [dtype, total] : totals_) {
      totals[dtype] = {{"tensors", total.tensors}, {"parameters", total.parameters}, {"bytes", total.bytes}};
      parameters += total.parameters;
      bytes += total.bytes;
    }
    out["parameters"] = parameters;
    out["tensor_bytes"] = bytes;
    out["totals"] = std::move(totals);
    out["tensors"] = std::move(rows_);
  }

 private:
  struct Total {
    uint64_t tensors = 0, parameters = 0, bytes = 0;
  };
  std::map<std::string, Total> totals_;
  json::array rows_;
};

Result<json::object> InspectGguf(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  ASSIGN_OR_RETURN(GgufFile file, ParseGguf(mapped.bytes(), path.string()));
  json::object out{{"path", Utf8(path.string())},
                   {"format", fmt::format("gguf v{}", file.version)},
                   {"bytes", file.bytes.size()},
                   {"alignment", file.alignment},
                   {"data_offset", file.data_offset}};
  DescribeConfig(GgufModelConfig(file), out);
  DescribeTokenizer(GgufTokenizer(file), out);
  json::object metadata;
  for (const auto& [key, value] : file.metadata) metadata[Utf8(key)] = MetadataValue(value);
  out["metadata"] = std::move(metadata);
  TensorList tensors;
  for (const GgufTensor& tensor : file.tensors)
    tensors.Add(tensor.name, tensor.type_name, tensor.shape, tensor.offset, tensor.data.size(), {});
  tensors.Write(out);
  return out;
}

// A .safetensors file alone, or a folder.
Result<json::object> InspectSafetensors(const std::filesystem::path& path, bool folder) {
  ASSIGN_OR_RETURN(SafetensorsSet set, OpenSafetensorsSet(path));
  uint64_t bytes = 0;
  for (const MappedFile& file : set.files) bytes += file.bytes().size();
  json::object out{{"path", Utf8(path.string())},
                   {"format", folder ? "huggingface" : "safetensors"},
                   {"files", set.files.size()},
                   {"bytes", bytes}};
  if (folder) {
    Result<json::object> config = ReadJsonObject(path / "config.json");
    DescribeConfig(config.ok() ? ModelConfigFromHuggingFace(*config) : Result<ModelConfig>(Error(config.error())), out);
    DescribeTokenizer(text::LoadTokenizerFolder(path), out);
  }
  json::object metadata;
  for (const SafetensorsFile& table : set.tables)
    for (const auto& [key, value] : table.metadata) metadata[key] = value;
  out["metadata"] = std::move(metadata);
  TensorList tensors;
  for (const auto& [name, place] : set.tensors)
    tensors.Add(name, place.tensor->type_name, place.tensor->shape, place.tensor->offset, place.tensor->data.size(),
                set.files.size() > 1 ? set.files[place.file].path().filename().string() : std::string());
  tensors.Write(out);
  return out;
}

}  // namespace

Result<json::object> InspectFile(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(CheckpointLocation location, LocateCheckpoint(path));
  using Kind = CheckpointLocation::Kind;
  if (location.kind == Kind::kGguf) return InspectGguf(location.path);
  return InspectSafetensors(location.path, location.kind == Kind::kHuggingFaceFolder);
}

}  // namespace ekiben
