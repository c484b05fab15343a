#include "text/jinja_parser.h"

#include <fmt/format.h>

#include <algorithm>

namespace ekiben::text::jinja {
namespace {

using Kind = Statement::Kind;
using StatementPtr = std::unique_ptr<Statement>;

class StatementParser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Result<Program> Run() {
    ASSIGN_OR_RETURN(Program program, ParseProgram());
    if (!unknown_.empty()) return std::move(unknown_.front());
    program.hidden = HiddenNames(program);
    return program;
  }

 private:
  Result<Program> ParseProgram() {
    Program program;
    ASSIGN_OR_RETURN(program.body, ParseBlock({}));
    program.names.resize(ids_.size());
    for (const auto& [name, id] : ids_) program.names[id] = name;
    return program;
  }

  StatementPtr Make(Kind kind, int line) {
    auto node = std::make_unique<Statement>();
    node->kind = kind;
    node->line = line;
    return node;
  }

  // Statements up to one of `ends`, whose name is the current token then; up to the end of the template if empty.
  Result<Block> ParseBlock(std::initializer_list<std::string_view> ends) {
    Level level(depth_);
    RETURN_IF_ERROR(CheckDepth(Current().line, depth_));
    Block block;
    while (Current().kind != TokenKind::kEnd) {
      Token token = Take();
      if (token.kind == TokenKind::kData) {
        block.push_back(Make(Kind::kData, token.line));
        block.back()->text = std::move(token.text);
      } else if (token.kind == TokenKind::kVariableBegin) {
        block.push_back(Make(Kind::kOutput, token.line));
        ASSIGN_OR_RETURN(block.back()->expression, ParseTuple({}));
        RETURN_IF_ERROR(End(TokenKind::kVariableEnd));
      } else {
        for (std::string_view end : ends)
          if (Current().IsName(end)) return block;
        RETURN_IF_ERROR(ParseStatement(block));
        RETURN_IF_ERROR(End(TokenKind::kBlockEnd));
      }
    }
    if (ends.size() > 0)
      return TemplateProblem(Current().line,
                             fmt::format("Unexpected end of template: '{}' is missing", *(ends.end() - 1)));
    return block;
  }

  Result<void> End(TokenKind kind) {
    if (Current().kind != kind) return Unexpected(kind == TokenKind::kBlockEnd ? "'%}'" : "'}}'");
    Take();
    return {};
  }

  // ": %}" or "%}", statements, and the current token is the end's name.
  Result<Block> ParseBody(std::initializer_list<std::string_view> ends) {
    Skip(":");
    RETURN_IF_ERROR(End(TokenKind::kBlockEnd));
    return ParseBlock(ends);
  }

  // The same where only one end is possible; it is consumed.
  Result<Block> ParseBodyTo(std::string_view end) {
    ASSIGN_OR_RETURN(Block body, ParseBody({end}));
    Take();
    return body;
  }

  // A scope of its own: an unknown filter inside is an error again, even under an if.
  template <class Parse>
  auto Hard(Parse parse) {
    bool outer = std::exchange(soft_, false);
    auto result = parse();
    soft_ = outer;
    return result;
  }

  // A function in jinja2's compiled form: break and continue do not reach through it.
  template <class Parse>
  auto AsFunction(Parse parse) {
    int outer = std::exchange(loops_, 0);
    auto result = Hard(parse);
    loops_ = outer;
    return result;
  }

  Result<void> ParseStatement(Block& block) {
    if (Current().kind != TokenKind::kName) return TemplateProblem(Current().line, "tag name expected");
    Token tag = Take();
    if (tag.text == "print") return ParsePrint(block, tag.line);
    Result<StatementPtr> node = ParseTag(tag);
    if (!node.ok()) return std::move(node).error();
    block.push_back(*std::move(node));
    return {};
  }

  Result<StatementPtr> ParseTag(const Token& tag) {
    if (tag.text == "if") return ParseIf(tag.line);
    if (tag.text == "for") return ParseFor(tag.line);
    if (tag.text == "set") return ParseSet(tag.line);
    if (tag.text == "macro") return ParseMacro(tag.line);
    if (tag.text == "call") return ParseCallBlock(tag.line);
    if (tag.text == "filter") return ParseFilterBlock(tag.line);
    if (tag.text == "with") return ParseWith(tag.line);
    if (tag.text == "generation") return ParseGeneration(tag.line);
    if (tag.text == "break" || tag.text == "continue") {
      if (loops_ == 0) return TemplateProblem(tag.line, fmt::format("'{}' outside of a loop", tag.text));
      return Make(tag.text == "break" ? Kind::kBreak : Kind::kContinue, tag.line);
    }
    for (std::string_view known : {"block", "extends", "include", "import", "from", "autoescape"})
      if (tag.text == known)
        return TemplateProblem(tag.line, fmt::format("'{}' is not supported in a chat template", known));
    return TemplateProblem(tag.line, fmt::format("Encountered unknown tag '{}'.", tag.text));
  }

