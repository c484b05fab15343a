#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "text/tokenizer_fixture.h"
#include "text/unicode.h"

namespace ekiben::text {
namespace {

using Ids = std::vector<int32_t>;

struct Streamed {
  std::vector<std::string> pieces;  // one a token, then what Finish gave
  std::string text;
  int stop = -1;
};

Streamed Stream(const Tokenizer& tokenizer, const Ids& ids, Detokenizer::Options options = {}) {
  Streamed out;
  Detokenizer detokenizer(tokenizer, std::move(options));
  for (int32_t id : ids) {
    std::string piece;
    bool stopped = detokenizer.Push(id, piece);
    EXPECT_TRUE(IsValidUtf8(piece));
    out.pieces.push_back(piece);
    if (stopped) break;
  }
  std::string rest;
  detokenizer.Finish(rest);
  out.pieces.push_back(rest);
  for (const std::string& piece : out.pieces) out.text += piece;
  out.stop = detokenizer.stop_index();
  return out;
}

Ids BytesOf(std::string_view text) {
  Ids ids;
  for (char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

TEST(Detokenizer, HoldsACharacterUntilItIsWhole) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({}));
  Streamed out = Stream(*tokenizer, BytesOf("a🦙é"));
  EXPECT_EQ(out.pieces, (std::vector<std::string>{"a", "", "", "", "🦙", "", "é", ""}));
}

TEST(Detokenizer, WhatCannotCompleteIsReplacedAtOnceAndAtTheEnd) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({}));
  EXPECT_EQ(Stream(*tokenizer, {0xE2, 0x82, 'a'}).pieces, (std::vector<std::string>{"", "", "\uFFFDa", ""}));
  EXPECT_EQ(Stream(*tokenizer, {0xFF, 'a'}).pieces, (std::vector<std::string>{"\uFFFD", "a", ""}));
  EXPECT_EQ(Stream(*tokenizer, {'a', 0xF0, 0x9F}).pieces, (std::vector<std::string>{"a", "", "", "\uFFFD"}));
}

// A text cut into tokens in every way that two cuts allow.
TEST(Detokenizer, PiecesJoinToDecodeAtEverySplit) {
  const std::string text = "aé🦙\xE2\x82z👍🏽";
  for (size_t first = 0; first <= text.size(); ++first) {
    for (size_t second = first; second <= text.size(); ++second) {
      TokenizerSpec spec = ByteLevelSpec({});
      Ids ids;
      for (const std::string& part : {text.substr(0, first), text.substr(first, second - first), text.substr(second)}) {
        ids.push_back(static_cast<int32_t>(spec.tokens.size()));
        spec.tokens.push_back(part);
      }
      auto tokenizer = MakeTokenizer(spec);
      ASSERT_EQ(Stream(*tokenizer, ids).text, tokenizer->Decode(ids, {}));
    }
  }
}

TEST(Detokenizer, RandomBytesJoinToDecode) {
  std::mt19937 random(9);
  auto byte_level = MakeTokenizer(ByteLevelSpec({{"\xF0", "\x9F"}, {"a", "\xE2"}}));
  auto pieces = MakeTokenizer(SentencePieceSpec({"▁", "▁a", "é", "🦙"}));
  for (const auto* tokenizer : {byte_level.get(), pieces.get()}) {
    for (int i = 0; i < 2000; ++i) {
      Ids ids;
      for (size_t n = random() % 12; n > 0; --n) {
        ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(tokenizer->vocab_size())));
      }
      for (bool skip : {true, false}) {
        ASSERT_EQ(Stream(*tokenizer, ids, {.skip_special = skip}).text, tokenizer->Decode(ids, {.skip_special = skip}));
      }
    }
  }
}

TEST(Detokenizer, SentencePieceDropsTheFirstSpaceOnly) {
  auto tokenizer = MakeTokenizer(SentencePieceSpec({"▁", "▁a", "a"}));
  EXPECT_EQ(Stream(*tokenizer, {1, 260, 260}).text, "a a");
  EXPECT_EQ(Stream(*tokenizer, {259, 259, 261}).text, " a");
  EXPECT_EQ(Stream(*tokenizer, {261, 260}).text, "a a");
}

