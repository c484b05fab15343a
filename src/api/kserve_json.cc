#include "api/kserve_json.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "api/json_text.h"

namespace ekiben::api {
namespace {

using kserve::DataType;
using kserve::Tensor;

Error ElementError(const Tensor& tensor, size_t index, std::string_view what) {
  return Error(Code::kInvalid,
               fmt::format("input '{}': element {} is {}, {} is wanted", tensor.name, index, what,
                           kserve::DataTypeName(tensor.type)),
               tensor.name);
}

template <class T>
bool Push(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  return true;
}

template <class T>
bool PushInteger(std::string& out, const json::value& value) {
  if (value.is_int64()) return std::in_range<T>(value.get_int64()) && Push(out, static_cast<T>(value.get_int64()));
  if (value.is_uint64()) return std::in_range<T>(value.get_uint64()) && Push(out, static_cast<T>(value.get_uint64()));
  // A whole number that was written with a fraction of zero.
  if (!value.is_double()) return false;
  double number = value.get_double();
  if (std::nearbyint(number) != number || std::abs(number) > 9e15) return false;
  return std::in_range<T>(static_cast<int64_t>(number)) && Push(out, static_cast<T>(static_cast<int64_t>(number)));
}

template <class T>
bool PushFloat(std::string& out, const json::value& value) {
  if (!value.is_number()) return false;
  double number = value.to_number<double>();
  if (std::abs(number) > static_cast<double>(std::numeric_limits<T>::max())) return false;
  return Push(out, static_cast<T>(number));
}

bool PushElement(const json::value& value, Tensor& tensor) {
  std::string& out = tensor.data;
  switch (tensor.type) {
    case DataType::kBool: return value.is_bool() && Push(out, static_cast<uint8_t>(value.get_bool()));
    case DataType::kUint8: return PushInteger<uint8_t>(out, value);
    case DataType::kUint16: return PushInteger<uint16_t>(out, value);
    case DataType::kUint32: return PushInteger<uint32_t>(out, value);
    case DataType::kUint64: return PushInteger<uint64_t>(out, value);
    case DataType::kInt8: return PushInteger<int8_t>(out, value);
    case DataType::kInt16: return PushInteger<int16_t>(out, value);
    case DataType::kInt32: return PushInteger<int32_t>(out, value);
    case DataType::kInt64: return PushInteger<int64_t>(out, value);
    case DataType::kFp32: return PushFloat<float>(out, value);
    case DataType::kFp64: return PushFloat<double>(out, value);
    case DataType::kBytes:
      if (!value.is_string()) return false;
      kserve::AppendBytesElement(out, value.get_string());
      return true;
    case DataType::kFp16:
    case DataType::kBf16: return false;
  }
  return false;
}

// Leaves in order. Depth is bounded by the parser.
Result<void> PushLeaves(const json::value& value, int64_t wanted, int64_t& count, Tensor& tensor) {
  if (value.is_array()) {
    for (const json::value& element : value.get_array()) RETURN_IF_ERROR(PushLeaves(element, wanted, count, tensor));
    return {};
  }
  if (count == wanted)
    return Error(Code::kInvalid,
                 fmt::format("input '{}': data has over {} elements, those of its shape", tensor.name, wanted),
                 tensor.name);
  if (!PushElement(value, tensor))
    return ElementError(tensor, static_cast<size_t>(count), value.is_number() ? "out of range" : KindName(value));
  ++count;
  return {};
}

template <class T>
T At(const Tensor& tensor, size_t index) {
  T out;
  std::memcpy(&out, tensor.data.data() + index * sizeof(T), sizeof(T));
  return out;
}

void AppendElement(std::string& out, const Tensor& tensor, size_t i) {
  auto into = std::back_inserter(out);
  switch (tensor.type) {
    case DataType::kBool: out.append(tensor.data[i] != 0 ? "true" : "false"); break;
    case DataType::kUint8: AppendJsonInt(out, At<uint8_t>(tensor, i)); break;
    case DataType::kUint16: AppendJsonInt(out, At<uint16_t>(tensor, i)); break;
    case DataType::kUint32: AppendJsonInt(out, At<uint32_t>(tensor, i)); break;
    case DataType::kUint64: fmt::format_to(into, "{}", At<uint64_t>(tensor, i)); break;
    case DataType::kInt8: AppendJsonInt(out, At<int8_t>(tensor, i)); break;
    case DataType::kInt16: AppendJsonInt(out, At<int16_t>(tensor, i)); break;
    case DataType::kInt32: AppendJsonInt(out, At<int32_t>(tensor, i)); break;
    case DataType::kInt64: AppendJsonInt(out, At<int64_t>(tensor, i)); break;
    case DataType::kFp32: AppendJsonFloat(out, At<float>(tensor, i)); break;
    case DataType::kFp64: AppendJsonFloat(out, At<double>(tensor, i)); break;
    case DataType::kBytes:
    case DataType::kFp16:
    case DataType::kBf16: CHECK(false, "no JSON form: {}", tensor.name);
  }
}

}  // namespace

Result<void> DataFromJson(const json::value& data, Tensor& tensor) {
  if (tensor.type == DataType::kFp16 || tensor.type == DataType::kBf16)
    return Error(Code::kInvalid,
                 fmt::format("input '{}': {} has no JSON form; send it as binary data", tensor.name,
                             kserve::DataTypeName(tensor.type)),
                 tensor.name);
  auto wanted = kserve::ElementCount(tensor.shape);
  if (!wanted.ok()) return std::move(wanted).error().Within("input '" + tensor.name + "'");
  if (!data.is_array() && !tensor.shape.empty())
    return Error(Code::kInvalid, fmt::format("input '{}': data is {}, an array is wanted", tensor.name, KindName(data)),
                 tensor.name);
  int64_t count = 0;
  RETURN_IF_ERROR(PushLeaves(data, *wanted, count, tensor));
  if (count == *wanted) return {};
  return Error(Code::kInvalid,
               fmt::format("input '{}': data has {} elements, its shape {}", tensor.name, count, *wanted), tensor.name);
}

Result<Tensor> TensorFromJson(std::string name, DataType type, const json::value& data) {
  int64_t size = data.is_array() ? static_cast<int64_t>(data.get_array().size()) : 1;
  Tensor tensor{std::move(name), type, {size}, {}};
  if (data.is_array())
    for (const json::value& element : data.get_array())
      if (element.is_array() || element.is_object())
        return Error(Code::kInvalid, fmt::format("{}: a scalar or a flat array is wanted", tensor.name), tensor.name);
  if (data.is_array())
    RETURN_IF_ERROR(DataFromJson(data, tensor));
  else
    RETURN_IF_ERROR(DataFromJson(json::array{data}, tensor));
  return tensor;
}

void AppendDataJson(std::string& out, const Tensor& tensor, bool scalar_alone) {
  if (tensor.type == DataType::kBytes) {
    auto elements = kserve::BytesElements(tensor);
    bool alone = scalar_alone && elements.size() == 1;
    if (!alone) out.push_back('[');
    for (size_t i = 0; i < elements.size(); ++i) {
      if (i > 0) out.push_back(',');
      AppendJsonString(out, ReplaceInvalidUtf8(elements[i]));
    }
    if (!alone) out.push_back(']');
    return;
  }
  size_t count = tensor.data.size() / kserve::ElementBytes(tensor.type);
  bool alone = scalar_alone && count == 1;
  if (!alone) out.push_back('[');
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) out.push_back(',');
    AppendElement(out, tensor, i);
  }
  if (!alone) out.push_back(']');
}

