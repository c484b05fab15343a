// KServe's protobuf messages to the core's values and back. What comes in is a stranger's: names, counts and sizes are
// checked against each other here, so that the core sees tensors whose data fits their shape.
// Errors: kInvalid, naming the input or parameter. Thread: pure functions.
// Source: Open Inference Protocol v2 (gRPC); Triton's parameter, statistics, repository, trace and log extensions.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "kserve/inference.h"
#include "kserve/shared_memory.h"

namespace inference {
class ModelConfig;
class ModelInferRequest;
class ModelInferResponse;
class ModelMetadataResponse;
class ModelStatisticsResponse;
class RepositoryIndexResponse;
class RepositoryModelLoadRequest;
class RepositoryModelUnloadRequest;
class TraceSettingRequest;
class TraceSettingResponse;
class LogSettingsRequest;
class LogSettingsResponse;
class SystemSharedMemoryStatusResponse;
}  // namespace inference

namespace ekiben::rpc {

// Takes the tensors' bytes out of `message`. Both forms: raw_input_contents, and contents by type.
Result<kserve::InferRequest> TakeInferRequest(inference::ModelInferRequest& message);
// Tensors leave raw, always: clients decode typed contents for BYTES only. `out` must be empty.
void FillInferResponse(kserve::InferResponse&& response, inference::ModelInferResponse& out);

void FillMetadata(const kserve::ModelMetadata& metadata, inference::ModelMetadataResponse& out);
Result<void> FillModelConfig(const json::object& config, inference::ModelConfig& out);
void FillStatistics(const std::vector<kserve::ModelStatistics>& statistics, inference::ModelStatisticsResponse& out);
void FillRegions(const std::vector<kserve::SharedMemory::Region>& regions,
                 inference::SystemSharedMemoryStatusResponse& out);
void FillIndex(const std::vector<serve::ModelState>& index, inference::RepositoryIndexResponse& out);
kserve::Parameters TakeParameters(const inference::RepositoryModelLoadRequest& message);
kserve::Parameters TakeParameters(const inference::RepositoryModelUnloadRequest& message);

using TraceSettings = std::map<std::string, std::vector<std::string>>;
TraceSettings TakeTraceSettings(const inference::TraceSettingRequest& message);
void FillTraceSettings(const TraceSettings& settings, inference::TraceSettingResponse& out);
using LogSettings = std::map<std::string, kserve::Setting>;
Result<LogSettings> TakeLogSettings(const inference::LogSettingsRequest& message);
void FillLogSettings(const LogSettings& settings, inference::LogSettingsResponse& out);

}  // namespace ekiben::rpc
