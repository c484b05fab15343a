// BentoML's surface: bodies as pydantic reads them, and the routes of a service of the article's shape and of another.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <thread>

#include "api/bento_request.h"
#include "api/service_file.h"
#include "api/testing/test_server.h"
#include "http/testing/raw_client.h"

namespace ekiben::api {
namespace {

using namespace std::chrono_literals;
using http::testing::Call;
using http::testing::Format;
using http::testing::RawClient;
using http::testing::RawResponse;
using testing::TestServer;
using testing::TestServerOptions;

const std::vector<ServiceField>& ArticleFields() {
  static const ServiceDefinition kService = ArticleService();
  return kService.apis[0].fields;
}

TEST(BentoRequest, DefaultsAndLaxCoercion) {
  const auto& fields = ArticleFields();
  for (const char* body : {"", "{}", "  ", R"({"extra":1})", R"({"system_prompt":null})"}) {
    auto parsed = ParseBentoBody(body, "application/json", fields);
    EXPECT_TRUE(parsed.problems.empty()) << body;
    EXPECT_EQ(parsed.values.at("prompt"), "Explain superconductors in plain English");
    EXPECT_EQ(parsed.values.at("system_prompt"), *fields[1].default_value);
    EXPECT_EQ(parsed.values.at("max_tokens"), 1024);
  }
  EXPECT_EQ(ParseBentoBody(R"({"system_prompt":""})", "", fields).values.at("system_prompt"), "");
  for (const char* body :
       {R"({"max_tokens":"300"})", R"({"max_tokens":300.0})", R"({"max_tokens":300})", R"({"max_tokens":" +300 "})",
        R"({"max_tokens":"300.0"})", R"({"max_tokens":1,"max_tokens":300})"})
    EXPECT_EQ(ParseBentoBody(body, "text/plain", fields).values.at("max_tokens"), 300) << body;
}

TEST(BentoRequest, Forms) {
  const auto& fields = ArticleFields();
  auto form = ParseBentoBody("prompt=two+words%21&max_tokens=200", "application/x-www-form-urlencoded", fields);
  EXPECT_TRUE(form.problems.empty());
  EXPECT_EQ(form.values.at("prompt"), "two words!");
  EXPECT_EQ(form.values.at("max_tokens"), 200);
  auto parts = ParseBentoBody(
      "--b\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\na b\r\n"
      "--b\r\ncontent-disposition: form-data; name=\"max_tokens\"\r\n\r\n150\r\n--b--\r\n",
      "multipart/form-data; boundary=b", fields);
  EXPECT_TRUE(parts.problems.empty());
  EXPECT_EQ(parts.values.at("prompt"), "a b");
  EXPECT_EQ(parts.values.at("max_tokens"), 150);
  auto broken = ParseBentoBody("--b\r\n", "multipart/form-data; boundary=b", fields);
  ASSERT_EQ(broken.problems.size(), 1u);
  EXPECT_EQ(broken.problems[0].type, "value_error");
}

TEST(BentoRequest, ProblemsHavePydanticsTypes) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"max_tokens":127})", "greater_than_equal"},
      {R"({"max_tokens":1025})", "less_than_equal"},
      {R"({"max_tokens":1e300})", "less_than_equal"},
      {R"({"max_tokens":300.5})", "int_from_float"},
      {R"({"max_tokens":null})", "int_type"},
      {R"({"max_tokens":[1]})", "int_type"},
      {R"({"max_tokens":"abc"})", "int_parsing"},
      {R"({"max_tokens":"300.5"})", "int_parsing"},
      {R"({"max_tokens":"3e2"})", "int_parsing"},
      {R"({"max_tokens":true})", "greater_than_equal"},
      {R"({"prompt":null})", "string_type"},
      {R"({"prompt":5})", "string_type"},
      {R"({"system_prompt":[]})", "string_type"},
      {"[1]", "model_type"},
      {"{bad", "json_invalid"},
  };
  for (auto [body, type] : cases) {
    auto parsed = ParseBentoBody(body, "application/json", ArticleFields());
    ASSERT_EQ(parsed.problems.size(), 1u) << body;
    EXPECT_EQ(parsed.problems[0].type, type) << body;
    auto answer = boost::json::parse(ProblemsJson(parsed.problems));
    EXPECT_EQ(answer.at("error"), "1 validation error for Input");
    EXPECT_EQ(answer.at("detail").at(0).at("loc").as_array().empty(), body[0] == '[' || body[1] == 'b');
  }
  EXPECT_EQ(ParseBentoBody(R"({"prompt":1,"max_tokens":1})", "", ArticleFields()).problems.size(), 2u);
}

