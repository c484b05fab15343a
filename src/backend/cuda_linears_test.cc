// How linears run is the engine's choice where it was made on this machine, else the backend's own at start.
#include <gtest/gtest.h>

#include "backend/cuda_backend.h"
#include "model/cuda_llama.h"
#include "model/small_config_for_test.h"

namespace ekiben {
namespace {

constexpr int32_t kMaxTokens = 128, kMaxBatch = 8, kMaxSeqLen = 128;

std::string Opened(const CudaBackendConfig& config) {
  auto parts = OpenCudaBackend(SmallConfig(1), nullptr, config);
  EXPECT_TRUE(parts.ok()) << parts.error().message();
  return parts.ok() ? parts->backend->info().description : "";
}

TEST(CudaLinears, AreTheEnginesChoiceWhereItWasMadeHere) {
  auto device = OpenCudaDevice();
  if (!device.ok()) GTEST_SKIP() << device.error().message();
  auto model = CudaLlama::Synthesize(SmallConfig(1), 1, {kMaxSeqLen, kMaxTokens, kMaxBatch});
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
