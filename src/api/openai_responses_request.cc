// Bodies of POST /v1/responses -> those of a chat.
#include <fmt/format.h>

#include <array>
#include <boost/json.hpp>

#include "api/openai_responses.h"

namespace ekiben::api {
namespace {

Error Invalid(const std::string& field, const std::string& message) {
  return Error(Code::kInvalid, field + ": " + message, field);
}
Error Unsupported(const std::string& field, const std::string& message) {
  return Error(Code::kUnsupported, field + ": " + message, field);
}

Result<std::string> Wanted(const json::object& item, const std::string& at, const char* key) {
  ASSIGN_OR_RETURN(auto text, GetString(item, key));
  if (!text) return Invalid(fmt::format("{}.{}", at, key), "missing");
  return *std::move(text);
}

// An item of `input` as messages of a chat; calls in a row are one assistant's.
Result<void> AddItem(const std::string& at, const json::value& value, json::array& messages) {
  if (!value.is_object()) return Invalid(at, fmt::format("an object is wanted, got {}", KindName(value)));
  const json::object& item = value.get_object();
  ASSIGN_OR_RETURN(auto type, GetString(item, "type"));
  if (type.value_or("message") == "message") {
    json::object message;
    for (const char* key : {"role", "content"})
      if (const json::value* part = item.if_contains(key)) message[key] = *part;
    messages.push_back(std::move(message));
    return {};
  }
  if (*type == "function_call") {
    ASSIGN_OR_RETURN(std::string id, Wanted(item, at, "call_id"));
    ASSIGN_OR_RETURN(std::string name, Wanted(item, at, "name"));
    ASSIGN_OR_RETURN(std::string arguments, Wanted(item, at, "arguments"));
    json::object call = {{"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", arguments}}}};
    json::object* last = messages.empty() ? nullptr : messages.back().if_object();
    if (last != nullptr && last->contains("tool_calls"))
      (*last)["tool_calls"].as_array().push_back(std::move(call));
    else
      messages.push_back({{"role", "assistant"}, {"content", nullptr}, {"tool_calls", json::array{std::move(call)}}});
    return {};
  }
  if (*type == "function_call_output") {
    ASSIGN_OR_RETURN(std::string id, Wanted(item, at, "call_id"));
    const json::value* output = item.if_contains("output");
    if (output == nullptr) return Invalid(at + ".output", "missing");
    messages.push_back({{"role", "tool"}, {"tool_call_id", id}, {"content", *output}});
    return {};
  }
  if (*type == "reasoning") return {};  // another model's thoughts say nothing to this one
  return Unsupported(at + ".type", fmt::format("'{}' is not offered", type->substr(0, 64)));
}

Result<json::array> Messages(const json::object& body) {
  json::array messages;
  ASSIGN_OR_RETURN(auto instructions, GetString(body, "instructions"));
  if (instructions) messages.push_back({{"role", "system"}, {"content", *instructions}});
  const json::value* input = body.if_contains("input");
  if (input == nullptr || input->is_null()) return Invalid("input", "missing");
  if (input->is_string()) {
    messages.push_back({{"role", "user"}, {"content", *input}});
    return messages;
  }
  if (!input->is_array())
    return Invalid("input", fmt::format("a string or an array of items is wanted, got {}", KindName(*input)));
  if (input->get_array().empty()) return Invalid("input", "an empty array; send at least one item");
  for (size_t i = 0; i < input->get_array().size(); ++i)
    RETURN_IF_ERROR(AddItem(fmt::format("input[{}]", i), input->get_array()[i], messages));
  return messages;
}

// Tools are flat here: {"type":"function","name","parameters"}.
json::value Nested(const json::value& tool) {
  const json::object* flat = tool.if_object();
  if (flat == nullptr || flat->contains("function")) return tool;
  const json::value* type = flat->if_contains("type");
  if (type == nullptr || *type != "function") return tool;
  json::object function = *flat;
  function.erase("type");
  return {{"type", "function"}, {"function", std::move(function)}};
}