TEST(BentoRequest, FieldsOfEveryType) {
  const std::vector<ServiceField> fields = {
      {.name = "must"},
      {.name = "kind", .default_value = "a", .choices = {"a", "b", "c"}},
      {.name = "short", .default_value = "", .max_length = 3},
      {.name = "share", .type = FieldType::kNumber, .default_value = 0.5, .minimum = 0, .maximum = 1},
      {.name = "flag", .type = FieldType::kBoolean, .default_value = false}};
  auto values = [&](const char* body) { return ParseBentoBody(body, "", fields).values; };
  EXPECT_EQ(values(R"({"must":"x","share":"0.25","flag":"yes"})"),
            json::parse(R"({"must":"x","kind":"a","short":"","share":0.25,"flag":true})"));
  EXPECT_EQ(values(R"({"must":"x","kind":"c","short":"駅弁屋","share":1,"flag":0})"),
            json::parse(R"({"must":"x","kind":"c","short":"駅弁屋","share":1.0,"flag":false})"));
  const std::tuple<const char*, const char*, const char*> cases[] = {
      {R"({})", "missing", "Field required"},
      {R"({"must":"","kind":"d"})", "literal_error", "Input should be 'a', 'b' or 'c'"},
      {R"({"must":"","short":"four"})", "string_too_long", "String should have at most 3 characters"},
      {R"({"must":"","share":1.5})", "less_than_equal", "Input should be less than or equal to 1"},
      {R"({"must":"","share":"much"})", "float_parsing",
       "Input should be a valid number, unable to parse string as a number"},
      {R"({"must":"","share":null})", "float_type", "Input should be a valid number"},
      {R"({"must":"","flag":2})", "bool_parsing", "Input should be a valid boolean, unable to interpret input"},
      {R"({"must":"","flag":null})", "bool_type", "Input should be a valid boolean"},
  };
  for (auto [body, type, message] : cases) {
    auto problems = ParseBentoBody(body, "", fields).problems;
    ASSERT_EQ(problems.size(), 1u) << body;
    EXPECT_EQ(problems[0].type, type);
    EXPECT_EQ(problems[0].message, message);
  }
}

class BentoTest : public ::testing::Test {
 protected:
  void Start(TestServerOptions options = {}) {
    options.http.host = "127.0.0.1";
    options.http.port = 0;
    auto started = TestServer::Start(std::move(options));
    ASSERT_TRUE(started.ok()) << started.error().message();
    server = *std::move(started);
  }
  void StartService(const std::string& file, TestServerOptions options = {}) {
    auto service = ReadServiceFile(std::string(EKIBEN_SOURCE_DIR) + "/deploy/services/" + file);
    ASSERT_TRUE(service.ok()) << service.error().message();
    options.app.service = *std::move(service);
    Start(std::move(options));
  }
  RawResponse Post(std::string_view path, std::string_view body, std::string_view headers = {}) {
    return Call(server->port(), "POST", path, body, headers);
  }
  RawResponse Get(std::string_view path) { return Call(server->port(), "GET", path); }
  bool HasMetric(const std::string& line) { return Get("/metrics").body.find(line + "\n") != std::string::npos; }

  std::unique_ptr<TestServer> server;
};