  Result<void> ParsePrint(Block& block, int line) {
    for (bool first = true; Current().kind != TokenKind::kBlockEnd; first = false) {
      if (!first) RETURN_IF_ERROR(Expect(","));
      block.push_back(Make(Kind::kOutput, line));
      ASSIGN_OR_RETURN(block.back()->expression, ParseExpression());
    }
    return {};
  }

  Result<StatementPtr> ParseIf(int line) {
    bool outer = std::exchange(soft_, true);
    Result<StatementPtr> node = ParseBranches(line);
    soft_ = outer;
    return node;
  }

  Result<StatementPtr> ParseBranches(int line) {
    StatementPtr node = Make(Kind::kIf, line);
    TupleRules rules;
    rules.conditional = false;
    while (true) {
      ASSIGN_OR_RETURN(ExpressionPtr test, ParseTuple(rules));
      ASSIGN_OR_RETURN(Block body, ParseBody({"elif", "else", "endif"}));
      node->branches.emplace_back(std::move(test), std::move(body));
      Token end = Take();
      if (end.text == "elif") continue;
      if (end.text == "else") {
        ASSIGN_OR_RETURN(node->else_body, ParseBodyTo("endif"));
      }
      return node;
    }
  }

  Result<void> CheckLoopName(const Expression& target) {
    for (const ExpressionPtr& child : target.children) RETURN_IF_ERROR(CheckLoopName(*child));
    if (target.kind != Expression::Kind::kName || target.attribute != "loop") return {};
    return TemplateProblem(target.line, "Can't assign to special loop variable in for-loop target");
  }

  Result<StatementPtr> ParseFor(int line) {
    StatementPtr node = Make(Kind::kFor, line);
    ASSIGN_OR_RETURN(node->target, ParseTarget("in", false));
    RETURN_IF_ERROR(CheckLoopName(*node->target));
    if (!SkipName("in")) return Unexpected("'in'");
    TupleRules rules;
    rules.conditional = false;
    rules.end = "recursive";
    ASSIGN_OR_RETURN(node->expression, ParseTuple(rules));
    if (SkipName("if")) {
      Result<ExpressionPtr> condition = Hard([&] { return ParseExpression(); });
      ASSIGN_OR_RETURN(node->condition, std::move(condition));
    }
    if (SkipName("recursive")) return TemplateProblem(line, "recursive loops are not supported in a chat template");
    ++loops_;
    ++enclosing_loops_;
    Result<Block> body = Hard([&] { return ParseBody({"endfor", "else"}); });
    --loops_;
    --enclosing_loops_;
    ASSIGN_OR_RETURN(node->body, std::move(body));
    if (Take().text == "else") {
      ++enclosing_loops_;  // jinja2 looks for "set loop" here too
      Result<Block> other = Hard([&] { return ParseBodyTo("endfor"); });
      --enclosing_loops_;
      ASSIGN_OR_RETURN(node->else_body, std::move(other));
    }
    return node;
  }

  Result<StatementPtr> ParseSet(int line) {
    StatementPtr node = Make(Kind::kSet, line);
    ASSIGN_OR_RETURN(node->target, ParseTarget({}, true));
    if (enclosing_loops_ > 0) RETURN_IF_ERROR(CheckLoopName(*node->target));
    if (Skip("=")) {
      ASSIGN_OR_RETURN(node->expression, ParseTuple({}));
      return node;
    }
    node->kind = Kind::kSetBlock;
    Result<void> parsed = Hard([&]() -> Result<void> {
      ASSIGN_OR_RETURN(node->expression, ParseFilters(nullptr, false));
      ASSIGN_OR_RETURN(node->body, ParseBodyTo("endset"));
      return {};
    });
    if (!parsed.ok()) return std::move(parsed).error();
    return node;
  }

  Result<void> ParseParameters(Statement& node) {
    RETURN_IF_ERROR(Expect("("));
    while (!Current().IsOperator(")")) {
      if (!node.parameters.empty()) RETURN_IF_ERROR(Expect(","));
      ASSIGN_OR_RETURN(Token name, ExpectName());
      RETURN_IF_ERROR(CheckAssignable(name));
      for (const Statement::Parameter& other : node.parameters)
        if (other.text == name.text)
          return TemplateProblem(name.line, fmt::format("duplicate argument '{}'", name.text));
      Statement::Parameter parameter{Intern(name.text), name.text, nullptr};
      if (Skip("=")) {
        ASSIGN_OR_RETURN(parameter.fallback, ParseExpression());
      } else if (!node.parameters.empty() && node.parameters.back().fallback != nullptr) {
        return TemplateProblem(name.line, "non-default argument follows default argument");
      }
      node.parameters.push_back(std::move(parameter));
    }
    return Expect(")");
  }

