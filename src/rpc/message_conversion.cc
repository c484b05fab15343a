#include "rpc/message_conversion.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <bit>
#include <boost/json.hpp>
#include <cstring>
#include <limits>

#include "proto/grpc_service.pb.h"

namespace ekiben::rpc {
namespace {

using kserve::DataType;
static_assert(std::endian::native == std::endian::little, "raw tensors are little-endian, and are copied as they are");

using InferParameters = google::protobuf::Map<std::string, inference::InferParameter>;

Result<kserve::Parameters> ParseParameters(const InferParameters& parameters) {
  kserve::Parameters out;
  for (const auto& [name, value] : parameters) {
    switch (value.parameter_choice_case()) {
      case inference::InferParameter::kBoolParam: out[name] = value.bool_param(); break;
      case inference::InferParameter::kInt64Param: out[name] = value.int64_param(); break;
      case inference::InferParameter::kUint64Param: out[name] = value.uint64_param(); break;
      case inference::InferParameter::kDoubleParam: out[name] = value.double_param(); break;
      case inference::InferParameter::kStringParam: out[name] = value.string_param(); break;
      case inference::InferParameter::PARAMETER_CHOICE_NOT_SET:
        return Error(Code::kInvalid, fmt::format("parameters: '{}' has no value", name), name);
    }
  }
  return out;
}

struct SetParameter {
  inference::InferParameter& out;
  void operator()(bool value) const { out.set_bool_param(value); }
  void operator()(int64_t value) const { out.set_int64_param(value); }
  void operator()(uint64_t value) const { out.set_uint64_param(value); }
  void operator()(double value) const { out.set_double_param(value); }
  void operator()(const std::string& value) const { out.set_string_param(value); }
};

Error InputError(const std::string& name, std::string_view what) {
  return Error(Code::kInvalid, fmt::format("input '{}': {}", name, what), name);
}

template <class Stored, class Values>
bool AppendNarrowed(const Values& values, std::string& out) {
  size_t begin = out.size();
  out.resize(begin + sizeof(Stored) * static_cast<size_t>(values.size()));
  char* to = out.data() + begin;
  for (auto value : values) {
    auto stored = static_cast<Stored>(value);
    if (static_cast<decltype(value)>(stored) != value && !kserve::IsNan(value)) return false;  // a NaN is kept
    std::memcpy(to, &stored, sizeof stored);
    to += sizeof stored;
  }
  return true;
}

// The values that are not in the field that `type` has.
int64_t ValuesElsewhere(const inference::InferTensorContents& contents, int own_values) {
  int64_t all = int64_t{contents.bool_contents_size()} + contents.int_contents_size() + contents.int64_contents_size() +
                contents.uint_contents_size() + contents.uint64_contents_size() + contents.fp32_contents_size() +
                contents.fp64_contents_size() + contents.bytes_contents_size();
  return all - own_values;
}

Result<std::string> RawOfContents(const std::string& name, DataType type,
                                  const inference::InferTensorContents& contents) {
  std::string raw;
  int own = 0;
  bool fits = true;
  auto take = [&]<class Stored>(Stored, const auto& values) {
    own = values.size();
    fits = AppendNarrowed<Stored>(values, raw);
  };
  switch (type) {
    case DataType::kBool: take(uint8_t{}, contents.bool_contents()); break;
    case DataType::kInt8: take(int8_t{}, contents.int_contents()); break;
    case DataType::kInt16: take(int16_t{}, contents.int_contents()); break;
    case DataType::kInt32: take(int32_t{}, contents.int_contents()); break;
    case DataType::kInt64: take(int64_t{}, contents.int64_contents()); break;
    case DataType::kUint8: take(uint8_t{}, contents.uint_contents()); break;
    case DataType::kUint16: take(uint16_t{}, contents.uint_contents()); break;
    case DataType::kUint32: take(uint32_t{}, contents.uint_contents()); break;
    case DataType::kUint64: take(uint64_t{}, contents.uint64_contents()); break;
    case DataType::kFp32: take(float{}, contents.fp32_contents()); break;
    case DataType::kFp64: take(double{}, contents.fp64_contents()); break;
    case DataType::kBytes:
      own = contents.bytes_contents_size();
      for (const std::string& element : contents.bytes_contents()) kserve::AppendBytesElement(raw, element);
      break;
    case DataType::kFp16:
    case DataType::kBf16:
      return InputError(name,
                        fmt::format("{} has no typed contents: send raw_input_contents", kserve::DataTypeName(type)));
  }
  if (!fits) return InputError(name, fmt::format("a value does not fit {}", kserve::DataTypeName(type)));
  if (ValuesElsewhere(contents, own) != 0)
    return InputError(name,
                      fmt::format("its values stand in another type's field than {}'s", kserve::DataTypeName(type)));
  return raw;
}

Result<kserve::Tensor> TakeInput(inference::ModelInferRequest::InferInputTensor& input, std::string* raw) {
  kserve::Tensor tensor;
  tensor.name = std::move(*input.mutable_name());
  auto type = kserve::DataTypeFromName(input.datatype());
  if (!type) return InputError(tensor.name, fmt::format("unknown datatype '{}'", input.datatype()));
  tensor.type = *type;
  ASSIGN_OR_RETURN(kserve::Parameters parameters, ParseParameters(input.parameters()));
  ASSIGN_OR_RETURN(tensor.region, kserve::RegionSpanOf("input", tensor.name, parameters));
  tensor.shape.assign(input.shape().begin(), input.shape().end());
  if (tensor.region) {
    if (input.has_contents() && ValuesElsewhere(input.contents(), 0) != 0)
      return InputError(tensor.name, "has both contents and shared_memory_region");
    return tensor;
  }
  if (raw != nullptr) {
    if (input.has_contents() && ValuesElsewhere(input.contents(), 0) != 0)
      return InputError(tensor.name, "has contents although the request has raw_input_contents: send one of them");
    tensor.data = std::move(*raw);
  } else {
    ASSIGN_OR_RETURN(tensor.data, RawOfContents(tensor.name, tensor.type, input.contents()));
  }
  RETURN_IF_ERROR(kserve::CheckData(tensor));
  return tensor;
}

void Fill(const kserve::StatisticDuration& duration, inference::StatisticDuration* out) {
  out->set_count(duration.count);
  out->set_ns(duration.ns);
}

template <class Map>
kserve::Parameters RepositoryParameters(const Map& parameters) {
  kserve::Parameters out;
  for (const auto& [name, value] : parameters) {
    switch (value.parameter_choice_case()) {
      case inference::ModelRepositoryParameter::kBoolParam: out[name] = value.bool_param(); break;
      case inference::ModelRepositoryParameter::kInt64Param: out[name] = value.int64_param(); break;
      case inference::ModelRepositoryParameter::kStringParam: out[name] = value.string_param(); break;
      case inference::ModelRepositoryParameter::kBytesParam: out[name] = value.bytes_param(); break;
      case inference::ModelRepositoryParameter::PARAMETER_CHOICE_NOT_SET: out[name] = std::string(); break;
    }
  }
  return out;
}

std::string_view StateName(serve::ModelState::Kind kind) {
  switch (kind) {
    case serve::ModelState::Kind::kReady: return "READY";
    case serve::ModelState::Kind::kLoading: return "LOADING";
    case serve::ModelState::Kind::kUnloading: return "UNLOADING";
    case serve::ModelState::Kind::kUnavailable: return "UNAVAILABLE";
  }
  return "UNAVAILABLE";
}

}  // namespace

Result<kserve::InferRequest> TakeInferRequest(inference::ModelInferRequest& message) {
  kserve::InferRequest request;
  request.model_name = std::move(*message.mutable_model_name());
  request.model_version = std::move(*message.mutable_model_version());
  request.id = std::move(*message.mutable_id());
  ASSIGN_OR_RETURN(request.parameters, ParseParameters(message.parameters()));
  // Inputs that stand in shared memory have no entry.
  int raw_count = message.raw_input_contents_size();
  auto in_message = static_cast<int>(std::ranges::count_if(
      message.inputs(), [](const auto& input) { return !input.parameters().contains("shared_memory_region"); }));
  if (raw_count != 0 && raw_count != in_message)
    return Error(
        Code::kInvalid,
        fmt::format("raw_input_contents: {} entries for {} inputs: send one for each, or none", raw_count, in_message),
        "raw_input_contents");
  int raw_next = 0;
  request.inputs.reserve(static_cast<size_t>(message.inputs_size()));
  for (int i = 0; i < message.inputs_size(); ++i) {
    auto& input = *message.mutable_inputs(i);
    bool shared = input.parameters().contains("shared_memory_region");
    std::string* raw = raw_count != 0 && !shared ? message.mutable_raw_input_contents(raw_next++) : nullptr;
    ASSIGN_OR_RETURN(auto tensor, TakeInput(input, raw));
    request.inputs.push_back(std::move(tensor));
  }
  request.outputs.reserve(static_cast<size_t>(message.outputs_size()));
  for (auto& output : *message.mutable_outputs()) {
    ASSIGN_OR_RETURN(auto parameters, ParseParameters(output.parameters()));
    request.outputs.push_back({std::move(*output.mutable_name()), std::move(parameters)});
  }
  return request;
}

void FillInferResponse(kserve::InferResponse&& response, inference::ModelInferResponse& out) {
  out.set_model_name(std::move(response.model_name));
  out.set_model_version(std::move(response.model_version));
  out.set_id(std::move(response.id));
  for (const auto& [name, value] : response.parameters)
    std::visit(SetParameter{(*out.mutable_parameters())[name]}, value);
  for (kserve::Tensor& tensor : response.outputs) {
    auto* output = out.add_outputs();
    output->set_name(std::move(tensor.name));
    output->set_datatype(std::string(kserve::DataTypeName(tensor.type)));
    output->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
    if (tensor.region) {
      auto& parameters = *output->mutable_parameters();
      parameters["shared_memory_region"].set_string_param(std::move(tensor.region->region));
      parameters["shared_memory_offset"].set_int64_param(static_cast<int64_t>(tensor.region->offset));
      parameters["shared_memory_byte_size"].set_int64_param(static_cast<int64_t>(tensor.region->byte_size));
    }
    out.add_raw_output_contents(std::move(tensor.data));  // one for each output, also where it is empty
  }
}

void FillMetadata(const kserve::ModelMetadata& metadata, inference::ModelMetadataResponse& out) {
  out.set_name(metadata.name);
  out.set_platform(metadata.platform);
  for (const std::string& version : metadata.versions) out.add_versions(version);
  auto fill = [](const std::vector<kserve::TensorMetadata>& tensors, auto add) {
    for (const kserve::TensorMetadata& tensor : tensors) {
      auto* to = add();
      to->set_name(tensor.name);
      to->set_datatype(std::string(kserve::DataTypeName(tensor.type)));
      to->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
    }
  };
  fill(metadata.inputs, [&] { return out.add_inputs(); });
  fill(metadata.outputs, [&] { return out.add_outputs(); });
}

Result<void> FillModelConfig(const json::object& config, inference::ModelConfig& out) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // what proto/model_config.proto leaves out
  auto status = google::protobuf::util::JsonStringToMessage(json::serialize(config), &out, options);
  if (!status.ok()) return Error(Code::kInternal, fmt::format("model config: {}", status.ToString()));
  return {};
}

