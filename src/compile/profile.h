// The profile: which variant of the linear op (ops/linear_tuning.h) runs for which bucket of token counts, chosen by
// time on this machine. `multiple_profiles enable` times every variant for every bucket; `disable` times them at
// opt_num_tokens only and uses that one choice everywhere. All variants give the same bits: a profile changes speed,
// never results.
// Thread: ProfileLinears uses its caller's and a pool of its own.
#pragma once
#include "base/json.h"
#include "base/result.h"
#include "compile/engine.h"
#include "ops/linear_tuning.h"

namespace ekiben {

// profiles.json: {"device": "...", "linears": [{"packing", "out_features", "in_features",
//   "choices": [{"bucket", "tokens", "variant", "us", "us_of_others": {name: us}}]}]}
// `bucket` is the first token count of the bucket; "all" stands for one choice everywhere.
Result<json::object> ProfileLinears(const EngineTensors& tensors, const BuildConfig& build,
                                    const ProgressFunction& progress);

// The choices of a profile. Errors: an unknown variant or packing, by name.
Result<LinearTuning> ReadProfiles(const json::object& profiles);

}  // namespace ekiben
