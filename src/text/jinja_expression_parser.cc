#include <fmt/format.h>

#include <algorithm>

#include "text/jinja_parser.h"

namespace ekiben::text::jinja {
namespace {

using Op = Expression::Kind;

constexpr int kChainMax = 1000;

std::string Describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kData: return "template text";
    case TokenKind::kVariableBegin: return "begin of print statement";
    case TokenKind::kVariableEnd: return "end of print statement";
    case TokenKind::kBlockBegin: return "begin of statement block";
    case TokenKind::kBlockEnd: return "end of statement block";
    case TokenKind::kEnd: return "end of template";
    default: return token.text;
  }
}

bool StartsPrimary(const Token& token) {
  switch (token.kind) {
    case TokenKind::kName: return !token.IsName("else") && !token.IsName("or") && !token.IsName("and");
    case TokenKind::kString:
    case TokenKind::kInteger:
    case TokenKind::kFloat: return true;
    default: return token.IsOperator("[") || token.IsOperator("{");
  }
}

bool IsTarget(const Expression& expression) {
  if (expression.kind == Op::kTuple)
    return std::all_of(expression.children.begin(), expression.children.end(),
                       [](const ExpressionPtr& child) { return IsTarget(*child); });
  return expression.kind == Op::kName || expression.kind == Op::kNamespaceRef;
}

}  // namespace

bool ExpressionParser::Skip(std::string_view symbol) {
  if (!Current().IsOperator(symbol)) return false;
  Take();
  return true;
}

bool ExpressionParser::SkipName(std::string_view name) {
  if (!Current().IsName(name)) return false;
  Take();
  return true;
}

Error ExpressionParser::Unexpected(std::string_view wanted) const {
  return TemplateProblem(Current().line, fmt::format("{} is expected, got '{}'", wanted, Describe(Current())));
}

Result<void> ExpressionParser::Expect(std::string_view symbol) {
  if (!Skip(symbol)) return Unexpected("'" + std::string(symbol) + "'");
  return {};
}

Result<Token> ExpressionParser::ExpectName() {
  if (Current().kind != TokenKind::kName) return Unexpected("a name");
  return Take();
}

int ExpressionParser::Intern(const std::string& name) {
  return ids_.emplace(name, static_cast<int>(ids_.size())).first->second;
}

Result<void> ExpressionParser::CheckDepth(int line, int depth) const {
  if (depth <= depth_max_) return {};
  return TemplateProblem(line, fmt::format("nested deeper than the limit of {}", depth_max_));
}

Result<ExpressionPtr> ExpressionParser::Make(Op kind, int line, std::vector<ExpressionPtr> children) {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = line;
  // A chain of + is evaluated in a loop, so only its right sides nest; but it is destroyed by recursion.
  bool chain = kind == Op::kBinary && children[0]->kind == Op::kBinary;
  if (chain) node->chain = children[0]->chain + 1;
  if (node->chain > kChainMax) return TemplateProblem(line, fmt::format("more than {} operators in a row", kChainMax));
  for (size_t i = 0; i < children.size(); ++i)
    if (children[i] != nullptr) node->depth = std::max(node->depth, children[i]->depth + (chain && i == 0 ? 0 : 1));
  RETURN_IF_ERROR(CheckDepth(line, node->depth));
  node->children = std::move(children);
  return node;
}

namespace {
template <class... Pointers>
std::vector<ExpressionPtr> Children(Pointers... pointers) {
  std::vector<ExpressionPtr> children;
  (children.push_back(std::move(pointers)), ...);
  return children;
}
}  // namespace

