// A build for fp8: what is rounded, what stays, what the engine says about it.
#include "model/fp8_rounding.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cmath>
#include <filesystem>

#include "compile/engine.h"
#include "ops/e4m3_rounding.h"
#include "text/tokenizer_fixture.h"
#include "weights/published_shapes.h"

namespace ekiben {
namespace {

class Fp8Build : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / fmt::format("ekiben_fp8_rounding_{}", ::getpid());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Engine Build(const std::string& model, const std::string& dtype) {
    auto checkpoint = OpenCheckpoint(std::filesystem::path(EKIBEN_SOURCE_DIR) / "tests" / "golden" / model);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.error().message();
    checkpoint->tokenizer = text::ByteLevelSpec({});
    checkpoint->has_tokenizer = true;
    BuildConfig build;
    build.device = "cuda";
    build.dtype = dtype;
    const auto path = folder_ / (model + "_" + dtype);
    std::filesystem::create_directories(folder_);
    auto built = BuildEngine(*checkpoint, build, path, [](const BuildProgress&) {});
    EXPECT_TRUE(built.ok()) << built.error().message();
    auto engine = OpenEngine(path, Verify::kAll);
    EXPECT_TRUE(engine.ok()) << engine.error().message();
    return *std::move(engine);
  }
  std::filesystem::path folder_;
};

TEST_F(Fp8Build, StoresCodesAndKeepsFirstOutputAndLastGateUp) {
  Engine plain = Build("tiny_llama3", "bf16"), fp8 = Build("tiny_llama3", "fp8");
  const std::string last = fmt::format("layers.{}.gate_up", fp8.model.num_hidden_layers - 1);
  int64_t rounded = 0;
  for (const auto& [name, tensor] : fp8.tensors) {
    const EngineTensor& exact = plain.tensors.at(name);
    ASSERT_EQ(tensor.bytes, exact.bytes);
    EXPECT_EQ(tensor.keeps_bf16, name == "layers.0.o" || name == last || name == "lm_head") << name;
    EXPECT_FALSE(exact.keeps_bf16);
    const bool same = std::equal(tensor.data, tensor.data + tensor.bytes, exact.data);
    const bool of_layer = tensor.kind == PackRule::Kind::kLinear && name != "lm_head";
    EXPECT_EQ(same, !of_layer || tensor.keeps_bf16) << name;
    if (same) continue;
    ++rounded;
    // Rows are what their factor and a code give, and the factor is the exact row's.
    const auto *values = reinterpret_cast<const uint16_t*>(tensor.data),
               *before = reinterpret_cast<const uint16_t*>(exact.data);
    for (int64_t r = 0; r < tensor.rows; ++r) {
      auto at = [r, columns = tensor.columns](int64_t c) {
        return ((r / 16 * (columns / 2) + c / 2) * 16 + r % 16) * 2 + c % 2;
      };
      float top = 0, top_before = 0;
      for (int64_t c = 0; c < tensor.columns; ++c) {
        top = std::max(top, std::fabs(BF16ToF32(values[at(c)])));
        top_before = std::max(top_before, std::fabs(BF16ToF32(before[at(c)])));
      }
      ASSERT_EQ(top, top_before) << name << " row " << r;
      for (int64_t c = 0; c < tensor.columns; ++c) {
        const float code = RoundToE4m3(BF16ToF32(values[at(c)]) / (top / 448));
        ASSERT_EQ(values[at(c)], F32ToBF16(code * (top / 448))) << name << " row " << r << " column " << c;
      }
    }
  }
  EXPECT_EQ(rounded, 4 * fp8.model.num_hidden_layers - 2);
  EXPECT_EQ(fp8.fp8.at("linears_rounded").to_number<int64_t>(), rounded);
  EXPECT_GT(fp8.fp8.at("calibration_tokens").to_number<int64_t>(), 100);
  EXPECT_TRUE(fp8.fp8.at("keeps_bf16").get_object().contains(last));
  EXPECT_TRUE(plain.fp8.empty());
}

TEST_F(Fp8Build, LeavesLinearsThatE4m3DoesNotTake) {
  Engine plain = Build("tiny_linear", "bf16"), fp8 = Build("tiny_linear", "fp8");
  for (const auto& [name, tensor] : fp8.tensors) {
    if (tensor.kind != PackRule::Kind::kLinear || HoldsE4m3(tensor.rows, tensor.columns)) continue;
    EXPECT_TRUE(std::equal(tensor.data, tensor.data + tensor.bytes, plain.tensors.at(name).data)) << name;
  }
}

TEST(Fp8Rounding, LargerModelsSeeFewerTokens) {
  auto of = [](const char* name) {
    auto shape = PublishedShape(name);
    EXPECT_TRUE(shape.ok());
    return Fp8Rounding::TokensFor(*shape);
  };
  EXPECT_EQ(of("llama-3.2-1b"), 512);
  EXPECT_EQ(of("llama-3-8b"), 128);
  EXPECT_EQ(of("llama-3-70b"), 32);
}

}  // namespace
}  // namespace ekiben