void FillStatistics(const std::vector<kserve::ModelStatistics>& statistics, inference::ModelStatisticsResponse& out) {
  for (const kserve::ModelStatistics& model : statistics) {
    auto* to = out.add_model_stats();
    to->set_name(model.name);
    to->set_version(model.version);
    to->set_last_inference(model.last_inference_ms);
    to->set_inference_count(model.inference_count);
    to->set_execution_count(model.execution_count);
    auto* all = to->mutable_inference_stats();
    Fill(model.success, all->mutable_success());
    Fill(model.fail, all->mutable_fail());
    Fill(model.queue, all->mutable_queue());
    Fill(model.compute_input, all->mutable_compute_input());
    Fill(model.compute_infer, all->mutable_compute_infer());
    Fill(model.compute_output, all->mutable_compute_output());
    Fill(model.cache_hit, all->mutable_cache_hit());
    Fill(model.cache_miss, all->mutable_cache_miss());
    for (const auto& batch : model.batches) {
      auto* batch_to = to->add_batch_stats();
      batch_to->set_batch_size(batch.batch_size);
      Fill(batch.compute_input, batch_to->mutable_compute_input());
      Fill(batch.compute_infer, batch_to->mutable_compute_infer());
      Fill(batch.compute_output, batch_to->mutable_compute_output());
    }
    for (const auto& [index, response] : model.responses) {
      auto& response_to = (*to->mutable_response_stats())[index];
      Fill(response.compute_infer, response_to.mutable_compute_infer());
      Fill(response.compute_output, response_to.mutable_compute_output());
      Fill(response.success, response_to.mutable_success());
      Fill(response.fail, response_to.mutable_fail());
      Fill(response.empty_response, response_to.mutable_empty_response());
      Fill(response.cancel, response_to.mutable_cancel());
    }
  }
}

