// What a product service is, in BentoML's sense: its name, its traffic limits and its APIs, each with a route, typed
// fields, the text that the model gets and the parameters of the generation. Built in: the service of the article that
// this server replaces; any other comes from a file (service_file.h).
// Invariants: routes, names and fields are unique; every value in `parameters` and every default fits its type.
// Thread: immutable once built.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "serve/service.h"
#include "text/chat_template.h"

namespace ekiben::api {

enum class FieldType : uint8_t { kString, kInteger, kNumber, kBoolean };
std::string_view FieldTypeName(FieldType type);  // JSON schema's words

struct ServiceField {
  std::string name;
  FieldType type = FieldType::kString;
  bool nullable = false;                     // null stands for the default
  std::optional<json::value> default_value;  // none: the field is required
  std::optional<double> minimum, maximum;    // of numbers
  std::optional<int64_t> max_length;         // of strings, in characters
  std::vector<std::string> choices;          // of strings; empty: any
  std::string description;
  std::string sets;  // the generation's parameter that takes the value; empty: only templates see it
};

// Of a chat that the model's own template words; the content is a template over the fields.
struct ServiceMessage {
  std::string role;
  std::shared_ptr<const text::ChatTemplate> content;
};

struct ServiceApi {
  std::string name, route, doc;
  std::string model;   // empty: the default one
  bool stream = true;  // false: the whole text at once, as text/plain
  std::vector<ServiceField> fields;
  std::shared_ptr<const text::ChatTemplate> prompt;  // the whole prompt; null: `messages`
  std::vector<ServiceMessage> messages;
  std::vector<std::pair<std::string, json::value>> parameters;  // what no field sets
};

struct ServiceDefinition {
  std::string name = "ekiben", version = "not available", description;
  std::optional<double> timeout_s;         // traffic.timeout
  std::optional<int32_t> max_concurrency;  // traffic.max_concurrency
  std::string metrics_namespace = "bentoml_service";
  std::vector<ServiceApi> apis;
};

// POST /generate of the article: prompt, system_prompt, max_tokens; greedy, with the model's own chat template.
ServiceDefinition ArticleService();

// The type of a generation parameter by its name ("max_tokens", "temperature", ...); nullopt: there is no such one.
std::optional<FieldType> ParameterType(std::string_view name);
// Every name, for messages.
std::string ParameterNames();
// REQUIRES: `name` is one, and `value` of its type (an integer is a number, too).
void SetParameter(serve::TextRequest& request, std::string_view name, const json::value& value);

// The request that `values` (one for each field, as ParseBentoBody made them) ask of `api`; `seed` where nothing sets
// one. Errors: a template that fails on them.
Result<serve::TextRequest> MakeTextRequest(const ServiceApi& api, const json::object& values, uint64_t seed,
                                           int64_t wall_seconds);

// BentoML's documents: what its Python client reads, and OpenAPI 3.0.2.
json::object SchemaDocument(const ServiceDefinition& service);
json::object OpenApiDocument(const ServiceDefinition& service);

}  // namespace ekiben::api
