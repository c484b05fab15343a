// The rotations of every position that an engine serves, computed once at load, as ops/rope.h reads them.
//
// Angles follow Hugging Face bit by bit where it matters: inverse frequencies and their scaling in f32, angle = f32
// product of position and frequency, then cosine and sine of that. Scaling: linear (position interpolation,
// arXiv 2306.15595), llama3 (as published with Llama 3.1), yarn (arXiv 2309.00071; its attention factor multiplies
// cosine and sine).
// Thread: immutable after construction.
#pragma once
#include <vector>

#include "device/buffer.h"
#include "ops/rope.h"
#include "weights/model_config.h"

namespace ekiben {

// One per pair of head dimensions, and what cosine and sine are multiplied by.
struct RopeFrequencies {
  std::vector<float> inverse;
  float attention_factor = 1.0f;
};
RopeFrequencies ComputeRopeFrequencies(const ModelConfig& config);

class RopeTable {
 public:
  RopeTable(const ModelConfig& config, int32_t positions);
  const RopeView& view() const { return view_; }

 private:
  Buffer table_;
  RopeView view_;
};

}  // namespace ekiben