Result<ExpressionPtr> ExpressionParser::ParseTuple(const TupleRules& rules) {
  int line = Current().line;
  std::vector<ExpressionPtr> items;
  bool is_tuple = false;
  while (true) {
    if (!items.empty()) RETURN_IF_ERROR(Expect(","));
    const Token& token = Current();
    if (token.kind == TokenKind::kVariableEnd || token.kind == TokenKind::kBlockEnd || token.IsOperator(")")) break;
    if (!rules.end.empty() && token.IsName(rules.end)) break;
    ASSIGN_OR_RETURN(ExpressionPtr item,
                     rules.simplified ? ParsePrimary(rules.namespaces) : ParseExpression(rules.conditional));
    items.push_back(std::move(item));
    if (!Current().IsOperator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return std::move(items[0]);
  if (!is_tuple && !rules.parentheses) return Unexpected("an expression");
  return Make(Op::kTuple, line, std::move(items));
}

Result<ExpressionPtr> ExpressionParser::ParseTarget(std::string_view end, bool namespaces) {
  int line = Current().line;
  TupleRules rules;
  rules.simplified = true;
  rules.end = end;
  rules.namespaces = namespaces;
  ASSIGN_OR_RETURN(ExpressionPtr target, ParseTuple(rules));
  if (!IsTarget(*target)) return TemplateProblem(line, "this cannot be assigned to");
  return target;
}

Result<ExpressionPtr> ExpressionParser::ParseExpression(bool conditional) {
  Level level(depth_);
  RETURN_IF_ERROR(CheckDepth(Current().line, depth_));
  return conditional ? ParseConditional() : ParseOr();
}

Result<ExpressionPtr> ExpressionParser::ParseConditional() {
  int line = Current().line;
  size_t unknown_before = unknown_.size();
  ASSIGN_OR_RETURN(ExpressionPtr value, ParseOr());
  while (SkipName("if")) {
    ASSIGN_OR_RETURN(ExpressionPtr test, ParseOr());
    ExpressionPtr other;
    if (SkipName("else")) {
      Level level(depth_);
      RETURN_IF_ERROR(CheckDepth(line, depth_));
      ASSIGN_OR_RETURN(other, ParseConditional());
    }
    unknown_.resize(unknown_before, Error(Code::kInvalid, ""));
    ASSIGN_OR_RETURN(value,
                     Make(Op::kConditional, line, Children(std::move(test), std::move(value), std::move(other))));
  }
  return value;
}

Result<ExpressionPtr> ExpressionParser::ParseOr() {
  int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseAnd());
  if (!Current().IsName("or")) return first;
  std::vector<ExpressionPtr> terms = Children(std::move(first));
  while (SkipName("or")) {
    ASSIGN_OR_RETURN(ExpressionPtr next, ParseAnd());
    terms.push_back(std::move(next));
  }
  return Make(Op::kOr, line, std::move(terms));
}

Result<ExpressionPtr> ExpressionParser::ParseAnd() {
  int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseNot());
  if (!Current().IsName("and")) return first;
  std::vector<ExpressionPtr> terms = Children(std::move(first));
  while (SkipName("and")) {
    ASSIGN_OR_RETURN(ExpressionPtr next, ParseNot());
    terms.push_back(std::move(next));
  }
  return Make(Op::kAnd, line, std::move(terms));
}

Result<ExpressionPtr> ExpressionParser::ParseNot() {
  int line = Current().line;
  if (!SkipName("not")) return ParseCompare();
  Level level(depth_);
  RETURN_IF_ERROR(CheckDepth(line, depth_));
  ASSIGN_OR_RETURN(ExpressionPtr inner, ParseNot());
  return Make(Op::kNot, line, Children(std::move(inner)));
}

bool ExpressionParser::TakeComparison(Compare& compare) {
  static constexpr std::pair<std::string_view, Compare> kSymbols[] = {
      {"==", Compare::kEqual},     {"!=", Compare::kNotEqual}, {"<", Compare::kLess},
      {"<=", Compare::kLessEqual}, {">", Compare::kGreater},   {">=", Compare::kGreaterEqual}};
  for (const auto& [symbol, meaning] : kSymbols) {
    compare = meaning;
    if (Skip(symbol)) return true;
  }
  compare = Compare::kIn;
  if (SkipName("in")) return true;
  if (!Current().IsName("not") || !Ahead().IsName("in")) return false;
  compare = Compare::kNotIn;
  Take();
  Take();
  return true;
}

Result<ExpressionPtr> ExpressionParser::ParseCompare() {
  int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseSum());
  std::vector<Compare> comparisons;
  std::vector<ExpressionPtr> operands = Children(std::move(first));
  Compare compare;
  while (TakeComparison(compare)) {
    comparisons.push_back(compare);
    ASSIGN_OR_RETURN(ExpressionPtr next, ParseSum());
    operands.push_back(std::move(next));
  }
  if (comparisons.empty()) return std::move(operands[0]);
  ASSIGN_OR_RETURN(ExpressionPtr node, Make(Op::kCompare, line, std::move(operands)));
  node->comparisons = std::move(comparisons);
  return node;
}

template <class Next, class TakeOperator>
Result<ExpressionPtr> ExpressionParser::ParseBinary(Next next, TakeOperator take) {
  int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr left, next());
  BinaryOp op;
  while (take(op)) {
    ASSIGN_OR_RETURN(ExpressionPtr right, next());
    ASSIGN_OR_RETURN(left, Make(Op::kBinary, line, Children(std::move(left), std::move(right))));
    left->binary = op;
    line = Current().line;
  }
  return left;
}

