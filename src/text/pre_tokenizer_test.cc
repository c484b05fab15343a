#include "text/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "text/unicode.h"

namespace ekiben::text {
namespace {

std::vector<std::string> Cut(const WordCutter& cutter, std::string_view text) {
  std::vector<std::string> words;
  cutter.ForEachWord(text, [&](std::string_view word) { words.emplace_back(word); });
  return words;
}

WordCutter Make(PreTokenizer kind, const std::vector<SplitPattern>& patterns = {}) {
  auto cutter = WordCutter::Create(kind, patterns);
  CHECK(cutter.ok(), "{}", cutter.error().message());
  return *std::move(cutter);
}

std::vector<SplitPattern> Isolated(PreTokenizer kind) {
  std::vector<SplitPattern> patterns;
  for (std::string_view regex : PatternsOf(kind)) {
    patterns.push_back({std::string(regex), SplitPattern::Behavior::kIsolated, false});
  }
  return patterns;
}

using Words = std::vector<std::string>;

TEST(WordCutter, Gpt2) {
  WordCutter cutter = Make(PreTokenizer::kGpt2);
  EXPECT_EQ(Cut(cutter, "I'm  here, 12 x\n\ny "),
            (Words{"I", "'m", " ", " here", ",", " 12", " x", "\n", "\n", "y", " "}));
  EXPECT_EQ(Cut(cutter, "I'M"), (Words{"I", "'", "M"}));
}

TEST(WordCutter, SmolLmTakesDigitsOneByOneAndEndsSpacesAtThem) {
  EXPECT_EQ(Cut(Make(PreTokenizer::kSmolLm), "\n\n1. a  23"), (Words{"\n\n", "1", ".", " a", "  ", "2", "3"}));
}

TEST(WordCutter, Llama3AndQwen2) {
  EXPECT_EQ(Cut(Make(PreTokenizer::kLlama3), "I'LL pay 12345 (now)\n\n  x"),
            (Words{"I", "'LL", " pay", " ", "123", "45", " (", "now", ")\n\n", " ", " x"}));
  EXPECT_EQ(Cut(Make(PreTokenizer::kQwen2), "a12\r\n"), (Words{"a", "1", "2", "\r\n"}));
  EXPECT_EQ(Cut(Make(PreTokenizer::kLlama3), "it'ſ"), (Words{"it", "'ſ"}));
}

TEST(WordCutter, TekkenAndGpt4oCutByCase) {
  EXPECT_EQ(Cut(Make(PreTokenizer::kTekken), "camelCase HTTPServer ABC12/\n/"),
            (Words{"camel", "Case", " HTTPServer", " ABC", "1", "2", "/\n/"}));
  EXPECT_EQ(Cut(Make(PreTokenizer::kGpt4o), "We'll GO'S 1234"), (Words{"We'll", " GO'S", " ", "123", "4"}));
  // The marks and letters without case belong to both halves, so the first alternative gives characters back.
  EXPECT_EQ(Cut(Make(PreTokenizer::kTekken), "A中B"), (Words{"A中", "B"}));
}

TEST(WordCutter, DeepSeekV3) {
  EXPECT_EQ(Cut(Make(PreTokenizer::kDeepSeekV3), "abc 中文カナ1234 .x\x01\x02y"),
            (Words{"abc", " ", "中文カナ", "123", "4", " .", "x", "\x01", "\x02y"}));
}

TEST(WordCutter, UnknownPatternsRunOnPcre2) {
  std::vector<SplitPattern> patterns = {{R"(\d+|\s+)", SplitPattern::Behavior::kMergedWithPrevious, false}};
  EXPECT_EQ(Cut(Make(PreTokenizer::kPatterns, patterns), "ab12 c"), (Words{"ab12", " ", "c"}));
  patterns[0].behavior = SplitPattern::Behavior::kMergedWithNext;
  EXPECT_EQ(Cut(Make(PreTokenizer::kPatterns, patterns), "ab12c"), (Words{"ab", "12c"}));
  patterns[0].behavior = SplitPattern::Behavior::kRemoved;
  EXPECT_EQ(Cut(Make(PreTokenizer::kPatterns, patterns), "ab12 c"), (Words{"ab", "c"}));
  patterns[0].behavior = SplitPattern::Behavior::kContiguous;
  EXPECT_EQ(Cut(Make(PreTokenizer::kPatterns, patterns), "ab12 c"), (Words{"ab", "12 ", "c"}));
  patterns[0].behavior = SplitPattern::Behavior::kRemoved;
  patterns[0].invert = true;
  EXPECT_EQ(Cut(Make(PreTokenizer::kPatterns, patterns), "ab12 c"), (Words{"12", " "}));
}

TEST(WordCutter, SpaceIsUnicodeWhiteSpaceAlsoOnPcre2) {
  std::vector<SplitPattern> patterns = {{R"(\s|[\sx])", SplitPattern::Behavior::kIsolated, false}};
  EXPECT_EQ(Cut(Make(PreTokenizer::kPatterns, patterns), "a\u180eb\u0085x"), (Words{"a\u180eb", "\u0085", "x"}));
}

TEST(WordCutter, SetsThatPcre2ReadsOtherwiseAreRefused) {
  for (const char* regex : {"[^(\\s|[.,])]+", "[a&&b]"}) {
    EXPECT_FALSE(WordCutter::Create(PreTokenizer::kPatterns, {{regex, SplitPattern::Behavior::kIsolated, false}}).ok());
  }
  EXPECT_TRUE(
      WordCutter::Create(PreTokenizer::kPatterns, {{"[[:alpha:]&]", SplitPattern::Behavior::kIsolated, false}}).ok());
}

TEST(WordCutter, ABadPatternIsNamed) {
  auto cutter = WordCutter::Create(PreTokenizer::kPatterns, {{"(", SplitPattern::Behavior::kIsolated, false}});
  ASSERT_FALSE(cutter.ok());
  EXPECT_EQ(cutter.error().code(), Code::kUnsupported);
  EXPECT_NE(cutter.error().message().find("'('"), std::string::npos);
}

TEST(WordCutter, FamiliesAreKnownByTheirPatterns) {
  for (PreTokenizer kind : {PreTokenizer::kGpt2, PreTokenizer::kSmolLm, PreTokenizer::kLlama3, PreTokenizer::kQwen2,
                            PreTokenizer::kTekken, PreTokenizer::kDeepSeekV3, PreTokenizer::kGpt4o}) {
    EXPECT_EQ(FamilyOf(Isolated(kind)), kind);
  }
  std::vector<SplitPattern> other = Isolated(PreTokenizer::kGpt2);
  other[0].regex += "|x";
  EXPECT_EQ(FamilyOf(other), PreTokenizer::kPatterns);
  EXPECT_EQ(FamilyOf({}), PreTokenizer::kNone);
}

// Characters whose classes PCRE2's older Unicode has too.
std::string RandomText(std::mt19937& random) {
  static const std::vector<std::string> kPieces = {
      "a",      "b",    "Z",      "é",      "É",      "ǅ",      "ʰ",      "中",     "か",     "ー",     "・",
      "゛",     "ア",   "\u0301", "\u0308", "\u3099", "1",      "7",      "٣",      "¼",      "Ⅵ",      " ",
      " ",      " ",    "\n",     "\r",     "\r\n",   "\t",     "\u00a0", "\u2028", "\u3000", "\u0085", "'",
      "'s",     "'LL",  "'ſ",     "'Ve",    "'re",    "'d",     ".",      ",",      "/",      "(",      "_",
      "€",      "。",   "“",      "\x01",   "\x1c",   "\u200d", "\ufeff", "\ue000", "🦙",   "\u3040", "\u9fa5",
      "\u9fa6", "🏽", "A",      "BC",     "xY",     "'"};
  std::string text;
  for (int i = std::uniform_int_distribution<int>(1, 24)(random); i > 0; --i) {
    text += kPieces[std::uniform_int_distribution<size_t>(0, kPieces.size() - 1)(random)];
  }
  return text;
}

class MatcherEqualsPattern : public testing::TestWithParam<PreTokenizer> {};

TEST_P(MatcherEqualsPattern, OnRandomTexts) {
  WordCutter matcher = Make(GetParam());
  WordCutter pattern = Make(PreTokenizer::kPatterns, Isolated(GetParam()));
  std::mt19937 random(7);
  for (int i = 0; i < 20'000; ++i) {
    std::string text = RandomText(random);
    ASSERT_EQ(Cut(matcher, text), Cut(pattern, text)) << testing::PrintToString(text);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, MatcherEqualsPattern,
                         testing::Values(PreTokenizer::kGpt2, PreTokenizer::kSmolLm, PreTokenizer::kLlama3,
                                         PreTokenizer::kQwen2, PreTokenizer::kTekken, PreTokenizer::kDeepSeekV3,
                                         PreTokenizer::kGpt4o));

TEST(WordCutter, WordsCoverATextOfAnyShape) {
  for (PreTokenizer kind : {PreTokenizer::kGpt2, PreTokenizer::kSmolLm, PreTokenizer::kLlama3, PreTokenizer::kQwen2,
                            PreTokenizer::kTekken, PreTokenizer::kDeepSeekV3, PreTokenizer::kGpt4o}) {
    WordCutter cutter = Make(kind);
    for (std::string_view unit : {"a", " ", "A", "1", "!", "\n", " \n", "\u0301", "中", "\x01", "'s", "aA"}) {
      std::string text, joined;
      while (text.size() < 100'000) text += unit;
      cutter.ForEachWord(text, [&](std::string_view word) {
        ASSERT_FALSE(word.empty());
        joined += word;
      });
      EXPECT_EQ(joined, text);
    }
  }
}

}  // namespace
}  // namespace ekiben::text
