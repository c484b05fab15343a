// How linears run is the engine's choice where it was made on this machine, else the backend's own at start.
#include <gtest/gtest.h>

#include "backend/cuda_backend.h"
#include "model/cuda_llama.h"

namespace ekiben {
namespace {

constexpr int32_t kMaxTokens = 128, kMaxBatch = 8, kMaxSeqLen = 128;

ModelConfig SmallConfig() {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 256;
  config.hidden_size = 64;
  config.intermediate_size = 128;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = kMaxSeqLen;
  return config;
}

std::string Opened(const CudaBackendConfig& config) {
  auto parts = OpenCudaBackend(SmallConfig(), nullptr, config);
  EXPECT_TRUE(parts.ok()) << parts.error().message();
  return parts.ok() ? parts->backend->info().description : "";
}

TEST(CudaLinears, AreTheEnginesChoiceWhereItWasMadeHere) {
  auto device = OpenCudaDevice();
  if (!device.ok()) GTEST_SKIP() << device.error().message();
  auto model = CudaLlama::Synthesize(SmallConfig(), 1, {kMaxSeqLen, kMaxTokens, kMaxBatch});
  ASSERT_TRUE(model.ok()) << model.error().message();
  auto tuned = (*model)->Tune({.gemm = GemmPlugin::kLibrary}, 1, kMaxTokens, [](const CudaLinearBucket&) {});
  ASSERT_TRUE(tuned.ok()) << tuned.error().message();
  CudaBackendConfig config{.max_batch_size = kMaxBatch, .max_num_tokens = kMaxTokens, .max_seq_len = kMaxSeqLen};
  config.max_tokens_in_paged_kv_cache = 1024;
  EXPECT_NE(Opened(config).find("linears timed for 8 sizes"), std::string::npos);  // 72 to 128
  config.plan = (*model)->plan();
  EXPECT_NE(Opened(config).find("linears as the engine says"), std::string::npos);
  config.plan->device = "another GPU";
  EXPECT_NE(Opened(config).find("linears timed for 8 sizes"), std::string::npos);
}

}  // namespace
}  // namespace ekiben
