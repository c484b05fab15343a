#include "api/tool_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <vector>

namespace ekiben::api {
namespace {

using text::GrammarSpec;
using Kind = GrammarSpec::Kind;

constexpr size_t kToolsMax = 128;
constexpr size_t kToolNameMax = 64;
constexpr int kParallelCallsMax = 16;  // of a required choice: a model that loves calls comes to an end

Error Invalid(const std::string& field, const std::string& message) {
  return Error(Code::kInvalid, field + ": " + message, field);
}

bool IsToolName(std::string_view name) {
  auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.';
  };
  return !name.empty() && name.size() <= kToolNameMax && std::ranges::all_of(name, allowed);
}

struct Tool {
  std::string name;
  json::value parameters;  // a schema
};

Result<Tool> ParseTool(const std::string& field, const json::value& value) {
  if (!value.is_object()) return Invalid(field, fmt::format("an object is wanted, got {}", KindName(value)));
  ASSIGN_OR_RETURN(auto type, GetString(value.get_object(), "type"));
  if (type.value_or("function") != "function")
    return Error(Code::kUnsupported,
                 fmt::format("{}.type: '{}' is not offered; only 'function' is", field, type->substr(0, 64)),
                 field + ".type");
  ASSIGN_OR_RETURN(const json::object* function, GetObject(value.get_object(), "function"));
  if (function == nullptr) return Invalid(field + ".function", "missing");
  ASSIGN_OR_RETURN(auto name, GetString(*function, "name"));
  if (!name || !IsToolName(*name))
    return Invalid(field + ".function.name", fmt::format("'{}' is no name of 1 to {} characters of a-z A-Z 0-9 _ - .",
                                                         name.value_or("").substr(0, kToolNameMax), kToolNameMax));
  ASSIGN_OR_RETURN(const json::object* parameters, GetObject(*function, "parameters"));
  Tool tool{*name, json::object{{"type", "object"}, {"properties", json::object()}}};
  if (parameters != nullptr && !parameters->empty()) tool.parameters = *parameters;
  return tool;
}

// References inside a tool's schema are to its own root: its definitions move to the root of the whole one.
Result<void> HoistDefinitions(json::value& schema, json::object& definitions) {
  for (const char* key : {"$defs", "definitions"}) {
    json::value* own = schema.is_object() ? schema.get_object().if_contains(key) : nullptr;
    if (own == nullptr || !own->is_object()) continue;
    json::value& all = definitions[key];
    if (!all.is_object()) all = json::object();
    for (auto& [name, definition] : own->get_object()) {
      const json::value* other = all.get_object().if_contains(name);
      if (other != nullptr && *other != definition)
        return Invalid("tools", fmt::format("two tools define \"{}\" differently", std::string_view(name)));
      all.get_object()[name] = std::move(definition);
    }
    schema.get_object().erase(key);
  }
  return {};
}

Result<GrammarSpec> CallsGrammar(std::vector<Tool> tools, bool parallel) {
  json::object root = {{"type", "array"}, {"minItems", 1}, {"maxItems", parallel ? kParallelCallsMax : 1}};
  json::array calls;
  for (Tool& tool : tools) {
    RETURN_IF_ERROR(HoistDefinitions(tool.parameters, root));
    json::object properties = {{"name", {{"const", tool.name}}}, {"parameters", std::move(tool.parameters)}};
    calls.push_back({{"type", "object"},
                     {"properties", std::move(properties)},
                     {"required", json::array{"name", "parameters"}},
                     {"additionalProperties", false}});
  }
  root["items"] = {{"anyOf", std::move(calls)}};
  return GrammarSpec{.kind = Kind::kJsonSchema, .source = json::serialize(root), .field = "tools"};
}

Result<std::vector<Tool>> ParseTools(const json::object& body) {
  std::vector<Tool> out;
  ASSIGN_OR_RETURN(const json::array* tools, GetArray(body, "tools"));
  if (tools == nullptr) return out;
  if (tools->empty()) return Invalid("tools", "an empty array; leave it out");
  if (tools->size() > kToolsMax)
    return Invalid("tools", fmt::format("{} tools, the limit is {}", tools->size(), kToolsMax));
  for (size_t i = 0; i < tools->size(); ++i) {
    ASSIGN_OR_RETURN(Tool tool, ParseTool(fmt::format("tools[{}]", i), (*tools)[i]));
    out.push_back(std::move(tool));
  }
  return out;
}

// The name that an object as `tool_choice` gives.
Result<std::string> ChosenName(const json::object& choice) {
  ASSIGN_OR_RETURN(const json::object* function, GetObject(choice, "function"));
  if (function == nullptr)
    return Invalid("tool_choice", "an object is {\"type\":\"function\",\"function\":{\"name\"}}");
  ASSIGN_OR_RETURN(auto name, GetString(*function, "name"));
  if (!name) return Invalid("tool_choice.function.name", "missing");
  return *std::move(name);
}

Result<GrammarSpec> OneOf(const json::value& value, const std::string& key, const std::string& field) {
  GrammarSpec spec{.field = field};
  if (key == "json") {
    spec.kind = Kind::kJsonSchema;
    spec.source = value.is_string() ? std::string(value.get_string()) : json::serialize(value);
    return spec;
  }
  if (key == "json_object") {
    if (!value.is_bool() || !value.get_bool()) return Invalid(field, "true is wanted");
    return spec;
  }
  if (key == "choice") {
    spec.kind = Kind::kChoice;
    if (!value.is_array()) return Invalid(field, fmt::format("an array is wanted, got {}", KindName(value)));
    for (const json::value& choice : value.get_array()) {
      if (!choice.is_string()) return Invalid(field, fmt::format("strings are wanted, got {}", KindName(choice)));
      spec.choices.emplace_back(choice.get_string());
    }
    return spec;
  }
  spec.kind = key == "regex" ? Kind::kRegex : Kind::kEbnf;
  if (!value.is_string()) return Invalid(field, fmt::format("a string is wanted, got {}", KindName(value)));
  spec.source = value.get_string();
  return spec;
}

}  // namespace

