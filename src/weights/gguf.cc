#include "weights/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/arithmetic.h"
#include "weights/file_error.h"

static_assert(std::endian::native == std::endian::little, "GGUF values are read in place");

namespace ekiben {
namespace {

constexpr uint64_t kKeyBytesMax = 65535;      // the specification's limit
constexpr uint64_t kTensorNameBytesMax = 64;  // the specification's limit
constexpr uint32_t kDimensionsMax = 4;
constexpr uint64_t kAlignmentMax = uint64_t{1} << 20;

struct TensorType {
  uint32_t type;
  std::string_view name;
  uint32_t block_elements, block_bytes;
  std::optional<DType> dtype;
};

// Every GGML type in use: those without a DType can be listed (`ekiben inspect`) but not loaded.
constexpr std::array kTensorTypes = {
    TensorType{0, "f32", 1, 4, DType::kF32},
    TensorType{1, "f16", 1, 2, DType::kF16},
    TensorType{2, "q4_0", 32, 18, DType::kQ4_0},
    TensorType{3, "q4_1", 32, 20, DType::kQ4_1},
    TensorType{6, "q5_0", 32, 22, DType::kQ5_0},
    TensorType{7, "q5_1", 32, 24, DType::kQ5_1},
    TensorType{8, "q8_0", 32, 34, DType::kQ8_0},
    TensorType{9, "q8_1", 32, 40, {}},
    TensorType{10, "q2_k", 256, 84, {}},
    TensorType{11, "q3_k", 256, 110, {}},
    TensorType{12, "q4_k", 256, 144, DType::kQ4_K},
    TensorType{13, "q5_k", 256, 176, DType::kQ5_K},
    TensorType{14, "q6_k", 256, 210, DType::kQ6_K},
    TensorType{15, "q8_k", 256, 292, {}},
    TensorType{16, "iq2_xxs", 256, 66, {}},
    TensorType{17, "iq2_xs", 256, 74, {}},
    TensorType{18, "iq3_xxs", 256, 98, {}},
    TensorType{19, "iq1_s", 256, 50, {}},
    TensorType{20, "iq4_nl", 32, 18, {}},
    TensorType{21, "iq3_s", 256, 110, {}},
    TensorType{22, "iq2_s", 256, 82, {}},
    TensorType{23, "iq4_xs", 256, 136, {}},
    TensorType{24, "i8", 1, 1, DType::kI8},
    TensorType{25, "i16", 1, 2, {}},
    TensorType{26, "i32", 1, 4, DType::kI32},
    TensorType{27, "i64", 1, 8, DType::kI64},
    TensorType{28, "f64", 1, 8, {}},
    TensorType{29, "iq1_m", 256, 56, {}},
    TensorType{30, "bf16", 1, 2, DType::kBF16},
    TensorType{34, "tq1_0", 256, 54, {}},
    TensorType{35, "tq2_0", 256, 66, {}},
    TensorType{39, "mxfp4", 32, 17, {}},
};

constexpr std::array<std::string_view, 13> kKindNames = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                         "bool", "string", "array", "u64", "i64", "f64"};
constexpr std::array<uint8_t, 13> kKindBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

uint64_t BytesOf(GgufKind kind) {
  return kKindBytes[static_cast<size_t>(kind)];
}

// A cursor over the header. Every read is bounded by the bytes left.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::string_view label) : bytes_(bytes), label_(label) {}

  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  Error Fail(uint64_t offset, std::string_view field, std::string_view message) const {
    return FileError(label_, offset, field, message);
  }

  Result<std::span<const std::byte>> Take(uint64_t count, std::string_view field) {
    if (count > left())
      return Fail(position_, field, fmt::format("{} bytes are wanted, {} are left: truncated?", count, left()));
    auto out = bytes_.subspan(position_, count);
    position_ += count;
    return out;
  }

  template <class T>
  Result<T> Number(std::string_view field) {
    ASSIGN_OR_RETURN(auto raw, Take(sizeof(T), field));
    T value;
    std::memcpy(&value, raw.data(), sizeof(T));
    return value;
  }

