#include "load/prompts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

namespace ekiben::load {
namespace {

std::vector<std::string> Split(std::string_view text) {
  std::istringstream in{std::string(text)};
  std::vector<std::string> out;
  for (std::string word; in >> word;) out.push_back(word);
  return out;
}

// A begin token, one token a word, two for words over six letters, and "the" costs two when it comes first.
Result<int32_t> ToyCount(std::string_view text) {
  int32_t count = 1;
  bool first = true;
  for (const std::string& word : Split(text)) {
    count += word.size() > 6 || (first && word == "the") ? 2 : 1;
    first = false;
  }
  return count;
}

TEST(Prompts, HaveTheExactLengthAndDifferFromTheFirstWordOn) {
  PromptOptions options;
  options.prompt_tokens = 50;
  options.output_tokens = 7;
  auto source = *PromptSource::Create(options, ToyCount);
  EXPECT_TRUE(source->exact());
  EXPECT_NE(source->description().find("50 tokens exactly (1 of them around"), std::string::npos)
      << source->description();
  std::set<std::string> seen, openings;
  std::string scratch;
  for (uint32_t user = 0; user < 20; ++user) {
    for (uint32_t number = 0; number < 50; ++number) {
      Prompt prompt = source->Fill(0, user, number, scratch);
      EXPECT_EQ(*ToyCount(prompt.text), 50);
      EXPECT_EQ(prompt.max_tokens, 7);
      EXPECT_TRUE(seen.insert(std::string(prompt.text)).second);
      openings.insert(Split(prompt.text)[0] + Split(prompt.text)[1] + Split(prompt.text)[2]);
    }
  }
  EXPECT_GT(openings.size(), 990u);
}

TEST(Prompts, HaveLengthsDrawnEvenly) {
  PromptOptions options;
  options.prompt_tokens_min = 30;
  options.prompt_tokens = 150;
  auto source = *PromptSource::Create(options, ToyCount);
  EXPECT_NE(source->description().find("30 to 150 tokens exactly"), std::string::npos) << source->description();
  std::string scratch;
  double sum = 0;
  int32_t least = 1000, most = 0;
  for (uint32_t number = 0; number < 2000; ++number) {
    Prompt prompt = source->Fill(0, 1, number, scratch);
    EXPECT_EQ(*ToyCount(prompt.text), prompt.tokens);
    sum += prompt.tokens;
    least = std::min(least, prompt.tokens);
    most = std::max(most, prompt.tokens);
  }
  EXPECT_EQ(least, 30);
  EXPECT_EQ(most, 150);
  EXPECT_NEAR(sum / 2000, 90, 3);
  options.prompt_tokens_min = 151;
  EXPECT_EQ(PromptSource::Create(options, ToyCount).error().field(), "prompt_tokens_min");
}

TEST(Prompts, OfASteadyStartBeginInTheMiddleOfTheirAnswers) {
  PromptOptions options;
  options.prompt_tokens = 40;
  options.output_tokens = 60;
  options.steady_start = true;
  auto source = *PromptSource::Create(options, ToyCount);
  std::string scratch;
  double sum = 0;
  int32_t least = 1000, most = 0;
  for (uint32_t user = 0; user < 2000; ++user) {
    Prompt first = source->Fill(0, user, 0, scratch);
    EXPECT_EQ(*ToyCount(first.text), first.tokens);
    EXPECT_EQ(first.tokens + first.max_tokens, 100);
    sum += first.tokens;
    least = std::min(least, first.tokens);
    most = std::max(most, first.tokens);
    Prompt second = source->Fill(0, user, 1, scratch);
    EXPECT_EQ(second.tokens, 40);
    EXPECT_EQ(second.max_tokens, 60);
  }
  EXPECT_EQ(least, 40);
  EXPECT_EQ(most, 99) << "at least one token is generated";
  EXPECT_NEAR(sum / 2000, 40 + 29.5, 2);
}

TEST(Prompts, RepeatUnderOneSeedOnly) {
  PromptOptions options;
  auto a = *PromptSource::Create(options, nullptr), b = *PromptSource::Create(options, nullptr);
  options.seed = 2;
  auto c = *PromptSource::Create(options, nullptr);
  std::string x, y, z;
  EXPECT_EQ(a->Fill(1, 2, 3, x).text, b->Fill(1, 2, 3, y).text);
  EXPECT_NE(a->Fill(1, 2, 3, x).text, c->Fill(1, 2, 3, z).text);
  EXPECT_FALSE(a->exact());
}

TEST(Prompts, ShareThePrefixThatWasAskedFor) {
  PromptOptions options;
  options.prompt_tokens = 30;
  options.shared_prefix_tokens = 17;
  auto source = *PromptSource::Create(options, nullptr);
  std::string x, y;
  auto a = Split(source->Fill(0, 0, 0, x).text), b = Split(source->Fill(3, 9, 5, y).text);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 17, b.begin()));
  EXPECT_FALSE(std::equal(a.begin() + 17, a.end(), b.begin() + 17));
}

