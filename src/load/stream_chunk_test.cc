#include "load/stream_chunk.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace ekiben::load {
namespace {

TEST(StreamChunk, ReadsACompletionChunk) {
  StreamChunk got = ScanStreamChunk(
      R"({"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" a\"b","logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":100,"completion_tokens":7,"total_tokens":107}})");
  EXPECT_TRUE(got.valid);
  EXPECT_EQ(got.text_bytes, 5);
  EXPECT_EQ(got.text_escaped, R"( a\"b)");
  EXPECT_EQ(got.output_tokens, 7);
  EXPECT_EQ(got.prompt_tokens, 100);
  EXPECT_FALSE(got.finished);
  EXPECT_FALSE(got.error);
}

TEST(StreamChunk, TellsARoleChunkFromText) {
  StreamChunk role = ScanStreamChunk(
      R"({"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null})");
  EXPECT_TRUE(role.valid);
  EXPECT_EQ(role.text_bytes, 0);
  EXPECT_EQ(role.output_tokens, -1);
  StreamChunk text = ScanStreamChunk(R"({"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]})");
  EXPECT_EQ(text.text_bytes, 2);
  EXPECT_TRUE(text.finished);
  EXPECT_EQ(ScanStreamChunk(R"({"choices":[{"delta":{"content":null,"reasoning":"hmm"}}]})").text_bytes, 3);
}

TEST(StreamChunk, ReadsTheUsageChunkWithoutChoices) {
  StreamChunk got = ScanStreamChunk(
      R"( {"choices" : [ ] , "usage" : { "completion_tokens_details":{"completion_tokens":9}, "completion_tokens" : 64 } } )");
  EXPECT_TRUE(got.valid);
  EXPECT_EQ(got.output_tokens, 64);
  EXPECT_EQ(got.prompt_tokens, -1);
}

TEST(StreamChunk, FindsErrors) {
  StreamChunk nested = ScanStreamChunk(R"({"error":{"message":"no room","type":"x","code":503}})");
  EXPECT_TRUE(nested.error);
  EXPECT_EQ(nested.error_text, "no room");
  EXPECT_EQ(ScanStreamChunk(R"({"error":"flat"})").error_text, "flat");
  EXPECT_FALSE(ScanStreamChunk(R"({"error":null,"choices":[]})").error);
}

TEST(StreamChunk, IgnoresLookalikesElsewhere) {
  StreamChunk got = ScanStreamChunk(
      R"({"extra":{"usage":{"completion_tokens":5},"text":"no","error":{"message":"no"}},"text":"no","choices":[{"logprobs":{"text":"no","content":[{"token":"a"}]}}]})");
  EXPECT_TRUE(got.valid);
  EXPECT_EQ(got.output_tokens, -1);
  EXPECT_EQ(got.text_bytes, 0);
  EXPECT_FALSE(got.error);
}

TEST(StreamChunk, RefusesWhatIsNoObject) {
  for (const char* bad :
       {"", "[]", "{", "{\"a\"}", "{\"a\":}", "{\"a\":1}x", "{\"a\":\"", "{\"a\":\"\\", "{\"a\":1,}"}) {
    EXPECT_FALSE(ScanStreamChunk(bad).valid) << bad;
  }
  std::string deep(100'000, '[');
  EXPECT_FALSE(ScanStreamChunk("{\"a\":" + deep).valid);
}

TEST(StreamChunk, SurvivesEveryTruncationAndRandomBytes) {
  const std::string whole =
      R"({"choices":[{"delta":{"content":"\u00e9\\"},"finish_reason":"length"}],"usage":{"completion_tokens":3}})";
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(ScanStreamChunk(whole.substr(0, n)).valid) << n;
  std::mt19937 random(1);
  const std::string alphabet = R"({}[]",:\ax1 -)";
  for (int i = 0; i < 20'000; ++i) {
    std::string text = "{";
    for (size_t n = random() % 40; n > 0; --n) text += alphabet[random() % alphabet.size()];
    ScanStreamChunk(text);
  }
}

}  // namespace
}  // namespace ekiben::load