  Result<std::string_view> String(std::string_view field, uint64_t bytes_max) {
    uint64_t start = position_;
    ASSIGN_OR_RETURN(uint64_t size, Number<uint64_t>(field));
    if (size > bytes_max) return Fail(start, field, fmt::format("a length of {}, the limit is {}", size, bytes_max));
    ASSIGN_OR_RETURN(auto raw, Take(size, field));
    return std::string_view(reinterpret_cast<const char*>(raw.data()), raw.size());
  }

  Result<GgufKind> Kind(std::string_view field) {
    uint64_t start = position_;
    ASSIGN_OR_RETURN(uint32_t kind, Number<uint32_t>(field));
    if (kind >= kKindNames.size()) return Fail(start, field, fmt::format("value type {} does not exist", kind));
    return static_cast<GgufKind>(kind);
  }

 private:
  std::span<const std::byte> bytes_;
  std::string_view label_;
  uint64_t position_ = 0;
};

Result<GgufValue> ReadArray(Reader& in, std::string_view field) {
  GgufValue value{.kind = GgufKind::kArray, .offset = in.position()};
  ASSIGN_OR_RETURN(value.element, in.Kind(field));
  if (value.element == GgufKind::kArray) return in.Fail(value.offset, field, "an array of arrays is not supported");
  uint64_t count_at = in.position();
  ASSIGN_OR_RETURN(value.count, in.Number<uint64_t>(field));
  bool strings = value.element == GgufKind::kString;
  uint64_t bytes_each = strings ? 8 : BytesOf(value.element);  // a string's length alone takes 8
  if (value.count > in.left() / bytes_each)
    return in.Fail(count_at, field,
                   fmt::format("{} elements of {}, {} bytes are left", value.count, Name(value.element), in.left()));
  if (!strings) {
    ASSIGN_OR_RETURN(value.data, in.Take(value.count * bytes_each, field));
    return value;
  }
  Reader start = in;
  for (uint64_t i = 0; i < value.count; ++i) RETURN_IF_ERROR(in.String(field, in.left()));
  ASSIGN_OR_RETURN(value.data, start.Take(in.position() - start.position(), field));
  return value;
}

Result<GgufValue> ReadValue(Reader& in, std::string_view field) {
  uint64_t kind_at = in.position();
  ASSIGN_OR_RETURN(GgufKind kind, in.Kind(field));
  if (kind == GgufKind::kArray) return ReadArray(in, field);
  GgufValue value{.kind = kind, .offset = in.position()};
  if (kind == GgufKind::kString) {
    ASSIGN_OR_RETURN(std::string_view text, in.String(field, in.left()));
    value.data = std::as_bytes(std::span(text));
    return value;
  }
  ASSIGN_OR_RETURN(value.data, in.Take(BytesOf(kind), field));
  if (kind == GgufKind::kBool && std::to_integer<uint8_t>(value.data[0]) > 1)
    return in.Fail(kind_at, field, fmt::format("{} is no bool", std::to_integer<int>(value.data[0])));
  return value;
}

Result<void> ReadMetadata(Reader& in, uint64_t count, GgufFile& file) {
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t start = in.position();
    ASSIGN_OR_RETURN(std::string_view key, in.String(fmt::format("metadata key {}", i), kKeyBytesMax));
    if (key.empty()) return in.Fail(start, fmt::format("metadata key {}", i), "empty");
    ASSIGN_OR_RETURN(GgufValue value, ReadValue(in, PrintableName(key)));
    if (!file.metadata.emplace(key, value).second) return in.Fail(start, PrintableName(key), "the key occurs twice");
  }
  return {};
}

