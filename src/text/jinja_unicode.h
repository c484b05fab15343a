// Python's view of characters: which count as space or identifier, how case maps, which repr() prints as they are.
// Over ICU; results are those of CPython 3.11 except where Unicode itself changed between the two tables' versions.
// Thread: pure functions.
#pragma once
#include <string>
#include <string_view>

#include "text/jinja_text.h"

namespace ekiben::text::jinja {

bool IsSpace(char32_t code);    // str.isspace, regex \s
bool IsAlpha(char32_t code);    // str.isalpha
bool IsDecimal(char32_t code);  // str.isdecimal
bool IsDigit(char32_t code);    // str.isdigit: decimals and digits such as superscripts
bool IsNumeric(char32_t code);  // str.isnumeric
bool IsWord(char32_t code);     // regex \w
bool IsCased(char32_t code);    // has case: upper, lower or title
bool IsUpper(char32_t code);
bool IsLower(char32_t code);
bool IsTitle(char32_t code);
bool IsPrintable(char32_t code);  // repr() shows it unescaped
bool IsIdentifier(std::string_view name);
int DecimalValue(char32_t code);  // 0..9, or -1

enum class CaseMap { kUpper, kLower, kTitleFirst, kFold };
// Full mapping ("ß" to "SS", final sigma). kTitleFirst: the first character to title case, the rest to lower.
std::string MapCase(std::string_view text, CaseMap map);
// The same with marks kept; a mapping that crosses a mark is untrusted as a whole.
Text MapCase(const Text& text, CaseMap map);

// Strip whitespace (chars == nullptr) or any of the code points of *chars.
Text Strip(const Text& text, const std::string* chars, bool left, bool right);

}  // namespace ekiben::text::jinja
