#include "text/unicode.h"

#include <gtest/gtest.h>

#include <vector>

#include "text/unicode_nfc.h"

namespace ekiben::text {
namespace {

TEST(CharTable, KnowsTheClassesThatPatternsUse) {
  const CharTable& table = CharTable::Get();
  EXPECT_EQ(table[U'a'], kLetter | kLower | kWord);
  EXPECT_EQ(table[U'Ž'], kLetter | kUpper | kWord);
  EXPECT_EQ(table[U'中'], kLetter | kWord);
  EXPECT_EQ(table[U'ǅ'], kLetter | kUpper | kWord);  // title case
  EXPECT_EQ(table[U'¼'], kNumber);
  EXPECT_EQ(table[U'٣'], kNumber | kWord);
  EXPECT_EQ(table[U'\u0301'], kMark | kWord);
  EXPECT_EQ(table[U'_'], kSymbol | kWord);
  EXPECT_EQ(table[U'€'], kSymbol);
  EXPECT_EQ(table[U'\u00A0'], kSpace);
  EXPECT_EQ(table[U'\u2028'], kSpace);
  EXPECT_EQ(table[U'\x1c'], 0);    // a separator to Python's str.isspace, not White_Space
  EXPECT_EQ(table[U'\u180e'], 0);  // was a space until Unicode 6.3
  EXPECT_EQ(table[U'\uFEFF'], 0);
  EXPECT_EQ(table[0x10FFFF], 0);
}

TEST(Utf8, ValidityMatchesTheStandard) {
  for (std::string_view good : {"", "a", "é", "€", "🦙", "\xED\x9F\xBF", "\xEE\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(IsValidUtf8(good)) << good;
  }
  for (std::string_view bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xE0\x9F\xBF", "\xE2\x82", "\xED\xA0\x80",
                               "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "aaaaaaaa\xFF"}) {
    EXPECT_FALSE(IsValidUtf8(bad)) << bad;
  }
}

TEST(Utf8, EveryCodePointSurvivesARoundTrip) {
  for (char32_t code = 0; code < 0x110000; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string out;
    AppendUtf8(code, out);
    ASSERT_TRUE(IsValidUtf8(out)) << static_cast<uint32_t>(code);
    ASSERT_EQ(DecodeUtf8(out.data()), code);
    ASSERT_EQ(Utf8Length(static_cast<unsigned char>(out[0])), out.size());
  }
}

TEST(Utf8Repair, ReplacesMaximalSubparts) {
  // The examples of the Unicode standard, table 3-8 and 3-11.
  EXPECT_EQ(RepairUtf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
                       "A"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(RepairUtf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                       "A"),
            "\uFFFD\uFFFD\uFFFD\uFFFDA");
  EXPECT_EQ(RepairUtf8("ok\xE2\x82"), "ok\uFFFD");
}

TEST(Utf8Repair, IsTheSameHoweverTheBytesArrive) {
  const std::string bytes = "a\xF0\x9F\xA6\x99\xE2\x82z\xC3\xA9\xFF\xE0\xA0";
  for (auto unit : {Utf8Repair::Unit::kMaximalSubpart, Utf8Repair::Unit::kByte}) {
    std::string whole;
    Utf8Repair at_once(unit);
    at_once.Feed(bytes, whole);
    at_once.Finish(whole);
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      std::string parts;
      Utf8Repair repair(unit);
      repair.Feed(bytes.substr(0, cut), parts);
      EXPECT_TRUE(IsValidUtf8(parts));
      repair.Feed(bytes.substr(cut), parts);
      repair.Finish(parts);
      EXPECT_EQ(parts, whole) << cut;
    }
  }
}

std::string NfcOf(std::string_view text) {
  std::string out;
  std::vector<size_t> cuts;
  AppendNfc(text, {text.size()}, out, cuts);
  EXPECT_EQ(cuts, std::vector<size_t>{out.size()});
  return out;
}

TEST(Nfc, ComposesAndOrders) {
  EXPECT_EQ(NfcOf("e\u0301"), "é");
  EXPECT_EQ(NfcOf("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(NfcOf("\u1100\u1161\u11a8"), "각");
  EXPECT_EQ(NfcOf("\u212b plain"), "Å plain");
  EXPECT_TRUE(IsNfc("é각 plain"));
  EXPECT_FALSE(IsNfc("e\u0301"));
}

TEST(Nfc, SortsLongRunsOfMarksItself) {
  // Falling order: an insertion sort would take a quarter of a million squared steps here.
  std::string text = "a", low, high;
  for (int i = 0; i < 250'000; ++i) {
    text += "\u0301\u0316";
    low += "\u0316";
    high += "\u0301";
  }
  EXPECT_FALSE(IsNfc(text));
  EXPECT_FALSE(IsNfc(std::string_view(text).substr(1)));
  // The first U+0301 composes: U+0316 between has another class.
  EXPECT_EQ(NfcOf(text), "á" + low + high.substr(2));
}

TEST(Nfc, CutsMoveToTheEndOfAJoinedCharacter) {
  std::string out;
  std::vector<size_t> cuts;
  std::string text = "ae\u0301b";
  AppendNfc(text, {2, 4, text.size()}, out, cuts);
  EXPECT_EQ(out, "aéb");
  EXPECT_EQ(cuts, (std::vector<size_t>{3, 3, 4}));
}

}  // namespace
}  // namespace ekiben::text
