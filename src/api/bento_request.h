// The body of POST /generate, BentoML's product API: {"prompt", "system_prompt", "max_tokens"}, all optional, as JSON
// or as a form, checked and coerced as pydantic does in its lax mode, with its error list. Thread: pure functions.
// Knows nothing of HTTP, so that it is fuzzed alone.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ekiben::api {

struct GenerateDefaults {
  std::string prompt = "Explain superconductors in plain English";
  std::string system_prompt =
      "You are a helpful, careful assistant. Answer truthfully and safely, say so when a question makes no sense, and "
      "say that you do not know rather than guess.";
  int64_t max_tokens_min = 128, max_tokens_max = 1024, max_tokens = 1024;
};

struct GenerateInput {
  std::string prompt, system_prompt;
  int32_t max_tokens = 0;
};

struct FieldProblem {
  std::string type;   // pydantic's: "int_type", "greater_than_equal", ...
  std::string field;  // empty: the body itself
  std::string message;
};

// Either problems is empty or input is meaningless. `content_type`: a form is read as one, anything else as JSON.
struct GenerateParse {
  GenerateInput input;
  std::vector<FieldProblem> problems;
};
GenerateParse ParseGenerateBody(std::string_view body, std::string_view content_type, const GenerateDefaults& defaults);

// {"error":"2 validation error for Input","detail":[{"type","loc","msg","url"}]}
std::string ProblemsJson(const std::vector<FieldProblem>& problems);

}  // namespace ekiben::api
