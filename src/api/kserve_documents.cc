#include "api/kserve_documents.h"

#include <fmt/format.h>

#include <boost/json.hpp>

namespace ekiben::api {
namespace {

json::array TensorsJson(const std::vector<kserve::TensorMetadata>& tensors) {
  json::array out;
  for (const kserve::TensorMetadata& tensor : tensors)
    out.push_back(json::object{{"name", tensor.name},
                               {"datatype", kserve::DataTypeName(tensor.type)},
                               {"shape", json::array(tensor.shape.begin(), tensor.shape.end())}});
  return out;
}

json::object DurationJson(const kserve::StatisticDuration& duration) {
  return {{"count", duration.count}, {"ns", duration.ns}};
}

json::object StatisticsOf(const kserve::ModelStatistics& s) {
  json::object times = {{"success", DurationJson(s.success)},
                        {"fail", DurationJson(s.fail)},
                        {"queue", DurationJson(s.queue)},
                        {"compute_input", DurationJson(s.compute_input)},
                        {"compute_infer", DurationJson(s.compute_infer)},
                        {"compute_output", DurationJson(s.compute_output)},
                        {"cache_hit", DurationJson(s.cache_hit)},
                        {"cache_miss", DurationJson(s.cache_miss)}};
  json::object responses;
  for (const auto& [index, r] : s.responses)
    responses[index] = json::object{{"compute_infer", DurationJson(r.compute_infer)},
                                    {"compute_output", DurationJson(r.compute_output)},
                                    {"success", DurationJson(r.success)},
                                    {"fail", DurationJson(r.fail)},
                                    {"empty_response", DurationJson(r.empty_response)},
                                    {"cancel", DurationJson(r.cancel)}};
  json::array batches;
  for (const auto& batch : s.batches)
    batches.push_back(json::object{{"batch_size", batch.batch_size},
                                   {"compute_input", DurationJson(batch.compute_input)},
                                   {"compute_infer", DurationJson(batch.compute_infer)},
                                   {"compute_output", DurationJson(batch.compute_output)}});
  return {{"name", s.name},
          {"version", s.version},
          {"last_inference", s.last_inference_ms},
          {"inference_count", s.inference_count},
          {"execution_count", s.execution_count},
          {"inference_stats", times},
          {"response_stats", responses},
          {"batch_stats", batches},
          {"memory_usage", json::array()}};
}

Result<std::string> SettingText(std::string_view name, const json::value& value) {
  if (value.is_string()) return std::string(value.get_string());
  if (value.is_int64() || value.is_uint64()) return json::serialize(value);
  return Error(Code::kInvalid, fmt::format("{}: a string or a whole number is wanted", name.substr(0, 100)),
               std::string(name));
}

}  // namespace

std::string MetadataJson(const kserve::ModelMetadata& metadata) {
  return json::serialize(json::object{{"name", metadata.name},
                                      {"versions", json::array(metadata.versions.begin(), metadata.versions.end())},
                                      {"platform", metadata.platform},
                                      {"inputs", TensorsJson(metadata.inputs)},
                                      {"outputs", TensorsJson(metadata.outputs)}});
}

std::string StatisticsJson(const std::vector<kserve::ModelStatistics>& statistics) {
  json::array all;
  for (const kserve::ModelStatistics& one : statistics) all.push_back(StatisticsOf(one));
  return json::serialize(json::object{{"model_stats", all}});
}

std::string RegionsJson(const std::vector<kserve::SharedMemory::Region>& regions) {
  json::array out;
  for (const auto& region : regions)
    out.push_back(json::object{
        {"name", region.name}, {"key", region.key}, {"offset", region.offset}, {"byte_size", region.byte_size}});
  return json::serialize(out);
}

std::string IndexJson(const std::vector<serve::ModelState>& index) {
  static constexpr std::string_view kStates[] = {"READY", "LOADING", "UNLOADING", "UNAVAILABLE"};  // by Kind
  json::array out;
  for (const serve::ModelState& state : index)
    out.push_back(json::object{{"name", state.name},
                               {"version", state.version},
                               {"state", kStates[static_cast<size_t>(state.kind)]},
                               {"reason", state.reason}});
  return json::serialize(out);
}

Result<TraceSettings> TraceSettingsFromJson(const json::object& object) {
  TraceSettings out;
  for (const auto& member : object) {
    std::vector<std::string>& values = out[std::string(member.key())];
    if (member.value().is_null()) continue;
    if (!member.value().is_array()) {
      ASSIGN_OR_RETURN(std::string text, SettingText(member.key(), member.value()));
      values.push_back(std::move(text));
      continue;
    }
    for (const json::value& element : member.value().get_array()) {
      ASSIGN_OR_RETURN(std::string text, SettingText(member.key(), element));
      values.push_back(std::move(text));
    }
  }
  return out;
}

std::string TraceSettingsJson(const TraceSettings& settings) {
  json::object out;
  for (const auto& [name, values] : settings) {
    if (name == "trace_level")
      out[name] = json::array(values.begin(), values.end());
    else
      out[name] = values.empty() ? std::string() : values.front();
  }
  return json::serialize(out);
}

Result<LogSettings> LogSettingsFromJson(const json::object& object) {
  LogSettings out;
  for (const auto& member : object) {
    const json::value& value = member.value();
    kserve::Setting& setting = out[std::string(member.key())];
    if (value.is_bool())
      setting = value.get_bool();
    else if (value.is_string())
      setting = std::string(value.get_string());
    else if (value.is_int64() && value.get_int64() >= 0 && value.get_int64() <= UINT32_MAX)
      setting = static_cast<uint32_t>(value.get_int64());
    else
      return Error(Code::kInvalid,
                   fmt::format("{}: true, false, a string or a whole number from 0 on is wanted",
                               std::string_view(member.key()).substr(0, 100)),
                   std::string(member.key()));
  }
  return out;
}

std::string LogSettingsJson(const LogSettings& settings) {
  json::object out;
  for (const auto& [name, value] : settings) std::visit([&, key = name](const auto& v) { out[key] = v; }, value);
  return json::serialize(out);
}

std::optional<std::string> LoadHeader(std::string_view format, const kserve::InferenceServer::LoadReport& load) {
  if (format == "text")
    return fmt::format("TEXT named_metrics.kv_cache_utilization={:f}, named_metrics.max_token_capacity={}",
                       load.kv_cache_utilization, load.max_token_capacity);
  if (format == "json")
    return fmt::format("JSON {{\"named_metrics\":{{\"kv_cache_utilization\":{},\"max_token_capacity\":{}}}}}",
                       load.kv_cache_utilization, load.max_token_capacity);
  return std::nullopt;
}

}  // namespace ekiben::api
