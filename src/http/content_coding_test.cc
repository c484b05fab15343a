#include "http/content_coding.h"

#include <gtest/gtest.h>

namespace ekiben::http {
namespace {

TEST(ContentCoding, NamesAndChoices) {
  EXPECT_EQ(*ParseContentCoding(""), ContentCoding::kIdentity);
  EXPECT_EQ(*ParseContentCoding(" GZIP "), ContentCoding::kGzip);
  EXPECT_EQ(*ParseContentCoding("deflate"), ContentCoding::kDeflate);
  for (const char* bad : {"br", "gzip, gzip", "zstd", "gzip;q=1"}) {
    auto parsed = ParseContentCoding(bad);
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_EQ(parsed.error().field(), "content-encoding");
  }
  const std::pair<const char*, ContentCoding> choices[] = {
      {"", ContentCoding::kIdentity},
      {"gzip, deflate, br", ContentCoding::kGzip},
      {"deflate", ContentCoding::kDeflate},
      {"gzip;q=0.2, deflate;q=0.9", ContentCoding::kDeflate},
      {"gzip;q=0", ContentCoding::kIdentity},
      {"*", ContentCoding::kGzip},
      {"*;q=0.5, gzip;q=0", ContentCoding::kDeflate},
      {"identity, gzip;q=0.5", ContentCoding::kIdentity},
      {"br, zstd", ContentCoding::kIdentity},
      {"gzip;q=nonsense", ContentCoding::kGzip},
      {",,;;q=,", ContentCoding::kIdentity},
  };
  for (auto [field, coding] : choices) EXPECT_EQ(ChooseContentCoding(field), coding) << field;
}

TEST(ContentCoding, BothWaysReturnTheSame) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += std::to_string(i * 7919) + (i % 3 == 0 ? "駅弁" : ",");
  text.push_back('\0');
  for (ContentCoding coding : {ContentCoding::kGzip, ContentCoding::kDeflate}) {
    for (const std::string& body : {std::string(), std::string("{}"), text}) {
      std::string encoded = EncodeContent(coding, body);
      auto decoded = DecodeContent(coding, encoded, {});
      ASSERT_TRUE(decoded.ok()) << decoded.error().message();
      EXPECT_EQ(*decoded, body);
    }
    EXPECT_LT(EncodeContent(coding, text).size(), text.size() / 2);
  }
}

TEST(ContentCoding, DeflateIsAlsoTheRawForm) {
  std::string encoded = EncodeContent(ContentCoding::kDeflate, "raw or not");
  std::string raw = encoded.substr(2, encoded.size() - 6);  // without zlib's header and checksum
  auto decoded = DecodeContent(ContentCoding::kDeflate, raw, {});
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_EQ(*decoded, "raw or not");
}

TEST(ContentCoding, BombsAreRefusedByBytesAndByGrowth) {
  std::string bomb = EncodeContent(ContentCoding::kGzip, std::string(8 << 20, 'a'));
  auto grown = DecodeContent(ContentCoding::kGzip, bomb, {});
  ASSERT_FALSE(grown.ok());
  EXPECT_EQ(grown.error().field(), "body");
  EXPECT_NE(grown.error().message().find("200 times"), std::string::npos);
  auto large = DecodeContent(ContentCoding::kGzip, bomb, {.bytes_max = 1000});
  ASSERT_FALSE(large.ok());
  EXPECT_NE(large.error().message().find("1000"), std::string::npos);
  // A small body may shrink as well as it likes.
  EXPECT_TRUE(
      DecodeContent(ContentCoding::kGzip, EncodeContent(ContentCoding::kGzip, std::string(500'000, 'a')), {}).ok());
}

TEST(ContentCoding, CutLongAndWrongBodies) {
  std::string encoded = EncodeContent(ContentCoding::kGzip, "some words that are not repeated");
  for (size_t cut = 0; cut < encoded.size(); ++cut)
    EXPECT_FALSE(DecodeContent(ContentCoding::kGzip, encoded.substr(0, cut), {}).ok()) << cut;
  EXPECT_FALSE(DecodeContent(ContentCoding::kGzip, encoded + "x", {}).ok());
  EXPECT_FALSE(DecodeContent(ContentCoding::kGzip, "{\"prompt\":1}", {}).ok());
  EXPECT_FALSE(DecodeContent(ContentCoding::kDeflate, "{\"prompt\":1}", {}).ok());
  encoded[encoded.size() - 6] ^= 1;  // the checksum
  EXPECT_FALSE(DecodeContent(ContentCoding::kGzip, encoded, {}).ok());
}

}  // namespace
}  // namespace ekiben::http
