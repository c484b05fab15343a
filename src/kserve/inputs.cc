#include "kserve/inputs.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace ekiben::kserve {
namespace {

Error Invalid(std::string_view field, std::string message) {
  return Error(Code::kInvalid, std::move(message), std::string(field));
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ","));
}

bool Matches(const std::vector<int64_t>& dims, const int64_t* sizes, size_t count) {
  if (dims.size() != count) return false;
  for (size_t i = 0; i < count; ++i)
    if (dims[i] >= 0 && dims[i] != sizes[i]) return false;
  return true;
}

// What clients send for "none" in a field that they always fill.
bool IsNeutral(const Tensor& tensor) {
  if (tensor.type == DataType::kBytes) {
    auto elements = BytesElements(tensor);
    return std::all_of(elements.begin(), elements.end(), [](std::string_view e) { return e.empty(); });
  }
  bool zeros = std::all_of(tensor.data.begin(), tensor.data.end(), [](char c) { return c == 0; });
  bool minus_ones = tensor.type == DataType::kInt32 &&
                    std::all_of(tensor.data.begin(), tensor.data.end(), [](char c) { return c == '\xff'; });
  return zeros || minus_ones;
}

}  // namespace

Result<Inputs> Inputs::Create(const InferRequest& request, const ModelSchema& schema, int32_t batch_max) {
  Inputs out;
  for (const Tensor& tensor : request.inputs) RETURN_IF_ERROR(out.Add(tensor, schema));
  RETURN_IF_ERROR(out.CheckRequired(schema));
  RETURN_IF_ERROR(out.CheckBatch(batch_max, schema));
  return out;
}

Result<void> Inputs::Add(const Tensor& tensor, const ModelSchema& schema) {
  Given given{&tensor, schema.Input(tensor.name), false, 0, {}};
  if (given.schema == nullptr)
    return Invalid(tensor.name,
                   fmt::format("unexpected inference input '{}' for model '{}'", tensor.name, schema.name));
  if (given_.contains(given.schema->name))
    return Invalid(tensor.name, fmt::format("input '{}' already exists in request", tensor.name));
  if (tensor.type != given.schema->type)
    return Invalid(tensor.name,
                   fmt::format("inference input '{}' data-type is '{}', but model '{}' expects '{}'", tensor.name,
                               DataTypeName(tensor.type), schema.name, DataTypeName(given.schema->type)));
  RETURN_IF_ERROR(CheckData(tensor));
  const auto& dims = given.schema->dims;
  const auto& shape = tensor.shape;
  given.batched = !shape.empty() && Matches(dims, shape.data() + 1, shape.size() - 1);
  if (!given.batched && !Matches(dims, shape.data(), shape.size())) {
    std::vector<int64_t> expected = {-1};
    expected.insert(expected.end(), dims.begin(), dims.end());
    return Invalid(tensor.name, fmt::format("unexpected shape for input '{}' for model '{}'. Expected {}, got {}",
                                            tensor.name, schema.name, ShapeText(expected), ShapeText(shape)));
  }
  if (!given.schema->refusal.empty() && !IsNeutral(tensor))
    return Error(Code::kUnsupported, fmt::format("{}: {}; leave it out", tensor.name, given.schema->refusal),
                 tensor.name);
  given.row_elements = std::accumulate(shape.begin() + (given.batched ? 1 : 0), shape.end(), size_t{1},
                                       [](size_t a, int64_t b) { return a * static_cast<size_t>(b); });
  if (tensor.type == DataType::kBytes) given.texts = BytesElements(tensor);
  given_.emplace(given.schema->name, std::move(given));
  return {};
}