Result<ToolChoice> ParseToolChoice(const json::object& body) {
  ASSIGN_OR_RETURN(std::vector<Tool> tools, ParseTools(body));
  ToolChoice out;
  bool parallel = true;
  ASSIGN_OR_RETURN(auto given_parallel, GetBool(body, "parallel_tool_calls"));
  parallel = given_parallel.value_or(true);
  const json::value* choice = body.if_contains("tool_choice");
  if (choice == nullptr || choice->is_null()) {
    if (!tools.empty()) out.kind = ToolChoice::Kind::kAuto;
    return out;
  }
  if (choice->is_string()) {
    std::string_view word = choice->get_string();
    if (word == "none") return out;
    if (word != "auto" && word != "required")
      return Invalid("tool_choice", fmt::format("'{}' is not one of none, auto, required", word.substr(0, 64)));
    if (tools.empty()) return Invalid("tool_choice", "only together with \"tools\"");
    out.kind = word == "auto" ? ToolChoice::Kind::kAuto : ToolChoice::Kind::kRequired;
    if (word == "auto") return out;
    ASSIGN_OR_RETURN(out.grammar, CallsGrammar(std::move(tools), parallel));
    return out;
  }
  if (!choice->is_object())
    return Invalid("tool_choice", fmt::format("a string or an object is wanted, got {}", KindName(*choice)));
  if (tools.empty()) return Invalid("tool_choice", "only together with \"tools\"");
  ASSIGN_OR_RETURN(out.name, ChosenName(choice->get_object()));
  auto tool = std::ranges::find(tools, out.name, &Tool::name);
  if (tool == tools.end())
    return Invalid("tool_choice", fmt::format("'{}' is none of the tools", out.name.substr(0, kToolNameMax)));
  out.kind = ToolChoice::Kind::kNamed;
  out.grammar = GrammarSpec{.kind = Kind::kJsonSchema, .source = json::serialize(tool->parameters), .field = "tools"};
  return out;
}

Result<std::optional<GrammarSpec>> ParseFormatObject(const json::object& format, const std::string& field,
                                                     bool nested) {
  std::optional<GrammarSpec> out;
  ASSIGN_OR_RETURN(auto type, GetString(format, "type"));
  if (!type) return Invalid(field + ".type", "missing");
  if (*type == "text") return out;
  if (*type == "json_object") {
    out.emplace(GrammarSpec{.field = field});
    return out;
  }
  if (*type != "json_schema")
    return Invalid(field, fmt::format("type '{}' is not one of text, json_object, json_schema", type->substr(0, 64)));
  const json::object* holder = &format;
  if (nested) {
    ASSIGN_OR_RETURN(holder, GetObject(format, "json_schema"));
    if (holder == nullptr) return Invalid(field + ".json_schema", "missing");
  }
  const json::value* schema = holder->if_contains("schema");
  if (schema == nullptr || !schema->is_object())
    return Invalid(field + (nested ? ".json_schema.schema" : ".schema"), "missing; an object is wanted");
  out.emplace(GrammarSpec{.kind = Kind::kJsonSchema, .source = json::serialize(*schema), .field = field});
  return out;
}

Result<std::optional<GrammarSpec>> ParseOutputFormat(const json::object& body) {
  std::optional<GrammarSpec> out;
  auto set = [&](GrammarSpec spec) -> Result<void> {
    if (out) return Invalid(spec.field, fmt::format("together with {}; send one of them", out->field));
    out = std::move(spec);
    return {};
  };
  ASSIGN_OR_RETURN(const json::object* format, GetObject(body, "response_format"));
  if (format != nullptr) {
    ASSIGN_OR_RETURN(out, ParseFormatObject(*format, "response_format", true));
  }
  ASSIGN_OR_RETURN(const json::object* structured, GetObject(body, "structured_outputs"));
  for (const char* key : {"json", "regex", "choice", "grammar", "json_object"}) {
    const json::value* value = structured == nullptr ? nullptr : structured->if_contains(key);
    if (value == nullptr || value->is_null() || *value == false) continue;
    ASSIGN_OR_RETURN(GrammarSpec spec, OneOf(*value, key, "structured_outputs"));
    RETURN_IF_ERROR(set(std::move(spec)));
  }
  for (std::string key : {"json", "regex", "choice", "grammar"}) {
    const json::value* value = body.if_contains("guided_" + key);
    if (value == nullptr || value->is_null()) continue;
    ASSIGN_OR_RETURN(GrammarSpec spec, OneOf(*value, key, "guided_" + key));
    RETURN_IF_ERROR(set(std::move(spec)));
  }
  return out;
}

}  // namespace ekiben::api