  Result<void> CheckAssignable(const Token& name) {
    for (std::string_view constant : {"true", "false", "none", "True", "False", "None"})
      if (name.text == constant) return TemplateProblem(name.line, "this cannot be assigned to");
    return {};
  }

  // Parses a macro's body and notes which special variables its tokens name.
  Result<void> ParseFunctionBody(Statement& node, std::string_view end) {
    size_t begin = at_;
    ASSIGN_OR_RETURN(node.body, ParseBodyTo(end));
    auto names = [&](std::string_view name) {
      bool parameter = std::any_of(node.parameters.begin(), node.parameters.end(),
                                   [&](const Statement::Parameter& other) { return other.text == name; });
      if (parameter) return false;
      for (size_t i = begin; i < at_; ++i)
        if (tokens_[i].IsName(name) && (i == 0 || !tokens_[i - 1].IsOperator("."))) return true;
      return false;
    };
    node.uses_varargs = names("varargs");
    node.uses_kwargs = names("kwargs");
    node.uses_caller = names("caller");
    for (std::string_view name : {"varargs", "kwargs", "caller"}) Intern(std::string(name));
    return {};
  }

  Result<StatementPtr> ParseMacro(int line) {
    StatementPtr node = Make(Kind::kMacro, line);
    ASSIGN_OR_RETURN(Token name, ExpectName());
    RETURN_IF_ERROR(CheckAssignable(name));
    node->text = name.text;
    node->name = Intern(name.text);
    Result<void> parsed = AsFunction([&]() -> Result<void> {
      RETURN_IF_ERROR(ParseParameters(*node));
      return ParseFunctionBody(*node, "endmacro");
    });
    if (!parsed.ok()) return std::move(parsed).error();
    return node;
  }

  Result<StatementPtr> ParseCallBlock(int line) {
    StatementPtr node = Make(Kind::kCall, line);
    node->text = "caller";
    Result<void> parsed = Hard([&]() -> Result<void> {
      if (Current().IsOperator("(")) return ParseParameters(*node);
      return {};
    });
    if (!parsed.ok()) return std::move(parsed).error();
    ASSIGN_OR_RETURN(node->expression, ParseExpression());
    if (node->expression->kind != Expression::Kind::kCall) return TemplateProblem(line, "expected call");
    Intern("caller");
    parsed = AsFunction([&] { return ParseFunctionBody(*node, "endcall"); });
    if (!parsed.ok()) return std::move(parsed).error();
    return node;
  }

  Result<StatementPtr> ParseFilterBlock(int line) {
    StatementPtr node = Make(Kind::kFilterBlock, line);
    Result<void> parsed = Hard([&]() -> Result<void> {
      ASSIGN_OR_RETURN(node->expression, ParseFilters(nullptr, true));
      ASSIGN_OR_RETURN(node->body, ParseBodyTo("endfilter"));
      return {};
    });
    if (!parsed.ok()) return std::move(parsed).error();
    return node;
  }

  Result<StatementPtr> ParseWith(int line) {
    StatementPtr node = Make(Kind::kWith, line);
    while (Current().kind != TokenKind::kBlockEnd) {
      if (!node->assignments.empty()) RETURN_IF_ERROR(Expect(","));
      ASSIGN_OR_RETURN(ExpressionPtr target, ParseTarget({}, false));
      RETURN_IF_ERROR(Expect("="));
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      node->assignments.emplace_back(std::move(target), std::move(value));
    }
    Result<Block> body = Hard([&] { return ParseBodyTo("endwith"); });
    ASSIGN_OR_RETURN(node->body, std::move(body));
    return node;
  }

  Result<StatementPtr> ParseGeneration(int line) {
    StatementPtr node = Make(Kind::kScope, line);
    Result<Block> body = AsFunction([&] { return ParseBodyTo("endgeneration"); });
    ASSIGN_OR_RETURN(node->body, std::move(body));
    return node;
  }

  int loops_ = 0;            // that break would leave
  int enclosing_loops_ = 0;  // whose variable "loop" is
};

}  // namespace

Result<Program> ParseTemplate(std::string_view source, const TemplateLimits& limits) {
  if (source.size() > limits.source_bytes_max)
    return Error(Code::kInvalid,
                 fmt::format("chat template: {} bytes, the limit is {}", source.size(), limits.source_bytes_max),
                 "chat_template");
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return StatementParser(std::move(tokens), limits.depth_max).Run();
}

}  // namespace ekiben::text::jinja
