// Runs a parsed template: a walk over the tree that writes to a text. Variables live in scopes as jinja2's compiler
// lays them out: a loop's body, a macro, a block has its own, and what it sets does not leak out of it.
// Thread: one render.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "text/jinja_ast.h"
#include "text/jinja_runtime.h"

namespace ekiben::text::jinja {

struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<int, Value>> variables;  // few: searched from the front
  bool captured = false;                         // a macro was defined here and may look variables up later
};

struct MacroObject : Object {
  const Statement* node = nullptr;
  Scope* scope = nullptr;  // where it was defined; kept until the render ends
};

// The variable "loop". Pulls items one by one, because the condition of a loop may read what its body has set.
struct LoopObject : Object {
  std::vector<Value> source;
  std::optional<Error> error;  // after the last of `source`
  size_t next = 0;
  std::function<Result<bool>(Value&)> condition;  // may rewrite the item, see ExecuteFor
  Integer index0 = -1;
  bool peeked = false;
  std::optional<Value> after;  // with `peeked`: the next item, or none
  Value current, before;
  std::optional<Integer> length;
  std::optional<std::vector<Value>> changed;

  Result<std::optional<Value>> Pull();  // the next item that the condition lets through
  Result<std::optional<Value>> Advance();
  Result<std::optional<Value>> Peek();
  Result<Integer> Length();
};

class Interpreter {
 public:
  Interpreter(const Program& program, const TemplateLimits& limits, int64_t wall_seconds);
  // The output with its marks.
  Result<Text> Run(const json::object& inputs);

 private:
  enum class Flow : uint8_t { kNormal, kBreak, kContinue };
  // Evaluations that may be open at once, for each level of the depth limit: a recursive macro needs several.
  static constexpr int kFramesPerLevel = 8;

  // Statements (text/jinja_interpreter.cc)
  Result<void> LoadInputs(const json::object& inputs);
  Result<Flow> ExecuteBlock(const Block& block);
  Result<Flow> Execute(const Statement& node);
  Result<Flow> ExecuteNode(const Statement& node);
  Result<Flow> ExecuteIf(const Statement& node);
  Result<Flow> ExecuteFor(const Statement& node);
  Result<Flow> RunLoop(const Statement& node, const std::shared_ptr<LoopObject>& loop);
  Result<Flow> ExecuteSetBlock(const Statement& node);
  Result<Flow> ExecuteCallBlock(const Statement& node);
  Result<Flow> ExecuteFilterBlock(const Statement& node);
  Result<Flow> ExecuteWith(const Statement& node);
  Result<void> CheckNamespaces(const Expression& target);
  Result<void> Assign(const Expression& target, Value value);
  // What a target holds, its tuples as tuples.
  Result<Value> ReadTarget(const Expression& target);
  Result<void> Emit(const Text& text);
  Value MakeMacro(const Statement& node);
  Result<Value> CallMacro(const MacroObject& macro, Arguments arguments);
  Result<void> BindParameters(const Statement& node, Arguments arguments);

  // Expressions (text/jinja_evaluate.cc)
  Result<Value> Evaluate(const Expression& node);
  Result<Value> EvaluateNode(const Expression& node);
  Result<Value> EvaluateSequence(const Expression& node);
  Result<Value> EvaluateDict(const Expression& node);
  Result<Value> EvaluateChain(const Expression& node);
  Result<Value> EvaluateLogic(const Expression& node);
  Result<Value> EvaluateConcat(const Expression& node);
  Result<Value> EvaluateCompare(const Expression& node);
  Result<bool> CompareValues(Compare compare, const Value& a, const Value& b);
  Result<Value> EvaluateConditional(const Expression& node);
  Result<Value> EvaluateItem(const Expression& node);
  Result<Value> EvaluateSlice(const Expression& node);
  Result<Value> EvaluateCall(const Expression& node);
  Result<Value> EvaluateTest(const Expression& node);
  // The filters of `node` from the innermost on; `block`: what a filter block holds, where they begin.
  Result<Value> EvaluateFilter(const Expression& node, const Value* block);
  Result<Value> Attribute(const Value& object, std::string_view name);
  Result<std::optional<Value>> LoopAttribute(const Value& loop, std::string_view name);
  Result<Arguments> EvaluateArguments(const Expression& node);
  Result<Value> Call(const Value& callee, Arguments arguments);
  Value Lookup(int name) const;
  void Bind(int name, Value value);
  int IdOf(std::string_view name) const;

  // Opens a scope under `parent` while it lives.
  class ScopeFrame {
   public:
    ScopeFrame(Interpreter& interpreter, Scope* parent);
    ~ScopeFrame();
    ScopeFrame(const ScopeFrame&) = delete;
    ScopeFrame& operator=(const ScopeFrame&) = delete;

   private:
    Interpreter& interpreter_;
    Scope* outer_;
    std::unique_ptr<Scope> scope_;
  };
  // Sends output to another text while it lives.
  class Redirect {
   public:
    Redirect(Interpreter& interpreter, Text& out) : interpreter_(interpreter), outer_(interpreter.out_) {
      interpreter_.out_ = &out;
    }
    ~Redirect() { interpreter_.out_ = outer_; }
    Redirect(const Redirect&) = delete;
    Redirect& operator=(const Redirect&) = delete;

   private:
    Interpreter& interpreter_;
    Text* outer_;
  };

  const Program& program_;
  Runtime runtime_;
  Scope root_;
  Scope* scope_ = &root_;
  Text* out_ = nullptr;
  int frames_ = 0;
  int loop_name_, caller_name_, varargs_name_, kwargs_name_;  // ids, -1 where the template has no such name
  std::vector<std::optional<Value>> globals_;                 // by id: an input, or else a function
  std::vector<std::unique_ptr<Scope>> captured_;
};

}  // namespace ekiben::text::jinja
