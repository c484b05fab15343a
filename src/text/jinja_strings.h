// Python's str operations that methods and filters share. Pieces keep their marks; `markup` follows MarkupSafe.
// Thread: pure but for the render's budget.
#pragma once
#include <vector>

#include "text/jinja_runtime.h"

namespace ekiben::text::jinja {

// s.replace(old, fresh, count); count < 0: all.
Result<Value> Replace(Runtime& runtime, const Value& string, const Text& old, const Text& fresh, Integer count);
// s.splitlines(keepends)
std::vector<Text> SplitLines(const Text& text, bool keep_ends);
// s.split(None), s.split(separator), and from the right; most < 0: all. REQUIRES: separator null or not empty
Result<std::vector<Text>> Split(Runtime& runtime, const Text& text, const Text* separator, Integer most, bool right);
// s.center / ljust / rjust with a fill of one character.
enum class Align { kLeft, kRight, kCenter };
Result<Value> Pad(Runtime& runtime, const Value& string, Integer width, const Text& fill, Align align);
// str.join, or Markup.join when `separator` is markup. `soft`: items that are no strings are converted, as |join does.
Result<Value> Join(Runtime& runtime, const Value& separator, const std::vector<Value>& items, bool soft);
// Any value as a string value; markup stays markup.
Result<Value> SoftStr(Runtime& runtime, const Value& value);

// The search methods (text/jinja_string_search.cc).
Method FindSearchMethod(std::string_view name);

}  // namespace ekiben::text::jinja
