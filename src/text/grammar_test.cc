#include "text/grammar.h"

#include <gtest/gtest.h>

#include "text/tokenizer_fixture.h"

namespace ekiben::text {
namespace {

using Kind = GrammarSpec::Kind;

constexpr TokenId kEnd = 260;

// Every byte, {" as one token, a special token that reads like JSON, and an end.
class GrammarTest : public testing::Test {
 protected:
  GrammarTest() {
    TokenizerSpec spec = ByteLevelSpec({{"{", "\""}, {"\"", ":"}, {"a", "b"}});
    spec.added.push_back(MakeAdded(spec, "}", true));
    spec.added.push_back(MakeAdded(spec, "<end>", true));
    spec.end_ids = {kEnd};
    tokenizer_ = MakeTokenizer(std::move(spec));
    compiler_ = GrammarCompiler::Create(*tokenizer_, kVocab, clock_);
  }

  void SetUp() override {
    auto compiled = compiler_->Compile({.kind = Kind::kRegex, .source = "a", .field = "f"});
    if (!compiled.ok() && compiled.error().code() == Code::kUnsupported) GTEST_SKIP() << compiled.error().message();
  }

  std::unique_ptr<TokenMatcher> Start(const GrammarSpec& spec) {
    auto compiled = compiler_->Compile(spec);
    CHECK(compiled.ok(), "{}", compiled.error().message());
    return (*compiled)->NewMatcher();
  }

  // What the grammar lets a text be: every byte accepted, and whether it may end there.
  bool Matches(const GrammarSpec& spec, std::string_view text) {
    auto matcher = Start(spec);
    std::vector<int32_t> bits(TokenMaskWords(kVocab));
    for (char c : text) {
      auto token = static_cast<TokenId>(static_cast<unsigned char>(c));
      if (matcher->Allowed(bits) == TokenMatcher::Mask::kSome && !IsAllowed(bits, token)) return false;
      if (!matcher->Accept(token)) return false;
    }
    EXPECT_EQ(matcher->Allowed(bits), TokenMatcher::Mask::kSome);
    return IsAllowed(bits, kEnd);
  }

  std::string RefusalOf(const GrammarSpec& spec) {
    auto compiled = compiler_->Compile(spec);
    return compiled.ok() ? "accepted" : compiled.error().message();
  }

  static constexpr int32_t kVocab = 264;  // the logits are wider than the tokenizer
  SystemClock clock_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<GrammarCompiler> compiler_;
};

TEST_F(GrammarTest, RegularExpression) {
  GrammarSpec spec{.kind = Kind::kRegex, .source = "[0-9]{2}-(ab|c)+", .field = "f"};
  EXPECT_TRUE(Matches(spec, "12-abcab"));
  EXPECT_FALSE(Matches(spec, "12-"));
  EXPECT_FALSE(Matches(spec, "1-ab"));
}

TEST_F(GrammarTest, ChoicesAreLiteral) {
  GrammarSpec spec{.kind = Kind::kChoice, .choices = {"a|b", "quote\"\\n", "line\nend", "süß"}, .field = "f"};
  for (const std::string& choice : spec.choices) EXPECT_TRUE(Matches(spec, choice)) << choice;
  EXPECT_FALSE(Matches(spec, "a"));
  EXPECT_FALSE(Matches(spec, "b"));
}

TEST_F(GrammarTest, Ebnf) {
  GrammarSpec spec{.kind = Kind::kEbnf, .source = "root ::= \"a\" root \"b\" | \"\"", .field = "f"};
  EXPECT_TRUE(Matches(spec, "aaabbb"));
  EXPECT_FALSE(Matches(spec, "aaabb"));
}

TEST_F(GrammarTest, AnyJsonObject) {
  GrammarSpec spec{.kind = Kind::kJsonObject, .field = "f"};
  EXPECT_TRUE(Matches(spec, R"({"a":[1,2.5e3,{"b":null}], "c":"\u00e9"})"));
  EXPECT_TRUE(Matches(spec, "{}"));
  EXPECT_FALSE(Matches(spec, "[1]"));
  EXPECT_FALSE(Matches(spec, R"({"a":})"));
}

TEST_F(GrammarTest, JsonSchema) {
  GrammarSpec spec{.kind = Kind::kJsonSchema,
                   .source = R"({"type":"object","properties":{"n":{"type":"integer","minimum":1},
                              "k":{"enum":["x","y"]}},"required":["n","k"],"additionalProperties":false})",
                   .field = "f"};
  EXPECT_TRUE(Matches(spec, R"({"n": 12, "k": "y"})"));
  EXPECT_FALSE(Matches(spec, R"({"n": 0, "k": "y"})"));
  EXPECT_FALSE(Matches(spec, R"({"n": 12})"));
  EXPECT_FALSE(Matches(spec, R"({"n": 12, "k": "z"})"));
}

