#include "weights/safetensors.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <boost/json/basic_parser_impl.hpp>
#include <cstring>

#include "base/arithmetic.h"
#include "base/json.h"
#include "weights/file_error.h"

namespace ekiben {
namespace {

constexpr uint64_t kHeaderBytesMax = 100'000'000;  // the format's limit
constexpr size_t kDimensionsMax = 16;
constexpr size_t kShardNameBytesMax = 255;

struct TensorType {
  std::string_view name;
  uint64_t bytes;
  std::optional<DType> dtype;
};
constexpr std::array kTensorTypes = {
    TensorType{"F32", 4, DType::kF32},
    TensorType{"F16", 2, DType::kF16},
    TensorType{"BF16", 2, DType::kBF16},
    TensorType{"I8", 1, DType::kI8},
    TensorType{"U8", 1, DType::kU8},
    TensorType{"I32", 4, DType::kI32},
    TensorType{"I64", 8, DType::kI64},
    TensorType{"BOOL", 1, DType::kBool},
    TensorType{"F64", 8, {}},
    TensorType{"I16", 2, {}},
    TensorType{"U16", 2, {}},
    TensorType{"U32", 4, {}},
    TensorType{"U64", 8, {}},
    TensorType{"F8_E4M3", 1, {}},
    TensorType{"F8_E5M2", 1, {}},
    TensorType{"F8_E8M0", 1, {}},
    TensorType{"C64", 8, {}},
};

struct Entry {
  std::string dtype;
  std::vector<uint64_t> shape, data_offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Collects the header while it is parsed, so that a repeated key is seen and memory stays in proportion to the header.
// A refusal is kept in `problem`, with the field it concerns; the parser then stops.
// The method names are those that Boost.JSON's parser calls.
class HeaderHandler {
 public:
  static constexpr size_t max_object_size = SIZE_MAX, max_array_size = SIZE_MAX;
  static constexpr size_t max_key_size = SIZE_MAX, max_string_size = SIZE_MAX;
  using error_code = boost::system::error_code;

  std::map<std::string, Entry, std::less<>> entries;
  std::map<std::string, std::string, std::less<>> metadata;
  std::string problem, field = "header";

  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }

  bool on_object_begin(error_code& code) {
    if (depth_ == 2) return Stop(code, "an object where a value belongs");
    ++depth_;
    return true;
  }
  bool on_object_end(size_t, error_code& code) {
    if (--depth_ == 1 && entry_ != nullptr) {
      if (!entry_->has_dtype || !entry_->has_shape || !entry_->has_offsets)
        return Stop(code, "dtype, shape and data_offsets are all required");
      entry_ = nullptr;
    }
    in_metadata_ = in_metadata_ && depth_ != 1;
    return true;
  }

  bool on_key_part(std::string_view part, size_t, error_code&) {
    text_.append(part);
    return true;
  }
  bool on_key(std::string_view part, size_t, error_code& code) {
    std::string key = std::exchange(text_, {}).append(part);
    if (depth_ == 1) return TopKey(std::move(key), code);
    if (in_metadata_) {
      key_ = std::move(key);
      return metadata.contains(key_) ? Stop(code, fmt::format("'{}' occurs twice", PrintableName(key_))) : true;
    }
    key_ = std::move(key);
    bool* seen = key_ == "dtype"          ? &entry_->has_dtype
                 : key_ == "shape"        ? &entry_->has_shape
                 : key_ == "data_offsets" ? &entry_->has_offsets
                                          : nullptr;
    if (seen == nullptr) return Stop(code, fmt::format("'{}' is no known key", PrintableName(key_)));
    if (std::exchange(*seen, true)) return Stop(code, fmt::format("'{}' occurs twice", key_));
    return true;
  }

  bool on_string_part(std::string_view part, size_t, error_code&) {
    text_.append(part);
    return true;
  }
  bool on_string(std::string_view part, size_t, error_code& code) {
    std::string value = std::exchange(text_, {}).append(part);
    if (depth_ == 2 && in_metadata_) {
      metadata.emplace(key_, std::move(value));
      return true;
    }
    if (depth_ != 2 || array_ != nullptr || key_ != "dtype") return Stop(code, "a string in the wrong place");
    entry_->dtype = std::move(value);
    return true;
  }

  bool on_array_begin(error_code& code) {
    if (depth_ != 2 || in_metadata_ || array_ != nullptr || key_ == "dtype")
      return Stop(code, "an array in the wrong place");
    array_ = key_ == "shape" ? &entry_->shape : &entry_->data_offsets;
    return true;
  }
  bool on_array_end(size_t, error_code&) {
    array_ = nullptr;
    return true;
  }

