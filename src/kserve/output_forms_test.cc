#include "kserve/output_forms.h"

#include <gtest/gtest.h>

#include <cmath>

namespace ekiben::kserve {
namespace {

std::vector<std::string> Classes(const Tensor& tensor) {
  auto elements = BytesElements(tensor);
  return {elements.begin(), elements.end()};
}

TEST(OutputForms, TheBestOfEachRowOfTheBatch) {
  Tensor best = BestClasses(Fp32Tensor("x", {2, 3}, {.25f, -1, 7, 3, 3, NAN}), 2);
  EXPECT_EQ(best.name, "x");
  EXPECT_EQ(best.type, DataType::kBytes);
  EXPECT_EQ(best.shape, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(Classes(best), (std::vector<std::string>{"7.000000:2", "0.250000:0", "3.000000:0", "3.000000:1"}));
  // More than there are: all. What is behind the batch is one row.
  best = BestClasses(Int32Tensor("x", {1, 1, 3}, {-5, 9, 2}), 10);
  EXPECT_EQ(best.shape, (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(Classes(best), (std::vector<std::string>{"9:1", "2:2", "-5:0"}));
  EXPECT_EQ(Classes(BestClasses(Int64Tensor("x", {2}, {int64_t{1} << 40, 3}), 1)),
            std::vector<std::string>{"1099511627776:0"});
  EXPECT_TRUE(Classes(BestClasses(Fp32Tensor("x", {1, 0}, {}), 3)).empty());
}

TEST(OutputForms, WhatCannotBeHonouredIsNamed) {
  const ModelSchema& schema = SchemaOf(Part::kEnsemble);
  SharedMemory none("");
  auto refusal = [&](const char* output, Parameters parameters) {
    auto made = OutputForms::Create({{output, std::move(parameters)}}, schema, none);
    return made.ok() ? "(taken)" : made.error().message();
  };
  EXPECT_EQ(refusal("text_output", {{"classification", int64_t{1}}}),
            "class result not available for output 'text_output' due to unsupported type 'BYTES'");
  EXPECT_EQ(refusal("cum_log_probs", {{"classification", int64_t{-1}}}),
            "output 'cum_log_probs': classification wants a whole number in [0, 1048576]");
  EXPECT_EQ(refusal("cum_log_probs", {{"classification", std::string("1")}}).find("output 'cum_log_probs'"), 0u);
  EXPECT_EQ(refusal("cum_log_probs", {{"classification", int64_t{3}}}), "(taken)");
  EXPECT_EQ(refusal("text_output", {{"binary_data", true}}), "(taken)");
  EXPECT_EQ(refusal("text_output", {{"shared_memory_region", std::string("r")}}),
            "output 'text_output': 'shared_memory_byte_size' must be specified along with 'shared_memory_region'");
  EXPECT_EQ(refusal("text_output", {{"shared_memory_offset", int64_t{1}}}),
            "output 'text_output': shared_memory_offset without shared_memory_region");
  EXPECT_EQ(
      refusal("text_output", {{"shared_memory_region", std::string("r")}, {"shared_memory_byte_size", int64_t{-1}}}),
      "output 'text_output': shared_memory_byte_size wants a whole number from 0 on");
  EXPECT_EQ(refusal("cum_log_probs", {{"classification", int64_t{1}},
                                      {"shared_memory_region", std::string("r")},
                                      {"shared_memory_byte_size", int64_t{1}}}),
            "output 'cum_log_probs': shared memory can't be set on classification output");
  EXPECT_EQ(
      refusal("text_output", {{"shared_memory_region", std::string("r")}, {"shared_memory_byte_size", int64_t{1}}}),
      "shared memory is not offered; start with --shared_memory_prefix, or send the data");
}

}  // namespace
}  // namespace ekiben::kserve
