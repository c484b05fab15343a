// Template source to tokens, with jinja2's whitespace rules applied (trim_blocks, lstrip_blocks, - and +), so that the
// parser sees only the text that will be printed.
// Thread: pure functions. Errors: kInvalid with the line.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/jinja_value.h"

namespace ekiben::text::jinja {

enum class TokenKind : uint8_t {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,  // text is the operator
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string text;     // data, a name, an operator, or a string after its escapes
  Integer integer = 0;  // kInteger
  double real = 0;      // kFloat
  bool IsOperator(std::string_view symbol) const { return kind == TokenKind::kOperator && text == symbol; }
  bool IsName(std::string_view name) const { return kind == TokenKind::kName && text == name; }
};

// The tokens, ending in kEnd.
Result<std::vector<Token>> Tokenize(std::string_view source);

// An error at a line of the template, in the form that every error of a template has.
Error TemplateProblem(int line, std::string_view message);

}  // namespace ekiben::text::jinja
