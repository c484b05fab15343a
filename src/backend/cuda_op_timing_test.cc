// The rows of `ekiben kernels` on a device: every op of the step is there, with the bytes and operations of its shape.
// Skipped without a device; the times themselves are a device's matter.
#include "backend/cuda_op_timing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "backend/cuda_backend.h"

namespace ekiben {
namespace {

constexpr int32_t kLayers = 2, kHidden = 64, kWide = 96, kVocab = 320, kQueryHeads = 4, kKvHeads = 1, kHeadDim = 128;

ModelConfig TinyConfig() {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = kVocab;
  config.hidden_size = kHidden;
  config.intermediate_size = kWide;
  config.num_hidden_layers = kLayers;
  config.num_attention_heads = kQueryHeads;
  config.num_key_value_heads = kKvHeads;
  config.head_dim = kHeadDim;
  config.max_position_embeddings = 256;
  return config;
}

// By op and shape.
using Rows = std::map<std::pair<std::string, std::string>, OpTiming>;

class CudaOpTiming : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto device = CheckCudaDevice(); !device.ok()) GTEST_SKIP() << device.error().message();
  }
  // The rows of a step of `tokens`.
  static Rows Time(bool fp8, int32_t tokens) {
    CudaOpTimingConfig config{
        .fp8 = fp8, .fp8_kv_cache = fp8, .max_seq_len = 256, .tokens = {tokens}, .kv_tokens = {70, 130}, .rows_max = 4};
    auto timings = TimeCudaOps(TinyConfig(), nullptr, config);
    EXPECT_TRUE(timings.ok()) << timings.error().message();
    Rows rows;
    if (!timings.ok()) return rows;
    EXPECT_GT(timings->limits.read_bytes, 0);
    EXPECT_GT(timings->limits.bf16_operations, 0);
    EXPECT_GT(timings->limits.fp8_operations, 0);
    for (const OpTiming& t : timings->ops) {
      EXPECT_EQ(t.tokens, tokens);
      EXPECT_GT(t.seconds, 0) << t.op;
      EXPECT_GT(t.bytes, 0) << t.op;
      EXPECT_TRUE(rows.emplace(std::pair(t.op, t.shape), t).second) << t.op << " twice";
    }
    return rows;
  }
  static std::vector<std::string> Names(const Rows& rows) {
    std::vector<std::string> names;
    for (const auto& [key, row] : rows) names.push_back(key.first);
    return names;
  }
};

TEST_F(CudaOpTiming, EveryOpOfAStepHasItsRowWithItsBytesAndOperations) {
  const Rows rows = Time(false, 3);
  EXPECT_THAT(Names(rows),
              ::testing::UnorderedElementsAre("embedding", "final_norm", "add_rms_norm", "qkv", "rope_store_kv",
                                              "context attention", "context attention", "rope, generation attention",
                                              "rope, generation attention", "o", "gate_up", "swiglu", "down", "lm_head",
                                              "argmax", "sample, top_p 0.95", "sample, top_k 50"));
  const OpTiming& qkv = rows.at({"qkv", "bf16 768x64"});
  EXPECT_EQ(qkv.calls_per_step, kLayers);
  EXPECT_EQ(qkv.operations, 2.0 * 3 * 768 * 64);
  EXPECT_EQ(qkv.bytes, 2.0 * (768 * 64 + 3 * 64 + 3 * 768));
  EXPECT_GT(qkv.peak_operations, 0);
  EXPECT_EQ(qkv.kernel, "own");
  const OpTiming& head = rows.at({"lm_head", "bf16 320x64"});
  EXPECT_EQ(head.calls_per_step, 1);
  EXPECT_EQ(head.bytes, 2.0 * (320 * 64 + 3 * 64) + 4.0 * 3 * 320);
  const OpTiming& norm = rows.at({"add_rms_norm", "64"});
  EXPECT_EQ(norm.calls_per_step, 2 * kLayers);
  EXPECT_EQ(norm.bytes, 3.0 * 64 * (4 + 2 + 4 + 2) + 4 * 64);
  // 3 sequences of 130 cached tokens and their own: keys and values of one head, qkv in, attention out.
  const OpTiming& generation = rows.at({"rope, generation attention", "4/1 heads of 128, 130 tokens before each"});
  EXPECT_EQ(generation.bytes, 3.0 * (131 * 2 * 128 * 2 + 2 * 768 + 2 * 512));
  EXPECT_EQ(generation.operations, 4.0 * 3 * 131 * 512);
  const OpTiming& context = rows.at({"context attention", "4/1 heads of 128, one prompt from 130"});
  EXPECT_EQ(context.operations, 4.0 * (131 + 132 + 133) * 512);
  EXPECT_EQ(context.bytes, 133.0 * 2 * 128 * 2 + 3.0 * 2 * (512 + 512));
}

TEST_F(CudaOpTiming, InFp8InputsHaveTheirFactorsAndAttentionsOutputIsRounded) {
  const Rows rows = Time(true, 2);
  EXPECT_THAT(Names(rows), ::testing::IsSupersetOf({"add_rms_norm, quantise", "swiglu, quantise", "quantise"}));
  const OpTiming& down = rows.at({"down", "fp8 64x96"});
  EXPECT_EQ(down.bytes, 64 * 96 + 2 * 96 + 4.0 * (64 + 2) + 2.0 * 2 * 64);
  EXPECT_EQ(rows.at({"quantise", "512"}).bytes, 2.0 * (2 * 512 + 512 + 4));
  EXPECT_EQ(rows.at({"rope, generation attention", "4/1 heads of 128, 70 tokens before each"}).bytes,
            2.0 * (71 * 2 * 128 + 2 * 768 + 2 * 512));
  EXPECT_TRUE(rows.contains({"lm_head", "bf16 320x64"}));
}

TEST_F(CudaOpTiming, AStepOfMoreTokensThanSequencesIsContextAlone) {
  const Rows rows = Time(false, 70);
  EXPECT_THAT(Names(rows), ::testing::UnorderedElementsAre("embedding", "final_norm", "add_rms_norm", "qkv",
                                                           "rope_store_kv", "context attention", "context attention",
                                                           "o", "gate_up", "swiglu", "down"));
  EXPECT_THAT(rows.at({"qkv", "bf16 768x64"}).kernel, ::testing::StartsWith("cuBLASLt "));
}

TEST_F(CudaOpTiming, RefusesWhatDoesNotFitASequence) {
  CudaOpTimingConfig config{.max_seq_len = 256, .tokens = {257}};
  auto timings = TimeCudaOps(TinyConfig(), nullptr, config);
  ASSERT_FALSE(timings.ok());
  EXPECT_THAT(timings.error().message(), ::testing::HasSubstr("max_seq_len 256"));
}

}  // namespace
}  // namespace ekiben
