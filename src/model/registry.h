// The architectures that this program runs: one row each. A family that differs only in numbers is a row; one that
// differs in equations brings its own Load. The only place that knows architecture names.
#pragma once
#include <span>
#include <string_view>

#include "model/model.h"

namespace ekiben {

struct ArchitectureRow {
  std::string_view name;  // ModelConfig::architecture
  Result<std::vector<PackRule>> (*pack_rules)(const ModelConfig& config);
  Result<std::unique_ptr<Model>> (*load)(const ModelConfig& config, const EngineTensors& tensors, int32_t max_seq_len);
};

std::span<const ArchitectureRow> Architectures();

}  // namespace ekiben
