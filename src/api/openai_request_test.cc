#include "api/openai_request.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

namespace ekiben::api {
namespace {

json::object Body(const char* text) {
  auto parsed = ParseBody(text, 1 << 20);
  EXPECT_TRUE(parsed.ok()) << text;
  return parsed.ok() ? *std::move(parsed) : json::object();
}

TEST(OpenAiRequest, ChatWithEveryField) {
  auto parsed = ParseChatRequest(Body(R"({"model":"m","messages":[{"role":"developer","content":"s"},
        {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
        {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},
        {"role":"tool","tool_call_id":"1","content":"2"}],
        "max_tokens":5,"max_completion_tokens":7,"n":2,"temperature":0.5,"top_p":0.9,"top_k":-1,"min_p":0.1,
        "repetition_penalty":1.1,"presence_penalty":-1,"frequency_penalty":2,"min_tokens":3,"seed":-1,
        "logit_bias":{"12":-100,"13":5.5},"logprobs":true,"top_logprobs":4,"stop":["x",""],"stop_token_ids":[7],
        "ignore_eos":true,"include_stop_str_in_output":true,"skip_special_tokens":false,"bad_words":["w"],
        "priority":3,"cache_salt":"s","return_token_ids":true,"stream":true,
        "stream_options":{"include_usage":true,"continuous_usage_stats":true},
        "tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"auto","user":"u","unknown_key":{"a":[1]},
        "chat_template_kwargs":{"enable_thinking":false,"messages":"no"},"response_format":{"type":"text"}})"),
                                 9);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message();
  EXPECT_TRUE(parsed->stream && parsed->include_usage && parsed->continuous_usage_stats && parsed->return_token_ids);
  ASSERT_EQ(parsed->prompts.size(), 1u);
  const serve::TextRequest& r = parsed->prompts[0];
  EXPECT_EQ(r.max_tokens, 7);
  EXPECT_EQ(r.n, 2);
  EXPECT_EQ(r.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(r.stop_token_ids, std::vector<TokenId>{7});
  EXPECT_EQ(r.bad_words, std::vector<std::string>{"w"});
  EXPECT_TRUE(r.ignore_eos && r.include_stop_text && !r.skip_special_tokens && r.want_token_ids);
  EXPECT_EQ(r.priority, -3);
  EXPECT_EQ(r.cache_salt, "s");
  const SamplingParams& s = r.sampling;
  EXPECT_FLOAT_EQ(s.temperature, 0.5f);
  EXPECT_FLOAT_EQ(s.top_p, 0.9f);
  EXPECT_EQ(s.top_k, 0);
  EXPECT_FLOAT_EQ(s.min_p, 0.1f);
  EXPECT_FLOAT_EQ(s.repetition_penalty, 1.1f);
  EXPECT_FLOAT_EQ(s.presence_penalty, -1);
  EXPECT_FLOAT_EQ(s.frequency_penalty, 2);
  EXPECT_EQ(s.min_tokens, 3);
  EXPECT_EQ(s.seed, ~uint64_t{0});
  EXPECT_EQ(s.logprobs, 4);
  EXPECT_EQ(s.logit_bias, (std::vector<std::pair<TokenId, float>>{{12, -100}, {13, 5.5f}}));
  const json::object& inputs = std::get<serve::ChatInput>(r.input).inputs;
  EXPECT_EQ(inputs.at("messages").at(0).at("role"), "system");
  EXPECT_EQ(inputs.at("messages").at(1).at("content"), "a\nb");
  EXPECT_EQ(inputs.at("messages").at(2).at("content"), "");
  EXPECT_EQ(inputs.at("messages").at(2).at("tool_calls").at(0).at("function").at("arguments").at("x"), 1);
  EXPECT_EQ(inputs.at("tools").as_array().size(), 1u);
  EXPECT_EQ(inputs.at("enable_thinking"), false);
  EXPECT_EQ(inputs.at("add_generation_prompt"), true);
}

TEST(OpenAiRequest, ChatDefaults) {
  auto parsed = ParseChatRequest(Body(R"({"messages":[{"role":"user","content":"x"}],"stream_options":null})"), 9);
  ASSERT_TRUE(parsed.ok());
  EXPECT_FALSE(parsed->stream || parsed->include_usage);
  EXPECT_EQ(parsed->prompts[0].max_tokens, std::nullopt);
  EXPECT_EQ(parsed->prompts[0].sampling.seed, 9u);
  EXPECT_EQ(parsed->prompts[0].sampling.logprobs, -1);
  EXPECT_FLOAT_EQ(parsed->prompts[0].sampling.temperature, 1);
}

TEST(OpenAiRequest, PromptKinds) {
  auto kind = [](const char* prompt) {
    auto parsed = ParseCompletionRequest(Body(prompt), 1);
    EXPECT_TRUE(parsed.ok()) << prompt;
    return parsed.ok() ? std::pair(parsed->prompts.size(), parsed->prompts[0].input.index())
                       : std::pair(size_t{0}, size_t{9});
  };
  EXPECT_EQ(kind(R"({"prompt":"a"})"), std::pair(size_t{1}, size_t{0}));
  EXPECT_EQ(kind(R"({"prompt":["a","b"]})"), std::pair(size_t{2}, size_t{0}));
  EXPECT_EQ(kind(R"({"prompt":[1,2,3]})"), std::pair(size_t{1}, size_t{1}));
  EXPECT_EQ(kind(R"({"prompt":[[1],[2,3]]})"), std::pair(size_t{2}, size_t{1}));
  auto scored = ParseCompletionRequest(Body(R"({"prompt":[[1,2]],"echo":true,"logprobs":1,"max_tokens":0})"), 1);
  ASSERT_TRUE(scored.ok());
  EXPECT_TRUE(scored->prompts[0].prompt_logprobs);
  EXPECT_EQ(ParseCompletionRequest(Body(R"({"prompt":"a"})"), 1)->prompts[0].max_tokens, 16);
}

struct Bad {
  const char* field;
  const char* word;  // the value or the limit in the message
  const char* body;
};

TEST(OpenAiRequest, ChatRefusesNamingFieldAndLimit) {
  const Bad cases[] = {
      {"messages", "missing", R"({})"},
      {"messages", "array", R"({"messages":"x"})"},
      {"messages", "empty", R"({"messages":[]})"},
      {"messages[0]", "object", R"({"messages":["x"]})"},
      {"messages[0].role", "missing", R"({"messages":[{}]})"},
      {"messages[1].role", "robot", R"({"messages":[{"role":"user","content":"a"},{"role":"robot","content":"a"}]})"},
      {"messages[0].content", "missing", R"({"messages":[{"role":"user"}]})"},
      {"messages[0].content", "integer", R"({"messages":[{"role":"user","content":1}]})"},
      {"messages[0].content[0].type", "image_url",
       R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]})"},
      {"messages[0].content[0].text", "missing", R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})"},
      {"temperature", "3", R"({"messages":[{"role":"user","content":"a"}],"temperature":3})"},
      {"temperature", "string", R"({"messages":[{"role":"user","content":"a"}],"temperature":"hot"})"},
      {"n", "128", R"({"messages":[{"role":"user","content":"a"}],"n":129})"},
      {"n", "0", R"({"messages":[{"role":"user","content":"a"}],"n":0})"},
      {"max_tokens", "0", R"({"messages":[{"role":"user","content":"a"}],"max_tokens":0})"},
      {"max_completion_tokens", "-1", R"({"messages":[{"role":"user","content":"a"}],"max_completion_tokens":-1})"},
      {"top_logprobs", "logprobs", R"({"messages":[{"role":"user","content":"a"}],"top_logprobs":2})"},
      {"top_logprobs", "20", R"({"messages":[{"role":"user","content":"a"}],"logprobs":true,"top_logprobs":21})"},
      {"stream_options", "stream", R"({"messages":[{"role":"user","content":"a"}],"stream_options":{}})"},
      {"stop", "16",
       R"({"messages":[{"role":"user","content":"a"}],"stop":["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"]})"},
      {"stop", "integer", R"({"messages":[{"role":"user","content":"a"}],"stop":5})"},
      {"logit_bias", "abc", R"({"messages":[{"role":"user","content":"a"}],"logit_bias":{"abc":1}})"},
      {"logit_bias", "100", R"({"messages":[{"role":"user","content":"a"}],"logit_bias":{"1":101}})"},
      {"seed", "limit", R"({"messages":[{"role":"user","content":"a"}],"seed":18446744073709551615})"},
      {"tools", "empty", R"({"messages":[{"role":"user","content":"a"}],"tools":[]})"},
      {"tool_choice", "tools", R"({"messages":[{"role":"user","content":"a"}],"tool_choice":"auto"})"},
      {"tool_choice", "auto", R"({"messages":[{"role":"user","content":"a"}],"tools":[{}],"tool_choice":"required"})"},
      {"response_format", "json_object",
       R"({"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_object"}})"},
      {"use_beam_search", "true", R"({"messages":[{"role":"user","content":"a"}],"use_beam_search":true})"},
      {"structured_outputs", "not offered", R"({"messages":[{"role":"user","content":"a"}],"structured_outputs":{}})"},
      {"cache_salt", "empty", R"({"messages":[{"role":"user","content":"a"}],"cache_salt":""})"},
      {"stream", "boolean", R"({"messages":[{"role":"user","content":"a"}],"stream":"yes"})"},
  };
  for (const Bad& bad : cases) {
    auto parsed = ParseChatRequest(Body(bad.body), 1);
    ASSERT_FALSE(parsed.ok()) << bad.body;
    EXPECT_EQ(parsed.error().field(), bad.field) << bad.body;
    EXPECT_NE(parsed.error().message().find(bad.word), std::string::npos) << parsed.error().message();
  }
}

