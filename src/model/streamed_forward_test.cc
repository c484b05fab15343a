// The forward that a build runs while it packs gives what the model gives.
#include "model/streamed_forward.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "model/golden_file.h"
#include "model/packed_model_for_test.h"
#include "ops/isa_test_support.h"

namespace ekiben {
namespace {

class StreamedForwardOf : public ::testing::TestWithParam<const char*> {};

TEST_P(StreamedForwardOf, GivesTheBitsOfTheModel) {
  const auto folder = std::filesystem::path(EKIBEN_SOURCE_DIR) / "tests" / "golden" / GetParam();
  auto checkpoint = OpenCheckpoint(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  auto files = OpenGoldenFiles(folder);
  ASSERT_TRUE(files.ok()) << files.error().message();
  const std::vector<int32_t>& ids = files->front().token_ids;
  const auto tokens = static_cast<int32_t>(ids.size());
  auto packed = PackModel(*checkpoint, Packing::kBF16, Packing::kBF16, tokens);
  ASSERT_TRUE(packed.ok()) << packed.error().message();

  ThreadPool pool(2);
  PagedKv kv({checkpoint->config.num_hidden_layers, checkpoint->config.num_key_value_heads, checkpoint->config.head_dim,
              64, (tokens + 63) / 64, DType::kBF16});
  std::vector<BlockId> blocks;
  for (int32_t i = 0; i < kv.shape().blocks; ++i) blocks.push_back(BlockId{i});
  AttentionRow row{0, tokens, 0, blocks.data()};
  std::vector<int32_t> positions, outputs;
  for (int32_t i = 0; i < tokens; ++i) positions.push_back(i), outputs.push_back(i);
  Arena arena(packed->model->ScratchBytes(tokens, tokens, pool.size()));
  OpContext ctx{&pool, &arena, BestIsa()};
  const int64_t columns = checkpoint->config.hidden_size;
  std::vector<float> hidden(static_cast<size_t>(tokens * columns));
  packed->model->Forward(ctx, {ids, positions, {&row, 1}, outputs}, kv, {},
                         TensorView(hidden.data(), DType::kF32, {tokens, columns}));

  StreamedForward streamed(checkpoint->config, ids, pool);
  auto rules = PackRules(checkpoint->config);
  ASSERT_TRUE(rules.ok());
  for (const PackRule& rule : *rules) {
    if (rule.name == "lm_head") break;
    streamed.Pass(packed->tensors.at(rule.name));
    if (rule.kind == PackRule::Kind::kLinear) {
      EXPECT_EQ(streamed.input().shape[1], rule.columns) << rule.name;
    }
  }
  const TensorView got = streamed.input();
  ASSERT_EQ(got.elements(), std::ssize(hidden));
  EXPECT_TRUE(SameBits(std::vector<float>(got.as<float>(), got.as<float>() + got.elements()), hidden));
}

INSTANTIATE_TEST_SUITE_P(Families, StreamedForwardOf,
                         ::testing::Values("tiny_qwen2", "tiny_mistral", "tiny_llama3", "tiny_yarn", "tiny_linear"));

}  // namespace
}  // namespace ekiben
