#include "api/service_definition.h"

#include <boost/json.hpp>

#include "base/check.h"
#include "serve/service.h"

namespace ekiben::api {
namespace {

using serve::TextRequest;

struct Parameter {
  std::string_view name;
  FieldType type;
  void (*set)(TextRequest&, const json::value&);
};

int32_t Int(const json::value& value) {
  return value.to_number<int32_t>();
}
float Float(const json::value& value) {
  return value.to_number<float>();
}

constexpr Parameter kParameters[] = {
    {"max_tokens", FieldType::kInteger, [](TextRequest& r, const json::value& v) { r.max_tokens = Int(v); }},
    {"min_tokens", FieldType::kInteger, [](TextRequest& r, const json::value& v) { r.sampling.min_tokens = Int(v); }},
    {"temperature", FieldType::kNumber,
     [](TextRequest& r, const json::value& v) { r.sampling.temperature = Float(v); }},
    {"top_k", FieldType::kInteger, [](TextRequest& r, const json::value& v) { r.sampling.top_k = Int(v); }},
    {"top_p", FieldType::kNumber, [](TextRequest& r, const json::value& v) { r.sampling.top_p = Float(v); }},
    {"min_p", FieldType::kNumber, [](TextRequest& r, const json::value& v) { r.sampling.min_p = Float(v); }},
    {"repetition_penalty", FieldType::kNumber,
     [](TextRequest& r, const json::value& v) { r.sampling.repetition_penalty = Float(v); }},
    {"presence_penalty", FieldType::kNumber,
     [](TextRequest& r, const json::value& v) { r.sampling.presence_penalty = Float(v); }},
    {"frequency_penalty", FieldType::kNumber,
     [](TextRequest& r, const json::value& v) { r.sampling.frequency_penalty = Float(v); }},
    {"seed", FieldType::kInteger,
     [](TextRequest& r, const json::value& v) { r.sampling.seed = static_cast<uint64_t>(v.to_number<int64_t>()); }},
    {"stop", FieldType::kString,
     [](TextRequest& r, const json::value& v) {
       if (!v.get_string().empty()) r.stop = {std::string(v.get_string())};
     }},
    {"ignore_eos", FieldType::kBoolean, [](TextRequest& r, const json::value& v) { r.ignore_eos = v.get_bool(); }},
};

const Parameter* FindParameter(std::string_view name) {
  for (const Parameter& parameter : kParameters)
    if (parameter.name == name) return &parameter;
  return nullptr;
}

std::shared_ptr<const text::ChatTemplate> Template(std::string_view source) {
  auto parsed = text::ChatTemplate::Parse(source);
  CHECK(parsed.ok(), "{}", parsed.error().message());
  return std::make_shared<const text::ChatTemplate>(*std::move(parsed));
}

// "system_prompt" -> "System Prompt", as pydantic titles fields.
std::string TitleOf(std::string_view name) {
  std::string out;
  bool begin = true;
  for (char c : name) {
    if (c == '_') {
      out.push_back(' ');
    } else {
      out.push_back(begin && c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c);
    }
    begin = c == '_';
  }
  return out;
}

// A bound of an integer field is written without a fraction.
json::value Bound(FieldType type, double value) {
  if (type == FieldType::kInteger) return static_cast<int64_t>(value);
  return value;
}

json::object FieldSchema(const ServiceField& field) {
  json::object type{{"type", FieldTypeName(field.type)}};
  if (field.minimum) type["minimum"] = Bound(field.type, *field.minimum);
  if (field.maximum) type["maximum"] = Bound(field.type, *field.maximum);
  if (field.max_length) type["maxLength"] = *field.max_length;
  if (!field.choices.empty()) type["enum"] = json::array(field.choices.begin(), field.choices.end());
  json::object out;
  if (field.nullable)
    out["anyOf"] = json::array{type, json::object{{"type", "null"}}};
  else
    out = std::move(type);
  if (field.default_value) out["default"] = *field.default_value;
  if (!field.description.empty()) out["description"] = field.description;
  out["title"] = TitleOf(field.name);
  return out;
}

json::object InputSchema(const ServiceApi& api) {
  json::object properties;
  json::array required;
  for (const ServiceField& field : api.fields) {
    properties[field.name] = FieldSchema(field);
    if (!field.default_value) required.push_back(json::value(field.name));
  }
  json::object out{{"properties", std::move(properties)}, {"title", "Input"}, {"type", "object"}};
  if (!required.empty()) out["required"] = std::move(required);
  return out;
}

const char* MediaType(const ServiceApi& api) {
  return api.stream ? "text/event-stream" : "text/plain";
}

json::object Content(const char* media, json::object schema) {
  return {{media, {{"schema", std::move(schema)}}}};
}

json::object Reference(const char* name) {
  return {{"$ref", std::string("#/components/schemas/") + name}};
}

json::object ApiOperation(const ServiceDefinition& service, const ServiceApi& api) {
  json::object responses;
  responses["200"] = {{"description", "Successful Response"},
                      {"content", Content(MediaType(api), {{"type", "string"}})}};
  responses["400"] = {{"description", "Bad Request"},
                      {"content", Content("application/json", Reference("InvalidArgument"))}};
  responses["404"] = {{"description", "Not Found"}, {"content", Content("application/json", Reference("NotFound"))}};
  responses["500"] = {{"description", "Internal Server Error"},
                      {"content", Content("application/json", Reference("InternalServerError"))}};
  json::object out{{"responses", std::move(responses)},
                   {"tags", json::array{"Service APIs"}},
                   {"x-bentoml-name", api.name},
                   {"operationId", service.name + "__" + api.name},
                   {"requestBody", {{"required", true}, {"content", Content("application/json", InputSchema(api))}}}};
  if (!api.doc.empty()) out["description"] = api.doc;
  return out;
}

json::object ProbeOperation(const char* what) {
  return {
      {"get",
       {{"responses",
         {{"200", {{"description", "Successful Response"}, {"content", Content("text/plain", {{"type", "string"}})}}}}},
        {"tags", json::array{"Infrastructure"}},
        {"description", what}}}};
}

json::object ErrorSchema(const char* title) {
  return {{"type", "object"},
          {"title", title},
          {"properties", {{"error", {{"type", "string"}, {"title", "Error"}}}}},
          {"required", json::array{"error"}}};
}

}  // namespace

std::string_view FieldTypeName(FieldType type) {
  switch (type) {
    case FieldType::kString: return "string";
    case FieldType::kInteger: return "integer";
    case FieldType::kNumber: return "number";
    case FieldType::kBoolean: return "boolean";
  }
  return "";
}

std::optional<FieldType> ParameterType(std::string_view name) {
  const Parameter* found = FindParameter(name);
  return found != nullptr ? std::optional(found->type) : std::nullopt;
}

std::string ParameterNames() {
  std::string out;
  for (const Parameter& parameter : kParameters) out.append(out.empty() ? "" : ", ").append(parameter.name);
  return out;
}

void SetParameter(TextRequest& request, std::string_view name, const json::value& value) {
  const Parameter* found = FindParameter(name);
  CHECK(found != nullptr, "{}", name);
  found->set(request, value);
}

ServiceDefinition ArticleService() {
  ServiceApi api;
  api.name = "generate";
  api.route = "/generate";
  api.fields.push_back({.name = "prompt", .default_value = "Explain superconductors in plain English"});
  api.fields.push_back({.name = "system_prompt",
                        .nullable = true,
                        .default_value = "You are a helpful, careful assistant. Answer truthfully and safely, say so "
                                         "when a question makes no sense, and say that you do not know rather than "
                                         "guess."});
  api.fields.push_back({.name = "max_tokens",
                        .type = FieldType::kInteger,
                        .default_value = 1024,
                        .minimum = 128,
                        .maximum = 1024,
                        .sets = "max_tokens"});
  api.messages.push_back({"system", Template("{{ system_prompt }}")});
  api.messages.push_back({"user", Template("{{ prompt }}")});
  api.parameters.emplace_back("temperature", 0);
  ServiceDefinition out;
  out.apis.push_back(std::move(api));
  return out;
}

Result<TextRequest> MakeTextRequest(const ServiceApi& api, const json::object& values, uint64_t seed,
                                    int64_t wall_seconds) {
  TextRequest out;
  out.sampling.seed = seed;
  serve::ChatInput input;
  if (api.prompt != nullptr) {
    input.inputs = values;
    input.own_template = api.prompt;
  } else {
    json::array messages;
    for (const ServiceMessage& message : api.messages) {
      ASSIGN_OR_RETURN(std::string content, message.content->RenderText(values, wall_seconds));
      messages.push_back(json::object{{"role", message.role}, {"content", std::move(content)}});
    }
    input.inputs = {{"messages", std::move(messages)}, {"add_generation_prompt", true}};
  }
  out.input = std::move(input);
  out.clamp_max_tokens = true;
  for (const auto& [name, value] : api.parameters) SetParameter(out, name, value);
  for (const ServiceField& field : api.fields) {
    if (field.sets.empty()) continue;
    const json::value& value = values.at(field.name);
    if (!value.is_null()) SetParameter(out, field.sets, value);
  }
  return out;
}

json::object SchemaDocument(const ServiceDefinition& service) {
  json::array routes;
  json::object paths;
  for (const ServiceApi& api : service.apis) {
    json::object output{{"type", "string"}};
    if (api.stream) output["is_stream"] = true;
    output["media_type"] = MediaType(api);
    json::object route{{"name", api.name},          {"route", api.route},          {"batchable", false},
                       {"input", InputSchema(api)}, {"output", std::move(output)}, {"is_task", false}};
    if (!api.doc.empty()) route["doc"] = api.doc;
    routes.push_back(std::move(route));
    paths[api.route] = {{"mounted", false}};
  }
  return {{"name", service.name}, {"type", "service"}, {"routes", std::move(routes)}, {"paths", std::move(paths)}};
}

json::object OpenApiDocument(const ServiceDefinition& service) {
  json::object paths;
  for (const ServiceApi& api : service.apis) paths[api.route] = {{"post", ApiOperation(service, api)}};
  paths["/healthz"] = ProbeOperation(
      "Health check endpoint. Expecting an empty response with status code 200 when the "
      "service is in health state.");
  paths["/livez"] = ProbeOperation("Health check endpoint for Kubernetes: 200 when the service is live.");
  paths["/readyz"] = ProbeOperation("A 200 OK status when the service is ready to receive traffic.");
  paths["/metrics"] = ProbeOperation("Prometheus metrics endpoint.");
  json::object schemas{{"InvalidArgument", ErrorSchema("InvalidArgument")},
                       {"NotFound", ErrorSchema("NotFound")},
                       {"InternalServerError", ErrorSchema("InternalServerError")}};
  json::object info{{"title", service.name},
                    {"description", service.description.empty() ? "No description provided." : service.description},
                    {"version", service.version == "not available" ? "None" : service.version}};
  return {
      {"openapi", "3.0.2"},
      {"info", std::move(info)},
      {"tags", json::array{json::object{{"name", "Service APIs"}, {"description", "Service endpoints for inference."}},
                           json::object{{"name", "Infrastructure"},
                                        {"description", "Common infrastructure endpoints for observability."}}}},
      {"servers", json::array{json::object{{"url", "."}}}},
      {"paths", std::move(paths)},
      {"components", {{"schemas", std::move(schemas)}}}};
}

}  // namespace ekiben::api
