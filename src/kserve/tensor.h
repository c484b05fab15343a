// Tensors as KServe's inference protocol (v2) carries them, whatever the wire: HTTP's JSON, HTTP's binary extension and
// gRPC all become these, and these become any of them.
// Source: Open Inference Protocol v2, Triton's binary tensor data extension.
// Thread: plain values.
#pragma once
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/result.h"

namespace ekiben::kserve {

enum class DataType : uint8_t {
  kBool,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kFp16,
  kFp32,
  kFp64,
  kBytes,
  kBf16
};
std::string_view DataTypeName(DataType type);  // "BOOL", ..., "BYTES", "BF16"
std::optional<DataType> DataTypeFromName(std::string_view name);
size_t ElementBytes(DataType type);  // of kBytes: 0, an element has a length of its own

// Bytes of a registered region of shared memory (kserve/shared_memory.h).
struct RegionSpan {
  std::string region;
  uint64_t offset = 0, byte_size = 0;
};

struct Tensor {
  std::string name;
  DataType type = DataType::kBytes;
  std::vector<int64_t> shape;
  // Row-major, little-endian, as the protocol's raw form: BOOL one byte, BYTES a 4-byte length before each element.
  std::string data;
  // Where its bytes are, when they are not in `data`: of an input until the core has read them, of an output that the
  // core has written there.
  std::optional<RegionSpan> region = std::nullopt;
};

// The number of elements of a shape; an error for a negative size or one whose bytes would not fit in memory.
Result<int64_t> ElementCount(const std::vector<int64_t>& shape);
// That `data` holds exactly the shape's elements (kBytes: walks the lengths). The error names tensor, bytes, wanted.
Result<void> CheckData(const Tensor& tensor);

// kBytes: the elements as views into `data`. REQUIRES: CheckData was ok.
std::vector<std::string_view> BytesElements(const Tensor& tensor);
void AppendBytesElement(std::string& data, std::string_view element);

Tensor BytesTensor(std::string name, std::vector<int64_t> shape, const std::vector<std::string>& elements);
Tensor Int32Tensor(std::string name, std::vector<int64_t> shape, const std::vector<int32_t>& elements);
Tensor Int64Tensor(std::string name, std::vector<int64_t> shape, const std::vector<int64_t>& elements);
Tensor Fp32Tensor(std::string name, std::vector<int64_t> shape, const std::vector<float>& elements);

// False of what is no floating-point number.
template <class T>
bool IsNan(T value) {
  if constexpr (std::is_floating_point_v<T>) return std::isnan(value);
  return false;
}

}  // namespace ekiben::kserve
