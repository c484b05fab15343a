#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <thread>

#include "text/tokenizer_fixture.h"
#include "text/unicode.h"

namespace ekiben::text {
namespace {

using Ids = std::vector<int32_t>;

Ids Encode(const Tokenizer& tokenizer, std::string_view text, bool parse_special = true, bool add_special = false) {
  return tokenizer.Encode(text, {.add_special = add_special, .parse_special = parse_special});
}

TEST(ByteLevelBpe, MergesByRankLeftmostFirst) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({{"a", "b"}, {"b", "c"}, {"ab", "c"}, {"a", "a"}}));
  EXPECT_EQ(Encode(*tokenizer, "abc"), (Ids{258}));
  EXPECT_EQ(Encode(*tokenizer, "bcabc"), (Ids{257, 258}));
  EXPECT_EQ(Encode(*tokenizer, "aaa"), (Ids{259, 'a'}));
  EXPECT_EQ(Encode(*tokenizer, "aaab"), (Ids{259, 256}));
  EXPECT_EQ(Encode(*tokenizer, ""), Ids());
}

TEST(ByteLevelBpe, ATokenThatItsOwnMergesMissIsNotTakenWhole) {
  // "abc" is in the vocabulary, but a+b is never merged, so only ignore_merges finds it.
  TokenizerSpec spec = ByteLevelSpec({{"b", "c"}, {"a", "bc"}, {"x", "a"}});
  spec.merges.erase(spec.merges.begin() + 1);
  EXPECT_EQ(Encode(*MakeTokenizer(spec), "abc"), (Ids{'a', 256}));
  spec.ignore_merges = true;
  EXPECT_EQ(Encode(*MakeTokenizer(spec), "abc"), (Ids{257}));
}

TEST(TiktokenBpe, RanksAreThoseOfTheJoinedBytes) {
  TokenizerSpec spec = ByteLevelSpec({{"a", "b"}, {"b", "c"}, {"ab", "c"}, {"c", "d"}});
  spec.model = Model::kTiktokenBpe;
  spec.merges.clear();
  auto tokenizer = MakeTokenizer(spec);
  EXPECT_EQ(Encode(*tokenizer, "abcd"), (Ids{258, 'd'}));
  EXPECT_EQ(Encode(*tokenizer, "xcd"), (Ids{'x', 259}));
  spec.tokens[7] = "";
  EXPECT_FALSE(Tokenizer::Create(spec).ok());  // a byte without a token
}

// The definition, slow and plain.
Ids NaiveBpe(const TokenizerSpec& spec, std::string_view word) {
  Ids ids;
  for (char c : word) ids.push_back(static_cast<unsigned char>(c));
  while (true) {
    size_t best_rank = spec.merges.size(), best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (spec.merges[rank].left == ids[i] && spec.merges[rank].right == ids[i + 1]) best_rank = rank, best = i;
      }
    }
    if (best_rank == spec.merges.size()) return ids;
    ids[best] = spec.merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(ByteLevelBpe, ShortAndLongWordsFollowTheDefinition) {
  std::mt19937 random(1);
  for (int round = 0; round < 40; ++round) {
    std::vector<std::string> known = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    while (merges.size() < 25) {
      std::string left = known[random() % known.size()], right = known[random() % known.size()];
      if (std::find(known.begin(), known.end(), left + right) != known.end()) continue;
      merges.emplace_back(left, right);
      known.push_back(left + right);
    }
    TokenizerSpec spec = ByteLevelSpec(merges);
    spec.pre_tokenizer = PreTokenizer::kNone;
    auto tokenizer = MakeTokenizer(spec);
    for (int i = 0; i < 30; ++i) {
      std::string word;
      for (size_t n = random() % 120 + 1; n > 0; --n) word += "abc"[random() % 3];
      ASSERT_EQ(Encode(*tokenizer, word), NaiveBpe(spec, word)) << word;
      ASSERT_EQ(Encode(*tokenizer, word), NaiveBpe(spec, word)) << "from the cache: " << word;
    }
  }
}

