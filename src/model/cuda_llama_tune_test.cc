// CudaLlama::Tune and Use. Skipped without a device; on the emulated one the library's second candidate is always said
// to be the fastest, and times of chains are those of the emulation.
#include <gtest/gtest.h>

#include "model/cuda_llama.h"
#include "model/small_config_for_test.h"

namespace ekiben {
namespace {

constexpr int32_t kTokensMax = 80;

class CudaTune : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = OpenCudaDevice();
    if (!device.ok()) GTEST_SKIP() << device.error().message();
    emulated_ = device->emulated;
  }
  static std::unique_ptr<CudaLlama> Model(bool fp8 = false) {
    auto model = CudaLlama::Synthesize(SmallConfig(2), 1, {128, kTokensMax, kTokensMax}, {.fp8_linears = fp8});
    EXPECT_TRUE(model.ok()) << model.error().message();
    return *std::move(model);
  }
  static CudaLinearPlan Tuned(CudaLlama& model, const CudaTuneOptions& options, int32_t first = 1) {
    size_t seen = 0;
    auto done = model.Tune(options, first, kTokensMax, [&](const CudaLinearBucket& bucket) {
      ++seen;
      EXPECT_GT(bucket.us_a_layer, 0);
      EXPECT_LE(bucket.us_a_layer, bucket.us_unmeasured);
    });
    EXPECT_TRUE(done.ok()) << done.error().message();
    EXPECT_EQ(seen, model.plan().buckets.size());
    return model.plan();
  }
  bool emulated_ = false;
};

TEST(CudaTuneBuckets, AreTheSizesOfStepsUpToTheLast) {
  EXPECT_EQ(CudaLlama::TuneBuckets(1), (std::vector<int32_t>{1}));
  EXPECT_EQ(CudaLlama::TuneBuckets(64), (std::vector<int32_t>{8, 16, 32, 64}));
  EXPECT_EQ(CudaLlama::TuneBuckets(100), (std::vector<int32_t>{8, 16, 32, 64, 72, 80, 88, 96, 100}));
  EXPECT_EQ(CudaLlama::TuneBuckets(8192).size(), 60u);
  EXPECT_EQ(CudaLlama::TuneBuckets(8192).back(), 8192);
}

TEST_F(CudaTune, EveryCountUpToTheLastHasItsWay) {
  for (bool fp8 : {false, true}) {
    auto model = Model(fp8);
    CudaLinearPlan plan = Tuned(*model, {});
    EXPECT_EQ(plan.fp8, fp8);
    for (int32_t tokens = 1; tokens <= kTokensMax; ++tokens)
      for (size_t kind = 0; kind < kCudaLinearNames.size(); ++kind)
        ASSERT_NE(plan.Find(static_cast<CudaLinearKind>(kind), tokens), nullptr) << tokens;
    EXPECT_EQ(plan.Find(CudaLinearKind::kQkv, kTokensMax + 1), nullptr);
  }
}

TEST_F(CudaTune, TheLibraryAloneServesEveryCountByItsFastestCandidate) {
  auto model = Model();
  for (const CudaLinearBucket& bucket : Tuned(*model, {.gemm = GemmPlugin::kLibrary}).buckets) {
    for (const CudaLinearWay& way : bucket.ways) {
      EXPECT_FALSE(way.own);
      EXPECT_LE(way.us, way.us_first);
      if (emulated_ && &way == &bucket.ways.back()) {
        EXPECT_EQ(way.candidate, 1);
        EXPECT_EQ(way.algorithm[1], static_cast<uint64_t>(bucket.tokens));
      }
    }
  }
}

TEST_F(CudaTune, OwnKernelsRunAsFarAsTheyReachAndNothingElseIsTimed) {
  auto model = Model();
  for (const CudaLinearBucket& bucket : Tuned(*model, {.gemm = GemmPlugin::kOwn}).buckets) {
    for (const CudaLinearWay& way : bucket.ways) {
      EXPECT_EQ(way.own, bucket.tokens <= cuda::kSkinnyTokensMax) << bucket.tokens;
      EXPECT_EQ(way.algorithm, LtAlgorithm{});
      EXPECT_EQ(way.us, 0);
    }
  }
}

TEST_F(CudaTune, OneChoiceIsMadeAtOptNumTokens) {
  auto model = Model();
  CudaLinearPlan plan = Tuned(*model, {.gemm = GemmPlugin::kLibrary, .multiple_profiles = false, .opt_num_tokens = 40});
  ASSERT_EQ(plan.buckets.size(), 1u);
  EXPECT_TRUE(plan.for_all);
  EXPECT_EQ(plan.buckets[0].tokens, 40);
  EXPECT_EQ(plan.Find(CudaLinearKind::kO, 1), plan.Find(CudaLinearKind::kO, kTokensMax));
}

TEST_F(CudaTune, AStartLeavesFewTokensToTheOwnKernels) {
  auto model = Model();
  CudaLinearPlan plan = Tuned(*model, {}, cuda::kSkinnyTokensMax + 1);
  EXPECT_EQ(plan.Find(CudaLinearKind::kDown, 64), nullptr);
  EXPECT_NE(plan.Find(CudaLinearKind::kDown, 65), nullptr);
}

TEST_F(CudaTune, APlanIsUsedWhereItWasMadeForOnly) {
  auto model = Model(), other = Model();
  CudaLinearPlan plan = Tuned(*model, {});
  EXPECT_TRUE(other->Use(plan));
  EXPECT_EQ(other->plan().buckets.size(), plan.buckets.size());
  for (auto spoil : {+[](CudaLinearPlan& p) { p.device = "another GPU"; }, +[](CudaLinearPlan& p) { p.library = "1"; },
                     +[](CudaLinearPlan& p) { p.fp8 = !p.fp8; }, +[](CudaLinearPlan& p) { p.buckets.clear(); }}) {
    CudaLinearPlan wrong = plan;
    spoil(wrong);
    auto third = Model();
    EXPECT_FALSE(third->Use(wrong));
    EXPECT_TRUE(third->plan().buckets.empty());
  }
}

}  // namespace
}  // namespace ekiben
