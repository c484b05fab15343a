#include "text/jinja_unicode.h"

#include <unicode/uchar.h>
#include <unicode/ustring.h>

#include <vector>

namespace ekiben::text::jinja {
namespace {

UChar32 Icu(char32_t code) {
  return static_cast<UChar32>(code);
}

// Maps UTF-8 through one of ICU's UTF-16 case functions.
template <class Function>
std::string Map(std::string_view text, Function function) {
  std::vector<UChar> source(text.size() + 1), mapped(text.size() * 3 + 16);
  UErrorCode error = U_ZERO_ERROR;
  int32_t source_units = 0;
  u_strFromUTF8(source.data(), static_cast<int32_t>(source.size()), &source_units, text.data(),
                static_cast<int32_t>(text.size()), &error);
  int32_t units = function(mapped.data(), static_cast<int32_t>(mapped.size()), source.data(), source_units, &error);
  std::string out(static_cast<size_t>(units) * 3 + 1, '\0');
  int32_t bytes = 0;
  u_strToUTF8(out.data(), static_cast<int32_t>(out.size()), &bytes, mapped.data(), units, &error);
  out.resize(U_SUCCESS(error) ? bytes : 0);
  return out;
}

std::string MapAscii(std::string_view text, CaseMap map) {
  std::string out(text);
  for (size_t i = 0; i < out.size(); ++i) {
    char c = out[i];
    bool up = map == CaseMap::kUpper || (map == CaseMap::kTitleFirst && i == 0);
    if (up && c >= 'a' && c <= 'z') out[i] = static_cast<char>(c - 32);
    if (!up && c >= 'A' && c <= 'Z') out[i] = static_cast<char>(c + 32);
  }
  return out;
}

std::string TitleOne(std::string_view character) {
  return Map(character, [](UChar* out, int32_t out_size, const UChar* in, int32_t in_size, UErrorCode* error) {
    return u_strToTitle(out, out_size, in, in_size, nullptr, "", error);
  });
}

}  // namespace

bool IsSpace(char32_t code) {
  return (code >= 9 && code <= 13) || (code >= 0x1C && code <= 0x20) || code == 0x85 || code == 0xA0 ||
         code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F ||
         code == 0x205F || code == 0x3000;
}
bool IsAlpha(char32_t code) {
  return u_isalpha(Icu(code));
}
bool IsDecimal(char32_t code) {
  return u_charType(Icu(code)) == U_DECIMAL_DIGIT_NUMBER;
}
bool IsDigit(char32_t code) {
  auto type = u_getIntPropertyValue(Icu(code), UCHAR_NUMERIC_TYPE);
  return type == U_NT_DECIMAL || type == U_NT_DIGIT;
}
bool IsNumeric(char32_t code) {
  return u_getIntPropertyValue(Icu(code), UCHAR_NUMERIC_TYPE) != U_NT_NONE;
}
bool IsWord(char32_t code) {
  return code == '_' || IsAlpha(code) || IsNumeric(code);
}
bool IsUpper(char32_t code) {
  return u_hasBinaryProperty(Icu(code), UCHAR_UPPERCASE);
}
bool IsLower(char32_t code) {
  return u_hasBinaryProperty(Icu(code), UCHAR_LOWERCASE);
}
bool IsTitle(char32_t code) {
  return u_charType(Icu(code)) == U_TITLECASE_LETTER;
}
bool IsCased(char32_t code) {
  return IsUpper(code) || IsLower(code) || IsTitle(code);
}

bool IsPrintable(char32_t code) {
  if (code < 0x7F) return code >= 0x20;
  switch (u_charType(Icu(code))) {
    case U_UNASSIGNED:
    case U_CONTROL_CHAR:
    case U_FORMAT_CHAR:
    case U_SURROGATE:
    case U_PRIVATE_USE_CHAR:
    case U_LINE_SEPARATOR:
    case U_PARAGRAPH_SEPARATOR:
    case U_SPACE_SEPARATOR: return false;
    default: return true;
  }
}

bool IsIdentifier(std::string_view name) {
  for (size_t at = 0; at < name.size(); at += CodePointBytes(name, at)) {
    UChar32 code = Icu(CodePointAt(name, at));
    bool fits = code == '_' || u_hasBinaryProperty(code, at == 0 ? UCHAR_XID_START : UCHAR_XID_CONTINUE);
    if (!fits) return false;
  }
  return !name.empty();
}

int DecimalValue(char32_t code) {
  return IsDecimal(code) ? u_charDigitValue(Icu(code)) : -1;
}

std::string MapCase(std::string_view text, CaseMap map) {
  if (IsAscii(text)) return MapAscii(text, map);
  using Units = UChar*;
  switch (map) {
    case CaseMap::kUpper:
      return Map(text, [](Units out, int32_t size, const UChar* in, int32_t in_size, UErrorCode* error) {
        return u_strToUpper(out, size, in, in_size, "", error);
      });
    case CaseMap::kLower:
      return Map(text, [](Units out, int32_t size, const UChar* in, int32_t in_size, UErrorCode* error) {
        return u_strToLower(out, size, in, in_size, "", error);
      });
    case CaseMap::kFold:
      return Map(text, [](Units out, int32_t size, const UChar* in, int32_t in_size, UErrorCode* error) {
        return u_strFoldCase(out, size, in, in_size, U_FOLD_CASE_DEFAULT, error);
      });
    case CaseMap::kTitleFirst: break;
  }
  // Lower the whole first: whether a sigma is final depends on the letters before it.
  size_t first = CodePointBytes(text, 0);
  size_t lowered = MapCase(text.substr(0, first), CaseMap::kLower).size();
  return TitleOne(text.substr(0, first)) + MapCase(text, CaseMap::kLower).substr(lowered);
}

Text MapCase(const Text& text, CaseMap map) {
  std::string whole = MapCase(text.view(), map);
  Text pieces;
  bool first = true;
  text.ForEachRun([&](std::string_view run, bool trusted) {
    pieces.Append(MapCase(run, map == CaseMap::kTitleFirst && !first ? CaseMap::kLower : map), trusted);
    first = false;
  });
  return pieces.bytes() == whole ? pieces : Text(std::move(whole), false);
}

Text Strip(const Text& text, const std::string* chars, bool left, bool right) {
  std::string_view view = text.view();
  auto drop = [&](size_t at) {
    if (chars == nullptr) return IsSpace(CodePointAt(view, at));
    return chars->find(view.substr(at, CodePointBytes(view, at))) != std::string::npos;
  };
  size_t begin = 0, end = view.size();
  while (left && begin < end && drop(begin)) begin += CodePointBytes(view, begin);
  while (right && end > begin && drop(PreviousCodePoint(view, end))) end = PreviousCodePoint(view, end);
  return text.Slice(begin, end);
}

}  // namespace ekiben::text::jinja