TEST_F(BentoTest, ArticleServiceFromItsFile) {
  StartService("llama3.yaml");
  // The doubles repeat the prompt, specials left out: the template's own marks are no specials of this tokenizer.
  RawResponse response = Post("/generate", R"({"prompt":"Why?","system_prompt":"","max_tokens":140})");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.Header("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(response.Header("server"), "BentoML Service/bentotrtllm-llama3-8b-insruct-service");
  EXPECT_EQ(response.body.substr(0, 126),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|");
  EXPECT_EQ(response.body.size(), 140u);
  json::value schema = json::parse(Get("/schema.json").body);
  EXPECT_EQ(schema.at("name"), "bentotrtllm-llama3-8b-insruct-service");
  const json::value& route = schema.at("routes").at(0);
  EXPECT_EQ(route.at("route"), "/generate");
  EXPECT_EQ(route.at("output"), json::parse(R"({"type":"string","is_stream":true,"media_type":"text/event-stream"})"));
  const json::value& properties = route.at("input").at("properties");
  EXPECT_EQ(properties.at("max_tokens"),
            json::parse(R"({"type":"integer","minimum":128,"maximum":1024,"default":1024,"title":"Max Tokens"})"));
  EXPECT_EQ(properties.at("system_prompt").at("anyOf"), json::parse(R"([{"type":"string"},{"type":"null"}])"));
  EXPECT_FALSE(route.at("input").as_object().contains("required"));
  // What the file spells out is what is built in.
  json::value built_in = json::parse(json::serialize(SchemaDocument(ArticleService())));
  EXPECT_EQ(built_in.at("routes"), schema.at("routes"));
}

TEST_F(BentoTest, ServiceOfAnotherShape) {
  StartService("writing.yaml");
  RawResponse whole = Post("/summarize", R"({"text":"abc","sentences":1})");
  EXPECT_EQ(whole.status, 200);
  EXPECT_EQ(whole.Header("content-type"), "text/plain; charset=utf-8");
  EXPECT_EQ(whole.Header("server"), "BentoML Service/writing-desk");
  EXPECT_EQ(whole.Header("content-length"), "400");
  // The doubles' template leaves the system's message out.
  EXPECT_TRUE(whole.body.starts_with("In at most 1 sentence: abcIn at most")) << whole.body;
  RawResponse letter = Post("/write/letter", R"({"about":"rain","length":"48","creativity":0,"sign_as":"Ito"})");
  EXPECT_EQ(letter.Header("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(letter.body, std::string("Write a friendly letter about rain. Sign it as Ito.").substr(0, 48));
  RawResponse missing = Post("/write/letter", R"({"tone":"silly"})");
  EXPECT_EQ(missing.status, 400);
  json::value problems = json::parse(missing.body);
  EXPECT_EQ(problems.at("error"), "2 validation error for Input");
  EXPECT_EQ(problems.at("detail").at(0).at("type"), "missing");
  EXPECT_EQ(Get("/generate").status, 404);
  EXPECT_EQ(Get("/write/letter").status, 405);

  json::value schema = json::parse(Get("/schema.json").body);
  EXPECT_EQ(schema.at("routes").at(1).at("input").at("required"), json::parse(R"(["about"])"));
  EXPECT_EQ(schema.at("routes").at(0).at("doc"), "A short summary of a text.");
  json::value docs = json::parse(Get("/docs.json").body);
  EXPECT_EQ(docs.at("openapi"), "3.0.2");
  EXPECT_EQ(docs.at("info").at("version"), "1.2");
  EXPECT_EQ(docs.at("servers").at(0).at("url"), ".");
  const json::value& post = docs.at("paths").at("/write/letter").at("post");
  EXPECT_EQ(post.at("x-bentoml-name"), "letter");
  EXPECT_EQ(post.at("operationId"), "writing-desk__letter");
  for (const char* status : {"200", "400", "404", "500"})
    EXPECT_TRUE(post.at("responses").as_object().contains(status));
  EXPECT_TRUE(docs.at("paths").as_object().contains("/readyz"));
}

TEST_F(BentoTest, MetricsAreBentoMLs) {
  TestServerOptions options;
  options.executor.turn_time = 1ms;
  Start(options);
  const std::string labels =
      R"(endpoint="/generate",http_response_code="%",runner_name="ekiben",service_name="ekiben",)"
      R"(service_version="not available")";
  auto total = [&](const std::string& code) {
    std::string out = "bentoml_service_request_total{" + labels + "}";
    return out.replace(out.find('%'), 1, code);
  };
  const std::string in_progress =
      R"(bentoml_service_request_in_progress{endpoint="/generate",runner_name="ekiben",service_name="ekiben",)"
      R"(service_version="not available"} )";
  EXPECT_TRUE(HasMetric(total("200") + " 0"));
  EXPECT_TRUE(HasMetric(total("500") + " 0"));
  EXPECT_EQ(Post("/generate", R"({"max_tokens":128})").status, 200);
  EXPECT_EQ(Post("/generate", R"({"max_tokens":1})").status, 400);
  EXPECT_TRUE(HasMetric(total("200") + " 1"));
  EXPECT_TRUE(HasMetric(total("400") + " 1"));
  {
    RawClient leaving(server->port());
    leaving.Send(Format("POST", "/generate", "{}"));
    leaving.ReadUntil("\r\n\r\n");
    EXPECT_TRUE(HasMetric(in_progress + "1"));
    leaving.Close();
  }
  auto end = std::chrono::steady_clock::now() + 20s;
  while (!HasMetric(in_progress + "0") && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(2ms);
  EXPECT_TRUE(HasMetric(in_progress + "0"));
  EXPECT_TRUE(HasMetric(total("200") + " 2"));
  std::string text = Get("/metrics").body;
  EXPECT_NE(text.find("bentoml_service_request_duration_seconds_bucket{"), std::string::npos);
  EXPECT_NE(text.find("le=\"180\""), std::string::npos);
  EXPECT_NE(text.find("bentoml_service_last_request_timestamp_seconds{"), std::string::npos);
}

}  // namespace
}  // namespace ekiben::api
