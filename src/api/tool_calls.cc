#include "api/tool_calls.h"

#include <algorithm>
#include <boost/json.hpp>
#include <utility>

#include "base/json.h"

namespace ekiben::api {
namespace {

constexpr std::string_view kHermesBegin = "<tool_call>", kHermesEnd = "</tool_call>";
constexpr std::string_view kMistralBegin = "[TOOL_CALLS]";
constexpr std::string_view kLlamaBegin = "<|python_tag|>";
constexpr std::string_view kSpaces = " \t\r\n";

bool IsSpace(char c) {
  return kSpaces.find(c) != std::string_view::npos;
}

void TrimLeft(std::string& text, std::string_view of) {
  text.erase(0, std::min(text.find_first_not_of(of), text.size()));
}

// The longest end of `text` that `tag` begins with: more of the tag may follow.
size_t HeldBack(std::string_view text, std::string_view tag) {
  for (size_t count = std::min(text.size(), tag.size() - 1); count > 0; --count)
    if (text.ends_with(tag.substr(0, count))) return count;
  return 0;
}

std::string_view TagOf(ToolCallFormat format) {
  if (format == ToolCallFormat::kHermes) return kHermesBegin;
  return format == ToolCallFormat::kMistral ? kMistralBegin : "";
}

std::string Unquoted(const std::string& json_string) {
  auto parsed = ParseJson(json_string);
  return parsed.ok() && parsed->is_string() ? std::string(parsed->get_string()) : std::string();
}

}  // namespace

std::optional<ToolCallFormat> ToolCallFormatOf(std::string_view option, std::string_view chat_template) {
  auto has = [&](std::string_view word) { return chat_template.find(word) != std::string_view::npos; };
  if (option == "none") return ToolCallFormat::kText;
  if (option == "hermes") return ToolCallFormat::kHermes;
  if (option == "llama3_json") return ToolCallFormat::kLlama3Json;
  if (option == "mistral") return ToolCallFormat::kMistral;
  if (option != "auto") return std::nullopt;
  if (has(kMistralBegin)) return ToolCallFormat::kMistral;
  if (!has(kHermesBegin) && (has(kLlamaBegin) || has("\"parameters\": "))) return ToolCallFormat::kLlama3Json;
  return ToolCallFormat::kHermes;
}

bool ToolCallParser::Nesting::Next(char c) {
  if (in_string) {
    if (escaped)
      escaped = false;
    else if (c == '\\')
      escaped = true;
    else if (c == '"')
      in_string = false;
    return false;
  }
  if (c == '"') in_string = true;
  if (c == '{' || c == '[') ++depth;
  return (c == '}' || c == ']') && --depth == 0;
}

ToolCallParser::ToolCallParser(ToolCallFormat format, std::string name)
    : format_(format), tool_name_(std::move(name)), tag_(TagOf(format)), state_(State::kText) {
  if (format == ToolCallFormat::kArguments) state_ = State::kArguments;
  if (format == ToolCallFormat::kCallArray || format == ToolCallFormat::kLlama3Json) state_ = State::kBefore;
  in_array_ = format == ToolCallFormat::kCallArray;
}

void ToolCallParser::Push(std::string_view text, Output& out) {
  if (format_ == ToolCallFormat::kText) {
    out.text.append(text);
    return;
  }
  pending_.append(text);
  // A state that can do no more with what is there changes neither itself nor what is pending.
  for (;;) {
    State before = state_;
    size_t bytes = pending_.size();
    switch (state_) {
      case State::kText: Text(out); break;
      case State::kBefore: Before(out); break;
      case State::kObject: Object(out); break;
      case State::kName: BareName(out); break;
      case State::kArguments: Arguments(out); break;
    }
    if (pending_.empty() || (state_ == before && pending_.size() == bytes)) return;
  }
}

void ToolCallParser::Finish(Output& out) {
  bool in_call = state_ == State::kArguments || (state_ == State::kObject && named_);
  bool trailing_spaces = calls_ > 0 && pending_.find_first_not_of(kSpaces) == std::string::npos;
  if (!in_call && !trailing_spaces) out.text.append(raw_).append(pending_);
  pending_.clear();
  raw_.clear();
}

void ToolCallParser::EmitText(std::string_view text, Output& out) {
  text_seen_ = text_seen_ || !text.empty();
  out.text.append(text);
}

void ToolCallParser::Text(Output& out) {
  if (!text_seen_ && pending_.find_first_not_of(kSpaces) == std::string::npos) return;
  size_t tag = tag_.empty() ? std::string::npos : pending_.find(tag_);
  if (tag == std::string::npos) {
    size_t certain = pending_.size() - (tag_.empty() ? 0 : HeldBack(pending_, tag_));
    if (!text_seen_ && pending_.find_first_not_of(kSpaces) >= certain) return;  // spaces and perhaps a tag
    EmitText(std::string_view(pending_).substr(0, certain), out);
    pending_.erase(0, certain);
    return;
  }
  if (text_seen_ || pending_.find_first_not_of(kSpaces) < tag) EmitText(std::string_view(pending_).substr(0, tag), out);
  pending_.erase(0, tag + tag_.size());
  raw_ = tag_;
  in_array_ = false;
  state_ = State::kBefore;
}

void ToolCallParser::Before(Output& out) {
  size_t first = pending_.find_first_not_of(kSpaces);
  if (first == std::string::npos) return;  // held back: without a call they are text
  std::string_view rest = std::string_view(pending_).substr(first);
  if (rest[0] == '{') {
    raw_.append(pending_, 0, first);
    pending_.erase(0, first);
    scanned_ = 0;
    nesting_ = {};
    part_ = Part::kKey;
    named_ = arguments_seen_ = broken_ = false;
    early_arguments_.clear();
    state_ = State::kObject;
    return;
  }
  auto skip = [&](size_t count) {
    raw_.append(pending_, 0, first + count);
    pending_.erase(0, first + count);
  };
  std::string_view closing = format_ == ToolCallFormat::kHermes       ? kHermesEnd
                             : format_ == ToolCallFormat::kLlama3Json ? kLlamaBegin
                                                                      : std::string_view();
  if (!closing.empty() && rest.starts_with(closing)) {
    skip(closing.size());
    if (format_ != ToolCallFormat::kHermes) return;
    if (calls_ == 0) EmitText(raw_, out);  // an empty pair of tags
    raw_.clear();
    state_ = State::kText;
    return;
  }
  if (!closing.empty() && closing.starts_with(rest)) return;  // more may come
  bool separator = (in_array_ && (rest[0] == ',' || rest[0] == '[' || rest[0] == ']')) ||
                   (format_ == ToolCallFormat::kLlama3Json && calls_ > 0 && (rest[0] == ';' || rest[0] == ','));
  if (separator) return skip(1);
  if (format_ == ToolCallFormat::kMistral && !in_array_) {
    if (rest[0] == '[') {
      in_array_ = true;
      return skip(1);
    }
    state_ = State::kName;
    return;
  }
  NotACall(out);
}

void ToolCallParser::NotACall(Output& out) {
  EmitText(raw_, out);
  raw_.clear();
  state_ = State::kText;
  if (!tag_.empty()) return;
  EmitText(pending_, out);
  pending_.clear();
}

// "name{", "name[ARGS]{", "name[CALL_ID]x[ARGS]{"
void ToolCallParser::BareName(Output& out) {
  size_t brace = pending_.find('{');
  if (brace == std::string::npos) return pending_.size() > 256 ? NotACall(out) : void();
  std::string name = pending_.substr(0, std::min(pending_.find('['), brace));
  TrimLeft(name, kSpaces);
  name.erase(name.find_last_not_of(kSpaces) + 1);
  if (name.empty()) return NotACall(out);
  Begin(std::move(name), out);
  pending_.erase(0, brace);
  nesting_ = {};
  state_ = State::kArguments;
}

void ToolCallParser::Arguments(Output& out) {
  if (format_ == ToolCallFormat::kArguments) {
    if (calls_ == 0) {
      TrimLeft(pending_, kSpaces);
      if (pending_.empty()) return;
      Begin(tool_name_, out);
    }
    Append(pending_, out);
    pending_.clear();
    return;
  }
  for (size_t i = 0; i < pending_.size(); ++i) {
    if (!nesting_.Next(pending_[i])) continue;
    Append(std::string_view(pending_).substr(0, i + 1), out);
    pending_.erase(0, i + 1);
    text_seen_ = false;
    state_ = State::kText;
    return;
  }
  Append(pending_, out);
  pending_.clear();
}

void ToolCallParser::Object(Output& out) {
  while (scanned_ < pending_.size()) {
    bool closed = ObjectByte(pending_[scanned_++], out);
    if (broken_ && !named_) return NotACall(out);
    if (closed) return EndObject(out);
  }
}

bool ToolCallParser::ObjectByte(char c, Output& out) {
  if (part_ == Part::kValue && !value_begun_) {
    if (IsSpace(c)) return false;
    value_begun_ = true;
    value_is_bracket_ = c == '{' || c == '[';
    value_is_string_ = c == '"';
    value_.clear();
  }
  const bool was_string = nesting_.in_string;
  const bool closes = nesting_.Next(c);
  switch (part_) {
    case Part::kKey:
      if (was_string && nesting_.in_string) key_.push_back(c);
      if (was_string && !nesting_.in_string) part_ = Part::kColon;
      if (!was_string && c == '"') key_.clear();
      broken_ |= !was_string && c != '"' && !IsSpace(c) && !closes && scanned_ > 1;
      break;
    case Part::kColon:
      value_begun_ = false;
      if (c == ':') part_ = Part::kValue;
      broken_ |= c != ':' && !IsSpace(c);
      break;
    case Part::kValue: {
      // A number or a word ends where something else begins.
      bool behind = !value_is_bracket_ && !value_is_string_ && (c == ',' || closes);
      if (!behind) ValueByte(c, out);
      bool ended = behind || (value_is_string_ && was_string && !nesting_.in_string) ||
                   (value_is_bracket_ && !was_string && nesting_.depth == 1 && (c == '}' || c == ']'));
      if (!ended) break;
      EndValue(out);
      part_ = behind ? Part::kKey : Part::kComma;
      break;
    }
    case Part::kComma:
      if (c == ',') part_ = Part::kKey;
      broken_ |= c != ',' && !IsSpace(c) && !closes;
      break;
  }
  return closes;
}

void ToolCallParser::ValueByte(char c, Output& out) {
  bool arguments = key_ == "arguments" || key_ == "parameters";
  if (!arguments || !value_is_bracket_)
    value_.push_back(c);
  else if (named_)
    Append({&c, 1}, out);
  else
    early_arguments_.push_back(c);
}

void ToolCallParser::EndValue(Output& out) {
  if (key_ == "name" && value_is_string_ && !named_) {
    named_ = true;
    raw_.clear();
    Begin(Unquoted(value_), out);
    Append(early_arguments_, out);
  } else if (key_ == "arguments" || key_ == "parameters") {
    arguments_seen_ = true;
    if (value_is_bracket_) return;
    // As JSON inside a string; null stands for none.
    std::string text = value_is_string_ ? Unquoted(value_) : "{}";
    if (named_)
      Append(text, out);
    else
      early_arguments_ = text;
  }
}

void ToolCallParser::EndObject(Output& out) {
  if (!named_) return NotACall(out);
  if (!arguments_seen_) Append("{}", out);
  pending_.erase(0, scanned_);
  text_seen_ = false;
  state_ = State::kBefore;
}

void ToolCallParser::Begin(std::string name, Output& out) {
  raw_.clear();
  out.calls.push_back({calls_++, std::move(name), {}});
}

void ToolCallParser::Append(std::string_view arguments, Output& out) const {
  if (arguments.empty()) return;
  bool continues = !out.calls.empty() && out.calls.back().index == calls_ - 1 && out.calls.back().name.empty();
  if (!continues) out.calls.push_back({calls_ - 1, {}, {}});
  out.calls.back().arguments.append(arguments);
}

}  // namespace ekiben::api