TEST(OpenAiRequest, CompletionsRefuse) {
  const Bad cases[] = {
      {"prompt", "missing", R"({})"},
      {"prompt", "empty", R"({"prompt":[]})"},
      {"prompt", "object", R"({"prompt":{}})"},
      {"prompt", "a number", R"({"prompt":[1.5]})"},
      {"prompt", "-3", R"({"prompt":[-3]})"},
      {"prompt", "boolean", R"({"prompt":[true]})"},
      {"max_tokens", "echo", R"({"prompt":"a","max_tokens":0})"},
      {"best_of", "3", R"({"prompt":"a","best_of":3})"},
      {"suffix", "not offered", R"({"prompt":"a","suffix":"b"})"},
      {"logprobs", "20", R"({"prompt":"a","logprobs":50})"},
      {"n", "1024", R"({"prompt":["1","2","3","4","5","6","7","8","9"],"n":128})"},
  };
  for (const Bad& bad : cases) {
    auto parsed = ParseCompletionRequest(Body(bad.body), 1);
    ASSERT_FALSE(parsed.ok()) << bad.body;
    EXPECT_EQ(parsed.error().field(), bad.field) << bad.body;
    EXPECT_NE(parsed.error().message().find(bad.word), std::string::npos) << parsed.error().message();
  }
}