  bool on_number_part(std::string_view, error_code&) { return true; }
  bool on_int64(int64_t value, std::string_view, error_code& code) {
    if (value < 0) return Stop(code, fmt::format("{} is negative", value));
    return on_uint64(static_cast<uint64_t>(value), {}, code);
  }
  bool on_uint64(uint64_t value, std::string_view, error_code& code) {
    if (array_ == nullptr) return Stop(code, "a number in the wrong place");
    if (array_->size() == kDimensionsMax) return Stop(code, fmt::format("over {} numbers in {}", kDimensionsMax, key_));
    array_->push_back(value);
    return true;
  }
  bool on_double(double value, std::string_view, error_code& code) {
    return Stop(code, fmt::format("{} is no size", value));
  }
  bool on_bool(bool, error_code& code) { return Stop(code, "a boolean in the wrong place"); }
  bool on_null(error_code& code) { return Stop(code, "null in the wrong place"); }
  bool on_comment_part(std::string_view, error_code&) { return true; }
  bool on_comment(std::string_view, error_code&) { return true; }

 private:
  bool Stop(error_code& code, std::string message) {
    problem = std::move(message);
    code = json::error::syntax;
    return false;
  }

  bool TopKey(std::string key, error_code& code) {
    field = key == "__metadata__" ? key : "tensor " + PrintableName(key);
    if (key == "__metadata__") {
      if (std::exchange(metadata_seen_, true)) return Stop(code, "the key occurs twice");
      in_metadata_ = true;
      return true;
    }
    auto [place, fresh] = entries.try_emplace(std::move(key));
    if (!fresh) return Stop(code, "the name occurs twice");
    entry_ = &place->second;
    return true;
  }

  int depth_ = 0;  // objects that are open
  bool in_metadata_ = false, metadata_seen_ = false;
  Entry* entry_ = nullptr;
  std::vector<uint64_t>* array_ = nullptr;
  std::string key_, text_;
};

Result<void> ParseHeader(std::string_view header, std::string_view label, HeaderHandler& out) {
  json::parse_options options;
  options.max_depth = 8;
  json::basic_parser<HeaderHandler> parser(options);
  boost::system::error_code code;
  size_t used = parser.write_some(false, header.data(), header.size(), code);
  out = std::move(parser.handler());
  if (code) return FileError(label, 8 + used, out.field, out.problem.empty() ? "JSON: " + code.message() : out.problem);
  size_t rest = header.find_first_not_of(" \t\r\n", used);
  if (rest != std::string_view::npos) return FileError(label, 8 + rest, "header", "text after the JSON object");
  return {};
}

// Bytes that shape and type call for; the message of an error names neither file nor field.
Result<uint64_t> BytesOf(const Entry& entry, const TensorType& type) {
  std::optional<uint64_t> bytes = type.bytes;
  for (uint64_t extent : entry.shape) {
    if (bytes) bytes = CheckedMul<uint64_t>(*bytes, extent);
    if (!bytes || extent > static_cast<uint64_t>(INT64_MAX))
      return Error(Code::kInvalid,
                   fmt::format("the product of its shape [{}] overflows", fmt::join(entry.shape, ", ")));
  }
  return *bytes;
}

Result<SafetensorsTensor> MakeTensor(const Entry& entry, std::span<const std::byte> data, uint64_t data_offset) {
  SafetensorsTensor tensor;
  auto type =
      std::find_if(kTensorTypes.begin(), kTensorTypes.end(), [&](auto& row) { return row.name == entry.dtype; });
  if (type == kTensorTypes.end())
    return Error(Code::kUnsupported, fmt::format("dtype '{}' is unknown", PrintableName(entry.dtype)));
  if (entry.data_offsets.size() != 2)
    return Error(Code::kInvalid, fmt::format("data_offsets has {} numbers, not 2", entry.data_offsets.size()));
  uint64_t begin = entry.data_offsets[0], end = entry.data_offsets[1];
  if (begin > end || end > data.size())
    return Error(Code::kInvalid, fmt::format("data_offsets [{}, {}] leave the file's {} bytes of data: truncated?",
                                             begin, end, data.size()));
  ASSIGN_OR_RETURN(uint64_t bytes, BytesOf(entry, *type));
  if (bytes != end - begin)
    return Error(Code::kInvalid, fmt::format("{} [{}] takes {} bytes, data_offsets give {}", entry.dtype,
                                             fmt::join(entry.shape, ", "), bytes, end - begin));
  tensor.type_name = entry.dtype;
  tensor.dtype = type->dtype;
  tensor.shape.assign(entry.shape.begin(), entry.shape.end());
  tensor.offset = data_offset + begin;
  tensor.data = data.subspan(begin, end - begin);
  return tensor;
}

// Every byte of the data section belongs to exactly one tensor.
Result<void> ProveTiling(const SafetensorsFile& file, uint64_t file_bytes) {
  std::vector<std::pair<std::string_view, const SafetensorsTensor*>> order;
  for (const auto& [name, tensor] : file.tensors) order.emplace_back(name, &tensor);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->offset, a.second->data.size()) < std::pair(b.second->offset, b.second->data.size());
  });
  uint64_t expected = file.data_offset;
  for (const auto& [name, tensor] : order) {
    if (tensor->offset != expected)
      return FileError(file.label, tensor->offset, "tensor " + PrintableName(name),
                       tensor->offset < expected
                           ? "its data overlaps another tensor's"
                           : fmt::format("{} bytes before it belong to no tensor", tensor->offset - expected));
    expected += tensor->data.size();
  }
  if (expected != file_bytes)
    return FileError(file.label, expected, "data",
                     fmt::format("the last {} bytes belong to no tensor", file_bytes - expected));
  return {};
}

}  // namespace

