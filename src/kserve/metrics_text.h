// Triton's metric families in Prometheus' text format: names, labels, units and kinds as Triton and its TensorRT-LLM
// backend export them, because dashboards and the Kubernetes gateway's endpoint picker read them by name.
// Thread: pure function.
#pragma once
#include <string>
#include <vector>

#include "executor/executor.h"
#include "kserve/model_names.h"
#include "kserve/statistics.h"

namespace ekiben::kserve {

struct ModelReading {
  NamedModel named;
  ModelCounters counters;
  ExecutorStats executor;
};

// `wall`: Clock::WallNow.
std::string MetricsTextOf(const std::vector<ModelReading>& readings, Nanos wall);

}  // namespace ekiben::kserve
