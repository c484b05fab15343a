#include "api/service_file.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

namespace ekiben::api {
namespace {

constexpr const char* kHead = "name: s\napis:\n  a:\n    prompt: '{{ x }}'\n    fields:\n";

std::string ErrorOf(const std::string& text) {
  auto parsed = ParseServiceFile(text, "f.yaml");
  return parsed.ok() ? "" : parsed.error().message();
}

TEST(ServiceFile, SmallestService) {
  auto service = ParseServiceFile("name: s\napis:\n  ask:\n    prompt: Hello\n", "f.yaml");
  ASSERT_TRUE(service.ok()) << service.error().message();
  EXPECT_EQ(service->name, "s");
  EXPECT_FALSE(service->timeout_s.has_value());
  ASSERT_EQ(service->apis.size(), 1u);
  const ServiceApi& api = service->apis[0];
  EXPECT_EQ(api.route, "/ask");
  EXPECT_TRUE(api.stream);
  auto request = MakeTextRequest(api, {}, 7, 0);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->sampling.seed, 7u);
  EXPECT_EQ(std::get<serve::ChatInput>(request->input).own_template, api.prompt);
}

TEST(ServiceFile, ValuesReachTheRequest) {
  auto service = ParseServiceFile(
      "name: s\ntraffic: {timeout: 1.5, max_concurrency: 3}\napis:\n  ask:\n    messages:\n"
      "      - {role: user, content: 'about {{ topic }}'}\n    fields:\n      topic: {}\n"
      "      words: {type: integer, default: 5, sets: max_tokens}\n      heat: {type: number, default: 1, sets: "
      "temperature}\n      until: {nullable: true, sets: stop}\n      dice: {type: integer, nullable: true, sets: "
      "seed}\n    parameters: {top_p: 0.5, ignore_eos: true}\n",
      "f.yaml");
  ASSERT_TRUE(service.ok()) << service.error().message();
  EXPECT_EQ(service->timeout_s, 1.5);
  EXPECT_EQ(service->max_concurrency, 3);
  auto request = MakeTextRequest(
      service->apis[0], {{"topic", "rain"}, {"words", 9}, {"heat", 0.25}, {"until", "END"}, {"dice", nullptr}}, 7, 0);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->max_tokens, 9);
  EXPECT_EQ(request->sampling.temperature, 0.25f);
  EXPECT_EQ(request->sampling.top_p, 0.5f);
  EXPECT_EQ(request->sampling.seed, 7u);  // no value: the server's own
  EXPECT_EQ(request->stop, std::vector<std::string>{"END"});
  EXPECT_TRUE(request->ignore_eos);
  EXPECT_EQ(std::get<serve::ChatInput>(request->input).inputs.at("messages"),
            json::parse(R"([{"role":"user","content":"about rain"}])"));
}

TEST(ServiceFile, ErrorsNameFileLineAndKey) {
  const std::string head = kHead;
  const std::pair<std::string, std::string> cases[] = {
      {"name: s\n", "f.yaml:1: apis: at least one is wanted"},
      {"[1]", "f.yaml:1: a map with name and apis is wanted"},
      {"name: s\nspeed: 3\n", "f.yaml:2: speed: not known; it is one of name, version, "},
      {"name: [a\n", "f.yaml:2: "},
      {"name: s\napis:\n  a:\n    prompt: '{{ x'\n", "f.yaml:4: apis.a.prompt: the template does not parse: "},
      {"name: s\napis:\n  a:\n    stream: true\n", "f.yaml:4: apis.a: either prompt (a whole template) or messages "},
      {"name: s\napis:\n  a:\n    prompt: x\n    route: /v1/x\n", "f.yaml:4: apis.a: the route /v1/x is taken already"},
      {"name: s\napis:\n  a:\n    prompt: x\n    route: generate\n",
       "f.yaml:5: apis.a.route: 'generate' is not a path such as /generate"},
      {"name: s\napis:\n  a: {prompt: x, route: /r}\n  b: {prompt: x, route: /r}\n",
       "f.yaml:4: apis.b: the route /r is taken already"},
      {"name: s\ntraffic:\n  timeout: soon\napis: {a: {prompt: x}}\n",
       "f.yaml:3: traffic.timeout: 'soon' is not a number"},
      {head + "      x: {type: list}\n",
       "f.yaml:6: apis.a.fields.x.type: 'list' is not one of string, integer, number, boolean"},
      {head + "      x:\n        type: integer\n        minimum: 5\n        default: 4\n",
       "f.yaml:9: apis.a.fields.x.default: Input should be greater than or equal to 5"},
      {head + "      x: {type: integer, default: 1.5}\n", "f.yaml:6: apis.a.fields.x.default: 1.5 is not an integer"},
      {head + "      x: {minimum: 5}\n", "f.yaml:6: apis.a.fields.x.minimum: only of an integer or a number"},
      {head + "      x: {sets: max_tokens}\n",
       "f.yaml:6: apis.a.fields.x.sets: max_tokens takes a integer, the field is a string"},
      {head + "      x: {sets: speed}\n", "f.yaml:6: apis.a.fields.x.sets: 'speed' is not one of max_tokens, "},
      {head + "      x: {}\n      x: {}\n", "f.yaml:7: apis.a.fields.x: given twice"},
      {head + "      9x: {}\n", "f.yaml:6: apis.a.fields.9x: a field's name has letters"},
      {head + "      x: {type: integer, sets: max_tokens}\n    parameters: {max_tokens: 5}\n",
       "f.yaml:7: apis.a.parameters.max_tokens: the field 'x' sets it, too"},
      {head + "      x: {}\n    parameters: {heat: 5}\n", "f.yaml:7: apis.a.parameters.heat: not known; it is one of "},
  };
  for (const auto& [text, message] : cases) {
    std::string said = ErrorOf(text);
    EXPECT_EQ(said.substr(0, message.size()), message) << text << "\nsaid: " << said;
  }
}

TEST(ServiceFile, TooLargeOrAbsent) {
  EXPECT_NE(ErrorOf(std::string(kServiceFileBytesMax + 1, '#')).find("at most 1048576"), std::string::npos);
  EXPECT_EQ(ReadServiceFile("/nonexistent/service.yaml").error().code(), Code::kNotFound);
}

}  // namespace
}  // namespace ekiben::api
