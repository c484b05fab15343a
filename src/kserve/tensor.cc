#include "kserve/tensor.h"

#include <fmt/format.h>

#include <array>
#include <cstring>

#include "base/arithmetic.h"

namespace ekiben::kserve {
namespace {

struct TypeFacts {
  std::string_view name;
  size_t bytes;
};
// By DataType.
constexpr std::array<TypeFacts, 14> kTypes = {{{"BOOL", 1},
                                               {"UINT8", 1},
                                               {"UINT16", 2},
                                               {"UINT32", 4},
                                               {"UINT64", 8},
                                               {"INT8", 1},
                                               {"INT16", 2},
                                               {"INT32", 4},
                                               {"INT64", 8},
                                               {"FP16", 2},
                                               {"FP32", 4},
                                               {"FP64", 8},
                                               {"BYTES", 0},
                                               {"BF16", 2}}};

// No tensor of a request or an answer is near this; what is over it is a lie about a shape.
constexpr int64_t kElementsMax = int64_t{1} << 33;
constexpr size_t kDimensionsMax = 16;

uint32_t LengthAt(std::string_view data, size_t at) {
  uint32_t length;
  std::memcpy(&length, data.data() + at, sizeof(length));
  return length;
}

Result<void> CheckBytesData(const Tensor& tensor, int64_t count) {
  size_t at = 0, size = tensor.data.size();
  for (int64_t i = 0; i < count; ++i) {
    if (size - at < sizeof(uint32_t) || size - at - sizeof(uint32_t) < LengthAt(tensor.data, at))
      return Error(Code::kInvalid,
                   fmt::format("input '{}': its {} bytes end inside element {} of {}", tensor.name, size, i, count),
                   tensor.name);
    at += sizeof(uint32_t) + LengthAt(tensor.data, at);
  }
  if (at == size) return {};
  return Error(Code::kInvalid,
               fmt::format("input '{}': {} bytes follow its {} elements", tensor.name, size - at, count), tensor.name);
}

template <class T>
Tensor FixedTensor(std::string name, DataType type, std::vector<int64_t> shape, const std::vector<T>& elements) {
  Tensor out{std::move(name), type, std::move(shape), {}};
  out.data.assign(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(T));
  return out;
}

}  // namespace

std::string_view DataTypeName(DataType type) {
  return kTypes[static_cast<size_t>(type)].name;
}

std::optional<DataType> DataTypeFromName(std::string_view name) {
  for (size_t i = 0; i < kTypes.size(); ++i)
    if (kTypes[i].name == name) return static_cast<DataType>(i);
  return std::nullopt;
}

size_t ElementBytes(DataType type) {
  return kTypes[static_cast<size_t>(type)].bytes;
}

Result<int64_t> ElementCount(const std::vector<int64_t>& shape) {
  if (shape.size() > kDimensionsMax)
    return Error(Code::kInvalid, fmt::format("shape: {} dimensions, the limit is {}", shape.size(), kDimensionsMax),
                 "shape");
  int64_t count = 1;
  bool empty = false;
  for (int64_t size : shape) {
    if (size < 0) return Error(Code::kInvalid, fmt::format("shape: {} is negative", size), "shape");
    empty = empty || size == 0;
    if (size == 0) continue;  // the others are bounded all the same
    auto product = CheckedMul(count, size);
    if (!product || *product > kElementsMax)
      return Error(Code::kInvalid, fmt::format("shape: over {} elements", kElementsMax), "shape");
    count = *product;
  }
  return empty ? 0 : count;
}

Result<void> CheckData(const Tensor& tensor) {
  auto count = ElementCount(tensor.shape);
  if (!count.ok()) return std::move(count).error().Within("input '" + tensor.name + "'");
  if (tensor.type == DataType::kBytes) return CheckBytesData(tensor, *count);
  auto wanted = static_cast<size_t>(*count) * ElementBytes(tensor.type);
  if (tensor.data.size() == wanted) return {};
  return Error(Code::kInvalid,
               fmt::format("input '{}': {} bytes where {} elements of {} take {}", tensor.name, tensor.data.size(),
                           *count, DataTypeName(tensor.type), wanted),
               tensor.name);
}

std::vector<std::string_view> BytesElements(const Tensor& tensor) {
  std::vector<std::string_view> out;
  std::string_view data = tensor.data;
  for (size_t at = 0; at < data.size();) {
    uint32_t length = LengthAt(data, at);
    out.push_back(data.substr(at + sizeof(length), length));
    at += sizeof(length) + length;
  }
  return out;
}

void AppendBytesElement(std::string& data, std::string_view element) {
  CHECK_LE(element.size(), size_t{UINT32_MAX});
  auto length = static_cast<uint32_t>(element.size());
  data.append(reinterpret_cast<const char*>(&length), sizeof(length));
  data.append(element);
}

Tensor BytesTensor(std::string name, std::vector<int64_t> shape, const std::vector<std::string>& elements) {
  Tensor out{std::move(name), DataType::kBytes, std::move(shape), {}};
  for (const std::string& element : elements) AppendBytesElement(out.data, element);
  return out;
}
Tensor Int32Tensor(std::string name, std::vector<int64_t> shape, const std::vector<int32_t>& elements) {
  return FixedTensor(std::move(name), DataType::kInt32, std::move(shape), elements);
}
Tensor Int64Tensor(std::string name, std::vector<int64_t> shape, const std::vector<int64_t>& elements) {
  return FixedTensor(std::move(name), DataType::kInt64, std::move(shape), elements);
}
Tensor Fp32Tensor(std::string name, std::vector<int64_t> shape, const std::vector<float>& elements) {
  return FixedTensor(std::move(name), DataType::kFp32, std::move(shape), elements);
}

}  // namespace ekiben::kserve