Result<void> RefuseUnsupported(const json::object& body) {
  for (const char* key : {"previous_response_id", "conversation", "prompt"}) {
    const json::value* value = body.if_contains(key);
    if (value != nullptr && !value->is_null())
      return Unsupported(key, "responses are not stored by this server; send the whole conversation as \"input\"");
  }
  ASSIGN_OR_RETURN(auto background, GetBool(body, "background"));
  if (background.value_or(false)) return Unsupported("background", "true is not offered by this server");
  ASSIGN_OR_RETURN(auto given, GetString(body, "truncation"));
  const std::string truncation = given.value_or("disabled");
  if (truncation != "disabled")
    return Unsupported("truncation", fmt::format("'{}' is not offered; only 'disabled' is", truncation.substr(0, 64)));
  return {};
}

// The error of the chat, in this body's names.
Error Renamed(const Error& error) {
  constexpr std::array<std::array<std::string_view, 2>, 3> kNames = {
      {{"max_completion_tokens", "max_output_tokens"}, {"response_format", "text.format"}, {"messages", "input"}}};
  for (const auto& [chat, here] : kNames) {
    if (!error.field().starts_with(chat)) continue;
    std::string message = error.message();
    if (message.starts_with(chat)) message.replace(0, chat.size(), here);
    return Error(error.code(), message, std::string(here) + error.field().substr(chat.size()));
  }
  return error;
}

void Rename(json::object& body, const char* from, const char* to) {
  body.erase(to);
  const json::value* value = body.if_contains(from);
  if (value == nullptr) return;
  body[to] = json::value(*value);
  body.erase(from);
}

Result<json::object> ChatBody(const json::object& body) {
  RETURN_IF_ERROR(RefuseUnsupported(body));
  json::object chat = body;
  for (const char* key :
       {"input", "instructions", "text", "n", "best_of", "logprobs", "top_logprobs", "stream_options"})
    chat.erase(key);
  ASSIGN_OR_RETURN(json::array messages, Messages(body));
  chat["messages"] = std::move(messages);
  Rename(chat, "max_output_tokens", "max_completion_tokens");
  chat.erase("max_tokens");
  ASSIGN_OR_RETURN(const json::array* tools, GetArray(body, "tools"));
  if (tools != nullptr) {
    json::array nested;
    for (const json::value& tool : *tools) nested.push_back(Nested(tool));
    if (nested.empty())
      chat.erase("tools");  // the SDKs' way to say none
    else
      chat["tools"] = std::move(nested);
  }
  if (!chat.contains("tools") && chat.contains("tool_choice") && chat.at("tool_choice") == "auto")
    chat.erase("tool_choice");
  if (const json::value* choice = body.if_contains("tool_choice")) {
    if (choice->is_object()) chat["tool_choice"] = Nested(*choice);
  }
  ASSIGN_OR_RETURN(const json::object* text, GetObject(body, "text"));
  ASSIGN_OR_RETURN(const json::object* format, text == nullptr ? nullptr : GetObject(*text, "format"));
  if (format != nullptr) {
    json::object wrapped = *format;
    wrapped["json_schema"] = *format;
    chat["response_format"] = std::move(wrapped);
  }
  return chat;
}

}  // namespace

Result<ResponsesRequest> ParseResponsesRequest(const json::object& body, uint64_t seed_if_absent,
                                               const OpenAiLimits& limits) {
  ASSIGN_OR_RETURN(json::object chat, ChatBody(body));
  ResponsesRequest out;
  auto parsed = ParseChatRequest(chat, seed_if_absent, limits);
  if (!parsed.ok()) return Renamed(parsed.error());
  out.chat = *std::move(parsed);
  auto echo = [&](const char* key, const json::value& absent) {
    const json::value* value = body.if_contains(key);
    out.echoed[key] = value == nullptr || value->is_null() ? absent : *value;
  };
  echo("instructions", nullptr);
  echo("max_output_tokens", nullptr);
  echo("metadata", json::object());
  echo("parallel_tool_calls", true);
  echo("temperature", 1.0);
  echo("top_p", 1.0);
  echo("tool_choice", "auto");
  echo("tools", json::array());
  echo("text", {{"format", {{"type", "text"}}}});
  echo("reasoning", {{"effort", nullptr}, {"summary", nullptr}});
  echo("user", nullptr);
  out.echoed["background"] = false;
  out.echoed["previous_response_id"] = nullptr;
  out.echoed["service_tier"] = "default";
  out.echoed["store"] = false;
  out.echoed["top_logprobs"] = 0;
  out.echoed["truncation"] = "disabled";
  return out;
}

}  // namespace ekiben::api