TEST(StopStrings, MatchAcrossTokensAndEmitNothingOfTheMatch) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({{"S", "T"}, {"x", "S"}}));
  Streamed out = Stream(*tokenizer, BytesOf("abSTOP tail"), {.stop = {"STOP"}});
  EXPECT_EQ(out.text, "ab");
  EXPECT_EQ(out.stop, 0);
  out = Stream(*tokenizer, BytesOf("abSTOP tail"), {.include_stop_text = true, .stop = {"STOP"}});
  EXPECT_EQ(out.text, "abSTOP");
  EXPECT_EQ(Stream(*tokenizer, {257, 'T', 'O', 'P'}, {.stop = {"STOP"}}).text, "x");
}

TEST(StopStrings, WhatOnlyBeganToMatchIsGivenBack) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({}));
  Streamed out = Stream(*tokenizer, BytesOf("aSTOx"), {.stop = {"STOP"}});
  EXPECT_EQ(out.pieces, (std::vector<std::string>{"a", "", "", "", "STOx", ""}));
  EXPECT_EQ(Stream(*tokenizer, BytesOf("aSTO"), {.stop = {"STOP"}}).text, "aSTO");
  EXPECT_EQ(Stream(*tokenizer, BytesOf("SSTOP"), {.stop = {"STOP"}}).text, "S");
  EXPECT_EQ(Stream(*tokenizer, BytesOf("ababac"), {.stop = {"abac"}}).text, "ab");
}

TEST(StopStrings, TheFirstToEndWinsAndOfThoseTheLongest) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({}));
  Streamed out = Stream(*tokenizer, BytesOf("xabcd"), {.stop = {"abcde", "bc", "abc"}});
  EXPECT_EQ(out.text, "x");
  EXPECT_EQ(out.stop, 2);
  out = Stream(*tokenizer, BytesOf("x\n\ny"), {.stop = {"\n\n", "\n"}});
  EXPECT_EQ(out.text, "x");
  EXPECT_EQ(out.stop, 1);
}

TEST(StopStrings, NeverCutACharacter) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({}));
  // é and è share their first byte.
  Streamed out = Stream(*tokenizer, BytesOf("è è é"), {.stop = {"é"}});
  EXPECT_EQ(out.text, "è è ");
  EXPECT_EQ(out.stop, 0);
}

// The definition: the earliest end, then the longest.
std::string CutAtStop(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST(StopStrings, RandomTextsFollowTheDefinition) {
  std::mt19937 random(3);
  auto tokenizer = MakeTokenizer(ByteLevelSpec({{"a", "b"}, {"b", "a"}, {"ab", "ab"}}));
  auto make = [&](size_t most) {
    std::string text;
    for (size_t n = random() % most + 1; n > 0; --n) text += "ab"[random() % 2];
    return text;
  };
  for (int i = 0; i < 5000; ++i) {
    std::vector<std::string> stops;
    for (size_t n = random() % 3 + 1; n > 0; --n) stops.push_back(make(6));
    std::string text = make(20);
    ASSERT_EQ(Stream(*tokenizer, tokenizer->Encode(text, {}), {.stop = stops}).text, CutAtStop(text, stops)) << text;
  }
}

TEST(Detokenizer, SkippedSpecialTokensDoNotBreakACharacter) {
  TokenizerSpec spec = ByteLevelSpec({});
  spec.added.push_back(MakeAdded(spec, "<|end|>", true));
  auto tokenizer = MakeTokenizer(spec);
  EXPECT_EQ(Stream(*tokenizer, {0xC3, 256, 0xA9}).text, "é");
  EXPECT_EQ(Stream(*tokenizer, {'a', 256}, {.skip_special = false, .stop = {"<|end|>"}}).text, "a");
}

}  // namespace
}  // namespace ekiben::text