// Bytes of a tensor, checked: its innermost dimension is whole blocks and the product fits.
Result<uint64_t> TensorBytes(const Reader& in, uint64_t at, std::string_view field, const GgufTensor& tensor,
                             const TensorType& type) {
  auto inner = static_cast<uint64_t>(tensor.shape.back());
  if (inner % type.block_elements != 0)
    return in.Fail(
        at, field,
        fmt::format("rows of {} values are no multiple of the {} block of {}", inner, type.name, type.block_elements));
  std::optional<uint64_t> bytes = CheckedMul<uint64_t>(inner / type.block_elements, type.block_bytes);
  std::optional<uint64_t> elements = inner;
  for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
    auto extent = static_cast<uint64_t>(tensor.shape[i]);
    if (bytes) bytes = CheckedMul<uint64_t>(*bytes, extent);
    if (elements) elements = CheckedMul<uint64_t>(*elements, extent);
  }
  if (!bytes || !elements || *elements > static_cast<uint64_t>(INT64_MAX))
    return in.Fail(at, field,
                   fmt::format("the product of its dimensions [{}] overflows", fmt::join(tensor.shape, ", ")));
  return *bytes;
}

// A tensor's entry; `data` and the absolute offset wait for the data section's start. Returns the bytes it claims.
Result<uint64_t> ReadTensor(Reader& in, uint64_t index, GgufTensor& tensor) {
  ASSIGN_OR_RETURN(tensor.name, in.String(fmt::format("tensor name {}", index), kTensorNameBytesMax));
  std::string field = "tensor " + PrintableName(tensor.name);
  uint64_t at = in.position();
  if (tensor.name.empty()) return in.Fail(at, fmt::format("tensor name {}", index), "empty");
  ASSIGN_OR_RETURN(uint32_t dimensions, in.Number<uint32_t>(field));
  if (dimensions < 1 || dimensions > kDimensionsMax)
    return in.Fail(at, field, fmt::format("{} dimensions, the limit is 1 to {}", dimensions, kDimensionsMax));
  for (uint32_t d = 0; d < dimensions; ++d) {
    at = in.position();
    ASSIGN_OR_RETURN(uint64_t extent, in.Number<uint64_t>(field));
    if (extent < 1 || extent > static_cast<uint64_t>(INT64_MAX))
      return in.Fail(at, field, fmt::format("dimension {} is {}", d, static_cast<int64_t>(extent)));
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(extent));
  }
  at = in.position();
  ASSIGN_OR_RETURN(tensor.type, in.Number<uint32_t>(field));
  auto type = std::find_if(kTensorTypes.begin(), kTensorTypes.end(),
                           [&](const TensorType& row) { return row.type == tensor.type; });
  if (type == kTensorTypes.end()) return in.Fail(at, field, fmt::format("tensor type {} is unknown", tensor.type));
  tensor.type_name = type->name;
  tensor.dtype = type->dtype;
  ASSIGN_OR_RETURN(uint64_t bytes, TensorBytes(in, at, field, tensor, *type));
  ASSIGN_OR_RETURN(tensor.offset, in.Number<uint64_t>(field));
  return bytes;
}

// Offsets become absolute and data views are cut, each inside the file.
Result<void> PlaceTensors(const Reader& in, const std::vector<uint64_t>& sizes, GgufFile& file) {
  uint64_t data_bytes = file.bytes.size() - std::min<uint64_t>(file.data_offset, file.bytes.size());
  for (size_t i = 0; i < file.tensors.size(); ++i) {
    GgufTensor& tensor = file.tensors[i];
    std::string field = "tensor " + PrintableName(tensor.name);
    if (tensor.offset % file.alignment != 0)
      return in.Fail(file.data_offset, field,
                     fmt::format("data offset {} is not aligned to {}", tensor.offset, file.alignment));
    std::optional<uint64_t> end = CheckedAdd<uint64_t>(tensor.offset, sizes[i]);
    if (!end || *end > data_bytes)
      return in.Fail(file.data_offset, field,
                     fmt::format("{} bytes at data offset {} end past the file's {} bytes of data: truncated?",
                                 sizes[i], tensor.offset, data_bytes));
    tensor.offset += file.data_offset;
    tensor.data = file.bytes.subspan(tensor.offset, sizes[i]);
  }
  return {};
}