Result<kserve::ParameterValue> ParameterFromJson(std::string_view name, const json::value& value) {
  if (value.is_bool()) return kserve::ParameterValue(value.get_bool());
  if (value.is_int64()) return kserve::ParameterValue(int64_t{value.get_int64()});
  if (value.is_uint64()) return kserve::ParameterValue(uint64_t{value.get_uint64()});
  if (value.is_double()) return kserve::ParameterValue(value.get_double());
  if (value.is_string()) return kserve::ParameterValue(std::string(value.get_string()));
  return Error(Code::kInvalid,
               fmt::format("parameter '{}': a string, a number or a boolean is wanted, got {}", name.substr(0, 100),
                           KindName(value)),
               std::string(name));
}

Result<kserve::Parameters> ParametersFromJson(const json::object& object) {
  kserve::Parameters out;
  for (const auto& member : object) {
    ASSIGN_OR_RETURN(kserve::ParameterValue value, ParameterFromJson(member.key(), member.value()));
    out.insert_or_assign(std::string(member.key()), std::move(value));
  }
  return out;
}

void AppendParameterJson(std::string& out, const kserve::ParameterValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) out.append(*flag ? "true" : "false");
  if (const auto* number = std::get_if<int64_t>(&value)) AppendJsonInt(out, *number);
  if (const auto* number = std::get_if<uint64_t>(&value)) fmt::format_to(std::back_inserter(out), "{}", *number);
  if (const auto* number = std::get_if<double>(&value)) AppendJsonFloat(out, *number);
  if (const auto* text = std::get_if<std::string>(&value)) AppendJsonString(out, ReplaceInvalidUtf8(*text));
}

}  // namespace ekiben::api