Result<ExpressionPtr> ExpressionParser::ParseSum() {
  return ParseBinary([&] { return ParseConcat(); },
                     [&](BinaryOp& op) {
                       op = Current().IsOperator("+") ? BinaryOp::kAdd : BinaryOp::kSub;
                       return Skip("+") || Skip("-");
                     });
}

Result<ExpressionPtr> ExpressionParser::ParseConcat() {
  int line = Current().line;
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseProduct());
  if (!Current().IsOperator("~")) return first;
  std::vector<ExpressionPtr> parts = Children(std::move(first));
  while (Skip("~")) {
    ASSIGN_OR_RETURN(ExpressionPtr next, ParseProduct());
    parts.push_back(std::move(next));
  }
  return Make(Op::kConcat, line, std::move(parts));
}

Result<ExpressionPtr> ExpressionParser::ParseProduct() {
  return ParseBinary([&] { return ParsePower(); },
                     [&](BinaryOp& op) {
                       if (Skip("*")) return op = BinaryOp::kMul, true;
                       if (Skip("/")) return op = BinaryOp::kDiv, true;
                       if (Skip("//")) return op = BinaryOp::kFloorDiv, true;
                       op = BinaryOp::kMod;
                       return Skip("%");
                     });
}

Result<ExpressionPtr> ExpressionParser::ParsePower() {
  return ParseBinary([&] { return ParseUnary(); },
                     [&](BinaryOp& op) {
                       op = BinaryOp::kPow;
                       return Skip("**");
                     });
}

Result<ExpressionPtr> ExpressionParser::ParseUnary(bool with_filter) {
  Level level(depth_);
  int line = Current().line;
  RETURN_IF_ERROR(CheckDepth(line, depth_));
  ExpressionPtr node;
  bool minus = Current().IsOperator("-");
  if (Skip("-") || Skip("+")) {
    ASSIGN_OR_RETURN(ExpressionPtr inner, ParseUnary(false));
    ASSIGN_OR_RETURN(node, Make(minus ? Op::kNegate : Op::kPlus, line, Children(std::move(inner))));
  } else {
    ASSIGN_OR_RETURN(node, ParsePrimary());
  }
  ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
  if (with_filter) return ParseFilterSuffix(std::move(node));
  return node;
}

Result<ExpressionPtr> ExpressionParser::ParseNameToken(bool namespaces) {
  Token token = Take();
  bool is_true = token.text == "true" || token.text == "True";
  bool is_none = token.text == "none" || token.text == "None";
  if (is_true || is_none || token.text == "false" || token.text == "False") {
    ASSIGN_OR_RETURN(ExpressionPtr node, Make(Op::kConstant, token.line, {}));
    node->constant = is_none ? Value::None() : Value::Bool(is_true);
    return node;
  }
  ASSIGN_OR_RETURN(ExpressionPtr node, Make(Op::kName, token.line, {}));
  node->name = Intern(token.text);
  node->attribute = token.text;
  if (!namespaces || !Skip(".")) return node;
  ASSIGN_OR_RETURN(Token attribute, ExpectName());
  node->kind = Op::kNamespaceRef;
  node->attribute = attribute.text;
  return node;
}

Result<ExpressionPtr> ExpressionParser::ParsePrimary(bool namespaces) {
  const Token& token = Current();
  if (token.kind == TokenKind::kName) return ParseNameToken(namespaces);
  if (token.IsOperator("(")) {
    Take();
    // A target such as (a, (b, c)) comes here without ParseExpression's own count.
    Level level(depth_);
    RETURN_IF_ERROR(CheckDepth(Current().line, depth_));
    TupleRules rules;
    rules.parentheses = true;
    ASSIGN_OR_RETURN(ExpressionPtr node, ParseTuple(rules));
    RETURN_IF_ERROR(Expect(")"));
    return node;
  }
  if (token.IsOperator("[")) return ParseList();
  if (token.IsOperator("{")) return ParseDict();
  bool literal =
      token.kind == TokenKind::kString || token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat;
  if (!literal) return Unexpected("an expression");
  ASSIGN_OR_RETURN(ExpressionPtr node, Make(Op::kConstant, token.line, {}));
  if (token.kind == TokenKind::kInteger) {
    node->constant = Value::Int(Take().integer);
  } else if (token.kind == TokenKind::kFloat) {
    node->constant = Value::Float(Take().real);
  } else {
    std::string text;
    while (Current().kind == TokenKind::kString) text += Take().text;
    node->constant = Value::String(text);
  }
  return node;
}