Result<void> RefuseOverlaps(const Reader& in, const GgufFile& file) {
  std::vector<const GgufTensor*> order;
  for (const GgufTensor& tensor : file.tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor &before = *order[i - 1], &tensor = *order[i];
    if (before.offset + before.data.size() > tensor.offset)
      return in.Fail(tensor.offset, "tensor " + PrintableName(tensor.name),
                     fmt::format("its data overlaps that of {}", PrintableName(before.name)));
  }
  return {};
}

Result<void> ReadAlignment(const Reader& in, GgufFile& file) {
  ASSIGN_OR_RETURN(auto alignment, file.Int("general.alignment", 0, INT64_MAX));
  if (!alignment) return {};
  file.alignment = static_cast<uint64_t>(*alignment);
  if (file.alignment < 8 || file.alignment > kAlignmentMax || !std::has_single_bit(file.alignment))
    return in.Fail(file.metadata.at("general.alignment").offset, "general.alignment",
                   fmt::format("{} is not a power of two from 8 to {}", file.alignment, kAlignmentMax));
  return {};
}

}  // namespace

std::string_view Name(GgufKind kind) {
  return kKindNames[static_cast<size_t>(kind)];
}

Result<GgufFile> ParseGguf(std::span<const std::byte> bytes, std::string_view label) {
  Reader in(bytes, label);
  GgufFile file{.label = std::string(label), .bytes = bytes};
  ASSIGN_OR_RETURN(auto magic, in.Take(4, "magic"));
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) return in.Fail(0, "magic", "not a GGUF file");
  ASSIGN_OR_RETURN(file.version, in.Number<uint32_t>("version"));
  if (file.version == 0 || (file.version & 0xffff) == 0)
    return in.Fail(4, "version", "a big-endian file is not supported; convert it");
  if (file.version < 2 || file.version > 3)
    return in.Fail(4, "version", fmt::format("{} is not supported (2 and 3 are)", file.version));
  ASSIGN_OR_RETURN(uint64_t tensor_count, in.Number<uint64_t>("tensor_count"));
  ASSIGN_OR_RETURN(uint64_t metadata_count, in.Number<uint64_t>("metadata_kv_count"));
  // The least that an entry takes: a name's length and a byte, its kinds and numbers.
  if (tensor_count > in.left() / (8 + 1 + 4 + 8 + 4 + 8))
    return in.Fail(8, "tensor_count", fmt::format("{} tensors do not fit {} bytes", tensor_count, in.left()));
  if (metadata_count > in.left() / (8 + 1 + 4 + 1))
    return in.Fail(16, "metadata_kv_count", fmt::format("{} keys do not fit {} bytes", metadata_count, in.left()));
  RETURN_IF_ERROR(ReadMetadata(in, metadata_count, file));
  RETURN_IF_ERROR(ReadAlignment(in, file));

  std::vector<uint64_t> sizes;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    uint64_t start = in.position();
    GgufTensor tensor;
    ASSIGN_OR_RETURN(uint64_t size, ReadTensor(in, i, tensor));
    if (!file.tensor_index.emplace(tensor.name, i).second)
      return in.Fail(start, "tensor " + PrintableName(tensor.name), "the name occurs twice");
    sizes.push_back(size);
    file.tensors.push_back(std::move(tensor));
  }
  file.data_offset = RoundUp(in.position(), file.alignment);
  RETURN_IF_ERROR(PlaceTensors(in, sizes, file));
  RETURN_IF_ERROR(RefuseOverlaps(in, file));
  return file;
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  auto found = tensor_index.find(name);
  return found == tensor_index.end() ? nullptr : &tensors[found->second];
}

Error GgufFile::FieldError(std::string_view key, std::string_view message) const {
  auto found = metadata.find(key);
  std::string where = found == metadata.end() ? label : fmt::format("{}: byte {}", label, found->second.offset);
  return Error(Code::kInvalid, fmt::format("{}: {}: {}", where, PrintableName(key), message), std::string(key));
}