TEST(ByteLevelBpe, AMegabyteOfOneCharacter) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (size_t n = 1; n <= 64; n *= 2) merges.emplace_back(std::string(n, 'a'), std::string(n, 'a'));
  auto tokenizer = MakeTokenizer(ByteLevelSpec(merges));
  Ids ids = Encode(*tokenizer, std::string(size_t{1} << 20, 'a'));
  EXPECT_EQ(ids, Ids((size_t{1} << 20) / 128, 262));
}

TEST(Encode, RepairsInvalidUtf8AsTheReferenceDoes) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({}));
  EXPECT_EQ(Encode(*tokenizer, "a\xE2\x82z"), Encode(*tokenizer, "a\uFFFDz"));
}

TokenizerSpec WithSpecials() {
  TokenizerSpec spec = ByteLevelSpec({{"l", "l"}, {"i", "l"}});
  spec.added.push_back(MakeAdded(spec, "<|end|>", true));    // 258
  spec.added.push_back(MakeAdded(spec, "<|end|>x", true));   // 259
  spec.added.push_back(MakeAdded(spec, "<tool>", false));    // 260
  spec.added.push_back(MakeAdded(spec, "<|turn|>", false));  // 261: not flagged, but turn markup
  spec.bos = 258, spec.add_bos = true;
  return spec;
}

TEST(AddedTokens, LeftmostLongest) {
  auto tokenizer = MakeTokenizer(WithSpecials());
  EXPECT_EQ(Encode(*tokenizer, "a<|end|>xb<|end|><tool>"), (Ids{'a', 259, 'b', 258, 260}));
  EXPECT_EQ(Encode(*tokenizer, "a", true, true), (Ids{258, 'a'}));
  EXPECT_TRUE(tokenizer->IsSpecial(258));
  EXPECT_FALSE(tokenizer->IsSpecial(260));
  EXPECT_EQ(tokenizer->TokenOf("<tool>"), 260);
  EXPECT_EQ(tokenizer->TokenOf("ll"), 256);
  EXPECT_EQ(tokenizer->TokenOf("no such"), -1);
}

TEST(AddedTokens, UntrustedTextForgesNoTurn) {
  auto tokenizer = MakeTokenizer(WithSpecials());
  EXPECT_EQ(Encode(*tokenizer, "<|end|>", false).size(), 7u);
  EXPECT_EQ(Encode(*tokenizer, "<|turn|>", false).size(), 8u);
  EXPECT_EQ(Encode(*tokenizer, "<|turn|>", true), (Ids{261}));
  EXPECT_EQ(Encode(*tokenizer, "<tool>", false), (Ids{260}));
}

TEST(AddedTokens, SpansNeverJoinIntoASpecialToken) {
  auto tokenizer = MakeTokenizer(WithSpecials());
  using Spans = std::vector<Tokenizer::Span>;
  Ids plain = Encode(*tokenizer, "<|end|>", false);
  for (size_t cut = 1; cut < 7; ++cut) {
    std::string text = "<|end|>";
    std::string_view left = std::string_view(text).substr(0, cut), right = std::string_view(text).substr(cut);
    EXPECT_EQ(tokenizer->EncodeSpans(Spans{{left, true}, {right, false}}, false), plain) << cut;
    EXPECT_EQ(tokenizer->EncodeSpans(Spans{{left, false}, {right, true}}, false), plain) << cut;
    EXPECT_EQ(tokenizer->EncodeSpans(Spans{{left, true}, {right, true}}, false), (Ids{258})) << cut;
  }
  // The shorter token is there even though the longer one reaches into a user's text.
  EXPECT_EQ(tokenizer->EncodeSpans(Spans{{"<|end|>", true}, {"x", false}}, false), (Ids{258, 'x'}));
}

