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
      {"tools[0].function", "missing",
       R"({"messages":[{"role":"user","content":"a"}],"tools":[{}],"tool_choice":"required"})"},
      {"tools[0].function.name", "a b",
       R"({"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"a b"}}]})"},
      {"tools[0].type", "web_search",
       R"({"messages":[{"role":"user","content":"a"}],"tools":[{"type":"web_search"}]})"},
      {"tool_choice", "'g' is none",
       R"({"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f"}}],
           "tool_choice":{"type":"function","function":{"name":"g"}}})"},
      {"tool_choice", "response_format",
       R"({"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f"}}],
           "tool_choice":"required","response_format":{"type":"json_object"}})"},
      {"response_format", "yaml", R"({"messages":[{"role":"user","content":"a"}],"response_format":{"type":"yaml"}})"},
      {"response_format.json_schema.schema", "missing",
       R"({"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema","json_schema":{}}})"},
      {"guided_regex", "together",
       R"({"messages":[{"role":"user","content":"a"}],"guided_regex":"a","response_format":{"type":"json_object"}})"},
      {"structured_outputs", "array",
       R"({"messages":[{"role":"user","content":"a"}],"structured_outputs":{"choice":"a"}})"},
      {"continue_final_message", "add_generation_prompt",
       R"({"messages":[{"role":"user","content":"a"}],"continue_final_message":true,"add_generation_prompt":true})"},
      {"truncate_prompt_tokens", "0", R"({"messages":[{"role":"user","content":"a"}],"truncate_prompt_tokens":0})"},
      {"prompt_logprobs", "stream",
       R"({"messages":[{"role":"user","content":"a"}],"prompt_logprobs":1,"stream":true})"},
      {"modalities", "text", R"({"messages":[{"role":"user","content":"a"}],"modalities":["audio"]})"},
      {"use_beam_search", "true", R"({"messages":[{"role":"user","content":"a"}],"use_beam_search":true})"},
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
      {"best_of", "n = 3", R"({"prompt":"a","best_of":2,"n":3})"},
      {"best_of", "stream", R"({"prompt":"a","best_of":2,"stream":true})"},
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

TEST(OpenAiRequest, WhatTheTextMustBe) {
  using Kind = text::GrammarSpec::Kind;
  auto grammar = [](const std::string& fields) {
    auto parsed = ParseChatRequest(Body((R"({"messages":[{"role":"user","content":"a"}],)" + fields + "}").c_str()), 1);
    EXPECT_TRUE(parsed.ok()) << fields << parsed.error().message();
    return parsed.ok() ? parsed->prompts[0].grammar : std::nullopt;
  };
  EXPECT_EQ(grammar(R"("response_format":{"type":"text"})"), std::nullopt);
  EXPECT_EQ(grammar(R"("response_format":{"type":"json_object"})")->kind, Kind::kJsonObject);
  auto schema =
      grammar(R"("response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"null"}}})");
  EXPECT_EQ(schema->kind, Kind::kJsonSchema);
  EXPECT_EQ(schema->source, R"({"type":"null"})");
  EXPECT_EQ(schema->field, "response_format");
  EXPECT_EQ(grammar(R"("structured_outputs":{"regex":"a+"})")->source, "a+");
  EXPECT_EQ(grammar(R"("structured_outputs":{"choice":["x","y"]})")->choices, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(grammar(R"("guided_json":"{\"type\":\"null\"}")")->source, R"({"type":"null"})");
  EXPECT_EQ(grammar(R"("guided_grammar":"root ::= \"a\"")")->kind, Kind::kEbnf);
}

TEST(OpenAiRequest, ToolChoices) {
  auto parse = [](const std::string& choice) {
    auto parsed = ParseChatRequest(
        Body((R"({"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f",
              "parameters":{"type":"object","properties":{"x":{"$ref":"#/$defs/d"}},"$defs":{"d":{"type":"null"}}}}},
              {"type":"function","function":{"name":"g"}}])" +
              choice + "}")
                 .c_str()),
        1);
    EXPECT_TRUE(parsed.ok()) << parsed.error().message();
    return *std::move(parsed);
  };
  auto has_tools = [](const CompletionRequest& r) {
    return std::get<serve::ChatInput>(r.prompts[0].input).inputs.contains("tools");
  };
  CompletionRequest automatic = parse(""), none = parse(R"(,"tool_choice":"none")");
  EXPECT_EQ(automatic.tools.kind, ToolChoice::Kind::kAuto);
  EXPECT_TRUE(has_tools(automatic) && !automatic.prompts[0].grammar);
  EXPECT_EQ(none.tools.kind, ToolChoice::Kind::kNone);
  EXPECT_FALSE(has_tools(none) || none.prompts[0].grammar);
  CompletionRequest required = parse(R"(,"tool_choice":"required","parallel_tool_calls":false)");
  json::value schema = json::parse(required.prompts[0].grammar->source);
  EXPECT_EQ(schema.at("maxItems"), 1);
  EXPECT_EQ(schema.at("items").at("anyOf").at(1).at("properties").at("name").at("const"), "g");
  EXPECT_EQ(schema.at("$defs").at("d").at("type"), "null") << "references are to the root";
  CompletionRequest named = parse(R"(,"tool_choice":{"type":"function","function":{"name":"f"}})");
  EXPECT_EQ(named.tools.name, "f");
  EXPECT_TRUE(json::parse(named.prompts[0].grammar->source).as_object().contains("$defs"));
}

TEST(OpenAiRequest, BestOfRanksByLogProbabilities) {
  auto parsed = ParseCompletionRequest(Body(R"({"prompt":"a","best_of":4,"n":2})"), 1);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->n, 2);
  EXPECT_EQ(parsed->prompts[0].n, 4);
  EXPECT_EQ(parsed->logprobs, -1);
  EXPECT_EQ(parsed->prompts[0].sampling.logprobs, 0);
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