Result<ExpressionPtr> ExpressionParser::ParseList() {
  int line = Take().line;
  std::vector<ExpressionPtr> items;
  while (!Current().IsOperator("]")) {
    if (!items.empty()) RETURN_IF_ERROR(Expect(","));
    if (Current().IsOperator("]")) break;
    ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
    items.push_back(std::move(item));
  }
  RETURN_IF_ERROR(Expect("]"));
  return Make(Op::kList, line, std::move(items));
}

Result<ExpressionPtr> ExpressionParser::ParseDict() {
  int line = Take().line;
  std::vector<ExpressionPtr> items;
  while (!Current().IsOperator("}")) {
    if (!items.empty()) RETURN_IF_ERROR(Expect(","));
    if (Current().IsOperator("}")) break;
    ASSIGN_OR_RETURN(ExpressionPtr key, ParseExpression());
    RETURN_IF_ERROR(Expect(":"));
    ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
    items.push_back(std::move(key));
    items.push_back(std::move(value));
  }
  RETURN_IF_ERROR(Expect("}"));
  return Make(Op::kDict, line, std::move(items));
}

Result<ExpressionPtr> ExpressionParser::ParsePostfix(ExpressionPtr inner) {
  while (true) {
    if (Current().IsOperator(".")) {
      ASSIGN_OR_RETURN(inner, ParseDot(std::move(inner)));
    } else if (Current().IsOperator("[")) {
      ASSIGN_OR_RETURN(inner, ParseBrackets(std::move(inner)));
    } else if (Current().IsOperator("(")) {
      ASSIGN_OR_RETURN(inner, ParseCall(std::move(inner)));
    } else {
      return inner;
    }
  }
}

Result<ExpressionPtr> ExpressionParser::ParseFilterSuffix(ExpressionPtr inner) {
  while (true) {
    if (Current().IsOperator("|")) {
      ASSIGN_OR_RETURN(inner, ParseFilters(std::move(inner), false));
    } else if (Current().IsName("is")) {
      ASSIGN_OR_RETURN(inner, ParseTest(std::move(inner)));
    } else if (Current().IsOperator("(")) {
      ASSIGN_OR_RETURN(inner, ParseCall(std::move(inner)));
    } else {
      return inner;
    }
  }
}

Result<ExpressionPtr> ExpressionParser::ParseDot(ExpressionPtr inner) {
  int line = Take().line;
  Token token = Take();
  if (token.kind == TokenKind::kName) {
    ASSIGN_OR_RETURN(ExpressionPtr node, Make(Op::kAttribute, line, Children(std::move(inner))));
    node->attribute = token.text;
    return node;
  }
  if (token.kind != TokenKind::kInteger) return TemplateProblem(token.line, "a name or a number is expected after '.'");
  ASSIGN_OR_RETURN(ExpressionPtr key, Make(Op::kConstant, token.line, {}));
  key->constant = Value::Int(token.integer);
  return Make(Op::kItem, line, Children(std::move(inner), std::move(key)));
}

Result<ExpressionPtr> ExpressionParser::ParseBrackets(ExpressionPtr inner) {
  int line = Take().line;
  std::vector<ExpressionPtr> parts = Children(std::move(inner));
  ExpressionPtr first;
  if (!Current().IsOperator(":")) {
    if (Current().IsOperator("]")) return Unexpected("an index");
    ASSIGN_OR_RETURN(first, ParseExpression());
  }
  if (!Current().IsOperator(":")) {
    if (Current().IsOperator(",")) {
      std::vector<ExpressionPtr> keys = Children(std::move(first));
      while (Skip(",")) {
        ASSIGN_OR_RETURN(ExpressionPtr key, ParseExpression());
        keys.push_back(std::move(key));
      }
      ASSIGN_OR_RETURN(first, Make(Op::kTuple, line, std::move(keys)));
    }
    RETURN_IF_ERROR(Expect("]"));
    return Make(Op::kItem, line, Children(std::move(parts[0]), std::move(first)));
  }
  parts.push_back(std::move(first));
  for (int i = 0; i < 2; ++i) {
    ExpressionPtr bound;
    if (Skip(":") && !Current().IsOperator(":") && !Current().IsOperator("]")) {
      ASSIGN_OR_RETURN(bound, ParseExpression());
    }
    parts.push_back(std::move(bound));
  }
  RETURN_IF_ERROR(Expect("]"));
  return Make(Op::kSlice, line, std::move(parts));
}

