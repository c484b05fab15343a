// What KServe's routes tell about server and models, as JSON; and the settings, as they come in.
// Thread: pure functions.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "kserve/inference.h"
#include "kserve/shared_memory.h"

namespace ekiben::api {

std::string MetadataJson(const kserve::ModelMetadata& metadata);
std::string StatisticsJson(const std::vector<kserve::ModelStatistics>& statistics);
std::string RegionsJson(const std::vector<kserve::SharedMemory::Region>& regions);
std::string IndexJson(const std::vector<serve::ModelState>& index);

using TraceSettings = std::map<std::string, std::vector<std::string>>;
using LogSettings = std::map<std::string, kserve::Setting>;
// A value is a string, a number, a list of them, or null to clear.
Result<TraceSettings> TraceSettingsFromJson(const json::object& object);
std::string TraceSettingsJson(const TraceSettings& settings);
Result<LogSettings> LogSettingsFromJson(const json::object& object);
std::string LogSettingsJson(const LogSettings& settings);

// ORCA's endpoint-load-metrics header in `format` ("text" or "json"); nullopt for another.
std::optional<std::string> LoadHeader(std::string_view format, const kserve::InferenceServer::LoadReport& load);

}  // namespace ekiben::api
