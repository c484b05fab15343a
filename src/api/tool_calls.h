// Finds the function calls in what a model writes, as it writes it: text in pieces in, text and call deltas out. Models
// were trained on different spellings (ToolCallFormat); `required` and `named` choices are our own grammar's.
//
// Text that may begin a call is held back until it is certain. A call that turns out to be none before its name is
// known goes out as text; after that its arguments are what the model wrote, valid or cut off. Thread: one per parser.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ekiben::api {

enum class ToolCallFormat : uint8_t {
  kText,        // no calls: everything is text
  kHermes,      // <tool_call>{"name":..., "arguments":{...}}</tool_call>   Hermes, Qwen, SmolLM
  kLlama3Json,  // {"name":..., "parameters":{...}} as the whole answer, several with ; between them
  kMistral,     // [TOOL_CALLS][{"name":..., "arguments":{...}}, ...] or [TOOL_CALLS]name[ARGS]{...}
  kCallArray,   // [{"name":..., "parameters":{...}}, ...] as the whole answer: tool_choice required
  kArguments,   // the arguments as the whole answer: a named tool
};

// auto, hermes, llama3_json, mistral, none; nullopt for another word. `auto` looks for the format's own words in the
// model's chat template and takes Hermes' where there are none.
std::optional<ToolCallFormat> ToolCallFormatOf(std::string_view option, std::string_view chat_template);

struct ToolCallDelta {
  int32_t index = 0;
  std::string name;       // not empty: the call begins
  std::string arguments;  // what follows of its JSON text
};

class ToolCallParser {
 public:
  // `name`: of kArguments' tool.
  explicit ToolCallParser(ToolCallFormat format, std::string name = {});

  struct Output {
    std::string text;
    std::vector<ToolCallDelta> calls;
  };
  void Push(std::string_view text, Output& out);
  // The end of the text: what was held back.
  void Finish(Output& out);
  int32_t calls() const { return calls_; }

 private:
  enum class State : uint8_t {
    kText,       // outside calls
    kBefore,     // behind a tag or a call: spaces and separators, then perhaps a call
    kObject,     // inside {"name":...,"arguments":...}
    kName,       // Mistral's bare name
    kArguments,  // the JSON value that is the arguments
  };
  void Text(Output& out);
  void Before(Output& out);
  void BareName(Output& out);
  void Object(Output& out);
  void Arguments(Output& out);
  // One byte of an object. True when it closed it.
  bool ObjectByte(char c, Output& out);
  void ValueByte(char c, Output& out);
  void EndValue(Output& out);
  void EndObject(Output& out);
  void NotACall(Output& out);
  void Begin(std::string name, Output& out);
  void Append(std::string_view arguments, Output& out) const;
  void EmitText(std::string_view text, Output& out);

  // Brackets and strings of a JSON value, byte by byte.
  struct Nesting {
    int depth = 0;
    bool in_string = false, escaped = false;
    // True when `c` closed the outermost bracket.
    bool Next(char c);
  };

  ToolCallFormat format_;
  std::string tool_name_;
  std::string_view tag_;  // that begins calls; empty: none
  State state_;
  bool in_array_ = false;
  bool text_seen_ = false;  // since the last call; before, spaces are held back
  std::string pending_;     // not yet looked at, or held back
  std::string raw_;         // what NotACall says before pending_
  size_t scanned_ = 0;      // bytes of pending_ that are in the object's state below
  Nesting nesting_;
  enum class Part : uint8_t { kKey, kColon, kValue, kComma };
  Part part_ = Part::kKey;
  std::string key_, value_;
  bool value_begun_ = false, value_is_bracket_ = false, value_is_string_ = false;
  bool named_ = false, arguments_seen_ = false, broken_ = false;
  std::string early_arguments_;  // that came before the name
  int32_t calls_ = 0;
};

}  // namespace ekiben::api