TEST_F(GrammarTest, SpecialTokensAndPaddingAreNeverAllowed) {
  auto matcher = Start({.kind = Kind::kEbnf, .source = "root ::= \"{\" [^a]* \"}\"", .field = "f"});
  std::vector<int32_t> bits(TokenMaskWords(kVocab));
  ASSERT_TRUE(matcher->Accept('{'));
  ASSERT_EQ(matcher->Allowed(bits), TokenMatcher::Mask::kSome);
  EXPECT_TRUE(IsAllowed(bits, '}'));
  EXPECT_FALSE(IsAllowed(bits, 259));  // the special token with the text }
  EXPECT_FALSE(IsAllowed(bits, kEnd));
  EXPECT_FALSE(IsAllowed(bits, 262));  // no token at all
}

TEST_F(GrammarTest, MatchersOfOneGrammarAreIndependent) {
  auto compiled = compiler_->Compile({.kind = Kind::kRegex, .source = "ab", .field = "f"});
  ASSERT_TRUE(compiled.ok());
  auto first = (*compiled)->NewMatcher(), second = (*compiled)->NewMatcher();
  EXPECT_TRUE(first->Accept('a'));
  EXPECT_FALSE(second->Accept('b'));
  EXPECT_TRUE(first->Accept('b'));
  EXPECT_TRUE(first->Accept(kEnd));
  EXPECT_TRUE(first->Accept('x')) << "after the end a row is computed for nothing";
}

TEST_F(GrammarTest, BrokenGrammarsAreOneLineThatNamesTheField) {
  for (const GrammarSpec& spec : {GrammarSpec{.kind = Kind::kRegex, .source = "(a", .field = "f"},
                                  GrammarSpec{.kind = Kind::kEbnf, .source = "root ::= missing", .field = "f"},
                                  GrammarSpec{.kind = Kind::kJsonSchema, .source = "{\"type\":\"what\"}", .field = "f"},
                                  GrammarSpec{.kind = Kind::kJsonSchema, .source = "{", .field = "f"}}) {
    std::string message = RefusalOf(spec);
    EXPECT_TRUE(message.starts_with("f: ")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 400u);
  }
}

TEST_F(GrammarTest, HostileGrammarsAreRefusedBeforeTheyAreBuilt) {
  auto regex = [&](std::string source) {
    return RefusalOf({.kind = Kind::kRegex, .source = std::move(source), .field = "f"});
  };
  EXPECT_EQ(regex("((a{1,100}){1,100}){1,100}"), "f: repetitions of 1000000 in all, the limit is 4096");
  EXPECT_EQ(regex("a{99999999999999999999}"), "f: repetitions of 1099511627776 in all, the limit is 4096");
  EXPECT_EQ(regex(std::string(60, '(') + "a" + std::string(60, ')')), "f: groups 60 deep, the limit is 32");
  EXPECT_EQ(regex(std::string(70000, 'a')), "f: 70000 bytes, the limit is 65536");
  auto schema = [&](std::string source) {
    return RefusalOf({.kind = Kind::kJsonSchema, .source = std::move(source), .field = "f"});
  };
  EXPECT_EQ(schema(R"({"type":"string","maxLength":1e9})"), "f: \"maxLength\": 1000000000 is outside [0, 4096]");
  EXPECT_EQ(schema(R"({"type":"array","maxItems":200,"items":{"type":"array","maxItems":200}})"),
            "f: nested counts of 40000 in all, the limit is 4096");
  std::string deep;
  for (int i = 0; i < 40; ++i) deep += R"({"items":)";
  EXPECT_TRUE(schema(deep + "{}" + std::string(40, '}')).starts_with("f: the schema: "));
  std::string wide = R"({"properties":{)";
  for (int i = 0; i < 5; ++i) wide += fmt::format(R"({}"p{}":{{"pattern":"a{{4000}}"}})", i > 0 ? "," : "", i);
  EXPECT_EQ(schema(wide + "}}"), "f: counts and patterns of over 16384 repetitions together");
  EXPECT_EQ(schema(R"({"$ref":"#"})"), "f: no text can begin so");
  EXPECT_EQ(RefusalOf({.kind = Kind::kChoice, .choices = std::vector<std::string>(1025, "a"), .field = "f"}),
            "f: 1025 choices, the limit is 1024");
}

}  // namespace
}  // namespace ekiben::text
