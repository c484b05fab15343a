#include "api/chat_messages.h"

#include <fmt/format.h>

#include <boost/json.hpp>

namespace ekiben::api {
namespace {

Error Invalid(const std::string& field, const std::string& message) {
  return Error(Code::kInvalid, field + ": " + message, field);
}
Error Unsupported(const std::string& field, const std::string& message) {
  return Error(Code::kUnsupported, field + ": " + message, field);
}

// Content parts joined by newlines, as vLLM joins them for templates that take a string.
Result<std::string> JoinParts(const std::string& field, const json::array& parts) {
  std::string out;
  for (size_t i = 0; i < parts.size(); ++i) {
    std::string at = fmt::format("{}[{}]", field, i);
    if (i > 0) out.push_back('\n');
    if (parts[i].is_string()) {
      out.append(parts[i].get_string());
      continue;
    }
    if (!parts[i].is_object()) return Invalid(at, fmt::format("an object is wanted, got {}", KindName(parts[i])));
    const json::object& part = parts[i].get_object();
    ASSIGN_OR_RETURN(auto type, GetString(part, "type"));
    if (type.value_or("text") != "text" && *type != "input_text" && *type != "output_text")
      return Unsupported(at + ".type", fmt::format("'{}' is not offered; only 'text' is", *type));
    ASSIGN_OR_RETURN(auto text, GetString(part, "text"));
    if (!text) return Invalid(at + ".text", "missing");
    out.append(*text);
  }
  return out;
}

// Templates index arguments as an object; clients send them as JSON text.
Result<json::array> ToolCalls(const std::string& field, const json::array& calls) {
  json::array out = calls;
  for (size_t i = 0; i < out.size(); ++i) {
    json::value* function = out[i].is_object() ? out[i].get_object().if_contains("function") : nullptr;
    if (function == nullptr || !function->is_object())
      return Invalid(fmt::format("{}[{}].function", field, i), "an object is wanted");
    json::value* arguments = function->get_object().if_contains("arguments");
    if (arguments == nullptr || !arguments->is_string()) continue;
    auto parsed = ParseJson(std::string_view(arguments->get_string()), {.depth_max = 32});
    if (parsed.ok() && parsed->is_object()) *arguments = *std::move(parsed);
  }
  return out;
}

Result<json::object> Message(const std::string& field, const json::value& value) {
  if (!value.is_object()) return Invalid(field, fmt::format("an object is wanted, got {}", KindName(value)));
  json::object out = value.get_object();
  const json::value* role = out.if_contains("role");
  if (role == nullptr || !role->is_string()) return Invalid(field + ".role", "missing; a string is wanted");
  std::string_view name = role->get_string();
  if (name != "system" && name != "developer" && name != "user" && name != "assistant" && name != "tool")
    return Invalid(field + ".role",
                   fmt::format("'{}' is not one of system, developer, user, assistant, tool", name.substr(0, 64)));
  bool assistant = name == "assistant";
  if (name == "developer") out["role"] = "system";
  const json::value* content = out.if_contains("content");
  if (content != nullptr && content->is_array()) {
    ASSIGN_OR_RETURN(std::string text, JoinParts(field + ".content", content->get_array()));
    out["content"] = text;
  } else if (content == nullptr || content->is_null()) {
    if (!assistant) return Invalid(field + ".content", "missing");
    out["content"] = "";
  } else if (!content->is_string()) {
    return Invalid(field + ".content",
                   fmt::format("a string or an array of parts is wanted, got {}", KindName(*content)));
  }
  const json::value* calls = out.if_contains("tool_calls");
  if (calls != nullptr && calls->is_null()) {
    out.erase("tool_calls");
  } else if (calls != nullptr) {
    if (!calls->is_array()) return Invalid(field + ".tool_calls", "an array is wanted");
    ASSIGN_OR_RETURN(json::array converted, ToolCalls(field + ".tool_calls", calls->get_array()));
    out["tool_calls"] = std::move(converted);
  }
  return out;
}

}  // namespace

Result<serve::ChatInput> ParseChatInput(const json::object& body, const ToolChoice& tools, size_t messages_max) {
  serve::ChatInput chat;
  ASSIGN_OR_RETURN(const json::array* messages, GetArray(body, "messages"));
  if (messages == nullptr) return Invalid("messages", "missing");
  if (messages->empty()) return Invalid("messages", "an empty array; send at least one message");
  if (messages->size() > messages_max)
    return Invalid("messages", fmt::format("{} messages, the limit is {}", messages->size(), messages_max));
  // Keyword arguments first: they must not displace what is checked below.
  ASSIGN_OR_RETURN(const json::object* kwargs, GetObject(body, "chat_template_kwargs"));
  if (kwargs != nullptr) chat.inputs = *kwargs;
  const json::value* own_template = body.if_contains("chat_template");
  if (own_template != nullptr && !own_template->is_null())
    return Unsupported("chat_template", "a template in the request is not offered");
  json::array checked;
  checked.reserve(messages->size());
  for (size_t i = 0; i < messages->size(); ++i) {
    ASSIGN_OR_RETURN(json::object message, Message(fmt::format("messages[{}]", i), (*messages)[i]));
    checked.push_back(std::move(message));
  }
  chat.inputs["messages"] = std::move(checked);
  if (tools.kind != ToolChoice::Kind::kNone) chat.inputs["tools"] = body.at("tools");
  ASSIGN_OR_RETURN(const json::array* documents, GetArray(body, "documents"));
  if (documents != nullptr) chat.inputs["documents"] = *documents;
  ASSIGN_OR_RETURN(auto add_prompt, GetBool(body, "add_generation_prompt"));
  ASSIGN_OR_RETURN(auto continues, GetBool(body, "continue_final_message"));
  chat.continue_final_message = continues.value_or(false);
  if (chat.continue_final_message && add_prompt.value_or(false))
    return Invalid("continue_final_message", "not together with \"add_generation_prompt\": true");
  chat.inputs["add_generation_prompt"] = add_prompt.value_or(!chat.continue_final_message);
  return chat;
}

}  // namespace ekiben::api
