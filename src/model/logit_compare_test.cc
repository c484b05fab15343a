#include "model/logit_compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <numeric>

namespace ekiben {
namespace {

using ::testing::HasSubstr;

TEST(LogitComparison, IsZeroForEqualLogitsAndForAShift) {
  std::vector<float> a = {1, 2, 3, -4}, shifted = {2, 3, 4, -3};
  LogitComparison equal, shift;
  equal.Add(a, a);
  shift.Add(a, shifted);
  EXPECT_EQ(equal.max_difference(), 0);
  EXPECT_EQ(equal.mean_kl(), 0);
  EXPECT_EQ(equal.top1_agreement(), 1);
  EXPECT_EQ(equal.histogram()[0], 4);
  EXPECT_EQ(shift.max_difference(), 1);
  EXPECT_EQ(equal.relative_error(), 0);
  EXPECT_NEAR(shift.relative_error(), std::sqrt(4.0 / 30), 1e-12);
  EXPECT_NEAR(shift.mean_kl(), 0, 1e-12);
  EXPECT_EQ(shift.histogram()[8], 4);
}

TEST(LogitComparison, ComputesTheDivergenceOfKnownDistributions) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = 1/2 ln 2 - 1/4 ln 2.
  std::vector<float> p = {std::log(0.5f), std::log(0.25f), std::log(0.25f)};
  std::vector<float> q = {std::log(0.25f) + 3, std::log(0.5f) + 3, std::log(0.25f) + 3};
  LogitComparison comparison;
  comparison.Add(p, q);
  EXPECT_NEAR(comparison.mean_kl(), 0.25 * std::log(2.0), 1e-6);
  EXPECT_EQ(comparison.top1_agreement(), 0);
}

TEST(LogitComparison, OfTheHighestIsALowerBoundThatIsTightWhenTheRestIsSmall) {
  std::vector<float> p(100), q(100);
  for (size_t i = 0; i < 100; ++i) {
    p[i] = 10.0f - 0.3f * static_cast<float>(i);
    q[i] = p[i] + 0.2f * std::sin(static_cast<float>(i));
  }
  LogitComparison exact;
  exact.Add(p, q);
  double sum = 0;
  for (float x : p) sum += std::exp(double{x});
  double last = 0;
  for (size_t top : {1, 4, 16, 64, 100}) {
    std::vector<int32_t> ids(top);
    std::iota(ids.begin(), ids.end(), 0);
    LogitComparison part;
    part.AddTop(ids, std::span(p).first(top), static_cast<float>(std::log(sum)), q);
    EXPECT_LE(part.mean_kl(), exact.mean_kl() + 1e-6);
    EXPECT_GE(part.mean_kl(), last - 1e-6) << "more outcomes never lower it";
    last = part.mean_kl();
  }
  EXPECT_NEAR(last, exact.mean_kl(), 1e-6);
}

TEST(LogitComparison, CountsNotANumberAsInfinitelyFar) {
  std::vector<float> p = {1, 2}, q = {1, NAN};
  LogitComparison comparison;
  comparison.Add(p, q);
  EXPECT_EQ(comparison.max_difference(), INFINITY);
  EXPECT_EQ(comparison.histogram()[8], 1);
}

class GoldenFileTest : public ::testing::Test {
 protected:
  std::string WriteAndOpen(const std::string& bytes) {
    std::string path = ::testing::TempDir() + "/x.golden";
    std::ofstream(path, std::ios::binary) << bytes;
    auto file = OpenGoldenFile(path);
    return file.ok() ? "" : file.error().message();
  }
  static std::string File(std::string header, size_t words) {
    header += std::string((8 - (12 + header.size()) % 8) % 8, ' ');
    std::string out = "EKGOLD1\n";
    uint32_t bytes = static_cast<uint32_t>(header.size());
    out.append(reinterpret_cast<const char*>(&bytes), 4);
    return out + header + std::string(words * 4, '\0');
  }
};

TEST_F(GoldenFileTest, RefusesWhatIsNotOne) {
  const std::string header =
      R"({"token_ids": [1, 2], "prompt_tokens": 1, "vocab_size": 8, "top": 2, "full_positions": [0]})";
  constexpr size_t kWords = 2 + 2 * 2 * 2 + 8;
  EXPECT_EQ(WriteAndOpen(File(header, kWords)), "");
  EXPECT_THAT(WriteAndOpen("EKGOLD"), HasSubstr("not a golden file"));
  EXPECT_THAT(WriteAndOpen(File(header, kWords - 1)), HasSubstr("not as long"));
  EXPECT_THAT(WriteAndOpen(File(header, kWords + 1)), HasSubstr("not as long"));
  EXPECT_THAT(WriteAndOpen(std::string("EKGOLD1\n") + "\xf0\xff\xff\xff" + "{}"), HasSubstr("longer than the file"));
  EXPECT_THAT(WriteAndOpen(File("[]", kWords)), HasSubstr("not a JSON object"));
  EXPECT_THAT(WriteAndOpen(File(
                  R"({"token_ids": [9], "prompt_tokens": 1, "vocab_size": 8, "top": 2, "full_positions": []})", 5)),
              HasSubstr("token_ids"));
  EXPECT_THAT(WriteAndOpen(File(
                  R"({"token_ids": [1], "prompt_tokens": 2, "vocab_size": 8, "top": 2, "full_positions": []})", 5)),
              HasSubstr("prompt_tokens"));
  std::string bad_id = File(header, kWords);
  bad_id[bad_id.size() - (8 + 4 + 4) * 4] = 100;
  EXPECT_THAT(WriteAndOpen(bad_id), HasSubstr("out of range"));
}

}  // namespace
}  // namespace ekiben
