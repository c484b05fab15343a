#include "request/sampling_params.h"

#include <gtest/gtest.h>

#include <limits>

namespace ekiben {
namespace {

TEST(SamplingParams, DefaultsAreValid) {
  EXPECT_TRUE(Validate(SamplingParams{}, 100).ok());
}

TEST(SamplingParams, ErrorNamesFieldValueAndLimit) {
  SamplingParams params;
  params.top_p = 1.5f;
  auto result = Validate(params, 100);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().field(), "top_p");
  EXPECT_EQ(result.error().message(), "top_p: 1.5 is outside [0, 1]");
}

TEST(SamplingParams, RefusesWhatIsNotFinite) {
  SamplingParams params;
  params.temperature = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(Validate(params, 100).ok());
  params = {};
  params.logit_bias = {{3, std::numeric_limits<float>::infinity()}};
  EXPECT_FALSE(Validate(params, 100).ok());
}

TEST(SamplingParams, RefusesTokensOutsideTheVocabulary) {
  SamplingParams params;
  params.logit_bias = {{100, 1.0f}};
  auto result = Validate(params, 100);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().field(), "logit_bias");
  params = {};
  params.bad_words = {{1, -2}};
  EXPECT_FALSE(Validate(params, 100).ok());
}

}  // namespace
}  // namespace ekiben