Result<SafetensorsFile> ParseSafetensors(std::span<const std::byte> bytes, std::string_view label) {
  if (bytes.size() < 8)
    return FileError(label, 0, "header length", fmt::format("8 bytes are wanted, the file has {}", bytes.size()));
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kHeaderBytesMax)
    return FileError(label, 0, "header length",
                     fmt::format("{} bytes, the limit is {}", header_bytes, kHeaderBytesMax));
  if (header_bytes > bytes.size() - 8)
    return FileError(label, 0, "header length",
                     fmt::format("{} bytes, {} are left: truncated?", header_bytes, bytes.size() - 8));
  std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  if (!header.starts_with('{')) return FileError(label, 8, "header", "it does not begin with '{'");
  HeaderHandler parsed;
  RETURN_IF_ERROR(ParseHeader(header, label, parsed));

  SafetensorsFile file{.label = std::string(label), .data_offset = 8 + header_bytes};
  file.metadata = std::move(parsed.metadata);
  std::span<const std::byte> data = bytes.subspan(file.data_offset);
  for (const auto& [name, entry] : parsed.entries) {
    Result<SafetensorsTensor> tensor = MakeTensor(entry, data, file.data_offset);
    if (!tensor.ok())
      return FileError(label, 8, "tensor " + PrintableName(name), tensor.error().message(), tensor.error().code());
    file.tensors.emplace(name, *std::move(tensor));
  }
  RETURN_IF_ERROR(ProveTiling(file, bytes.size()));
  return file;
}

Result<std::map<std::string, std::string, std::less<>>> ParseShardIndex(std::string_view text, std::string_view label) {
  auto fail = [&](std::string_view field, std::string_view message) {
    return Error(Code::kInvalid, fmt::format("{}: {}: {}", label, field, message), std::string(field));
  };
  Result<json::value> root = ParseJson(text);
  if (!root.ok()) return std::move(root).error().Within(label);
  if (!root->is_object()) return fail("index", "an object is wanted");
  Result<const json::object*> weight_map = GetObject(root->get_object(), "weight_map");
  if (!weight_map.ok()) return std::move(weight_map).error().Within(label);
  if (*weight_map == nullptr || (*weight_map)->empty()) return fail("weight_map", "absent or empty");
  std::map<std::string, std::string, std::less<>> shard_of;
  for (const auto& [name, shard] : **weight_map) {
    std::string field = "weight_map." + PrintableName(name);
    if (!shard.is_string()) return fail(field, "a string is wanted");
    std::string_view file = shard.get_string();
    if (!file.ends_with(".safetensors") || file.starts_with('.') || file.size() > kShardNameBytesMax ||
        file.find_first_of(std::string_view("/\\:\0", 4)) != std::string_view::npos)
      return fail(field, fmt::format("'{}' is not the plain name of a .safetensors file in the same folder",
                                     PrintableName(file)));
    shard_of.emplace(name, file);
  }
  return shard_of;
}

}  // namespace ekiben
