#include "model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ekiben {
namespace {

constexpr float kTwoPi = 2.0f * std::numbers::pi_v<float>;

// Long waves are stretched, short ones kept, those between are blended.
void ScaleLlama3(const RopeScaling& scaling, std::vector<float>& inverse) {
  float original = static_cast<float>(scaling.original_max_position_embeddings);
  float low_wavelength = original / scaling.low_freq_factor;
  float high_wavelength = original / scaling.high_freq_factor;
  for (float& f : inverse) {
    float wavelength = kTwoPi / f;
    if (wavelength < high_wavelength) continue;
    float stretched = f / scaling.factor;
    if (wavelength > low_wavelength) {
      f = stretched;
      continue;
    }
    float smooth =
        (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
    f = (1.0f - smooth) * stretched + smooth * f;
  }
}

// The pair whose wave turns `rotations` times within the original context.
double YarnDimension(double rotations, const ModelConfig& config) {
  double original = config.rope_scaling.original_max_position_embeddings;
  return config.head_dim * std::log(original / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(double{config.rope_theta}));
}

void ScaleYarn(const ModelConfig& config, RopeFrequencies& out) {
  const RopeScaling& scaling = config.rope_scaling;
  double low = std::max(std::floor(YarnDimension(scaling.beta_fast, config)), 0.0);
  double high = std::min(std::ceil(YarnDimension(scaling.beta_slow, config)), config.head_dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < out.inverse.size(); ++i) {
    float ramp =
        std::clamp((static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    float keep = 1.0f - ramp;
    out.inverse[i] = out.inverse[i] / scaling.factor * (1.0f - keep) + out.inverse[i] * keep;
  }
  out.attention_factor = scaling.attention_factor != 0.0f ? scaling.attention_factor
                         : scaling.factor <= 1.0f         ? 1.0f
                                                          : 0.1f * std::log(scaling.factor) + 1.0f;
}

}  // namespace

RopeFrequencies ComputeRopeFrequencies(const ModelConfig& config) {
  RopeFrequencies out;
  for (int32_t i = 0; i < config.head_dim; i += 2) {
    float exponent = static_cast<float>(i) / static_cast<float>(config.head_dim);
    float base = static_cast<float>(std::pow(double{config.rope_theta}, double{exponent}));
    out.inverse.push_back(1.0f / base);
  }
  switch (config.rope_scaling.type) {
    case RopeScaling::Type::kNone: break;
    case RopeScaling::Type::kLinear:
      for (float& f : out.inverse) f /= config.rope_scaling.factor;
      break;
    case RopeScaling::Type::kLlama3: ScaleLlama3(config.rope_scaling, out.inverse); break;
    case RopeScaling::Type::kYarn: ScaleYarn(config, out); break;
  }
  return out;
}

RopeTable::RopeTable(const ModelConfig& config, int32_t positions)
    : table_(sizeof(float) * 2 * static_cast<size_t>(config.head_dim) * static_cast<size_t>(positions)) {
  RopeFrequencies frequencies = ComputeRopeFrequencies(config);
  int32_t d = config.head_dim, half = d / 2;
  float* cos = table_.as<float>();
  for (int32_t position = 0; position < positions; ++position, cos += 2 * d) {
    float* sin = cos + d;
    for (int32_t pair = 0; pair < half; ++pair) {
      float angle = static_cast<float>(position) * frequencies.inverse[static_cast<size_t>(pair)];
      float c = static_cast<float>(std::cos(double{angle})) * frequencies.attention_factor;
      float s = static_cast<float>(std::sin(double{angle})) * frequencies.attention_factor;
      int32_t first = config.rope_interleaved ? 2 * pair : pair;
      int32_t second = config.rope_interleaved ? 2 * pair + 1 : pair + half;
      cos[first] = cos[second] = c;
      sin[first] = -s;
      sin[second] = s;
    }
  }
  view_ = {.table = table_.as<float>(), .positions = positions, .head_dim = d, .interleaved = config.rope_interleaved};
}

}  // namespace ekiben
