// Embeddings, responses, tools and grammars through the whole edge, over doubles of what lies below.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>

#include "api/openai_embeddings.h"
#include "api/openai_responses.h"
#include "api/testing/test_server.h"
#include "http/testing/raw_client.h"

namespace ekiben::api {
namespace {

using http::testing::Call;
using http::testing::RawResponse;
using testing::TestServer;
using testing::TestServerOptions;

class OpenAiAnswers : public ::testing::Test {
 protected:
  // Every answer is `text`, and then an end.
  void Start(const std::string& text = "") {
    TestServerOptions options;
    options.http.host = "127.0.0.1";
    options.http.port = 0;
    if (!text.empty())
      options.executor.next_token = [text](const Request&, int32_t, int32_t position) {
        return static_cast<size_t>(position) < text.size() ? static_cast<unsigned char>(text[position]) : TokenId{-1};
      };
    auto started = TestServer::Start(std::move(options));
    ASSERT_TRUE(started.ok()) << started.error().message();
    server_ = *std::move(started);
  }
  RawResponse Post(std::string_view path, std::string_view body) { return Call(server_->port(), "POST", path, body); }
  static json::value Json(const RawResponse& response, int status = 200) {
    EXPECT_EQ(response.status, status) << response.body;
    boost::system::error_code code;
    json::value value = json::parse(response.body, code);
    EXPECT_FALSE(code) << response.body;
    return value;
  }
  // The data objects of a stream.
  static std::vector<json::value> Events(const RawResponse& response) {
    EXPECT_EQ(response.status, 200) << response.body;
    std::vector<json::value> out;
    for (const std::string& chunk : response.chunks) {
      size_t data = chunk.find("data: ");
      if (data != std::string::npos && chunk.substr(data) != "data: [DONE]\n\n")
        out.push_back(json::parse(chunk.substr(data + 6)));
    }
    return out;
  }

  std::unique_ptr<TestServer> server_;
};

constexpr const char* kTools =
    R"("messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f"}}])";

TEST_F(OpenAiAnswers, FreeToolCall) {
  Start(R"(Well. <tool_call>{"name":"f","arguments":{"a":1}}</tool_call>)");
  json::value whole = Json(Post("/v1/chat/completions", std::string("{") + kTools + "}"));
  const json::value& choice = whole.at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_EQ(choice.at("message").at("content"), "Well. ");
  const json::value& call = choice.at("message").at("tool_calls").at(0);
  EXPECT_EQ(call.at("function").at("name"), "f");
  EXPECT_EQ(call.at("function").at("arguments"), R"({"a":1})");
  EXPECT_TRUE(std::string_view(call.at("id").as_string()).starts_with("call_"));

  std::string content, arguments, id, finish;
  for (const json::value& event :
       Events(Post("/v1/chat/completions", std::string("{\"stream\":true,") + kTools + "}"))) {
    const json::object& choice = event.at("choices").at(0).as_object();
    const json::object& delta = choice.at("delta").as_object();
    if (delta.contains("content")) content += std::string_view(delta.at("content").as_string());
    if (choice.at("finish_reason").is_string()) finish = choice.at("finish_reason").as_string();
    if (!delta.contains("tool_calls")) continue;
    const json::object& piece = delta.at("tool_calls").at(0).as_object();
    EXPECT_EQ(piece.at("index"), 0);
    EXPECT_EQ(piece.contains("id"), id.empty()) << "the first piece names the call, and no other";
    if (piece.contains("id")) {
      id = piece.at("id").as_string();
      EXPECT_EQ(piece.at("function").at("name"), "f");
      EXPECT_EQ(piece.at("function").at("arguments"), "");
    }
    arguments += std::string_view(piece.at("function").at("arguments").as_string());
  }
  EXPECT_EQ(content, "Well. ");
  EXPECT_EQ(arguments, R"({"a":1})");
  EXPECT_EQ(finish, "tool_calls");
}

TEST_F(OpenAiAnswers, WithoutToolsTheSameTextIsText) {
  Start(R"(<tool_call>{"name":"f","arguments":{}}</tool_call>)");
  for (const char* body : {R"({"messages":[{"role":"user","content":"x"}]})",
                           R"({"messages":[{"role":"user","content":"x"}],"tool_choice":"none",
                               "tools":[{"type":"function","function":{"name":"f"}}]})"}) {
    json::value choice = Json(Post("/v1/chat/completions", body)).at("choices").at(0);
    EXPECT_EQ(choice.at("message").at("content"), R"(<tool_call>{"name":"f","arguments":{}}</tool_call>)");
    EXPECT_EQ(choice.at("finish_reason"), "stop");
  }
}

TEST_F(OpenAiAnswers, BestOf) {
  Start();
  json::value body = Json(Post("/v1/completions", R"({"prompt":["ab","cd"],"best_of":3,"n":2,"max_tokens":4})"));
  ASSERT_EQ(body.at("choices").as_array().size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(body.at("choices").at(static_cast<size_t>(i)).at("index"), i);
    EXPECT_EQ(body.at("choices").at(static_cast<size_t>(i)).at("text"), i < 2 ? "abab" : "cdcd");
    EXPECT_TRUE(body.at("choices").at(static_cast<size_t>(i)).at("logprobs").is_null());
  }
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 24) << "all six sequences were computed";
}

