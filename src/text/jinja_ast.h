// The template as a tree. Built once by the parser (text/jinja_parser.h), then only read.
// Thread: immutable.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_runtime.h"
#include "text/jinja_value.h"

namespace ekiben::text::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Block = std::vector<std::unique_ptr<Statement>>;

enum class Compare : uint8_t { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual, kIn, kNotIn };

struct Expression {
  enum class Kind : uint8_t {
    kConstant,      // constant
    kName,          // name
    kNamespaceRef,  // name.attribute, as the target of set
    kTuple,         // children
    kList,          // children
    kDict,          // children: key, value, key, value, ...
    kNegate,        // -children[0]
    kPlus,          // +children[0]
    kNot,
    kAnd,          // children, any number
    kOr,           // children, any number
    kBinary,       // children[0] binary children[1]
    kConcat,       // children joined by ~
    kCompare,      // children[0] comparisons[0] children[1] comparisons[1] children[2] ...
    kConditional,  // children: test, then, else (may be null)
    kAttribute,    // children[0].attribute
    kItem,         // children[0][children[1]]
    kSlice,        // children[0][children[1]:children[2]:children[3]], each may be null
    kCall,         // children[0](arguments)
    kFilter,       // children[0] (null in a filter block) | name(arguments)
    kTest,         // children[0] is name(arguments)
  };

  Kind kind;
  int line = 1;
  int depth = 1;  // levels of evaluation under and with this one
  int chain = 1;  // kBinary: operators in a row on the left
  int name = -1;  // kName, kNamespaceRef: interned
  BinaryOp binary = BinaryOp::kAdd;
  Value constant;
  std::string attribute;  // kAttribute, kNamespaceRef; the name of a filter or test
  std::vector<ExpressionPtr> children;
  std::vector<Compare> comparisons;
  Filter filter = nullptr;  // null: an unknown name, an error when reached
  Test test = nullptr;

  // kCall, kFilter, kTest
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> keyword;
  ExpressionPtr star, star_star;  // f(*star, **star_star)
};

struct Statement {
  enum class Kind : uint8_t {
    kData,         // text
    kOutput,       // expression
    kIf,           // branches; else_body
    kFor,          // target, expression (iterated), condition, body, else_body
    kSet,          // target, expression
    kSetBlock,     // target, expression (filters, may be null), body
    kMacro,        // name, parameters, body
    kCall,         // expression (the call), parameters and body of the caller
    kFilterBlock,  // expression (filters), body
    kWith,         // assignments, body
    kScope,        // body, with variables of its own: a generation block
    kBreak,
    kContinue,
  };
  struct Parameter {
    int name;
    std::string text;
    ExpressionPtr fallback;  // may be null
  };

  Kind kind;
  int line = 1;
  std::string text;  // kData; kMacro: its name
  int name = -1;
  ExpressionPtr target, expression, condition;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> assignments;
  std::vector<Parameter> parameters;
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
  Block body, else_body;
};

// A parsed template.
struct Program {
  Block body;
  std::vector<std::string> names;  // interned; position is the id
  std::vector<int> hidden;         // names that no input shows through, see jinja_scopes.cc
};

}  // namespace ekiben::text::jinja
