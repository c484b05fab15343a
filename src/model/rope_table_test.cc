#include "model/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>

namespace ekiben {
namespace {

ModelConfig Config(int32_t head_dim, float theta) {
  ModelConfig config;
  config.head_dim = head_dim;
  config.rope_theta = theta;
  return config;
}

TEST(RopeTable, HoldsCosinesAndSignedSinesInBothStyles) {
  for (bool interleaved : {false, true}) {
    ModelConfig config = Config(8, 100.0f);
    config.rope_interleaved = interleaved;
    RopeTable table(config, 10);
    const RopeView& view = table.view();
    for (int32_t p = 0; p < 10; ++p) {
      const float *cos = view.at(p), *sin = cos + 8;
      for (int32_t pair = 0; pair < 4; ++pair) {
        double angle = p * std::pow(100.0, -2.0 * pair / 8);
        int32_t first = interleaved ? 2 * pair : pair, second = interleaved ? 2 * pair + 1 : pair + 4;
        EXPECT_NEAR(cos[first], std::cos(angle), 1e-6);
        EXPECT_EQ(cos[first], cos[second]);
        EXPECT_NEAR(sin[first], -std::sin(angle), 1e-6);
        EXPECT_EQ(sin[second], -sin[first]);
      }
    }
  }
}

TEST(RopeFrequencies, LinearDividesAll) {
  ModelConfig config = Config(64, 10000.0f);
  auto plain = ComputeRopeFrequencies(config);
  config.rope_scaling.type = RopeScaling::Type::kLinear;
  config.rope_scaling.factor = 4.0f;
  auto scaled = ComputeRopeFrequencies(config);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(scaled.inverse[i], plain.inverse[i] / 4.0f);
}

TEST(RopeFrequencies, Llama3KeepsShortWavesAndStretchesLongOnes) {
  ModelConfig config = Config(128, 500000.0f);
  auto plain = ComputeRopeFrequencies(config);
  config.rope_scaling = {.type = RopeScaling::Type::kLlama3,
                         .factor = 8.0f,
                         .low_freq_factor = 1.0f,
                         .high_freq_factor = 4.0f,
                         .original_max_position_embeddings = 8192};
  auto scaled = ComputeRopeFrequencies(config);
  EXPECT_EQ(scaled.inverse.front(), plain.inverse.front());
  EXPECT_EQ(scaled.inverse.back(), plain.inverse.back() / 8.0f);
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_LE(scaled.inverse[i], plain.inverse[i]);
    EXPECT_GE(scaled.inverse[i] * 1.000001f, plain.inverse[i] / 8.0f);
  }
}

TEST(RopeFrequencies, YarnScalesCosineAndSine) {
  ModelConfig config = Config(64, 10000.0f);
  config.rope_scaling = {.type = RopeScaling::Type::kYarn, .factor = 4.0f, .original_max_position_embeddings = 2048};
  EXPECT_FLOAT_EQ(ComputeRopeFrequencies(config).attention_factor, 0.1f * std::log(4.0f) + 1.0f);
  config.rope_scaling.attention_factor = 0.75f;
  EXPECT_EQ(ComputeRopeFrequencies(config).attention_factor, 0.75f);
  EXPECT_EQ(RopeTable(config, 1).view().at(0)[0], 0.75f);
}

}  // namespace
}  // namespace ekiben
