#include "kserve/output_forms.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace ekiben::kserve {
namespace {

constexpr int64_t kClassesMax = 1 << 20;

Error Invalid(const std::string& field, std::string message) {
  return Error(Code::kInvalid, std::move(message), field);
}

// The types that this server's outputs have and that can be compared.
bool HasClasses(DataType type) {
  return type == DataType::kInt32 || type == DataType::kInt64 || type == DataType::kFp32;
}

Result<size_t> ClassesOf(const RequestedOutput& output, const TensorSchema& schema) {
  auto found = output.parameters.find("classification");
  if (found == output.parameters.end()) return size_t{0};
  const auto* count = std::get_if<int64_t>(&found->second);
  if (count == nullptr || *count < 0 || *count > kClassesMax)
    return Invalid("classification", fmt::format("output '{}': classification wants a whole number in [0, {}]",
                                                 output.name, kClassesMax));
  if (*count > 0 && !HasClasses(schema.type))
    return Invalid("classification", fmt::format("class result not available for output '{}' due to unsupported type "
                                                 "'{}'",
                                                 output.name, DataTypeName(schema.type)));
  return static_cast<size_t>(*count);
}

// Written as C's %f, which Triton's std::to_string is; a number without a fraction as it is.
template <class T>
std::string ValueText(T value) {
  if constexpr (std::is_floating_point_v<T>)
    return fmt::format("{:f}", value);
  else
    return fmt::format("{}", value);
}

template <class T>
Tensor BestOf(const Tensor& tensor, size_t count) {
  std::vector<T> values(tensor.data.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  size_t rows = tensor.shape.size() > 1 ? static_cast<size_t>(tensor.shape[0]) : 1;
  size_t each = rows > 0 ? values.size() / rows : 0;
  count = std::min(count, each);
  std::vector<std::string> classes;
  std::vector<size_t> order(each);
  for (size_t row = 0; row < rows; ++row) {
    const T* own = values.data() + row * each;
    std::iota(order.begin(), order.end(), size_t{0});
    // A NaN is under every number, so that the order is one.
    auto before = [own](size_t a, size_t b) {
      bool a_nan = IsNan(own[a]), b_nan = IsNan(own[b]);
      if (a_nan || b_nan) return a_nan == b_nan ? a < b : b_nan;
      return own[a] != own[b] ? own[a] > own[b] : a < b;
    };
    std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(count), order.end(), before);
    for (size_t i = 0; i < count; ++i) classes.push_back(fmt::format("{}:{}", ValueText(own[order[i]]), order[i]));
  }
  return BytesTensor(tensor.name, {static_cast<int64_t>(rows), static_cast<int64_t>(count)}, classes);
}

}  // namespace

Tensor BestClasses(const Tensor& tensor, size_t count) {
  switch (tensor.type) {
    case DataType::kInt32: return BestOf<int32_t>(tensor, count);
    case DataType::kInt64: return BestOf<int64_t>(tensor, count);
    case DataType::kFp32: return BestOf<float>(tensor, count);
    default: break;
  }
  CHECK(false, "no classes of {}", DataTypeName(tensor.type));
  return {};
}

Result<OutputForms> OutputForms::Create(const std::vector<RequestedOutput>& outputs, const ModelSchema& schema,
                                        const SharedMemory& memory) {
  OutputForms out;
  out.memory_ = &memory;
  for (const RequestedOutput& output : outputs) {
    Form form;
    const TensorSchema* known = schema.Output(output.name);
    CHECK(known != nullptr, "{}", output.name);
    ASSIGN_OR_RETURN(form.classes, ClassesOf(output, *known));
    ASSIGN_OR_RETURN(form.region, RegionSpanOf("output", output.name, output.parameters));
    if (form.region && form.classes > 0)
      return Invalid("shared_memory_region",
                     fmt::format("output '{}': shared memory can't be set on classification output", output.name));
    if (form.region) RETURN_IF_ERROR(memory.Check(*form.region));
    if (form.region || form.classes > 0) out.forms_.emplace(output.name, std::move(form));
  }
  return out;
}

Result<void> OutputForms::Apply(std::vector<Tensor>& outputs) const {
  if (forms_.empty()) return {};
  for (Tensor& tensor : outputs) {
    auto form = forms_.find(tensor.name);
    if (form == forms_.end()) continue;
    if (form->second.classes > 0) tensor = BestClasses(tensor, form->second.classes);
    if (form->second.region) RETURN_IF_ERROR(memory_->Store(*form->second.region, tensor));
  }
  return {};
}

}  // namespace ekiben::kserve
