// Against Hugging Face's float32 logits (tests/golden). SmolLM2 is not in the repository: EKIBEN_TEST_MODEL names its
// GGUF file, without it those tests are skipped.
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <span>

#include "base/sanitizers.h"
#include "device/cpu_features.h"
#include "model/golden_files_for_test.h"
#include "model/logit_compare.h"
#include "model/packed_model_for_test.h"

namespace ekiben {
namespace {

constexpr int32_t kMaxSeqLen = 512;
// Of SmolLM2's 20 files and the 64 tokens that each generates.
constexpr size_t kSmolLm2Files = kSanitized ? 3 : 20;
constexpr int kSmolLm2Steps = kSanitized ? 12 : 64;

// One forward pass per file.
GoldenComparison CompareAll(std::span<const GoldenFile> files, Model& model, DType kv_dtype, Isa isa) {
  GoldenComparison out;
  ForwardRunner runner(model, isa, 2, kv_dtype, 32, kMaxSeqLen / 32, kMaxSeqLen);
  for (const GoldenFile& golden : files) {
    ForwardRunner::Sequence sequence{.token_ids = golden.token_ids};
    runner.Step({{&sequence, static_cast<int32_t>(golden.token_ids.size())}});
    out.Add(golden, sequence.logits);
    runner.Free(sequence);
  }
  return out;
}

class TinyGolden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto opened = OpenCheckpoint(std::filesystem::path(EKIBEN_SOURCE_DIR) / "tests" / "golden" / GetParam());
    ASSERT_TRUE(opened.ok()) << opened.error().message();
    checkpoint_ = std::make_unique<Checkpoint>(*std::move(opened));
    files_ = GoldenFilesOf(EKIBEN_SOURCE_DIR, GetParam());
    ASSERT_EQ(files_.size(), 3u);
  }
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<GoldenFile> files_;
};

TEST_P(TinyGolden, Float32IsWithinAThousandth) {
  auto packed = PackModel(*checkpoint_, Packing::kF32, Packing::kF32, kMaxSeqLen);
  ASSERT_TRUE(packed.ok()) << packed.error().message();
  for (Isa isa : {Isa::kReference, BestIsa()}) {
    GoldenComparison out = CompareAll(files_, *packed->model, DType::kF32, isa);
    std::cout << GetParam() << " f32 " << Name(isa) << ": " << out.comparison.Describe() << "\n";
    EXPECT_LT(out.comparison.max_difference(), 1e-3);
    EXPECT_EQ(out.comparison.top1_agreement(), 1);
    EXPECT_EQ(out.greedy_equal, out.greedy_total);
    EXPECT_EQ(out.greedy_total, 3 * 24);
  }
}

TEST_P(TinyGolden, BFloat16StaysClose) {
  auto packed = PackModel(*checkpoint_, Packing::kBF16, Packing::kBF16, kMaxSeqLen);
  ASSERT_TRUE(packed.ok()) << packed.error().message();
  GoldenComparison out = CompareAll(files_, *packed->model, DType::kBF16, BestIsa());
  std::cout << GetParam() << " bf16: " << out.comparison.Describe() << "\n";
  // Random weights give flat, unstable distributions; this guards against a wrong path, not for quality.
  EXPECT_LT(out.comparison.mean_kl(), 5e-3);
}

INSTANTIATE_TEST_SUITE_P(Families, TinyGolden,
                         ::testing::Values("tiny_qwen2", "tiny_mistral", "tiny_llama3", "tiny_yarn", "tiny_linear"));

class SmolLm2Golden : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = OpenSmolLm2();
    if (checkpoint_ == nullptr) GTEST_SKIP() << "EKIBEN_TEST_MODEL does not name SmolLM2's GGUF file";
    ASSERT_FALSE(HasFailure());
    files_ = GoldenFilesOf(EKIBEN_SOURCE_DIR, "smollm2");
    ASSERT_EQ(files_.size(), 20u);
  }
  std::span<const GoldenFile> Compared() const { return std::span(files_).first(kSmolLm2Files); }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<GoldenFile> files_;
};

TEST_F(SmolLm2Golden, Float32IsWithinAThousandthAndGreedyTokensAreEqual) {
  auto packed = PackModel(*checkpoint_, Packing::kF32, Packing::kF32, kMaxSeqLen);
  ASSERT_TRUE(packed.ok()) << packed.error().message();
  GoldenComparison out = CompareAll(Compared(), *packed->model, DType::kF32, BestIsa());
  std::cout << "smollm2 f32: " << out.comparison.Describe() << "\ngreedy " << out.greedy_equal << " of "
            << out.greedy_total << "\n";
  EXPECT_LT(out.comparison.max_difference(), 1e-3);
  EXPECT_EQ(out.greedy_equal, out.greedy_total);
  EXPECT_EQ(out.greedy_total, static_cast<int64_t>(kSmolLm2Files) * 64);
}

// Token by token, as a server generates: the argmax of each step is fed to the next.
TEST_F(SmolLm2Golden, Float32GeneratesTheSameTokensStepByStep) {
  auto packed = PackModel(*checkpoint_, Packing::kF32, Packing::kF32, kMaxSeqLen);
  ASSERT_TRUE(packed.ok()) << packed.error().message();
  ForwardRunner runner(*packed->model, BestIsa(), 2, DType::kF32, 16, 64, 512);
  std::vector<ForwardRunner::Sequence> sequences;
  constexpr std::array<size_t, 3> kChosen = {0, 3, 8};
  for (size_t i : kChosen) {
    const GoldenFile& golden = files_[i];
    sequences.push_back({.token_ids = {golden.token_ids.begin(), golden.token_ids.begin() + golden.prompt_tokens}});
  }
  for (int step = 0; step < kSmolLm2Steps; ++step) {
    std::vector<ForwardRunner::Feed> feeds;
    for (auto& s : sequences) feeds.push_back({&s, static_cast<int32_t>(std::ssize(s.token_ids)) - s.done});
    runner.Step(feeds);
    for (auto& s : sequences) {
      auto last = s.logits.end() - checkpoint_->config.vocab_size;
      s.token_ids.push_back(static_cast<int32_t>(std::max_element(last, s.logits.end()) - last));
    }
  }
  for (size_t i = 0; i < kChosen.size(); ++i) {
    const GoldenFile& golden = files_[kChosen[i]];
    auto end = golden.token_ids.begin() + golden.prompt_tokens + kSmolLm2Steps;
    EXPECT_EQ(sequences[i].token_ids, std::vector(golden.token_ids.begin(), end));
  }
}

TEST_F(SmolLm2Golden, QuantisedIsClose) {
  struct {
    const char* name;
    Packing packing, precise;
  } paths[] = {{"int4 block 32, int8 head", Packing::kInt4Block32, Packing::kInt8},
               {"int8", Packing::kInt8, Packing::kInt8},
               {"bf16", Packing::kBF16, Packing::kBF16}};
  for (const auto& path : paths) {
    auto packed = PackModel(*checkpoint_, path.packing, path.precise, kMaxSeqLen);
    ASSERT_TRUE(packed.ok()) << packed.error().message();
    GoldenComparison out = CompareAll(Compared(), *packed->model, DType::kBF16, BestIsa());
    std::cout << "smollm2 " << path.name << ": " << out.comparison.Describe() << "\nmean mass beyond the top "
              << out.comparison.mean_rest_mass() << "\n";
    EXPECT_LT(out.comparison.mean_kl(), 5e-3) << path.name;
  }
}

}  // namespace
}  // namespace ekiben
