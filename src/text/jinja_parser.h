// Tokens to a tree, by jinja2's grammar and with the errors that its compiler gives (an unknown filter, a bad
// assignment, a break outside of a loop).
// Thread: one. Errors: kInvalid with the line.
#pragma once
#include <map>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/chat_template.h"
#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace ekiben::text::jinja {

Result<Program> ParseTemplate(std::string_view source, const TemplateLimits& limits);

// Names that read as undefined until the top level sets them, whatever the inputs hold (text/jinja_scopes.cc).
std::vector<int> HiddenNames(const Program& program);

// Expressions, from a token stream that the statement parser shares.
class ExpressionParser {
 public:
  ExpressionParser(std::vector<Token> tokens, int depth_max) : tokens_(std::move(tokens)), depth_max_(depth_max) {}

 protected:
  using Parsed = Result<ExpressionPtr>;
  struct TupleRules {
    bool simplified = false;    // names and literals only: a target
    bool conditional = true;    // a if b else c
    std::string_view end = {};  // a name that ends it
    bool parentheses = false;   // () is a tuple
    bool namespaces = false;    // a.b is a target
  };

  Parsed ParseTuple(const TupleRules& rules);
  Parsed ParseExpression(bool conditional = true);
  // A name, a tuple of names or (with `namespaces`) an attribute of a namespace.
  Parsed ParseTarget(std::string_view end, bool namespaces);
  // a | b | c from the current token on; `inner` null: the filters of a block. `inline_start`: the first name has no |.
  Parsed ParseFilters(ExpressionPtr inner, bool inline_start);

  const Token& Current() const { return tokens_[at_]; }
  const Token& Ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token Take() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_[at_]; }
  bool Skip(std::string_view symbol);
  bool SkipName(std::string_view name);
  Result<void> Expect(std::string_view symbol);
  Result<Token> ExpectName();
  Error Unexpected(std::string_view wanted) const;
  int Intern(const std::string& name);

  // Counts a level of nesting while it lives.
  class Level {
   public:
    explicit Level(int& depth) : depth_(depth) { ++depth_; }
    ~Level() { --depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    int& depth_;
  };
  Result<void> CheckDepth(int line, int depth) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int depth_max_;
  bool soft_ = false;           // inside an if: an unknown filter is an error only when reached, as in jinja2
  std::vector<Error> unknown_;  // unknown filters and tests outside of any if: the template is refused
  std::map<std::string, int> ids_;

 private:
  Parsed Make(Expression::Kind kind, int line, std::vector<ExpressionPtr> children);
  Parsed ParseConditional();
  Parsed ParseOr();
  Parsed ParseAnd();
  Parsed ParseNot();
  Parsed ParseCompare();
  bool TakeComparison(Compare& compare);
  Parsed ParseSum();
  Parsed ParseConcat();
  Parsed ParseProduct();
  Parsed ParsePower();
  Parsed ParseUnary(bool with_filter = true);
  Parsed ParsePrimary(bool namespaces = false);
  Parsed ParseNameToken(bool namespaces);
  Parsed ParseList();
  Parsed ParseDict();
  Parsed ParsePostfix(ExpressionPtr inner);
  Parsed ParseFilterSuffix(ExpressionPtr inner);
  Parsed ParseDot(ExpressionPtr inner);
  Parsed ParseBrackets(ExpressionPtr inner);
  Parsed ParseCall(ExpressionPtr inner);
  Parsed ParseTest(ExpressionPtr inner);
  Result<void> ParseArguments(Expression& call);
  Result<void> ParseArgument(Expression& call);
  Result<std::string> DottedName();
  // Left-associative: `next` parses an operand, `take` takes an operator.
  template <class Next, class TakeOperator>
  Parsed ParseBinary(Next next, TakeOperator take);
};

}  // namespace ekiben::text::jinja
