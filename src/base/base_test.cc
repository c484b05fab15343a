// Tests of base/: one file, because each piece is small.
#include <gtest/gtest.h>

#include <bit>
#include <filesystem>
#include <thread>

#include <unistd.h>

#include "base/api_keys.h"
#include "base/bounded_queue.h"
#include "base/dtype.h"
#include "base/histogram.h"
#include "base/human.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/philox.h"
#include "base/sha256.h"

namespace ekiben {
namespace {

TEST(DType, HalfRoundTripsEveryBitPattern) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    float wide = F16ToF32(static_cast<uint16_t>(bits));
    if (wide != wide) continue;  // NaN
    EXPECT_EQ(F32ToF16(wide), bits);
  }
  EXPECT_EQ(F16ToF32(0x3c00), 1.0f);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00);             // rounds to infinity
  EXPECT_EQ(F32ToF16(1.0f + 0x1p-11f), 0x3c00);      // a tie goes to even
  EXPECT_EQ(F32ToF16(1.0f + 3 * 0x1p-11f), 0x3c02);  // and the other way
}

TEST(DType, BF16RoundsToNearestEven) {
  EXPECT_EQ(F32ToBF16(1.0f), 0x3f80);
  EXPECT_EQ(F32ToBF16(std::bit_cast<float>(0x3f808000u)), 0x3f80);
  EXPECT_EQ(F32ToBF16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_NE(BF16ToF32(F32ToBF16(NAN)), BF16ToF32(F32ToBF16(NAN)));
}

TEST(Philox, MatchesThePublishedVectors) {
  // Random123's known-answer file, philox4x32 with 10 rounds.
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (PhiloxCounter{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(Philox4x32({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, {0xffffffffu, 0xffffffffu}),
            (PhiloxCounter{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
}

TEST(Sha256, MatchesFips180) {
  EXPECT_EQ(Hex(Sha256Of(std::as_bytes(std::span(std::string_view("abc"))))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Histogram, QuantilesAreWithinTheBucketWidth) {
  Histogram histogram;
  for (int64_t v = 1; v <= 100000; ++v) histogram.Record(v * 1000);
  EXPECT_NEAR(histogram.Quantile(0.5), 50'000'000, 50'000'000 / 64.0);
  EXPECT_NEAR(histogram.Quantile(0.99), 99'000'000, 99'000'000 / 64.0);
  EXPECT_EQ(histogram.Quantile(1.0), 100'000'000);
  EXPECT_EQ(histogram.Quantile(0.0), 1000);
  Histogram other;
  other.Record(int64_t{1} << 61);
  histogram.Merge(other);
  EXPECT_EQ(histogram.count(), 100001u);
  EXPECT_EQ(histogram.max(), std::ldexp(1.0, 61));
}

TEST(Human, ReadsAsAPersonWouldSay) {
  EXPECT_EQ(HumanBytes(98362432), "93.8 MiB");
  EXPECT_EQ(HumanCount(18432), "18,432");
  EXPECT_EQ(HumanCount(-123456), "-123,456");
  EXPECT_EQ(HumanDuration(std::chrono::milliseconds(1240)), "1.24 s");
  EXPECT_EQ(HumanDuration(std::chrono::seconds(185)), "3 min 05 s");
}

TEST(Json, BoundsDepthSizeAndTrailingText) {
  EXPECT_TRUE(ParseJson(R"({"a": [1, 2]})").ok());
  EXPECT_FALSE(ParseJson(std::string(100, '[') + std::string(100, ']')).ok());
  EXPECT_FALSE(ParseJson("{} x").ok());
  EXPECT_TRUE(ParseJson("{} \n").ok());
  EXPECT_FALSE(ParseJson("{\"a\":").ok());
  EXPECT_FALSE(ParseJson("\"\xff\"").ok());
  EXPECT_FALSE(ParseJson("[1,2,3]", {.bytes_max = 4}).ok());
}

TEST(Json, GettersNameTheField) {
  json::value value =
      *ParseJson(R"({"n": "many", "big": 18446744073709551615, "f": 300.0, "half": 0.5, "none": null})");
  const json::object& object = value.get_object();
  auto n = GetInt(object, "n", 1, 128);
  ASSERT_FALSE(n.ok());
  EXPECT_EQ(n.error().message(), "n: an integer is wanted, got a string");
  EXPECT_EQ(n.error().field(), "n");
  EXPECT_FALSE(GetInt(object, "big", 0, 10).ok());
  EXPECT_EQ(**GetInt(object, "f", 1, 400), 300);
  EXPECT_FALSE(GetInt(object, "half", 0, 10).ok());
  EXPECT_FALSE((*GetInt(object, "none", 0, 10)).has_value());
  EXPECT_EQ(GetInt(object, "f", 1, 128).error().message(), "f: 300 is outside [1, 128]");
}

TEST(ApiKeys, AnyOfSeveralAndNothingElse) {
  ApiKeys keys({"alpha", "beta"});
  EXPECT_TRUE(keys.Allows("Bearer alpha"));
  EXPECT_TRUE(keys.Allows("bearer beta"));
  for (const char* bad : {"", "alpha", "Bearer ", "Bearer alph", "Bearer alphaa", "Basic alpha", "Bearer  alpha"})
    EXPECT_FALSE(keys.Allows(bad)) << bad;
  EXPECT_TRUE(ApiKeys().Allows(""));
  EXPECT_EQ(ApiKeys().Find(""), nullptr);
}

TEST(ApiKeys, EachHasItsOwnLimits) {
  ApiKeys keys(std::vector<ApiKey>{{.key = "a", .name = "alice", .max_concurrency = 2},
                                   {.key = "b", .name = "bob", .requests_per_minute = 30, .admin = true}});
  ApiKeys copy = keys;  // NOLINT: of HTTP and gRPC, the same counts
  ApiClient* alice = keys.Find("Bearer a");
  ASSERT_NE(alice, nullptr);
  EXPECT_EQ(alice, copy.Find("Bearer a"));
  EXPECT_EQ(alice->name(), "alice");
  EXPECT_FALSE(alice->admin());
  auto first = alice->Admit(Nanos(0)), second = alice->Admit(Nanos(0)), third = alice->Admit(Nanos(0));
  EXPECT_TRUE(first.turn && second.turn);
  EXPECT_EQ(third.turn, nullptr);
  EXPECT_EQ(third.refusal, "max_concurrency: 2 requests of this key are running already");
  EXPECT_EQ(third.retry_after_s, 1);
  first.turn.reset();
  EXPECT_TRUE(alice->Admit(Nanos(0)).turn);
  EXPECT_EQ(alice->running(), 1);  // the last one's turn is dropped already

  ApiClient* bob = keys.Find("Bearer b");
  EXPECT_TRUE(bob->admin());
  for (int i = 0; i < 30; ++i) EXPECT_TRUE(bob->Admit(std::chrono::hours(9)).turn) << i;
  auto over = bob->Admit(std::chrono::hours(9));
  EXPECT_EQ(over.turn, nullptr);
  EXPECT_EQ(over.retry_after_s, 2);
  EXPECT_EQ(bob->Admit(std::chrono::hours(9) + std::chrono::milliseconds(1900)).turn, nullptr);
  EXPECT_TRUE(bob->Admit(std::chrono::hours(9) + std::chrono::milliseconds(2100)).turn);
}

TEST(BoundedQueue, FullIsAnAnswerAndCloseWakesWaiters) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  EXPECT_FALSE(queue.TryPush(3));
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_EQ(queue.Pop(), 2);
  std::thread closer([&] { queue.Close(); });
  EXPECT_EQ(queue.Pop(), std::nullopt);
  closer.join();
  EXPECT_FALSE(queue.TryPush(4));
}

TEST(MappedFile, MissingFileIsNotFoundAndWritesAreAtomic) {
  auto missing = MappedFile::Open("/nonexistent/file");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code(), Code::kNotFound);
  auto path = std::filesystem::temp_directory_path() / fmt::format("ekiben_base_test_{}", ::getpid());
  ASSERT_TRUE(WriteFileAtomic(path, "hello").ok());
  EXPECT_EQ(*ReadFile(path, 100), "hello");
  EXPECT_FALSE(ReadFile(path, 4).ok());
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace ekiben