TEST(AddedTokens, ACutBetweenSpansDoesNotCutWords) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({{" ", "h"}, {"i", "l"}, {" h", "il"}, {" hil", "l"}}));
  std::string text = "x hill é";
  Ids whole = Encode(*tokenizer, text);
  for (size_t cut = 0; cut <= text.size(); ++cut) {  // also within the two bytes of é
    std::string_view view = text;
    EXPECT_EQ(tokenizer->EncodeSpans({{view.substr(0, cut), true}, {view.substr(cut), false}}, false), whole) << cut;
  }
}

TEST(AddedTokens, StripAndSingleWord) {
  TokenizerSpec spec = ByteLevelSpec({});
  AddedToken token = MakeAdded(spec, "<m>", false);
  token.lstrip = token.rstrip = true;
  spec.added.push_back(token);
  token = MakeAdded(spec, "one", false);
  token.single_word = true;
  spec.added.push_back(token);
  auto tokenizer = MakeTokenizer(spec);
  EXPECT_EQ(Encode(*tokenizer, "a \u3000<m>\n\n b<m>"), (Ids{'a', 256, 'b', 256}));
  EXPECT_EQ(Encode(*tokenizer, "one"), (Ids{257}));
  EXPECT_EQ(Encode(*tokenizer, "-one-"), (Ids{'-', 257, '-'}));
  EXPECT_EQ(Encode(*tokenizer, "éone").size(), 5u);
  EXPECT_EQ(Encode(*tokenizer, "ones").size(), 4u);
}

TEST(Normalization, NfcComesBeforeMergingAndKeepsTrust) {
  TokenizerSpec spec = ByteLevelSpec({{"\xC3", "\xA9"}});
  spec.nfc = true;
  AddedToken token = MakeAdded(spec, "<|é|>", true);
  token.normalized = true;
  spec.added.push_back(token);
  auto tokenizer = MakeTokenizer(spec);
  EXPECT_EQ(Encode(*tokenizer, "e\u0301"), (Ids{256}));
  EXPECT_EQ(Encode(*tokenizer, "<|e\u0301|>"), (Ids{257}));
  EXPECT_EQ(tokenizer->EncodeSpans({{"e\u0301<|e\u0301|>", true}, {"e\u0301<|e\u0301|>", false}}, false),
            (Ids{256, 257, 256, '<', '|', 256, '|', '>'}));
}

TEST(SentencePieceBpe, ScoresPrefixAndByteFallback) {
  auto tokenizer = MakeTokenizer(SentencePieceSpec({"▁", "a", "b", "c", "ab", "▁ab", "bc", "▁▁"}));
  int32_t first = 3 + 256;
  EXPECT_EQ(Encode(*tokenizer, "abc"), (Ids{first + 5, first + 3}));
  EXPECT_EQ(Encode(*tokenizer, "ab  ab"), (Ids{first + 5, first + 0, first + 5}));
  EXPECT_EQ(Encode(*tokenizer, "é"), (Ids{first, 3 + 0xC3, 3 + 0xA9}));
  EXPECT_EQ(Encode(*tokenizer, "</s>c"), (Ids{2, first, first + 3}));
  EXPECT_EQ(tokenizer->Decode({first + 5, first + 0, 3 + 0xC3, 3 + 0xA9, 2}, {}), "ab é");
  EXPECT_EQ(tokenizer->Decode({3 + 0xE2, 3 + 0x82, first + 1}, {}), "\uFFFD\uFFFDa");
  EXPECT_EQ(tokenizer->Bytes(first + 5), " ab");
}

TEST(SentencePieceBpe, WithoutByteFallbackUnknownCharactersFuse) {
  TokenizerSpec spec = SentencePieceSpec({"▁", "a"});
  spec.byte_fallback = false;
  auto tokenizer = MakeTokenizer(spec);
  EXPECT_EQ(Encode(*tokenizer, "éèa"), (Ids{259, 0, 260}));
}

