#include "compile/run_limits.h"

#include <gtest/gtest.h>

#include "compile/engine_fingerprint.h"

namespace ekiben {
namespace {

Engine Built() {
  ModelConfig model;
  model.max_position_embeddings = 8192;
  auto any_file = MappedFile::Open(EKIBEN_SOURCE_DIR "/README.md");
  return {.path = "some/engine",
          .model = model,
          .build = {.max_batch_size = 64,
                    .max_num_tokens = 512,
                    .max_seq_len = 1024,
                    .max_input_len = 1000,
                    .tokens_per_block = 32},
          .weights = *std::move(any_file)};
}

std::string Key(const BuildConfig& options, const RunLimits& limits) {
  Checkpoint checkpoint;
  checkpoint.fingerprint = "c";
  ModelConfig model;
  model.max_position_embeddings = 8192;
  auto wanted = ResolveBuildConfig(WithLimits(options, limits), model);
  return wanted.ok() ? EngineFingerprint(checkpoint, CacheBuild(*wanted)) : wanted.error().message();
}

TEST(RunLimitsTest, OneCachedEngineServesEveryLimit) {
  const std::string key = Key({}, {});
  EXPECT_EQ(key.size(), 64u);
  for (const RunLimits& limits :
       {RunLimits{.max_batch_size = 1}, RunLimits{.max_batch_size = 1000}, RunLimits{.max_num_tokens = 64},
        RunLimits{.max_num_tokens = 8192}, RunLimits{.max_seq_len = 500}, RunLimits{.max_input_len = 77}})
    EXPECT_EQ(Key({}, limits), key);
  EXPECT_EQ(Key({.tokens_per_block = 64}, {}), key);
  EXPECT_EQ(Key({.gemm_plugin = "disable"}, {}), key);
}

TEST(RunLimitsTest, PackingAndProfileAreTheKey) {
  const std::string key = Key({}, {});
  const std::string one_choice = Key({.multiple_profiles = false}, {});
  EXPECT_NE(Key({.dtype = "f32"}, {}), key);
  EXPECT_NE(one_choice, key);
  EXPECT_NE(Key({.opt_num_tokens = 8, .multiple_profiles = false}, {}), one_choice);
  EXPECT_EQ(Key({.opt_num_tokens = 128, .multiple_profiles = false}, {}), one_choice);
}

// An engine for fp8 holds rounded rows, one for bf16 exact ones: neither stands in for the other.
TEST(RunLimitsTest, Fp8AndBf16AreEnginesOfTheirOwn) {
  EXPECT_NE(Key({.device = "cuda", .dtype = "fp8"}, {}), Key({.device = "cuda", .dtype = "bf16"}, {}));
  for (const char* built : {"bf16", "fp8"}) {
    Engine engine = Built();
    engine.build.device = "cuda";
    engine.build.dtype = built;
    for (const char* asked : {"bf16", "fp8", "int8"}) {
      const BuildConfig options{.device = "cuda", .dtype = asked};
      EXPECT_EQ(CapBuilt(engine, options, {}).ok(), std::string_view(asked) == built) << asked << " of " << built;
    }
    EXPECT_EQ(CapBuilt(engine, {.device = "cuda"}, {})->dtype, built);
  }
  EXPECT_FALSE(CapBuilt(Built(), {.dtype = "fp8"}, {}).ok()) << "the CPU has no e4m3";
}

TEST(RunLimitsTest, OneLimitTakesTheOtherAlong) {
  EXPECT_EQ(WithLimits({}, {.max_num_tokens = 32}).max_batch_size, 32);
  EXPECT_EQ(WithLimits({}, {.max_batch_size = 1000}).max_num_tokens, 1000);
  BuildConfig both = WithLimits({}, {.max_batch_size = 64, .max_num_tokens = 32});
  EXPECT_EQ(both.max_batch_size, 64);  // said, so refused by Validate and not bent
  EXPECT_EQ(both.max_num_tokens, 32);
  EXPECT_EQ(WithLimits({}, {.max_batch_size = -1}).max_batch_size, -1);
}

TEST(RunLimitsTest, ADeviceBringsItsDefaults) {
  ModelConfig model;
  model.max_position_embeddings = 8192;
  auto cuda = ResolveBuildConfig(WithLimits({.device = "cuda"}, {}), model);
  ASSERT_TRUE(cuda.ok());
  EXPECT_EQ(cuda->dtype, "bf16");
  EXPECT_EQ(cuda->tokens_per_block, 64);
  EXPECT_EQ(cuda->max_batch_size, 1024);
  EXPECT_EQ(cuda->max_num_tokens, 8192);
  EXPECT_NE(Key({.device = "cuda"}, {}), Key({.dtype = "bf16"}, {}));
  auto cpu = ResolveBuildConfig(WithLimits({}, {}), model);
  ASSERT_TRUE(cpu.ok());
  EXPECT_EQ(cpu->tokens_per_block, 32);
  EXPECT_FALSE(ResolveBuildConfig(WithLimits({.device = "cuda", .dtype = "int4"}, {}), model).ok());
}

TEST(RunLimitsTest, ABuiltEngineIsCapped) {
  auto capped = CapBuilt(Built(), {}, {.max_batch_size = 8, .max_seq_len = 100});
  ASSERT_TRUE(capped.ok()) << capped.error().message();
  EXPECT_EQ(capped->max_batch_size, 8);
  EXPECT_EQ(capped->max_num_tokens, 512);
  EXPECT_EQ(capped->max_seq_len, 100);
  EXPECT_EQ(capped->max_input_len, 99);
  capped = CapBuilt(Built(), {}, {.max_num_tokens = 16});
  ASSERT_TRUE(capped.ok());
  EXPECT_EQ(capped->max_batch_size, 16);
  capped = CapBuilt(Built(), {}, {});
  ASSERT_TRUE(capped.ok());
  EXPECT_EQ(ToJson(*capped), ToJson(Built().build));
}

TEST(RunLimitsTest, OverOrOtherThanBuiltIsRefusedWithTheCommand) {
  struct Case {
    const char* field;
    const char* said;
    const char* built;
    BuildConfig options;
    RunLimits limits;
  };
  const Case cases[] = {
      {"max_batch_size", "65", "64", {}, {.max_batch_size = 65}},
      {"max_num_tokens", "513", "512", {}, {.max_num_tokens = 513}},
      {"max_seq_len", "2000", "1024", {}, {.max_seq_len = 2000}},
      {"max_input_len", "1001", "1000", {}, {.max_input_len = 1001}},
      {"dtype", "f32", "auto", {.dtype = "f32"}, {}},
      {"tokens_per_block", "64", "32", {.tokens_per_block = 64}, {}},
      {"device", "cuda", "cpu", {.device = "cuda"}, {}},
      {"multiple_profiles", "disable", "enable", {.multiple_profiles = false}, {}},
      {"opt_num_tokens", "64", "0", {.opt_num_tokens = 64}, {}},
  };
  for (const Case& c : cases) {
    auto result = CapBuilt(Built(), c.options, c.limits);
    ASSERT_FALSE(result.ok()) << c.field;
    EXPECT_EQ(result.error().field(), c.field);
    for (const std::string& part : {std::string(c.said), std::string(c.built), std::string("some/engine"),
                                    fmt::format("ekiben build CHECKPOINT -o some/engine --{} {}", c.field, c.said)})
      EXPECT_NE(result.error().message().find(part), std::string::npos) << result.error().message();
  }
  EXPECT_FALSE(CapBuilt(Built(), {}, {.max_batch_size = -1}).ok());
  EXPECT_FALSE(CapBuilt(Built(), {.gemm_plugin = "cublas"}, {}).ok());
}

}  // namespace
}  // namespace ekiben