Result<void> Inputs::CheckBatch(int32_t batch_max, const ModelSchema& schema) {
  std::optional<int64_t> batch;
  for (const auto& [name, given] : given_) {
    int64_t own = given.batched ? given.tensor->shape[0] : 1;
    if (batch && *batch != own)
      return Invalid(name, fmt::format("input '{}' batch size does not match other inputs for '{}': {} and {}", name,
                                       schema.name, own, *batch));
    batch = own;
  }
  if (batch && (*batch < 1 || *batch > batch_max))
    return Invalid("batch", fmt::format("inference request batch-size must be within [1, {}] for '{}', got {}",
                                        batch_max, schema.name, *batch));
  batch_ = static_cast<int32_t>(batch.value_or(1));
  return {};
}

// A request to stop another one needs no inputs of its own.
Result<void> Inputs::CheckRequired(const ModelSchema& schema) const {
  if (const Given* stop = Find("stop"); stop != nullptr && !stop->tensor->data.empty() && stop->tensor->data[0] != 0)
    return {};
  std::vector<std::string> got, missing;
  size_t wanted = 0;
  for (const auto& [name, given] : given_) got.push_back(fmt::format("'{}'", name));
  for (const TensorSchema& input : schema.inputs) {
    wanted += input.required;
    if (input.required && !Has(input.name)) missing.push_back(fmt::format("'{}'", input.name));
  }
  if (missing.empty()) return {};
  return Invalid(missing.front().substr(1, missing.front().size() - 2),
                 fmt::format("expected at least {} inputs but got {} inputs for model '{}'. Got input(s) [{}], but "
                             "missing required input(s) [{}]. Please provide all required input(s).",
                             wanted, got.size(), schema.name, fmt::join(got, ","), fmt::join(missing, ",")));
}

const Inputs::Given* Inputs::Find(std::string_view name) const {
  auto found = given_.find(name);
  return found == given_.end() ? nullptr : &found->second;
}

template <class T>
std::vector<T> Inputs::Elements(std::string_view name, int32_t row) const {
  const Given* given = Find(name);
  if (given == nullptr) return {};
  CHECK_EQ(ElementBytes(given->tensor->type), sizeof(T));
  std::vector<T> out(given->row_elements);
  size_t bytes = given->row_elements * sizeof(T);
  if (bytes > 0) std::memcpy(out.data(), given->tensor->data.data() + static_cast<size_t>(row) * bytes, bytes);
  return out;
}

template <class T>
std::optional<T> Inputs::Scalar(std::string_view name, int32_t row) const {
  if constexpr (std::is_same_v<T, bool>) {
    std::vector<uint8_t> elements = Elements<uint8_t>(name, row);
    return elements.empty() ? std::nullopt : std::optional<bool>(elements[0] != 0);
  } else {
    std::vector<T> elements = Elements<T>(name, row);
    return elements.empty() ? std::nullopt : std::optional<T>(elements[0]);
  }
}

std::optional<std::string> Inputs::Text(std::string_view name, int32_t row) const {
  std::vector<std::string> texts = Texts(name, row);
  return texts.empty() ? std::nullopt : std::optional<std::string>(std::move(texts[0]));
}

std::vector<std::string> Inputs::Texts(std::string_view name, int32_t row) const {
  const Given* given = Find(name);
  if (given == nullptr) return {};
  auto first = given->texts.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(row) * given->row_elements);
  return {first, first + static_cast<ptrdiff_t>(given->row_elements)};
}

std::vector<int64_t> Inputs::RowShape(std::string_view name) const {
  const Given* given = Find(name);
  CHECK(given != nullptr, "{}", name);
  const auto& shape = given->tensor->shape;
  return {shape.begin() + (given->batched ? 1 : 0), shape.end()};
}

template std::vector<int32_t> Inputs::Elements<int32_t>(std::string_view, int32_t) const;
template std::vector<float> Inputs::Elements<float>(std::string_view, int32_t) const;
template std::optional<bool> Inputs::Scalar<bool>(std::string_view, int32_t) const;
template std::optional<int32_t> Inputs::Scalar<int32_t>(std::string_view, int32_t) const;
template std::optional<uint64_t> Inputs::Scalar<uint64_t>(std::string_view, int32_t) const;
template std::optional<float> Inputs::Scalar<float>(std::string_view, int32_t) const;

}  // namespace ekiben::kserve
