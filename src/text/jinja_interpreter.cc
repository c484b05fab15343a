#include "text/jinja_interpreter.h"

#include <algorithm>
#include <boost/json.hpp>

#include "text/jinja_lexer.h"
#include "text/jinja_print.h"

namespace ekiben::text::jinja {
namespace {

// Inputs that are the tokenizer's own and not a request's.
bool IsTokenizerInput(std::string_view name) {
  for (std::string_view known :
       {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"})
    if (name == known) return true;
  return false;
}

// Roles are compared and printed by templates as parts of special tokens ("<|" + role + "|>"). One of the known words
// cannot forge anything, so it counts as the template's.
bool IsKnownRole(std::string_view role) {
  for (std::string_view known : {"system", "user", "assistant", "tool", "developer", "function", "ipython", "model"})
    if (role == known) return true;
  return false;
}

void TrustRoles(const Value& messages) {
  if (!messages.Is(Kind::kList)) return;
  for (const Value& message : messages.items()) {
    if (!message.Is(Kind::kDict)) continue;
    for (auto& [key, value] : message.As<DictObject>().entries)
      if (value.Is(Kind::kString) && key.text().view() == "role" && IsKnownRole(value.text().view()))
        value = Value::String(value.text().view());
  }
}

}  // namespace

Interpreter::ScopeFrame::ScopeFrame(Interpreter& interpreter, Scope* parent)
    : interpreter_(interpreter), outer_(interpreter.scope_), scope_(std::make_unique<Scope>()) {
  scope_->parent = parent;
  interpreter_.scope_ = scope_.get();
}

Interpreter::ScopeFrame::~ScopeFrame() {
  interpreter_.scope_ = outer_;
  if (scope_->captured) interpreter_.captured_.push_back(std::move(scope_));
}

Interpreter::Interpreter(const Program& program, const TemplateLimits& limits, int64_t wall_seconds)
    : program_(program), runtime_(limits, wall_seconds) {
  loop_name_ = IdOf("loop");
  caller_name_ = IdOf("caller");
  varargs_name_ = IdOf("varargs");
  kwargs_name_ = IdOf("kwargs");
}

int Interpreter::IdOf(std::string_view name) const {
  auto found = std::find(program_.names.begin(), program_.names.end(), name);
  return found == program_.names.end() ? -1 : static_cast<int>(found - program_.names.begin());
}

Result<void> Interpreter::LoadInputs(const json::object& inputs) {
  globals_.resize(program_.names.size());
  for (size_t id = 0; id < globals_.size(); ++id) {
    const std::string& name = program_.names[id];
    if (const json::value* input = inputs.if_contains(name)) {
      ASSIGN_OR_RETURN(Value value, FromJson(*input, runtime_.limits().depth_max - 1));
      if (value.Is(Kind::kString) && IsTokenizerInput(name)) value = Value::String(value.text().view());
      if (name == "messages") TrustRoles(value);
      globals_[id] = std::move(value);
    } else if (Function function = FindFunction(name)) {
      auto object = std::make_shared<FunctionObject>();
      object->name = name;
      object->call = function;
      globals_[id] = Value::Of(Kind::kFunction, std::move(object));
    }
  }
  return {};
}

Result<Text> Interpreter::Run(const json::object& inputs) {
  RETURN_IF_ERROR(LoadInputs(inputs));
  for (int name : program_.hidden)
    Bind(name, Value::Undefined("'" + program_.names[static_cast<size_t>(name)] + "' is undefined"));
  Text out;
  Redirect redirect(*this, out);
  RETURN_IF_ERROR(ExecuteBlock(program_.body));
  return out;
}

Result<void> Interpreter::Emit(const Text& text) {
  RETURN_IF_ERROR(runtime_.CheckBytes(Integer{out_->size()} + Integer{text.size()}));
  RETURN_IF_ERROR(runtime_.ChargeBytes(text.size()));
  out_->Append(text);
  return {};
}

Result<Interpreter::Flow> Interpreter::ExecuteBlock(const Block& block) {
  for (const auto& statement : block) {
    ASSIGN_OR_RETURN(Flow flow, Execute(*statement));
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::Execute(const Statement& node) {
  RETURN_IF_ERROR(runtime_.Charge(1));
  if (++frames_ > runtime_.limits().depth_max * kFramesPerLevel) {
    --frames_;
    return TemplateProblem(node.line, "calls nest too deep");
  }
  Result<Flow> flow = ExecuteNode(node);
  --frames_;
  if (!flow.ok() && flow.error().field().empty()) return TemplateProblem(node.line, flow.error().message());
  return flow;
}

Result<Interpreter::Flow> Interpreter::ExecuteNode(const Statement& node) {
  switch (node.kind) {
    case Statement::Kind::kData:
      RETURN_IF_ERROR(runtime_.CheckBytes(Integer{out_->size()} + Integer{node.text.size()}));
      RETURN_IF_ERROR(runtime_.ChargeBytes(node.text.size()));
      out_->Append(node.text, true);
      return Flow::kNormal;
    case Statement::Kind::kOutput: {
      ASSIGN_OR_RETURN(Value value, Evaluate(*node.expression));
      ASSIGN_OR_RETURN(Text text, Str(runtime_, value));
      RETURN_IF_ERROR(Emit(text));
      return Flow::kNormal;
    }
    case Statement::Kind::kIf: return ExecuteIf(node);
    case Statement::Kind::kFor: return ExecuteFor(node);
    case Statement::Kind::kSet: {
      RETURN_IF_ERROR(CheckNamespaces(*node.target));
      ASSIGN_OR_RETURN(Value value, Evaluate(*node.expression));
      RETURN_IF_ERROR(Assign(*node.target, std::move(value)));
      return Flow::kNormal;
    }
    case Statement::Kind::kSetBlock: return ExecuteSetBlock(node);
    case Statement::Kind::kMacro: Bind(node.name, MakeMacro(node)); return Flow::kNormal;
    case Statement::Kind::kCall: return ExecuteCallBlock(node);
    case Statement::Kind::kFilterBlock: return ExecuteFilterBlock(node);
    case Statement::Kind::kWith: return ExecuteWith(node);
    case Statement::Kind::kScope: {
      ScopeFrame frame(*this, scope_);
      return ExecuteBlock(node.body);
    }
    case Statement::Kind::kBreak: return Flow::kBreak;
    case Statement::Kind::kContinue: return Flow::kContinue;
  }
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::ExecuteIf(const Statement& node) {
  for (const auto& [test, body] : node.branches) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*test));
    if (Truth(value)) return ExecuteBlock(body);
  }
  return ExecuteBlock(node.else_body);
}

Result<Interpreter::Flow> Interpreter::ExecuteFor(const Statement& node) {
  auto loop = std::make_shared<LoopObject>();
  {
    ASSIGN_OR_RETURN(Value iterated, Evaluate(*node.expression));
    ASSIGN_OR_RETURN(Runtime::Items items, runtime_.Iterate(iterated));
    loop->source = std::move(items.values);
    loop->error = std::move(items.error);
  }
  if (node.condition != nullptr)
    loop->condition = [this, &node, outer = scope_](Value& item) -> Result<bool> {
      ScopeFrame frame(*this, outer);
      RETURN_IF_ERROR(Assign(*node.target, item));
      ASSIGN_OR_RETURN(Value keep, Evaluate(*node.condition));
      // jinja2 filters in a generator that yields the target, so a list that was unpacked comes out as a tuple.
      ASSIGN_OR_RETURN(item, ReadTarget(*node.target));
      return Truth(keep);
    };
  Result<Flow> flow = RunLoop(node, loop);
  // A loop that was stored somewhere must not refer to scopes that are gone, nor to itself.
  loop->condition = nullptr;
  loop->changed.reset();
  loop->current = loop->before = Value();
  return flow;
}

Result<Interpreter::Flow> Interpreter::RunLoop(const Statement& node, const std::shared_ptr<LoopObject>& loop) {
  bool entered = false;
  while (true) {
    RETURN_IF_ERROR(runtime_.Charge(1));
    ASSIGN_OR_RETURN(std::optional<Value> item, loop->Advance());
    if (!item.has_value()) break;
    ScopeFrame frame(*this, scope_);
    if (loop_name_ >= 0) Bind(loop_name_, Value::Of(Kind::kLoop, loop));
    RETURN_IF_ERROR(Assign(*node.target, *std::move(item)));
    ASSIGN_OR_RETURN(Flow flow, ExecuteBlock(node.body));
    // jinja2 notes that the loop ran at the end of a round, so a body that always breaks or continues runs "else" too.
    if (flow == Flow::kBreak) break;
    if (flow == Flow::kNormal) entered = true;
  }
  if (entered || node.else_body.empty()) return Flow::kNormal;
  ScopeFrame frame(*this, scope_);
  return ExecuteBlock(node.else_body);
}

Result<Interpreter::Flow> Interpreter::ExecuteSetBlock(const Statement& node) {
  RETURN_IF_ERROR(CheckNamespaces(*node.target));
  ScopeFrame frame(*this, scope_);  // its filters see what the block has set
  Text out;
  Flow flow = Flow::kNormal;
  {
    Redirect redirect(*this, out);
    ASSIGN_OR_RETURN(flow, ExecuteBlock(node.body));
  }
  if (flow != Flow::kNormal) return flow;
  ASSIGN_OR_RETURN(Value value, runtime_.String(std::move(out)));
  if (node.expression != nullptr) {
    ASSIGN_OR_RETURN(value, EvaluateFilter(*node.expression, &value));
  }
  Scope* inner = std::exchange(scope_, scope_->parent);
  Result<void> assigned = Assign(*node.target, std::move(value));
  scope_ = inner;
  RETURN_IF_ERROR(std::move(assigned));
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::ExecuteFilterBlock(const Statement& node) {
  Value value;
  {
    ScopeFrame frame(*this, scope_);
    Text out;
    Flow flow = Flow::kNormal;
    {
      Redirect redirect(*this, out);
      ASSIGN_OR_RETURN(flow, ExecuteBlock(node.body));
    }
    if (flow != Flow::kNormal) return flow;
    ASSIGN_OR_RETURN(value, runtime_.String(std::move(out)));
    ASSIGN_OR_RETURN(value, EvaluateFilter(*node.expression, &value));
  }
  ASSIGN_OR_RETURN(Text text, Str(runtime_, value));
  RETURN_IF_ERROR(Emit(text));
  return Flow::kNormal;
}

Result<Interpreter::Flow> Interpreter::ExecuteWith(const Statement& node) {
  Scope* outer = scope_;
  ScopeFrame frame(*this, scope_);
  for (const auto& [target, expression] : node.assignments) {
    Scope* inner = std::exchange(scope_, outer);  // values do not see each other's names
    Result<Value> value = Evaluate(*expression);
    scope_ = inner;
    if (!value.ok()) return std::move(value).error();
    RETURN_IF_ERROR(Assign(*target, *std::move(value)));
  }
  return ExecuteBlock(node.body);
}

Result<void> Interpreter::CheckNamespaces(const Expression& target) {
  for (const ExpressionPtr& child : target.children) RETURN_IF_ERROR(CheckNamespaces(*child));
  if (target.kind != Expression::Kind::kNamespaceRef || Lookup(target.name).Is(Kind::kNamespace)) return {};
  return TypeProblem("cannot assign attribute on non-namespace object");
}

Result<void> Interpreter::Assign(const Expression& target, Value value) {
  if (target.kind == Expression::Kind::kName) {
    Bind(target.name, std::move(value));
    return {};
  }
  if (target.kind == Expression::Kind::kNamespaceRef) {
    RETURN_IF_ERROR(CheckNamespaces(target));
    RETURN_IF_ERROR(runtime_.Charge(1));
    Lookup(target.name).As<NamespaceObject>().Set(target.attribute, std::move(value));
    return {};
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime_.IterateAll(value));
  if (items.size() != target.children.size())
    return TypeProblem(fmt::format("{} values to unpack, expected {}", items.size(), target.children.size()));
  for (size_t i = 0; i < items.size(); ++i) RETURN_IF_ERROR(Assign(*target.children[i], std::move(items[i])));
  return {};
}

Result<Value> Interpreter::ReadTarget(const Expression& target) {
  if (target.kind != Expression::Kind::kTuple) return Lookup(target.name);
  std::vector<Value> items;
  for (const ExpressionPtr& child : target.children) {
    ASSIGN_OR_RETURN(Value item, ReadTarget(*child));
    items.push_back(std::move(item));
  }
  return runtime_.Sequence(Kind::kTuple, std::move(items));
}

Value Interpreter::MakeMacro(const Statement& node) {
  auto macro = std::make_shared<MacroObject>();
  macro->node = &node;
  macro->scope = scope_;
  for (Scope* scope = scope_; scope != nullptr && !scope->captured; scope = scope->parent) scope->captured = true;
  return Value::Of(Kind::kMacro, std::move(macro));
}

Result<Interpreter::Flow> Interpreter::ExecuteCallBlock(const Statement& node) {
  ASSIGN_OR_RETURN(Value callee, Evaluate(*node.expression->children[0]));
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(*node.expression));
  arguments.keyword.emplace_back("caller", MakeMacro(node));
  ASSIGN_OR_RETURN(Value value, Call(callee, std::move(arguments)));
  ASSIGN_OR_RETURN(Text text, Str(runtime_, value));
  RETURN_IF_ERROR(Emit(text));
  return Flow::kNormal;
}

Result<void> Interpreter::BindParameters(const Statement& node, Arguments arguments) {
  auto take = [&](std::string_view name) -> std::optional<Value> {
    for (size_t i = 0; i < arguments.keyword.size(); ++i) {
      if (arguments.keyword[i].first != name) continue;
      Value value = std::move(arguments.keyword[i].second);
      arguments.keyword.erase(arguments.keyword.begin() + static_cast<ptrdiff_t>(i));
      return value;
    }
    return std::nullopt;
  };
  std::vector<const Statement::Parameter*> missing;
  for (size_t i = 0; i < node.parameters.size(); ++i) {
    const Statement::Parameter& parameter = node.parameters[i];
    std::optional<Value> value;
    if (i < arguments.positional.size())
      value = arguments.positional[i];
    else
      value = take(parameter.text);
    if (!value.has_value()) missing.push_back(&parameter);
    Bind(parameter.name, value.has_value() ? *std::move(value)
                                           : Value::Undefined("parameter '" + parameter.text + "' was not provided"));
  }
  if (node.uses_caller) {
    std::optional<Value> caller = take("caller");
    Bind(caller_name_,
         caller.has_value() && !caller->Is(Kind::kNone) ? *caller : Value::Undefined("No caller defined"));
  }
  if (node.uses_kwargs) {
    auto dict = std::make_shared<DictObject>();
    for (auto& [name, value] : arguments.keyword) dict->Set(Value::String(name), std::move(value));
    ASSIGN_OR_RETURN(Value kwargs, runtime_.Dict(std::move(dict)));
    Bind(kwargs_name_, std::move(kwargs));
  } else if (!arguments.keyword.empty()) {
    return TypeProblem(fmt::format("macro '{}' takes no keyword argument '{}'", node.text, arguments.keyword[0].first));
  }
  if (node.uses_varargs) {
    size_t used = std::min(node.parameters.size(), arguments.positional.size());
    ASSIGN_OR_RETURN(Value varargs,
                     runtime_.Sequence(Kind::kTuple, {arguments.positional.begin() + static_cast<ptrdiff_t>(used),
                                                      arguments.positional.end()}));
    Bind(varargs_name_, std::move(varargs));
  } else if (arguments.positional.size() > node.parameters.size()) {
    return TypeProblem(fmt::format("macro '{}' takes not more than {} argument(s)", node.text, node.parameters.size()));
  }
  for (const Statement::Parameter* parameter : missing) {
    if (parameter->fallback == nullptr) continue;
    ASSIGN_OR_RETURN(Value value, Evaluate(*parameter->fallback));
    Bind(parameter->name, std::move(value));
  }
  return {};
}

Result<Value> Interpreter::CallMacro(const MacroObject& macro, Arguments arguments) {
  ScopeFrame frame(*this, macro.scope);
  Text out;
  {
    Redirect redirect(*this, out);
    RETURN_IF_ERROR(BindParameters(*macro.node, std::move(arguments)));
    RETURN_IF_ERROR(ExecuteBlock(macro.node->body));
  }
  return runtime_.String(std::move(out));
}

Result<std::optional<Value>> LoopObject::Pull() {
  while (next < source.size()) {
    Value item = source[next++];
    if (condition == nullptr) return std::optional<Value>(std::move(item));
    ASSIGN_OR_RETURN(bool keep, condition(item));
    if (keep) return std::optional<Value>(std::move(item));
  }
  if (error.has_value()) return *error;
  return std::optional<Value>();
}

Result<std::optional<Value>> LoopObject::Peek() {
  if (!peeked || !after.has_value()) {
    ASSIGN_OR_RETURN(after, Pull());
    peeked = true;
  }
  return after;
}

Result<std::optional<Value>> LoopObject::Advance() {
  std::optional<Value> item;
  if (peeked && after.has_value()) {
    item = std::exchange(after, std::nullopt);
  } else {
    ASSIGN_OR_RETURN(item, Pull());
  }
  peeked = false;
  if (!item.has_value()) return item;
  ++index0;
  before = std::move(current);
  current = *item;
  return item;
}

Result<Integer> LoopObject::Length() {
  if (length.has_value()) return *length;
  if (condition == nullptr && !error.has_value()) {
    length = static_cast<Integer>(source.size());
    return *length;
  }
  // As a generator: what is left is pulled now.
  std::vector<Value> rest;
  while (true) {
    ASSIGN_OR_RETURN(std::optional<Value> item, Pull());
    if (!item.has_value()) break;
    rest.push_back(*std::move(item));
  }
  length = static_cast<Integer>(rest.size()) + index0 + 1 + (peeked && after.has_value() ? 1 : 0);
  source = std::move(rest);
  next = 0;
  condition = nullptr;
  return *length;
}

}  // namespace ekiben::text::jinja