namespace {

template <class T>
T Load(const GgufValue& value) {
  T out;
  std::memcpy(&out, value.data.data(), sizeof(T));
  return out;
}

// A scalar integer of any width; nullopt for another kind, or a u64 above INT64_MAX (which no field of ours reaches).
std::optional<int64_t> AsInt(const GgufValue& value) {
  switch (value.kind) {
    case GgufKind::kU8: return Load<uint8_t>(value);
    case GgufKind::kI8: return Load<int8_t>(value);
    case GgufKind::kU16: return Load<uint16_t>(value);
    case GgufKind::kI16: return Load<int16_t>(value);
    case GgufKind::kU32: return Load<uint32_t>(value);
    case GgufKind::kI32: return Load<int32_t>(value);
    case GgufKind::kI64: return Load<int64_t>(value);
    case GgufKind::kU64: {
      auto wide = Load<uint64_t>(value);
      return static_cast<int64_t>(std::min<uint64_t>(wide, INT64_MAX));
    }
    default: return std::nullopt;
  }
}

}  // namespace

Result<std::optional<int64_t>> GgufFile::Int(std::string_view key, int64_t low, int64_t high) const {
  auto found = metadata.find(key);
  if (found == metadata.end()) return std::optional<int64_t>();
  std::optional<int64_t> number = AsInt(found->second);
  if (!number) return FieldError(key, fmt::format("an integer is wanted, got {}", Name(found->second.kind)));
  if (*number < low || *number > high)
    return FieldError(key, fmt::format("{} is outside [{}, {}]", *number, low, high));
  return number;
}

Result<std::optional<double>> GgufFile::Number(std::string_view key) const {
  auto found = metadata.find(key);
  if (found == metadata.end()) return std::optional<double>();
  const GgufValue& value = found->second;
  if (value.kind == GgufKind::kF32) return std::optional<double>(Load<float>(value));
  if (value.kind == GgufKind::kF64) return std::optional<double>(Load<double>(value));
  std::optional<int64_t> number = AsInt(value);
  if (!number) return FieldError(key, fmt::format("a number is wanted, got {}", Name(value.kind)));
  return std::optional<double>(static_cast<double>(*number));
}

Result<std::optional<bool>> GgufFile::Bool(std::string_view key) const {
  auto found = metadata.find(key);
  if (found == metadata.end()) return std::optional<bool>();
  if (found->second.kind != GgufKind::kBool)
    return FieldError(key, fmt::format("a bool is wanted, got {}", Name(found->second.kind)));
  return std::optional<bool>(found->second.data[0] != std::byte{0});
}

Result<std::optional<std::string_view>> GgufFile::String(std::string_view key) const {
  auto found = metadata.find(key);
  if (found == metadata.end()) return std::optional<std::string_view>();
  const GgufValue& value = found->second;
  if (value.kind != GgufKind::kString)
    return FieldError(key, fmt::format("a string is wanted, got {}", Name(value.kind)));
  return std::optional<std::string_view>(
      std::string_view(reinterpret_cast<const char*>(value.data.data()), value.data.size()));
}

Result<const GgufValue*> GgufFile::Array(std::string_view key, GgufKind element) const {
  auto found = metadata.find(key);
  if (found == metadata.end()) return nullptr;
  const GgufValue& value = found->second;
  if (value.kind != GgufKind::kArray || value.element != element)
    return FieldError(key, fmt::format("an array of {} is wanted, got {}{}", Name(element),
                                       value.kind == GgufKind::kArray ? "an array of " : "",
                                       Name(value.kind == GgufKind::kArray ? value.element : value.kind)));
  return &value;
}

std::vector<std::string_view> GgufStrings(const GgufValue& array) {
  CHECK(array.kind == GgufKind::kArray && array.element == GgufKind::kString);
  std::vector<std::string_view> out;
  out.reserve(array.count);
  const std::byte* at = array.data.data();
  for (uint64_t i = 0; i < array.count; ++i) {
    uint64_t size;
    std::memcpy(&size, at, 8);
    out.emplace_back(reinterpret_cast<const char*>(at + 8), size);
    at += 8 + size;
  }
  return out;
}

}  // namespace ekiben
