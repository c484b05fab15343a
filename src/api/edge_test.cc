// The small parts of the edge: JSON text, BentoML's body, ids.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <set>

#include "api/bento_request.h"
#include "api/error_response.h"
#include "api/json_text.h"
#include "api/request_ids.h"

namespace ekiben::api {
namespace {

TEST(JsonText, EscapesReadBackEqual) {
  std::string all;
  for (int c = 1; c < 0x80; ++c) all.push_back(static_cast<char>(c));
  all += "駅弁 🍱 \"quoted\" \\";
  all.push_back('\0');
  std::string out;
  AppendJsonString(out, all);
  EXPECT_EQ(std::string(boost::json::parse(out).as_string()), all);
}

TEST(JsonText, InvalidUtf8IsReplacedAndTheRestKept) {
  EXPECT_EQ(ReplaceInvalidUtf8("a\xE9\xA7"
                               "b"),
            "a\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(ReplaceInvalidUtf8("\xC0\xAF\xED\xA0\x80\xF5"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(ReplaceInvalidUtf8("駅🍱"), "駅🍱");
  EXPECT_EQ(CountCodePoints("駅🍱a"), 3u);
}

TEST(JsonText, NumbersThatJsonLacks) {
  std::string out;
  AppendJsonFloat(out, -INFINITY);
  out += ' ';
  AppendJsonFloat(out, -0.5);
  out += ' ';
  AppendJsonInt(out, -42);
  EXPECT_EQ(out, "-9999 -0.5 -42");
}

TEST(BentoRequest, DefaultsAndLaxCoercion) {
  GenerateDefaults defaults;
  for (const char* body : {"", "{}", "  ", R"({"extra":1})", R"({"system_prompt":null})"}) {
    auto parsed = ParseGenerateBody(body, "application/json", defaults);
    EXPECT_TRUE(parsed.problems.empty()) << body;
    EXPECT_EQ(parsed.input.prompt, defaults.prompt);
    EXPECT_EQ(parsed.input.system_prompt, defaults.system_prompt);
    EXPECT_EQ(parsed.input.max_tokens, 1024);
  }
  EXPECT_EQ(ParseGenerateBody(R"({"system_prompt":""})", "", defaults).input.system_prompt, "");
  for (const char* body : {R"({"max_tokens":"300"})", R"({"max_tokens":300.0})", R"({"max_tokens":300})",
                           R"({"max_tokens":1,"max_tokens":300})"})
    EXPECT_EQ(ParseGenerateBody(body, "text/plain", defaults).input.max_tokens, 300) << body;
  auto form = ParseGenerateBody("prompt=two+words%21&max_tokens=200", "application/x-www-form-urlencoded", defaults);
  EXPECT_TRUE(form.problems.empty());
  EXPECT_EQ(form.input.prompt, "two words!");
  EXPECT_EQ(form.input.max_tokens, 200);
}

TEST(BentoRequest, ProblemsHavePydanticsTypes) {
  GenerateDefaults defaults;
  const std::pair<const char*, const char*> cases[] = {
      {R"({"max_tokens":127})", "greater_than_equal"},
      {R"({"max_tokens":1025})", "less_than_equal"},
      {R"({"max_tokens":300.5})", "int_from_float"},
      {R"({"max_tokens":null})", "int_type"},
      {R"({"max_tokens":[1]})", "int_type"},
      {R"({"max_tokens":"abc"})", "int_parsing"},
      {R"({"max_tokens":"300.5"})", "int_parsing"},
      {R"({"max_tokens":true})", "greater_than_equal"},
      {R"({"prompt":null})", "string_type"},
      {R"({"prompt":5})", "string_type"},
      {R"({"system_prompt":[]})", "string_type"},
      {"[1]", "model_type"},
      {"{bad", "json_invalid"},
  };
  for (auto [body, type] : cases) {
    auto parsed = ParseGenerateBody(body, "application/json", defaults);
    ASSERT_EQ(parsed.problems.size(), 1u) << body;
    EXPECT_EQ(parsed.problems[0].type, type) << body;
    auto answer = boost::json::parse(ProblemsJson(parsed.problems));
    EXPECT_EQ(answer.at("error"), "1 validation error for Input");
    EXPECT_EQ(answer.at("detail").at(0).at("loc").as_array().empty(), body[0] == '[' || body[1] == 'b');
  }
  auto two = ParseGenerateBody(R"({"prompt":1,"max_tokens":1})", "", defaults);
  EXPECT_EQ(two.problems.size(), 2u);
}

TEST(ErrorResponse, ShapesByFamily) {
  Error error(Code::kInvalid, "n: 200 is outside [1, 128]", "n");
  Answer openai = ErrorAnswer(PathFamily::kOpenAi, error);
  EXPECT_EQ(openai.status, 400);
  auto body = boost::json::parse(openai.body).at("error");
  EXPECT_EQ(body.at("param"), "n");
  EXPECT_EQ(body.at("type"), "invalid_request_error");
  EXPECT_TRUE(body.at("code").is_null());
  EXPECT_EQ(ErrorAnswer(PathFamily::kBento, error).body, R"([{"error":"n: 200 is outside [1, 128]"}])");
  Answer full = ErrorAnswer(PathFamily::kOpenAi, Error(Code::kOverloaded, "full"));
  EXPECT_EQ(full.status, 429);
  EXPECT_EQ(full.headers.back().first, "retry-after");
  EXPECT_EQ(StatusAnswer(PathFamily::kBento, 404, "x").body, "Not Found");
  EXPECT_EQ(FamilyOf("/v1/x"), PathFamily::kOpenAi);
  EXPECT_EQ(FamilyOf("/generate"), PathFamily::kBento);
}

TEST(RequestIds, AreDistinct) {
  RequestIds ids;
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(ids.NextHex(32));
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_EQ(seen.begin()->size(), 32u);
}

}  // namespace
}  // namespace ekiben::api