TEST(SentencePieceBpe, WordsThatAMergeCanCrossAreNotCut) {
  auto tokenizer = MakeTokenizer(SentencePieceSpec({"▁", "a", "b", "a▁", "a▁b"}));
  EXPECT_EQ(Encode(*tokenizer, "a b"), (Ids{259, 263}));
}

TEST(SentencePieceBpe, PrefixRules) {
  TokenizerSpec spec = SentencePieceSpec({"▁", "a"});
  spec.prefix_space_first_only = true;
  EXPECT_EQ(Encode(*MakeTokenizer(spec), "a</s>a"), (Ids{259, 260, 2, 260}));
  EXPECT_EQ(Encode(*MakeTokenizer(spec), "</s>a"), (Ids{2, 260}));
  EXPECT_EQ(Encode(*MakeTokenizer(spec), " a"), (Ids{259, 259, 260}));
  spec.prefix_space_if_absent = true;
  EXPECT_EQ(Encode(*MakeTokenizer(spec), " a"), (Ids{259, 260}));
}

TEST(Decode, RoundTripsAnyText) {
  std::mt19937 random(5);
  auto tokenizer = MakeTokenizer(ByteLevelSpec({{"a", "b"}, {"\xF0", "\x9F"}, {"\xC3", "\xA9"}}));
  for (int i = 0; i < 500; ++i) {
    std::string text;
    for (int n = 0; n < 40; ++n) {
      char32_t code = static_cast<char32_t>(random() % (n % 2 ? 0x110000 : 0x100));
      if (code < 0xD800 || code > 0xDFFF) AppendUtf8(code, text);
    }
    EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, text), {}), text);
  }
  EXPECT_EQ(tokenizer->Decode({'a', 0xF0, 0x9F, 'b'}, {}), "a\uFFFDb");
  EXPECT_EQ(tokenizer->Decode({-1, 'a', 1 << 20}, {}), "a");
}

TEST(Decode, SkipsSpecialTokensOnRequest) {
  auto tokenizer = MakeTokenizer(WithSpecials());
  EXPECT_EQ(tokenizer->Decode({'a', 258, 'b', 260}, {}), "ab<tool>");
  EXPECT_EQ(tokenizer->Decode({'a', 258, 'b'}, {.skip_special = false}), "a<|end|>b");
}

TEST(Create, RefusesSpecsThatLie) {
  TokenizerSpec spec = ByteLevelSpec({{"a", "b"}});
  spec.merges[0].result = 1 << 20;
  EXPECT_FALSE(Tokenizer::Create(spec).ok());
  spec = ByteLevelSpec({});
  spec.bos = 256;
  EXPECT_FALSE(Tokenizer::Create(spec).ok());
  spec = ByteLevelSpec({});
  spec.add_eos = true;
  EXPECT_FALSE(Tokenizer::Create(spec).ok());
  spec = ByteLevelSpec({});
  spec.added.push_back(MakeAdded(spec, "<x>", true));
  spec.added[0].id = 1 << 30;
  EXPECT_FALSE(Tokenizer::Create(spec).ok());
  spec = SentencePieceSpec({"a"});
  spec.scores[259] = std::nanf("");
  EXPECT_FALSE(Tokenizer::Create(spec).ok());
  EXPECT_FALSE(Tokenizer::Create(TokenizerSpec()).ok());
}

TEST(Encode, ManyThreadsShareOneTokenizer) {
  auto tokenizer = MakeTokenizer(ByteLevelSpec({{"a", "b"}, {"ab", "c"}, {" ", "abc"}}));
  std::string text;
  for (int i = 0; i < 2000; ++i) text += i % 3 ? " abc" : " abcabx";
  Ids expected = Encode(*tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<Ids> got(4);
  for (Ids& ids : got) threads.emplace_back([&] { ids = Encode(*tokenizer, text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& ids : got) EXPECT_EQ(ids, expected);
}

}  // namespace
}  // namespace ekiben::text