TEST_F(OpenAiAnswers, PromptLogprobsAndTruncation) {
  Start();
  json::value body = Json(Post("/v1/completions", R"({"prompt":"abcd","max_tokens":1,"prompt_logprobs":1,
      "truncate_prompt_tokens":3})"));
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 3);
  ASSERT_EQ(choice.at("prompt_logprobs").as_array().size(), 3u);
  EXPECT_TRUE(choice.at("prompt_logprobs").at(0).is_null());
  EXPECT_EQ(choice.at("prompt_logprobs").at(1).at("99").at("decoded_token"), "c");
  EXPECT_TRUE(choice.at("logprobs").is_null());
}

TEST_F(OpenAiAnswers, ContinuesTheFinalMessage) {
  Start();
  json::value body = Json(Post("/tokenize", R"({"messages":[{"role":"user","content":"hi"},
      {"role":"assistant","content":"Once"}],"continue_final_message":true})"));
  const json::array& tokens = body.at("tokens").as_array();
  EXPECT_EQ(tokens.back(), 'e') << "nothing stands behind the content";
}

TEST_F(OpenAiAnswers, Embeddings) {
  Start();
  json::value body = Json(Post("/v1/embeddings", R"({"input":["aab","c"],"model":"test-model"})"));
  EXPECT_EQ(body.at("object"), "list");
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 4);
  const json::array& vector = body.at("data").at(0).at("embedding").as_array();
  ASSERT_EQ(vector.size(), 16u);
  EXPECT_FLOAT_EQ(vector.at('a' % 16).to_number<float>(), 2 / std::sqrt(5.0f));
  EXPECT_FLOAT_EQ(vector.at('b' % 16).to_number<float>(), 1 / std::sqrt(5.0f));
  EXPECT_EQ(body.at("data").at(1).at("index"), 1);
  json::value coded = Json(Post("/v1/embeddings", R"({"input":[97],"encoding_format":"base64","dimensions":2})"));
  EXPECT_EQ(coded.at("data").at(0).at("embedding"), "AAAAAAAAgD8=");
  EXPECT_EQ(Base64({0.0f, 1.0f}), "AAAAAAAAgD8=");
  for (auto [bad, param] : {std::pair{R"({})", "input"},
                            {R"({"input":""})", "input"},
                            {R"({"input":[]})", "input"},
                            {R"({"input":"a","dimensions":0})", "dimensions"},
                            {R"({"input":"a","encoding_format":"int8"})", "encoding_format"},
                            {R"({"input":"a","pooling":"max"})", "pooling"}})
    EXPECT_EQ(Json(Post("/v1/embeddings", bad), 400).at("error").at("param"), param) << bad;
}

TEST(Embeddings, AreOfLengthOne) {
  EXPECT_EQ(Normalized({3, 4}, 0), (std::vector<float>{0.6f, 0.8f}));
  EXPECT_EQ(Normalized({3, 4}, 1), (std::vector<float>{1}));
  EXPECT_EQ(Normalized({0, 0}, 0), (std::vector<float>{0, 0}));
}

