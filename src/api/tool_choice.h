// What a body asks of the answer's form: `response_format`, vLLM's `structured_outputs` and `guided_*`, and what
// `tools` and `tool_choice` demand. Out comes at most one grammar: a required or named tool constrains the whole text
// to JSON, so that its arguments are valid whatever model writes them. Thread: pure functions. Untrusted input; the
// grammar itself is bounded in text/grammar.h.
#pragma once
#include <optional>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "text/grammar.h"

namespace ekiben::api {

struct ToolChoice {
  enum class Kind : uint8_t { kNone, kAuto, kRequired, kNamed };
  Kind kind = Kind::kNone;  // kNone also without tools
  std::string name;         // kNamed
  // kRequired: [{"name","parameters"}, ...]. kNamed: the arguments alone.
  std::optional<text::GrammarSpec> grammar;
};

// Checks `tools` (the form {"type":"function","function":{"name",...}}) and `tool_choice`. A body without either is
// kNone; tools alone are kAuto. `parallel_tool_calls: false` allows one call.
Result<ToolChoice> ParseToolChoice(const json::object& body);

// response_format, structured_outputs, guided_json, guided_regex, guided_choice, guided_grammar: at most one of them.
Result<std::optional<text::GrammarSpec>> ParseOutputFormat(const json::object& body);
// {"type":"text"|"json_object"|"json_schema", ...}; `schema_at`: the object that holds "schema" (chat nests it in
// "json_schema", /v1/responses does not). `field`: for errors.
Result<std::optional<text::GrammarSpec>> ParseFormatObject(const json::object& format, const std::string& field,
                                                           bool nested);

}  // namespace ekiben::api
