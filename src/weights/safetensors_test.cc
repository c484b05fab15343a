#include "weights/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace ekiben {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::byte> Bytes(std::string_view header, size_t data_bytes, uint64_t length) {
  std::vector<std::byte> out(8 + header.size() + data_bytes);
  std::memcpy(out.data(), &length, 8);
  std::memcpy(out.data() + 8, header.data(), header.size());
  for (size_t i = 0; i < data_bytes; ++i) out[8 + header.size() + i] = static_cast<std::byte>(i);
  return out;
}
std::vector<std::byte> Bytes(std::string_view header, size_t data_bytes) {
  return Bytes(header, data_bytes, header.size());
}

std::string Read(const std::vector<std::byte>& bytes) {
  Result<SafetensorsFile> file = ParseSafetensors(bytes, "m.safetensors");
  return file.ok() ? "" : file.error().message();
}

constexpr std::string_view kGood =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},)"
    R"("a":{"shape":[2],"data_offsets":[0,8],"dtype":"F32"},"none":{"dtype":"F16","shape":[0,4],"data_offsets":[8,8]}}  )";

TEST(Safetensors, ReadsTheTable) {
  std::vector<std::byte> bytes = Bytes(kGood, 20);
  Result<SafetensorsFile> file = ParseSafetensors(bytes, "m.safetensors");
  ASSERT_TRUE(file.ok()) << file.error().message();
  ASSERT_EQ(file->tensors.size(), 3u);
  const SafetensorsTensor& b = file->tensors.at("b");
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_THAT(b.shape, ElementsAre(2, 3));
  EXPECT_EQ(b.offset, 8 + kGood.size() + 8);
  ASSERT_EQ(b.data.size(), 12u);
  EXPECT_EQ(b.data[0], std::byte{8});
  EXPECT_TRUE(file->tensors.at("none").data.empty());
  EXPECT_EQ(file->metadata.at("format"), "pt");
}

TEST(Safetensors, RefusesALyingHeaderLength) {
  EXPECT_THAT(Read({}), HasSubstr("m.safetensors: byte 0: header length: 8 bytes are wanted, the file has 0"));
  EXPECT_THAT(Read(Bytes(kGood, 20, 100'000'001)), HasSubstr("the limit is 100000000"));
  EXPECT_THAT(Read(Bytes(kGood, 20, UINT64_MAX)), HasSubstr("the limit is 100000000"));
  EXPECT_THAT(Read(Bytes(kGood, 20, kGood.size() + 21)), HasSubstr("are left: truncated?"));
  EXPECT_THAT(Read(Bytes(kGood, 20, kGood.size() - 3)), HasSubstr("JSON"));
  EXPECT_THAT(Read(Bytes("", 20, 0)), HasSubstr("it does not begin with '{'"));
  EXPECT_THAT(Read(Bytes(" {}", 0)), HasSubstr("it does not begin with '{'"));
  EXPECT_THAT(Read(Bytes("[]", 0)), HasSubstr("it does not begin with '{'"));
  EXPECT_EQ(Read(Bytes("{}", 0)), "");
}

TEST(Safetensors, RefusesStrangeHeaders) {
  auto with = [](std::string_view entry, size_t data_bytes = 8) {
    return Read(Bytes(fmt::format(R"({{"t":{}}})", entry), data_bytes));
  };
  EXPECT_EQ(with(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})"), "");
  EXPECT_EQ(with(R"({"dtype":"F32","shape":[],"data_offsets":[0,4]})", 4), "");
  const std::pair<std::string_view, std::string_view> cases[] = {
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]},"t":{)", "tensor t: the name occurs twice"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"dtype":"F32"})", "tensor t: 'dtype' occurs twice"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1})", "tensor t: 'x' is no known key"},
      {R"({"dtype":"F32","shape":[2]})", "tensor t: dtype, shape and data_offsets are all required"},
      {R"({"dtype":"F33","shape":[2],"data_offsets":[0,8]})", "tensor t: dtype 'F33' is unknown"},
      {R"({"dtype":5,"shape":[2],"data_offsets":[0,8]})", "a number in the wrong place"},
      {R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})", "a number in the wrong place"},
      {R"({"dtype":"F32","shape":"2","data_offsets":[0,8]})", "a string in the wrong place"},
      {R"({"dtype":["F32"],"shape":[2],"data_offsets":[0,8]})", "an array in the wrong place"},
      {R"({"dtype":"F32","shape":[[2]],"data_offsets":[0,8]})", "an array in the wrong place"},
      {R"({"dtype":"F32","shape":{"a":2},"data_offsets":[0,8]})", "an object where a value belongs"},
      {R"({"dtype":"F32","shape":[{}],"data_offsets":[0,8]})", "an object where a value belongs"},
      {R"({"dtype":"F32","shape":["2"],"data_offsets":[0,8]})", "a string in the wrong place"},
      {R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})", "is no size"},
      {R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})", "-2 is negative"},
      {R"({"dtype":"F32","shape":[null],"data_offsets":[0,8]})", "null in the wrong place"},
      {R"({"dtype":"F32","shape":[true],"data_offsets":[0,8]})", "a boolean in the wrong place"},
      {R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})",
       "over 16 numbers in shape"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})", "data_offsets has 3 numbers, not 2"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[8]})", "data_offsets has 1 numbers, not 2"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})", "data_offsets [8, 0] leave the file's 8 bytes"},
      {R"({"dtype":"F32","shape":[3],"data_offsets":[0,12]})", "data_offsets [0, 12] leave the file's 8 bytes"},
      {R"({"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]})", "leave the file's 8 bytes"},
      {R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})", "F32 [3] takes 12 bytes, data_offsets give 8"},
      {R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})", "overflows"},
      {R"({"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]})", "overflows"},
      {R"({"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]})", "is no size"},
      {"7", "a number in the wrong place"},
      {R"("F32")", "a string in the wrong place"},
      {"[]", "an array in the wrong place"},
      {"null", "null in the wrong place"},
  };
  for (const auto& [entry, message] : cases) {
    EXPECT_THAT(with(entry), HasSubstr(message)) << entry;
    EXPECT_THAT(with(entry), HasSubstr("m.safetensors: byte ")) << entry;
  }
  EXPECT_THAT(Read(Bytes(R"({"__metadata__":{"a":"1","a":"2"}})", 0)), HasSubstr("__metadata__: 'a' occurs twice"));
  EXPECT_THAT(Read(Bytes(R"({"__metadata__":{},"__metadata__":{}})", 0)), HasSubstr("the key occurs twice"));
  EXPECT_THAT(Read(Bytes(R"({"__metadata__":{"a":1}})", 0)), HasSubstr("a number in the wrong place"));
  EXPECT_THAT(Read(Bytes(R"({"__metadata__":"a"})", 0)), HasSubstr("a string in the wrong place"));
  EXPECT_THAT(Read(Bytes("{} {}", 0)), HasSubstr("text after the JSON object"));
  EXPECT_THAT(Read(Bytes("{\"\xff\":1}", 0)), HasSubstr("JSON"));
  EXPECT_THAT(Read(Bytes("{" + std::string(100000, '['), 0)), HasSubstr("header"));
}