void FillRegions(const std::vector<kserve::SharedMemory::Region>& regions,
                 inference::SystemSharedMemoryStatusResponse& out) {
  for (const auto& region : regions) {
    auto& to = (*out.mutable_regions())[region.name];
    to.set_name(region.name);
    to.set_key(region.key);
    to.set_offset(region.offset);
    to.set_byte_size(region.byte_size);
  }
}

void FillIndex(const std::vector<serve::ModelState>& index, inference::RepositoryIndexResponse& out) {
  for (const serve::ModelState& model : index) {
    auto* to = out.add_models();
    to->set_name(model.name);
    to->set_version(model.version);
    to->set_state(std::string(StateName(model.kind)));
    to->set_reason(model.reason);
  }
}

kserve::Parameters TakeParameters(const inference::RepositoryModelLoadRequest& message) {
  return RepositoryParameters(message.parameters());
}

kserve::Parameters TakeParameters(const inference::RepositoryModelUnloadRequest& message) {
  return RepositoryParameters(message.parameters());
}

TraceSettings TakeTraceSettings(const inference::TraceSettingRequest& message) {
  TraceSettings settings;
  for (const auto& [name, value] : message.settings())
    settings[name].assign(value.value().begin(), value.value().end());
  return settings;
}

void FillTraceSettings(const TraceSettings& settings, inference::TraceSettingResponse& out) {
  for (const auto& [name, values] : settings) {
    auto& to = (*out.mutable_settings())[name];
    for (const std::string& value : values) to.add_value(value);
  }
}

Result<LogSettings> TakeLogSettings(const inference::LogSettingsRequest& message) {
  using Value = inference::LogSettingsRequest::SettingValue;
  LogSettings settings;
  for (const auto& [name, value] : message.settings()) {
    switch (value.parameter_choice_case()) {
      case Value::kBoolParam: settings[name] = value.bool_param(); break;
      case Value::kUint32Param: settings[name] = value.uint32_param(); break;
      case Value::kStringParam: settings[name] = value.string_param(); break;
      case Value::PARAMETER_CHOICE_NOT_SET:
        return Error(Code::kInvalid, fmt::format("settings: '{}' has no value", name), name);
    }
  }
  return settings;
}

void FillLogSettings(const LogSettings& settings, inference::LogSettingsResponse& out) {
  for (const auto& [name, setting] : settings) {
    auto& to = (*out.mutable_settings())[name];
    if (const bool* flag = std::get_if<bool>(&setting)) to.set_bool_param(*flag);
    if (const uint32_t* number = std::get_if<uint32_t>(&setting)) to.set_uint32_param(*number);
    if (const std::string* text = std::get_if<std::string>(&setting)) to.set_string_param(*text);
  }
}

}  // namespace ekiben::rpc
