// Values as text: Python's str(), repr() and json.dumps(), with the marks of what they print.
// Thread: pure but for the render's budget.
#pragma once
#include <string>

#include "text/jinja_runtime.h"

namespace ekiben::text::jinja {

std::string IntegerText(Integer value);
// Python's repr(float): the shortest that reads back the same.
std::string FloatText(double value);

Result<Text> Str(Runtime& runtime, const Value& value);
Result<Text> Repr(Runtime& runtime, const Value& value);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // set: one entry a line
  std::string item_separator = ", ", key_separator = ": ";
};
Result<Text> ToJson(Runtime& runtime, const Value& value, const JsonStyle& style);

// What MarkupSafe's escape() does to & < > " '.
Text EscapeHtml(const Text& text);

}  // namespace ekiben::text::jinja
