// Steps that nobody asked for, before the first request: prompts and generated tokens of every size class go through
// the backend's own code path, so that page faults, first-use tables and sleeping threads are paid for at start and
// not by a user. Through the seam only, so that every backend warms up alike.
// It leaves nothing behind: later bindings replace those made here, and blocks are written before they are read.
// Thread: the one that will call the backend, before the executor has it.
#pragma once
#include "backend/backend.h"

namespace ekiben {

// Returns what steps of some sizes took, ascending: a first estimate, because the first step of a size is its slowest.
// Errors: a device fault.
Result<std::vector<StepCost>> WarmUp(Backend& backend);

}  // namespace ekiben
