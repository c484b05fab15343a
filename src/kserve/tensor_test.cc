#include "kserve/tensor.h"

#include <gtest/gtest.h>

namespace ekiben::kserve {
namespace {

TEST(Tensor, TypesHaveNamesAndSizes) {
  for (int i = 0; i <= static_cast<int>(DataType::kBf16); ++i) {
    auto type = static_cast<DataType>(i);
    EXPECT_EQ(DataTypeFromName(DataTypeName(type)), type);
  }
  EXPECT_EQ(ElementBytes(DataType::kBool), 1u);
  EXPECT_EQ(ElementBytes(DataType::kFp64), 8u);
  EXPECT_EQ(ElementBytes(DataType::kBytes), 0u);
  EXPECT_EQ(DataTypeFromName("STRING"), std::nullopt);
}

TEST(Tensor, AShapeIsCountedAndBounded) {
  EXPECT_EQ(*ElementCount({}), 1);
  EXPECT_EQ(*ElementCount({2, 3}), 6);
  EXPECT_EQ(*ElementCount({2, 0, 3}), 0);
  EXPECT_FALSE(ElementCount({-1}).ok());
  EXPECT_FALSE(ElementCount({int64_t{1} << 40, int64_t{1} << 40}).ok());
  EXPECT_FALSE(ElementCount({0, int64_t{1} << 62, 4}).ok());
  EXPECT_FALSE(ElementCount(std::vector<int64_t>(17, 1)).ok());
}

TEST(Tensor, DataIsExactlyTheShapesElements) {
  Tensor tensor = Int32Tensor("ids", {1, 3}, {1, 2, 3});
  EXPECT_TRUE(CheckData(tensor).ok());
  tensor.data.pop_back();
  auto checked = CheckData(tensor);
  ASSERT_FALSE(checked.ok());
  EXPECT_EQ(checked.error().message(), "input 'ids': 11 bytes where 3 elements of INT32 take 12");
}

TEST(Tensor, BytesKeepZerosAndEmptyElements) {
  std::vector<std::string> elements = {"a", "", std::string("x\0y", 3)};
  Tensor tensor = BytesTensor("text", {3}, elements);
  ASSERT_TRUE(CheckData(tensor).ok());
  auto read = BytesElements(tensor);
  ASSERT_EQ(read.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(read[i], elements[i]);
}

TEST(Tensor, BytesThatLieAboutTheirLengthAreRefused) {
  Tensor tensor = BytesTensor("text", {1}, {"abc"});
  for (const auto& [data, shape] : std::vector<std::pair<std::string, std::vector<int64_t>>>{
           {std::string("\x04\0\0\0abc", 7), {1}},  // one byte short
           {std::string("\x03\0\0", 3), {1}},       // inside the length
           {std::string("\xff\xff\xff\xff"
                        "abc",
                        7),
            {1}},                     // 4 GiB announced
           {tensor.data + "z", {1}},  // a byte too many
           {tensor.data, {2}},        // an element too few
           {tensor.data, {0}}}) {
    tensor.data = data;
    tensor.shape = shape;
    EXPECT_FALSE(CheckData(tensor).ok());
    tensor = BytesTensor("text", {1}, {"abc"});
  }
}

}  // namespace
}  // namespace ekiben::kserve
