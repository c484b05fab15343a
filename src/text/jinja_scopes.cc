// Which names a template hides. jinja2 compiles a template to a function, and a name that the function's own level sets
// is a local variable there: a loop or macro that reads it before it is set finds nothing, even when a request's input
// has that name. Only a read at that same level before the first set, or a set under an if, keeps the input visible.
#include <set>

#include "text/jinja_parser.h"

namespace ekiben::text::jinja {
namespace {

class TopLevel {
 public:
  std::vector<int> Hidden(const Block& body) {
    VisitBlock(body);
    return hidden_;
  }

 private:
  void Read(const Expression* node) {
    if (node == nullptr) return;
    if (node->kind == Expression::Kind::kName || node->kind == Expression::Kind::kNamespaceRef)
      seen_.insert(node->name);
    for (const ExpressionPtr& child : node->children) Read(child.get());
    for (const ExpressionPtr& argument : node->positional) Read(argument.get());
    for (const auto& [name, argument] : node->keyword) Read(argument.get());
    Read(node->star.get());
    Read(node->star_star.get());
  }

  void Store(int name) {
    if (seen_.insert(name).second && conditions_ == 0) hidden_.push_back(name);
  }

  void StoreTarget(const Expression& target) {
    if (target.kind == Expression::Kind::kName) return Store(target.name);
    if (target.kind == Expression::Kind::kNamespaceRef) return Read(&target);
    for (const ExpressionPtr& child : target.children) StoreTarget(*child);
  }

  void VisitIf(const Statement& node) {
    Read(node.branches.front().first.get());
    ++conditions_;
    for (const auto& [test, body] : node.branches) {
      Read(test.get());
      VisitBlock(body);
    }
    VisitBlock(node.else_body);
    --conditions_;
  }

  // Bodies of loops, macros and blocks are levels of their own.
  void VisitBlock(const Block& block) {
    for (const auto& statement : block) {
      const Statement& node = *statement;
      switch (node.kind) {
        case Statement::Kind::kIf: VisitIf(node); break;
        case Statement::Kind::kSet:
          Read(node.expression.get());
          StoreTarget(*node.target);
          break;
        case Statement::Kind::kSetBlock: StoreTarget(*node.target); break;
        case Statement::Kind::kMacro: Store(node.name); break;
        case Statement::Kind::kWith:
          for (const auto& [target, value] : node.assignments) Read(value.get());
          break;
        default: Read(node.expression.get());  // printed, iterated, called, or a filter block's filters
      }
    }
  }

  int conditions_ = 0;
  std::set<int> seen_;
  std::vector<int> hidden_;
};

}  // namespace

std::vector<int> HiddenNames(const Program& program) {
  return TopLevel().Hidden(program.body);
}

}  // namespace ekiben::text::jinja
