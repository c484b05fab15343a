#include "api/kserve_body.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "api/json_text.h"
#include "api/kserve_json.h"

namespace ekiben::api {
namespace {

using kserve::Tensor;

constexpr size_t kTensorsMax = 256;
constexpr size_t kDimensionsMax = 16;

Error Invalid(const std::string& field, const std::string& message) {
  return Error(Code::kInvalid, message, field);
}

Result<json::object> ParseObject(std::string_view text, size_t bytes_max) {
  ASSIGN_OR_RETURN(json::value value, ParseJson(text, {.bytes_max = bytes_max}));
  if (!value.is_object()) return Invalid("", fmt::format("JSON: an object is wanted, got {}", KindName(value)));
  return std::move(value.get_object());
}

// The start of the words is Triton's.
Result<std::string> IdOf(const json::object& object) {
  const json::value* id = object.if_contains("id");
  if (id == nullptr || id->is_null()) return std::string();
  if (!id->is_string())
    return Invalid("id", fmt::format("Unable to parse 'id': a string is wanted, got {}", KindName(*id)));
  return std::string(id->get_string());
}

Result<kserve::Parameters> ParametersOf(const json::object& object) {
  ASSIGN_OR_RETURN(const json::object* parameters, GetObject(object, "parameters"));
  if (parameters == nullptr) return kserve::Parameters();
  return ParametersFromJson(*parameters);
}

Result<Tensor> TensorHead(const json::object& object) {
  ASSIGN_OR_RETURN(auto name, GetString(object, "name"));
  if (!name) return Invalid("name", "inputs: one has no name");
  ASSIGN_OR_RETURN(auto type_name, GetString(object, "datatype"));
  auto type = kserve::DataTypeFromName(type_name.value_or(""));
  if (!type)
    return Invalid(*name, fmt::format("input '{}': datatype '{}' is not known", *name, type_name.value_or("")));
  ASSIGN_OR_RETURN(const json::array* sizes, GetArray(object, "shape"));
  if (sizes == nullptr) return Invalid(*name, fmt::format("input '{}': shape is missing", *name));
  if (sizes->size() > kDimensionsMax)
    return Invalid(*name,
                   fmt::format("input '{}': {} dimensions, the limit is {}", *name, sizes->size(), kDimensionsMax));
  Tensor out{*std::move(name), *type, {}, {}};
  for (const json::value& size : *sizes) {
    if (!size.is_int64() || size.get_int64() < 0)
      return Invalid(out.name,
                     fmt::format("input '{}': shape {} is no list of sizes", out.name, json::serialize(*sizes)));
    out.shape.push_back(size.get_int64());
  }
  return out;
}

// Takes the next `binary_data_size` bytes of `blobs`, or the JSON data.
Result<Tensor> ReadInput(const json::value& value, std::string_view& blobs) {
  if (!value.is_object()) return Invalid("inputs", fmt::format("inputs: an object is wanted, got {}", KindName(value)));
  const json::object& object = value.get_object();
  ASSIGN_OR_RETURN(Tensor tensor, TensorHead(object));
  ASSIGN_OR_RETURN(kserve::Parameters parameters, ParametersOf(object));
  const json::value* data = object.if_contains("data");
  ASSIGN_OR_RETURN(tensor.region, kserve::RegionSpanOf("input", tensor.name, parameters));
  if (tensor.region) {
    if (data != nullptr || parameters.contains("binary_data_size"))
      return Invalid(tensor.name, fmt::format("input '{}': has both data and shared_memory_region", tensor.name));
    return tensor;
  }
  auto size = parameters.find("binary_data_size");
  if (size == parameters.end()) {
    if (data == nullptr) return Invalid(tensor.name, fmt::format("input '{}': data is missing", tensor.name));
    RETURN_IF_ERROR(DataFromJson(*data, tensor));
    return tensor;
  }
  if (data != nullptr)
    return Invalid(tensor.name, fmt::format("input '{}': has both data and binary_data_size", tensor.name));
  const auto* bytes = std::get_if<int64_t>(&size->second);
  if (bytes == nullptr || *bytes < 0 || static_cast<uint64_t>(*bytes) > blobs.size())
    return Invalid(tensor.name, fmt::format("input '{}': binary_data_size is over the {} bytes that are left",
                                            tensor.name, blobs.size()));
  tensor.data = blobs.substr(0, static_cast<size_t>(*bytes));
  blobs.remove_prefix(static_cast<size_t>(*bytes));
  RETURN_IF_ERROR(kserve::CheckData(tensor));
  return tensor;
}

Result<bool> Flag(const kserve::Parameters& parameters, const char* name, bool otherwise) {
  auto found = parameters.find(name);
  if (found == parameters.end()) return otherwise;
  const auto* flag = std::get_if<bool>(&found->second);
  if (flag == nullptr) return Invalid(name, fmt::format("parameter '{}': true or false is wanted", name));
  return *flag;
}

Result<void> ReadOutput(const json::value& value, InferBody& out) {
  if (!value.is_object())
    return Invalid("outputs", fmt::format("outputs: an object is wanted, got {}", KindName(value)));
  ASSIGN_OR_RETURN(auto name, GetString(value.get_object(), "name"));
  if (!name) return Invalid("outputs", "outputs: one has no name");
  ASSIGN_OR_RETURN(kserve::Parameters parameters, ParametersOf(value.get_object()));
  ASSIGN_OR_RETURN(bool binary, Flag(parameters, "binary_data", out.binary_all));
  out.binary.emplace_back(*name, binary);
  out.request.outputs.push_back({*std::move(name), std::move(parameters)});
  return {};
}

void AppendMember(std::string& out, std::string_view name) {
  out.push_back(',');
  AppendJsonString(out, ReplaceInvalidUtf8(name));
  out.push_back(':');
}

void AppendHead(std::string& out, const kserve::InferResponse& response) {
  out.append("{\"model_name\":");
  AppendJsonString(out, ReplaceInvalidUtf8(response.model_name));
  AppendMember(out, "model_version");
  AppendJsonString(out, response.model_version);
  if (response.id.empty()) return;
  AppendMember(out, "id");
  AppendJsonString(out, ReplaceInvalidUtf8(response.id));
}

}  // namespace

bool InferBody::Binary(const std::string& output) const {
  for (const auto& [name, is_binary] : binary)
    if (name == output) return is_binary;
  return binary_all;
}

Result<InferBody> ParseInferBody(std::string_view body, std::optional<size_t> json_bytes, size_t bytes_max) {
  if (json_bytes && *json_bytes > body.size())
    return Invalid(
        "inference-header-content-length",
        fmt::format("inference-header-content-length: {} is over the body's {} bytes", *json_bytes, body.size()));
  std::string_view blobs = json_bytes ? body.substr(*json_bytes) : std::string_view();
  ASSIGN_OR_RETURN(json::object object, ParseObject(body.substr(0, json_bytes.value_or(body.size())), bytes_max));
  InferBody out;
  ASSIGN_OR_RETURN(out.request.id, IdOf(object));
  ASSIGN_OR_RETURN(out.request.parameters, ParametersOf(object));
  ASSIGN_OR_RETURN(out.binary_all, Flag(out.request.parameters, "binary_data_output", false));
  ASSIGN_OR_RETURN(const json::array* inputs, GetArray(object, "inputs"));
  if (inputs == nullptr)
    return Invalid("inputs",
                   "Unable to parse 'inputs': attempt to access non-existing object "
                   "member 'inputs'");
  ASSIGN_OR_RETURN(const json::array* outputs, GetArray(object, "outputs"));
  if (inputs->size() > kTensorsMax || (outputs != nullptr && outputs->size() > kTensorsMax))
    return Invalid("inputs", fmt::format("over {} tensors", kTensorsMax));
  for (const json::value& input : *inputs) {
    ASSIGN_OR_RETURN(Tensor tensor, ReadInput(input, blobs));
    out.request.inputs.push_back(std::move(tensor));
  }
  if (!blobs.empty())
    return Invalid("inputs", fmt::format("unexpected additional input data for model: {} bytes", blobs.size()));
  if (outputs != nullptr)
    for (const json::value& output : *outputs) RETURN_IF_ERROR(ReadOutput(output, out));
  return out;
}

Result<kserve::InferRequest> ParseFlatBody(std::string_view body, const std::vector<kserve::TensorMetadata>& inputs,
                                           size_t bytes_max) {
  ASSIGN_OR_RETURN(json::object object, ParseObject(body, bytes_max));
  kserve::InferRequest out;
  ASSIGN_OR_RETURN(out.id, IdOf(object));
  auto add = [&](std::string_view key, const json::value& value) -> Result<void> {
    if (value.is_null()) return {};
    auto input = std::find_if(inputs.begin(), inputs.end(), [&](const auto& i) { return i.name == key; });
    if (input == inputs.end()) {
      ASSIGN_OR_RETURN(kserve::ParameterValue parameter, ParameterFromJson(key, value));
      out.parameters.insert_or_assign(std::string(key), std::move(parameter));
      return {};
    }
    ASSIGN_OR_RETURN(Tensor tensor, TensorFromJson(input->name, input->type, value));
    out.inputs.push_back(std::move(tensor));
    return {};
  };
  for (const auto& member : object) {
    if (member.key() == "id") continue;
    if (member.key() == "parameters" && !member.value().is_null()) {
      if (!member.value().is_object())
        return Invalid("parameters", fmt::format("Expected JSON object for keyword: 'parameters', got {}",
                                                 KindName(member.value())));
      for (const auto& nested : member.value().get_object()) RETURN_IF_ERROR(add(nested.key(), nested.value()));
      continue;
    }
    RETURN_IF_ERROR(add(member.key(), member.value()));
  }
  return out;
}

Result<InferAnswer> WriteInferAnswer(const kserve::InferResponse& response, const InferBody& asked) {
  InferAnswer out;
  AppendHead(out.body, response);
  if (!response.parameters.empty()) {
    out.body.append(",\"parameters\":{");
    bool first = true;
    for (const auto& [name, value] : response.parameters) {
      if (!std::exchange(first, false)) out.body.push_back(',');
      AppendJsonString(out.body, ReplaceInvalidUtf8(name));
      out.body.push_back(':');
      AppendParameterJson(out.body, value);
    }
    out.body.push_back('}');
  }
  out.body.append(",\"outputs\":[");
  std::string blobs;
  for (size_t i = 0; i < response.outputs.size(); ++i) {
    const Tensor& tensor = response.outputs[i];
    out.body.append(i > 0 ? ",{\"name\":" : "{\"name\":");
    AppendJsonString(out.body, tensor.name);
    fmt::format_to(std::back_inserter(out.body), ",\"datatype\":\"{}\",\"shape\":[{}]",
                   kserve::DataTypeName(tensor.type), fmt::join(tensor.shape, ","));
    if (tensor.region) {
      out.body.append(",\"parameters\":{\"shared_memory_region\":");
      AppendJsonString(out.body, ReplaceInvalidUtf8(tensor.region->region));
      fmt::format_to(std::back_inserter(out.body), ",\"shared_memory_offset\":{},\"shared_memory_byte_size\":{}}}",
                     tensor.region->offset, tensor.region->byte_size);
    } else if (asked.Binary(tensor.name)) {
      out.binary = true;
      fmt::format_to(std::back_inserter(out.body), ",\"parameters\":{{\"binary_data_size\":{}}}", tensor.data.size());
      blobs.append(tensor.data);
    } else if (tensor.type == kserve::DataType::kFp16 || tensor.type == kserve::DataType::kBf16) {
      return Error(Code::kInvalid,
                   fmt::format("output '{}': {} has no JSON form; ask for binary_data", tensor.name,
                               kserve::DataTypeName(tensor.type)),
                   tensor.name);
    } else {
      out.body.append(",\"data\":");
      AppendDataJson(out.body, tensor, /*scalar_alone=*/false);
    }
    out.body.push_back('}');
  }
  out.body.append("]}");
  out.json_bytes = out.body.size();
  out.body.append(blobs);
  return out;
}

void AppendGenerateAnswer(std::string& out, const kserve::InferResponse& response) {
  AppendHead(out, response);
  for (const auto& [name, value] : response.parameters) {
    AppendMember(out, name);
    AppendParameterJson(out, value);
  }
  for (const Tensor& tensor : response.outputs) {
    AppendMember(out, tensor.name);
    AppendDataJson(out, tensor, /*scalar_alone=*/true);
  }
  out.push_back('}');
}

}  // namespace ekiben::api
