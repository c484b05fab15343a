// The profile: which body of the linear op runs for which bucket of token counts, chosen by time on this machine.
// `multiple_profiles enable` times every variant for every bucket; `disable` times them at opt_num_tokens only and uses
// that one choice everywhere. All variants of a packing give the same bits, so a profile changes speed, never results.
#pragma once
#include "base/json.h"
#include "base/result.h"
#include "compile/engine.h"

namespace ekiben {

// profiles.json: {"device": "...", "linears": {"<packing> <N>x<K>": {"<tokens>": {"variant", "us"}}}}
Result<json::object> ProfileLinears(const EngineTensors& tensors, const BuildConfig& build,
                                    const ProgressFunction& progress);

}  // namespace ekiben
