#include "api/tool_calls.h"

#include <gtest/gtest.h>

#include <map>

namespace ekiben::api {
namespace {

using Format = ToolCallFormat;

struct Call {
  std::string name, arguments;
  bool operator==(const Call&) const = default;
};
std::ostream& operator<<(std::ostream& os, const Call& call) {
  return os << call.name << call.arguments;
}
struct Parsed {
  std::string text;
  std::vector<Call> calls;
  bool operator==(const Parsed&) const = default;
};

// `text` in pieces of `piece` bytes.
Parsed Parse(Format format, std::string_view text, size_t piece, const std::string& name = {}) {
  ToolCallParser parser(format, name);
  Parsed all;
  auto take = [&](const ToolCallParser::Output& out) {
    all.text += out.text;
    for (const ToolCallDelta& delta : out.calls) {
      if (!delta.name.empty()) {
        EXPECT_EQ(delta.index, static_cast<int32_t>(all.calls.size()));
        EXPECT_TRUE(delta.arguments.empty()) << "a call begins with its name alone";
        all.calls.push_back({delta.name, ""});
      } else {
        EXPECT_EQ(delta.index + 1, static_cast<int32_t>(all.calls.size()));
        all.calls.back().arguments += delta.arguments;
      }
    }
  };
  for (size_t at = 0; at < text.size(); at += piece) {
    ToolCallParser::Output out;
    parser.Push(text.substr(at, piece), out);
    take(out);
  }
  ToolCallParser::Output out;
  parser.Finish(out);
  take(out);
  EXPECT_EQ(parser.calls(), static_cast<int32_t>(all.calls.size()));
  return all;
}

// The same however the text is cut.
void Expect(Format format, std::string_view text, const Parsed& wanted, const std::string& name = {}) {
  for (size_t piece : {size_t{1}, size_t{2}, size_t{3}, size_t{7}, text.size()}) {
    Parsed got = Parse(format, text, piece, name);
    EXPECT_EQ(got.text, wanted.text) << text << " in pieces of " << piece;
    EXPECT_EQ(got.calls, wanted.calls) << text << " in pieces of " << piece;
  }
}

TEST(ToolCalls, Hermes) {
  Expect(Format::kHermes, R"(<tool_call>
{"name": "f", "arguments": {"a": [1, "}"], "b": "\"{"}}
</tool_call>)",
         {"", {{"f", R"({"a": [1, "}"], "b": "\"{"})"}}});
  Expect(Format::kHermes,
         "Let me see.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>\n"
         "{\"arguments\":{\"x\":1},\"name\":\"g\"}</tool_call>\n",
         {"Let me see.\n", {{"f", "{}"}, {"g", "{\"x\":1}"}}});
  Expect(Format::kHermes, R"(<tool_call>{"name":"f"}</tool_call>)", {"", {{"f", "{}"}}});
  Expect(Format::kHermes, R"(<tool_call>{"name":"f","arguments":"{\"a\": 1}"}</tool_call>)",
         {"", {{"f", "{\"a\": 1}"}}});
}

TEST(ToolCalls, WhatIsNoCallStaysText) {
  Expect(Format::kHermes, " a < b <tool_cal <tool_callx>", {" a < b <tool_cal <tool_callx>", {}});
  Expect(Format::kHermes, "<tool_call>what?", {"<tool_call>what?", {}});
  Expect(Format::kHermes, "<tool_call>{\"answer\": 4}</tool_call>", {"<tool_call>{\"answer\": 4}</tool_call>", {}});
  Expect(Format::kHermes, "<tool_call>{name: f}", {"<tool_call>{name: f}", {}});
  Expect(Format::kHermes, "<tool_call>", {"<tool_call>", {}});
  Expect(Format::kHermes, "  ", {"  ", {}});
  Expect(Format::kText, "<tool_call>{\"name\":\"f\"}</tool_call>", {"<tool_call>{\"name\":\"f\"}</tool_call>", {}});
}

TEST(ToolCalls, CutOffByLength) {
  Expect(Format::kHermes, R"(<tool_call>{"name": "f", "arguments": {"a": "be)", {"", {{"f", R"({"a": "be)"}}});
  Expect(Format::kHermes, R"(<tool_call>{"name": "f)", {R"(<tool_call>{"name": "f)", {}});
}

TEST(ToolCalls, Llama3Json) {
  Expect(Format::kLlama3Json, R"({"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}})",
         {"", {{"f", R"({"a": 1})"}, {"g", "{}"}}});
  Expect(Format::kLlama3Json, R"(<|python_tag|>{"type":"function","name":"f","parameters":{"a":1}})",
         {"", {{"f", R"({"a":1})"}}});
  Expect(Format::kLlama3Json, "Hello {\"name\":\"f\"}", {"Hello {\"name\":\"f\"}", {}});
  Expect(Format::kLlama3Json, "{\"answer\": 4} is it", {"{\"answer\": 4} is it", {}});
}

TEST(ToolCalls, Mistral) {
  Expect(Format::kMistral, R"([TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name":"g","arguments":{}}])",
         {"", {{"f", R"({"a": 1})"}, {"g", "{}"}}});
  Expect(Format::kMistral, R"(Sure.[TOOL_CALLS]f[ARGS]{"a": {"b": 2}}[TOOL_CALLS]g{"c":3})",
         {"Sure.", {{"f", R"({"a": {"b": 2}})"}, {"g", R"({"c":3})"}}});
}

TEST(ToolCalls, OurOwnGrammars) {
  Expect(Format::kCallArray, R"( [ {"name": "f", "parameters": {"a": 1}}, {"name":"g","parameters":{}} ] )",
         {"", {{"f", R"({"a": 1})"}, {"g", "{}"}}});
  Expect(Format::kArguments, R"( {"a": "b"})", {"", {{"tool", R"({"a": "b"})"}}}, "tool");
}

TEST(ToolCalls, TheTemplateNamesTheFormat) {
  EXPECT_EQ(ToolCallFormatOf("auto", "{% if tools %}[TOOL_CALLS]{% endif %}"), Format::kMistral);
  EXPECT_EQ(ToolCallFormatOf("auto", "return a json object within <tool_call></tool_call>"), Format::kHermes);
  EXPECT_EQ(ToolCallFormatOf("auto", "{{ '<|python_tag|>' }}"), Format::kLlama3Json);
  EXPECT_EQ(ToolCallFormatOf("auto", ""), Format::kHermes);
  EXPECT_EQ(ToolCallFormatOf("none", "[TOOL_CALLS]"), Format::kText);
  EXPECT_EQ(ToolCallFormatOf("pythonic", ""), std::nullopt);
}

}  // namespace
}  // namespace ekiben::api