TEST_F(OpenAiAnswers, ResponseWhole) {
  Start("Hello.");
  json::value body = Json(Post("/v1/responses", R"({"input":"hi","instructions":"be brief","metadata":{"k":"v"},
      "max_output_tokens":50,"store":true})"));
  EXPECT_EQ(body.at("object"), "response");
  EXPECT_EQ(body.at("status"), "completed");
  EXPECT_EQ(body.at("store"), false);
  EXPECT_EQ(body.at("instructions"), "be brief");
  EXPECT_EQ(body.at("metadata").at("k"), "v");
  EXPECT_EQ(body.at("output").at(0).at("content").at(0).at("text"), "Hello.");
  EXPECT_EQ(body.at("usage").at("total_tokens"),
            body.at("usage").at("input_tokens").as_int64() + body.at("usage").at("output_tokens").as_int64());
  json::value cut =
      Json(Post("/v1/responses", R"({"input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]}],
      "max_output_tokens":3})"));
  EXPECT_EQ(cut.at("status"), "incomplete");
  EXPECT_EQ(cut.at("incomplete_details").at("reason"), "max_output_tokens");
}

TEST_F(OpenAiAnswers, ResponseStream) {
  Start(R"(Hm. <tool_call>{"name":"f","arguments":{"a":1}}</tool_call>)");
  RawResponse response = Post("/v1/responses", R"({"input":"x","stream":true,
      "tools":[{"type":"function","name":"f","parameters":{"type":"object"}}]})");
  std::vector<std::string> types;
  std::string text, arguments;
  int64_t number = 0;
  json::value last;
  for (const json::value& event : Events(response)) {
    EXPECT_EQ(event.at("sequence_number"), number++);
    std::string type(event.at("type").as_string());
    if (type == "response.output_text.delta") text += std::string_view(event.at("delta").as_string());
    if (type == "response.function_call_arguments.delta") arguments += std::string_view(event.at("delta").as_string());
    if (types.empty() || types.back() != type) types.push_back(type);
    last = event;
  }
  EXPECT_EQ(types,
            (std::vector<std::string>{
                "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
                "response.output_text.delta", "response.output_text.done", "response.content_part.done",
                "response.output_item.done", "response.output_item.added", "response.function_call_arguments.delta",
                "response.function_call_arguments.done", "response.output_item.done", "response.completed"}));
  EXPECT_EQ(text, "Hm. ");
  EXPECT_EQ(arguments, R"({"a":1})");
  EXPECT_EQ(last.at("response").at("output").at(1).at("name"), "f");
  EXPECT_EQ(response.body.find("[DONE]"), std::string::npos);
}

TEST_F(OpenAiAnswers, ResponsesRefuse) {
  Start();
  for (auto [bad, param] :
       {std::pair{R"({})", "input"},
        {R"({"input":[]})", "input"},
        {R"({"input":[3]})", "input[0]"},
        {R"({"input":[{"type":"message","role":"robot","content":"x"}]})", "input[0].role"},
        {R"({"input":[{"type":"image"}]})", "input[0].type"},
        {R"({"input":"x","previous_response_id":"resp_1"})", "previous_response_id"},
        {R"({"input":"x","background":true})", "background"},
        {R"({"input":"x","max_output_tokens":0})", "max_output_tokens"},
        {R"({"input":"x","text":{"format":{"type":"json_schema"}}})", "text.format.json_schema.schema"},
        {R"({"input":"x","tools":[{"type":"web_search"}]})", "tools[0].type"}})
    EXPECT_EQ(Json(Post("/v1/responses", bad), 400).at("error").at("param"), param) << bad;
}

TEST_F(OpenAiAnswers, TokenizerInfo) {
  Start();
  json::value body = Json(Call(server_->port(), "GET", "/tokenizer_info", ""));
  EXPECT_TRUE(body.at("eos_token").is_string()) << json::serialize(body);
}

}  // namespace
}  // namespace ekiben::api