TEST(Safetensors, RefusesHolesAndOverlaps) {
  auto two = [](std::string_view first, std::string_view second, size_t data_bytes) {
    return Read(Bytes(fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                                  R"("b":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                                  first, second),
                      data_bytes));
  };
  EXPECT_EQ(two("[0,4]", "[4,8]", 8), "");
  EXPECT_EQ(two("[4,8]", "[0,4]", 8), "");
  EXPECT_THAT(two("[0,4]", "[2,6]", 8), HasSubstr("tensor b: its data overlaps another tensor's"));
  EXPECT_THAT(two("[0,4]", "[0,4]", 4), HasSubstr("its data overlaps another tensor's"));
  EXPECT_THAT(two("[0,4]", "[5,9]", 9), HasSubstr("tensor b: 1 bytes before it belong to no tensor"));
  EXPECT_THAT(two("[1,5]", "[5,9]", 9), HasSubstr("tensor a: 1 bytes before it belong to no tensor"));
  EXPECT_THAT(two("[0,4]", "[4,8]", 9), HasSubstr("data: the last 1 bytes belong to no tensor"));
  EXPECT_THAT(Read(Bytes("{}", 1)), HasSubstr("the last 1 bytes belong to no tensor"));
}

TEST(Safetensors, EveryTruncationIsAnError) {
  std::vector<std::byte> whole = Bytes(kGood, 20);
  for (size_t size = 0; size < whole.size(); ++size) {
    std::vector<std::byte> part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    part.shrink_to_fit();
    ASSERT_THAT(Read(part), HasSubstr("m.safetensors: byte ")) << size;
  }
}

TEST(Safetensors, DamageNeverCrashes) {
  std::vector<std::byte> whole = Bytes(kGood, 20);
  std::mt19937_64 random(11);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bytes = whole;
    for (int n = 1 + static_cast<int>(random() % 3); n > 0; --n)
      bytes[random() % bytes.size()] ^= static_cast<std::byte>(1u << (random() % 8));
    std::string message = Read(bytes);
    if (message.empty()) continue;
    ++refused;
    ASSERT_THAT(message, HasSubstr("m.safetensors: byte "));
    ASSERT_EQ(message.find('\n'), std::string::npos);
  }
  EXPECT_GT(refused, 10000);
}

TEST(ShardIndex, ReadsTheMap) {
  auto map = ParseShardIndex(R"({"metadata":{},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})", "i.json");
  ASSERT_TRUE(map.ok()) << map.error().message();
  EXPECT_EQ(map->at("b"), "m-2.safetensors");
}

TEST(ShardIndex, RefusesAnythingThatLeavesTheFolder) {
  for (std::string_view shard :
       {"../m.safetensors", "/etc/m.safetensors", "a/m.safetensors", "a\\\\m.safetensors", ".safetensors", "..", "",
        "m.bin", "C:m.safetensors", ".hidden.safetensors", "m\\u0000.safetensors"}) {
    auto map = ParseShardIndex(fmt::format(R"({{"weight_map":{{"t":"{}"}}}})", shard), "i.json");
    ASSERT_FALSE(map.ok()) << shard;
    EXPECT_THAT(map.error().message(), HasSubstr("i.json: weight_map.t: '")) << shard;
  }
  for (std::string_view index :
       {"", "{", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})", R"({"weight_map":{"t":1}})"})
    EXPECT_THAT(ParseShardIndex(index, "i.json").error().message(), HasSubstr("i.json: ")) << index;
}

}  // namespace
}  // namespace ekiben