TEST(OpenAiRequest, BodiesThatAreNoObject) {
  for (const char* text : {"", "[]", "1", "{", "{\"a\":}", "{} x", "\xff"}) EXPECT_FALSE(ParseBody(text, 100).ok());
  EXPECT_FALSE(ParseBody("{\"a\":\"" + std::string(200, 'x') + "\"}", 100).ok());
  EXPECT_FALSE(ParseBody("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", 1000).ok());
}

TEST(OpenAiRequest, TokenizeBodies) {
  auto plain = ParseTokenizeRequest(Body(R"({"prompt":"x","add_special_tokens":false,"return_token_strs":true})"));
  ASSERT_TRUE(plain.ok());
  EXPECT_FALSE(plain->input.add_special_tokens);
  EXPECT_TRUE(plain->return_token_strs);
  EXPECT_TRUE(ParseTokenizeRequest(Body(R"({"messages":[{"role":"user","content":"x"}]})")).ok());
  EXPECT_EQ(ParseTokenizeRequest(Body("{}")).error().field(), "prompt");
  EXPECT_EQ(*ParseDetokenizeRequest(Body(R"({"tokens":[1,2]})"), 10), (std::vector<TokenId>{1, 2}));
  EXPECT_FALSE(ParseDetokenizeRequest(Body(R"({"tokens":[10]})"), 10).ok());
}

}  // namespace
}  // namespace ekiben::api