Result<ExpressionPtr> ExpressionParser::ParseCall(ExpressionPtr inner) {
  ASSIGN_OR_RETURN(ExpressionPtr node, Make(Op::kCall, Current().line, Children(std::move(inner))));
  RETURN_IF_ERROR(ParseArguments(*node));
  return node;
}

Result<void> ExpressionParser::ParseArguments(Expression& call) {
  RETURN_IF_ERROR(Expect("("));
  bool first = true;
  while (!Current().IsOperator(")")) {
    if (!first) RETURN_IF_ERROR(Expect(","));
    if (Current().IsOperator(")")) break;
    first = false;
    RETURN_IF_ERROR(ParseArgument(call));
  }
  return Expect(")");
}

Result<void> ExpressionParser::ParseArgument(Expression& call) {
  int line = Current().line;
  Error misplaced = TemplateProblem(line, "invalid syntax for function call expression");
  auto parse = [&](ExpressionPtr& into) -> Result<void> {
    ASSIGN_OR_RETURN(into, ParseExpression());
    call.depth = std::max(call.depth, into->depth + 1);
    return CheckDepth(line, call.depth);
  };
  if (Skip("*")) return call.star || call.star_star ? Result<void>(misplaced) : parse(call.star);
  if (Skip("**")) return call.star_star ? Result<void>(misplaced) : parse(call.star_star);
  if (Current().kind == TokenKind::kName && Ahead().IsOperator("=")) {
    if (call.star_star) return misplaced;
    std::string name = Take().text;
    Take();
    for (const auto& [other, value] : call.keyword)
      if (other == name) return TemplateProblem(line, fmt::format("keyword argument repeated: {}", name));
    ExpressionPtr value;
    RETURN_IF_ERROR(parse(value));
    call.keyword.emplace_back(std::move(name), std::move(value));
    return {};
  }
  if (call.star || call.star_star || !call.keyword.empty()) return misplaced;
  ExpressionPtr value;
  RETURN_IF_ERROR(parse(value));
  call.positional.push_back(std::move(value));
  return {};
}

Result<std::string> ExpressionParser::DottedName() {
  ASSIGN_OR_RETURN(Token token, ExpectName());
  std::string name = token.text;
  while (Skip(".")) {
    ASSIGN_OR_RETURN(Token more, ExpectName());
    name += "." + more.text;
  }
  return name;
}

Result<ExpressionPtr> ExpressionParser::ParseFilters(ExpressionPtr inner, bool inline_start) {
  while (inline_start || Skip("|")) {
    inline_start = false;
    int line = Current().line;
    ASSIGN_OR_RETURN(std::string name, DottedName());
    ASSIGN_OR_RETURN(inner, Make(Op::kFilter, line, Children(std::move(inner))));
    inner->filter = FindFilter(name);
    if (inner->filter == nullptr && !soft_)
      unknown_.push_back(TemplateProblem(line, fmt::format("No filter named '{}'.", name)));
    inner->attribute = std::move(name);
    if (Current().IsOperator("(")) RETURN_IF_ERROR(ParseArguments(*inner));
  }
  return inner;
}

Result<ExpressionPtr> ExpressionParser::ParseTest(ExpressionPtr inner) {
  int line = Take().line;
  bool negated = SkipName("not");
  ASSIGN_OR_RETURN(std::string name, DottedName());
  ASSIGN_OR_RETURN(ExpressionPtr node, Make(Op::kTest, line, Children(std::move(inner))));
  node->test = FindTest(name);
  if (node->test == nullptr && !soft_)
    unknown_.push_back(TemplateProblem(line, fmt::format("No test named '{}'.", name)));
  node->attribute = std::move(name);
  if (Current().IsOperator("(")) {
    RETURN_IF_ERROR(ParseArguments(*node));
  } else if (StartsPrimary(Current())) {
    if (Current().IsName("is")) return TemplateProblem(line, "You cannot chain multiple tests with is");
    ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePrimary());
    ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    node->depth = std::max(node->depth, argument->depth + 1);
    RETURN_IF_ERROR(CheckDepth(line, node->depth));
    node->positional.push_back(std::move(argument));
  }
  if (!negated) return node;
  return Make(Op::kNot, line, Children(std::move(node)));
}

}  // namespace ekiben::text::jinja
