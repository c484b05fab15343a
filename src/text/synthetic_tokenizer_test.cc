#include "text/synthetic_tokenizer.h"

#include <gtest/gtest.h>

#include <set>

#include "text/chat_template.h"
#include "text/english_words.h"
#include "text/tokenizer.h"

namespace ekiben::text {
namespace {

TEST(SyntheticTokenizer, EveryIdHasATextAndNoTwoTheSame) {
  for (int32_t size : {32768, 128256, 152064}) {
    auto spec = SyntheticTokenizer(size);
    ASSERT_TRUE(spec.ok()) << spec.error().message();
    ASSERT_EQ(std::ssize(spec->tokens), size);
    std::set<std::string> texts(spec->tokens.begin(), spec->tokens.end());
    EXPECT_EQ(std::ssize(texts), size);
    EXPECT_FALSE(texts.contains(""));
    EXPECT_EQ(spec->end_ids, (std::vector<int32_t>{size - 3, size - 1}));
  }
  EXPECT_FALSE(SyntheticTokenizer(300).ok());
  EXPECT_FALSE(SyntheticTokenizer(2'000'000).ok());
}

TEST(SyntheticTokenizer, EnglishWordsAreOneTokenAndAllElseComesBack) {
  auto spec = SyntheticTokenizer(49152);
  ASSERT_TRUE(spec.ok());
  auto tokenizer = Tokenizer::Create(*std::move(spec));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
  std::string text;
  for (std::string_view word : EnglishWords()) text += (text.empty() ? "" : " ") + std::string(word);
  EXPECT_EQ((*tokenizer)->Encode(text, {}).size(), EnglishWords().size());
  for (std::string odd : {"naïve xylophone 12345 日本語", "  two  spaces\n\nlines ", "a", ""})
    EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(odd, {}), {}), odd);
}

TEST(SyntheticTokenizer, ItsTemplateParses) {
  auto spec = SyntheticTokenizer(49152);
  ASSERT_TRUE(spec.ok());
  EXPECT_TRUE(ChatTemplate::Parse(spec->chat_template).ok());
}

}  // namespace
}  // namespace ekiben::text
