// The body of a BentoML API: a JSON object or a form, checked and coerced against the API's fields as pydantic does in
// its lax mode, with its error list. Thread: pure functions. Knows nothing of HTTP, so that it is fuzzed alone.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "api/service_definition.h"
#include "base/json.h"

namespace ekiben::api {

struct FieldProblem {
  std::string type;   // pydantic's: "int_type", "greater_than_equal", ...
  std::string field;  // empty: the body itself
  std::string message;
};

// Either problems is empty, and values has every field (of its type, or null where that is the default), or values is
// meaningless. Unknown keys are dropped. `content_type`: a form is read as one, anything else as JSON.
struct BentoParse {
  json::object values;
  std::vector<FieldProblem> problems;
};
BentoParse ParseBentoBody(std::string_view body, std::string_view content_type,
                          const std::vector<ServiceField>& fields);

// One value against its field: coerced in place. False: a problem was added.
bool CheckField(const ServiceField& field, json::value& value, std::vector<FieldProblem>& problems);

// {"error":"2 validation error for Input","detail":[{"type","loc","msg","url"}]}
std::string ProblemsJson(const std::vector<FieldProblem>& problems);

}  // namespace ekiben::api
