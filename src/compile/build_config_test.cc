#include <gtest/gtest.h>

#include "base/json.h"
#include "compile/engine.h"
#include "compile/engine_fingerprint.h"

namespace ekiben {
namespace {

ModelConfig Model() {
  ModelConfig model;
  model.max_position_embeddings = 8192;
  return model;
}

struct Refused {
  const char* field;
  const char* value;  // as it must stand in the message
  void (*set)(BuildConfig&);
};

// Each message names the field, the value, and what would be right.
TEST(BuildConfigTest, RefusesByNameWithValueAndLimit) {
  const Refused cases[] = {
      {"dtype", "fp3", [](BuildConfig& b) { b.dtype = "fp3"; }},
      {"max_batch_size", "0", [](BuildConfig& b) { b.max_batch_size = 0; }},
      {"max_batch_size", "-4", [](BuildConfig& b) { b.max_batch_size = -4; }},
      {"max_batch_size", "4096", [](BuildConfig& b) { b.max_batch_size = 5000; }},
      {"max_num_tokens", "under max_batch_size of 128", [](BuildConfig& b) { b.max_num_tokens = 64; }},
      {"max_num_tokens", "65536", [](BuildConfig& b) { b.max_num_tokens = 1 << 20; }},
      {"max_seq_len", "9000", [](BuildConfig& b) { b.max_seq_len = 9000; }},
      {"max_seq_len", "-1", [](BuildConfig& b) { b.max_seq_len = -1; }},
      {"max_input_len", "2000", [](BuildConfig& b) { b.max_seq_len = 1000, b.max_input_len = 2000; }},
      {"opt_num_tokens", "600", [](BuildConfig& b) { b.opt_num_tokens = 600; }},
      {"tokens_per_block", "33", [](BuildConfig& b) { b.tokens_per_block = 33; }},
      {"tokens_per_block", "512", [](BuildConfig& b) { b.tokens_per_block = 512; }},
      {"max_beam_width", "4", [](BuildConfig& b) { b.max_beam_width = 4; }},
      {"gemm_plugin", "cublas", [](BuildConfig& b) { b.gemm_plugin = "cublas"; }},
      {"kv_cache_type", "continuous", [](BuildConfig& b) { b.kv_cache_type = "continuous"; }},
      {"use_paged_context_fmha", "disable", [](BuildConfig& b) { b.use_paged_context_fmha = false; }},
  };
  for (const Refused& c : cases) {
    BuildConfig build;
    c.set(build);
    Result<void> result = Validate(build, Model());
    ASSERT_FALSE(result.ok()) << c.field;
    EXPECT_EQ(result.error().field(), c.field);
    EXPECT_EQ(result.error().message().rfind(c.field, 0), 0u) << result.error().message();
    EXPECT_NE(result.error().message().find(c.value), std::string::npos) << result.error().message();
    EXPECT_EQ(result.error().message().find('\n'), std::string::npos);
  }
  EXPECT_TRUE(Validate(BuildConfig(), Model()).ok());
}

TEST(BuildConfigTest, ResolvesWhatWasNotSaid) {
  auto build = ResolveBuildConfig(BuildConfig(), Model());
  ASSERT_TRUE(build.ok());
  EXPECT_EQ(build->max_seq_len, 8192);
  EXPECT_EQ(build->max_input_len, 8191);
  EXPECT_EQ(build->gemm_plugin, "disable");
  BuildConfig one;
  one.multiple_profiles = false;
  build = ResolveBuildConfig(one, Model());
  ASSERT_TRUE(build.ok());
  EXPECT_EQ(build->opt_num_tokens, 128);
}

TEST(BuildConfigTest, AnOptionWithoutEffectIsRefused) {
  BuildConfig build;
  build.opt_num_tokens = 64;
  auto result = ResolveBuildConfig(build, Model());
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().field(), "opt_num_tokens");
}

TEST(BuildConfigTest, ALibraryIsNamedByTheTypeThatItMultiplies) {
  for (auto [dtype, plugin, good] : {std::tuple("auto", "bfloat16", true),
                                     {"bf16", "bfloat16", true},
                                     {"fp8", "fp8", true},
                                     {"fp8", "auto", true},
                                     {"bf16", "disable", true},
                                     {"fp8", "bfloat16", false},
                                     {"bf16", "fp8", false},
                                     {"auto", "fp8", false}}) {
    BuildConfig build{.device = "cuda", .dtype = dtype, .max_batch_size = 8, .gemm_plugin = plugin};
    Result<void> result = Validate(build, Model());
    EXPECT_EQ(result.ok(), good) << dtype << " " << plugin;
    if (good) continue;
    EXPECT_EQ(result.error().field(), "gemm_plugin");
  }
}

TEST(BuildConfigTest, SurvivesJson) {
  BuildConfig build;
  build.dtype = "int8";
  build.max_batch_size = 7;
  build.tokens_per_block = 64;
  build.multiple_profiles = false;
  auto read = BuildConfigFromJson(ToJson(build));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(ToJson(*read), ToJson(build));
}

}  // namespace
}  // namespace ekiben
