// Shapes of published models by name, for measuring without their weights: each is the config.json that its checkpoint
// carries, as far as it says sizes and arithmetic. Thread: pure functions over a constant table.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "weights/model_config.h"

namespace ekiben {

// Errors: an unknown name, with those that are known.
Result<std::string_view> PublishedConfigJson(std::string_view name);
Result<ModelConfig> PublishedShape(std::string_view name);
std::vector<std::string_view> PublishedShapeNames();

}  // namespace ekiben
