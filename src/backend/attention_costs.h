// What attention of context costs on a device, measured at start by prompts of its own: chunks of a few sizes at the
// front of a prompt and deep in one. Through the seam only, so a backend's own padding and graphs are in it.
// It leaves nothing behind, as WarmUp (warm_up.h). Thread: the one that will call the backend, before the executor has
// it.
#pragma once
#include "backend/backend.h"

namespace ekiben {

// `linears`: of the same backend. Sizes that do not fit twice behind half a longest prompt are left out. Errors: a
// device fault.
Result<AttentionCosts> MeasureAttention(Backend& backend, std::span<const StepCost> linears);

}  // namespace ekiben
