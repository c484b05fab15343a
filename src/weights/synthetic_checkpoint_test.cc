#include "weights/synthetic_checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "weights/checkpoint.h"
#include "weights/published_shapes.h"

namespace ekiben {
namespace {

TEST(PublishedShapes, AreWhatTheirCardsSay) {
  struct Case {
    const char* name;
    int64_t parameters;  // of the published checkpoint, without counting tied heads twice
    int32_t group, head_dim;
  };
  for (const Case& c : {Case{"llama-3-8b", 8'030'261'248, 4, 128}, Case{"llama-3-70b", 70'553'706'496, 8, 128},
                        Case{"llama-3.2-1b", 1'235'814'400, 4, 64}, Case{"mistral-7b", 7'248'023'552, 4, 128},
                        Case{"qwen2.5-7b", 7'615'616'512, 7, 128}, Case{"smollm2-135m", 134'515'008, 3, 64}}) {
    auto config = PublishedShape(c.name);
    ASSERT_TRUE(config.ok()) << config.error().message();
    EXPECT_TRUE(Validate(*config).ok());
    EXPECT_EQ(config->head_dim, c.head_dim) << c.name;
    EXPECT_EQ(config->num_attention_heads / config->num_key_value_heads, c.group) << c.name;
    EXPECT_EQ(config->sliding_window, 0) << c.name;
    int64_t hidden = config->hidden_size, query = int64_t{config->num_attention_heads} * config->head_dim,
            key = int64_t{config->num_key_value_heads} * config->head_dim;
    int64_t layer = hidden * (2 * query + 2 * key + 3 * int64_t{config->intermediate_size} + 2) +
                    (config->attention_bias ? query + 2 * key : 0);
    int64_t parameters = config->num_hidden_layers * layer + hidden +
                         (config->tie_word_embeddings ? 1 : 2) * hidden * config->vocab_size;
    EXPECT_EQ(parameters, c.parameters) << c.name;
  }
  auto unknown = PublishedShape("llama-9");
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message().find("'llama-9' is not one of llama-3-8b"), std::string::npos);
}

TEST(SyntheticCheckpoint, OpensAndItsWeightsAreNormal) {
  std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("ekiben_synth_test." + std::to_string(::getpid()));
  int64_t last = 0, total = 0;
  auto written = WriteSyntheticCheckpoint("smollm2-135m", 7, folder, [&](int64_t done, int64_t all) {
    EXPECT_GT(done, last);
    last = done, total = all;
  });
  ASSERT_TRUE(written.ok()) << written.error().message();
  EXPECT_EQ(last, total);
  auto checkpoint = OpenCheckpoint(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  EXPECT_TRUE(checkpoint->has_tokenizer) << checkpoint->tokenizer_error;
  EXPECT_EQ(std::ssize(checkpoint->tokenizer.tokens), 49152);
  auto down = checkpoint->Tensor("model.layers.29.mlp.down_proj.weight");
  ASSERT_TRUE(down.ok());
  const int64_t count = (*down)->shape[0] * (*down)->shape[1];
  std::vector<float> values(static_cast<size_t>(count));
  Dequantize((*down)->dtype, (*down)->data, count, values.data());
  double sum = 0, squares = 0, fourth = 0;
  for (float value : values) {
    double z = value / 0.02;
    sum += z, squares += z * z, fourth += z * z * z * z;
  }
  const auto n = static_cast<double>(count);
  EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 0.01);
  EXPECT_NEAR(fourth / n, 3, 0.1);
  auto norm = checkpoint->Tensor("model.norm.weight");
  ASSERT_TRUE(norm.ok());
  float first = 0;
  Dequantize((*norm)->dtype, (*norm)->data, 1, &first);
  EXPECT_EQ(first, 1.0f);
  auto again = WriteSyntheticCheckpoint("smollm2-135m", 7, folder, [](int64_t, int64_t) {});
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().field(), "output");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace ekiben