TEST(Prompts, SayWhyALengthIsImpossibleOrNotExact) {
  PromptOptions options;
  options.prompt_tokens = 3;
  auto tight = PromptSource::Create(
      options, [](std::string_view text) -> Result<int32_t> { return static_cast<int32_t>(Split(text).size()) + 12; });
  ASSERT_FALSE(tight.ok());
  EXPECT_EQ(tight.error().field(), "prompt_tokens");
  EXPECT_NE(tight.error().message().find("12 tokens"), std::string::npos) << tight.error().message();
  auto deaf = *PromptSource::Create(options, [](std::string_view) -> Result<int32_t> {
    return Error(Code::kUnavailable, "POST /tokenize: status 404");
  });
  EXPECT_FALSE(deaf->exact());
  EXPECT_NE(deaf->description().find("404"), std::string::npos);
  // Two tokens a word, always: not one word is usable.
  auto odd = *PromptSource::Create(
      options, [](std::string_view text) -> Result<int32_t> { return static_cast<int32_t>(2 * Split(text).size()); });
  EXPECT_FALSE(odd->exact());
}

class PromptFile : public testing::Test {
 protected:
  std::string Write(const std::string& text) {
    path_ = std::filesystem::temp_directory_path() / ("prompts_test_" + std::to_string(getpid()) + ".jsonl");
    std::ofstream(path_) << text;
    return path_.string();
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::filesystem::path path_;
};

TEST_F(PromptFile, GivesEveryLine) {
  PromptOptions options;
  options.file = Write(
      "\"one\"\n\n{\"prompt\":\"two\",\"max_tokens\":9}\n"
      "{\"messages\":[{\"role\":\"user\",\"content\":\"three\"}]}");
  auto source = *PromptSource::Create(options, nullptr);
  EXPECT_TRUE(source->has_conversations());
  std::set<std::string> seen;
  std::string scratch;
  for (uint32_t number = 0; number < 100; ++number) {
    Prompt prompt = source->Fill(0, 0, number, scratch);
    seen.insert(std::string(prompt.text) + std::string(prompt.messages_json));
    EXPECT_EQ(prompt.max_tokens, prompt.text == "two" ? 9 : 64);
    EXPECT_EQ(prompt.messages != nullptr, prompt.text.empty());
  }
  EXPECT_EQ(seen, (std::set<std::string>{"one", "two", R"([{"role":"user","content":"three"}])"}));
}

TEST_F(PromptFile, NamesTheBadLine) {
  PromptOptions options;
  for (const char* bad :
       {"\"ok\"\n{", "\"ok\"\n{}", "\"ok\"\n7", "\"ok\"\n{\"prompt\":1}", "\"ok\"\n{\"max_tokens\":0}"}) {
    options.file = Write(bad);
    auto source = PromptSource::Create(options, nullptr);
    ASSERT_FALSE(source.ok()) << bad;
    if (std::string_view(bad).find("1}") == std::string_view::npos &&
        std::string_view(bad).find("0}") == std::string_view::npos) {
      EXPECT_NE(source.error().message().find(":2"), std::string::npos) << source.error().message();
    }
  }
  options.file = Write("\n\n");
  EXPECT_FALSE(PromptSource::Create(options, nullptr).ok());
}

}  // namespace
}  // namespace ekiben::load
