#include <algorithm>

#include "text/jinja_interpreter.h"
#include "text/jinja_lexer.h"
#include "text/jinja_print.h"

namespace ekiben::text::jinja {
Value Interpreter::Lookup(int name) const {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent)
    for (const auto& [id, value] : scope->variables)
      if (id == name) return value;
  const std::optional<Value>& global = globals_[static_cast<size_t>(name)];
  if (global.has_value()) return *global;
  return Value::Undefined("'" + program_.names[static_cast<size_t>(name)] + "' is undefined");
}

void Interpreter::Bind(int name, Value value) {
  for (auto& [id, held] : scope_->variables) {
    if (id != name) continue;
    held = std::move(value);
    return;
  }
  scope_->variables.emplace_back(name, std::move(value));
}

Result<Value> Interpreter::Evaluate(const Expression& node) {
  RETURN_IF_ERROR(runtime_.Charge(1));
  if (++frames_ > runtime_.limits().depth_max * kFramesPerLevel) {
    --frames_;
    return TemplateProblem(node.line, "calls nest too deep");
  }
  Result<Value> value = EvaluateNode(node);
  --frames_;
  if (!value.ok() && value.error().field().empty()) return TemplateProblem(node.line, value.error().message());
  return value;
}

Result<Value> Interpreter::EvaluateNode(const Expression& node) {
  using Kind = Expression::Kind;
  switch (node.kind) {
    case Kind::kConstant: return node.constant;
    case Kind::kName: return Lookup(node.name);
    case Kind::kNamespaceRef: return TypeProblem("a namespace attribute is no value here");
    case Kind::kTuple:
    case Kind::kList: return EvaluateSequence(node);
    case Kind::kDict: return EvaluateDict(node);
    case Kind::kNegate:
    case Kind::kPlus: {
      ASSIGN_OR_RETURN(Value value, Evaluate(*node.children[0]));
      return Negate(value, node.kind == Kind::kNegate);
    }
    case Kind::kNot: {
      ASSIGN_OR_RETURN(Value value, Evaluate(*node.children[0]));
      return Value::Bool(!Truth(value));
    }
    case Kind::kAnd:
    case Kind::kOr: return EvaluateLogic(node);
    case Kind::kBinary: return EvaluateChain(node);
    case Kind::kConcat: return EvaluateConcat(node);
    case Kind::kCompare: return EvaluateCompare(node);
    case Kind::kConditional: return EvaluateConditional(node);
    case Kind::kAttribute: {
      ASSIGN_OR_RETURN(Value object, Evaluate(*node.children[0]));
      return Attribute(object, node.attribute);
    }
    case Kind::kItem: return EvaluateItem(node);
    case Kind::kSlice: return EvaluateSlice(node);
    case Kind::kCall: return EvaluateCall(node);
    case Kind::kFilter: return EvaluateFilter(node, nullptr);
    case Kind::kTest: return EvaluateTest(node);
  }
  return Value();
}

Result<Value> Interpreter::EvaluateSequence(const Expression& node) {
  std::vector<Value> items;
  items.reserve(node.children.size());
  for (const ExpressionPtr& child : node.children) {
    ASSIGN_OR_RETURN(Value item, Evaluate(*child));
    items.push_back(std::move(item));
  }
  return runtime_.Sequence(node.kind == Expression::Kind::kTuple ? Kind::kTuple : Kind::kList, std::move(items));
}

Result<Value> Interpreter::EvaluateDict(const Expression& node) {
  auto dict = std::make_shared<DictObject>();
  for (size_t i = 0; i < node.children.size(); i += 2) {
    ASSIGN_OR_RETURN(Value key, Evaluate(*node.children[i]));
    ASSIGN_OR_RETURN(Value value, Evaluate(*node.children[i + 1]));
    if (!Hashable(key)) return TypeProblem(fmt::format("unhashable type: '{}'", TypeName(key)));
    RETURN_IF_ERROR(runtime_.Charge(key.weight()));
    dict->Set(std::move(key), std::move(value));
  }
  return runtime_.Dict(std::move(dict));
}

Result<Value> Interpreter::EvaluateChain(const Expression& node) {
  std::vector<const Expression*> chain;
  const Expression* left = &node;
  for (; left->kind == Expression::Kind::kBinary; left = left->children[0].get()) chain.push_back(left);
  ASSIGN_OR_RETURN(Value value, Evaluate(*left));
  for (; !chain.empty(); chain.pop_back()) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*chain.back()->children[1]));
    ASSIGN_OR_RETURN(value, Binary(runtime_, chain.back()->binary, value, right));
  }
  return value;
}

Result<Value> Interpreter::EvaluateLogic(const Expression& node) {
  bool is_and = node.kind == Expression::Kind::kAnd;
  Value value;
  for (const ExpressionPtr& child : node.children) {
    ASSIGN_OR_RETURN(value, Evaluate(*child));
    if (Truth(value) != is_and) break;
  }
  return value;
}

Result<Value> Interpreter::EvaluateConcat(const Expression& node) {
  Text text;
  for (const ExpressionPtr& child : node.children) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*child));
    ASSIGN_OR_RETURN(Text part, Str(runtime_, value));
    text.Append(part);
    RETURN_IF_ERROR(runtime_.CheckBytes(text.size()));
  }
  return runtime_.String(std::move(text));
}

Result<bool> Interpreter::CompareValues(Compare compare, const Value& a, const Value& b) {
  if (compare == Compare::kIn) return Contains(runtime_, b, a);
  if (compare == Compare::kNotIn) {
    ASSIGN_OR_RETURN(bool in, Contains(runtime_, b, a));
    return !in;
  }
  RETURN_IF_ERROR(runtime_.Charge(std::min(a.weight(), b.weight())));
  switch (compare) {
    case Compare::kEqual: return Equal(a, b);
    case Compare::kNotEqual: return !Equal(a, b);
    case Compare::kLess: return CompareOrder(a, b, false, false);
    case Compare::kLessEqual: return CompareOrder(a, b, false, true);
    case Compare::kGreater: return CompareOrder(a, b, true, false);
    default: return CompareOrder(a, b, true, true);
  }
}

Result<Value> Interpreter::EvaluateCompare(const Expression& node) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*node.children[0]));
  for (size_t i = 0; i < node.comparisons.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*node.children[i + 1]));
    ASSIGN_OR_RETURN(bool holds, CompareValues(node.comparisons[i], left, right));
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

Result<Value> Interpreter::EvaluateConditional(const Expression& node) {
  ASSIGN_OR_RETURN(Value test, Evaluate(*node.children[0]));
  if (Truth(test)) return Evaluate(*node.children[1]);
  if (node.children[2] != nullptr) return Evaluate(*node.children[2]);
  return Value::Undefined(fmt::format(
      "the inline if-expression on line {} evaluated to false and no else section was defined.", node.line));
}

Result<Value> Interpreter::EvaluateItem(const Expression& node) {
  ASSIGN_OR_RETURN(Value object, Evaluate(*node.children[0]));
  ASSIGN_OR_RETURN(Value key, Evaluate(*node.children[1]));
  if (object.Is(Kind::kLoop) && key.Is(Kind::kString)) return Attribute(object, key.text().view());
  return GetItem(runtime_, object, key);
}

Result<Value> Interpreter::EvaluateSlice(const Expression& node) {
  Value parts[4] = {Value(), Value::None(), Value::None(), Value::None()};
  for (size_t i = 0; i < 4; ++i) {
    if (node.children[i] == nullptr) continue;
    ASSIGN_OR_RETURN(parts[i], Evaluate(*node.children[i]));
  }
  return GetSlice(runtime_, parts[0], parts[1], parts[2], parts[3]);
}

Result<Arguments> Interpreter::EvaluateArguments(const Expression& node) {
  Arguments arguments;
  for (const ExpressionPtr& argument : node.positional) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*argument));
    arguments.positional.push_back(std::move(value));
  }
  for (const auto& [name, argument] : node.keyword) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*argument));
    arguments.keyword.emplace_back(name, std::move(value));
  }
  if (node.star != nullptr) {
    ASSIGN_OR_RETURN(Value star, Evaluate(*node.star));
    ASSIGN_OR_RETURN(std::vector<Value> items, runtime_.IterateAll(star));
    arguments.positional.insert(arguments.positional.end(), items.begin(), items.end());
  }
  if (node.star_star != nullptr) {
    ASSIGN_OR_RETURN(Value star, Evaluate(*node.star_star));
    if (!star.Is(Kind::kDict)) return TypeProblem("argument after ** must be a mapping");
    RETURN_IF_ERROR(runtime_.Charge(star.dict().entries.size()));
    for (const auto& [key, value] : star.dict().entries) {
      if (!key.Is(Kind::kString)) return TypeProblem("keywords must be strings");
      bool repeated = std::any_of(node.keyword.begin(), node.keyword.end(),
                                  [&name = key](const auto& given) { return given.first == name.text().view(); });
      if (repeated) return TypeProblem(fmt::format("got multiple values for keyword argument '{}'", key.text().view()));
      arguments.keyword.emplace_back(key.text().bytes(), value);
    }
  }
  return arguments;
}

Result<Value> Interpreter::EvaluateCall(const Expression& node) {
  ASSIGN_OR_RETURN(Value callee, Evaluate(*node.children[0]));
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(node));
  return Call(callee, std::move(arguments));
}

Result<Value> Interpreter::Call(const Value& callee, Arguments arguments) {
  switch (callee.kind()) {
    case Kind::kUndefined: return TypeProblem(callee.undefined_message());
    case Kind::kFunction: return callee.As<FunctionObject>().call(runtime_, arguments);
    case Kind::kMethod: {
      const auto& method = callee.As<MethodObject>();
      return method.call(runtime_, method.self, arguments);
    }
    case Kind::kMacro: return CallMacro(callee.As<MacroObject>(), std::move(arguments));
    case Kind::kJoiner: {
      if (!arguments.empty()) return TypeProblem("a joiner takes no arguments");
      auto& joiner = callee.As<JoinerObject>();
      return std::exchange(joiner.used, true) ? joiner.separator : Value::String("");
    }
    case Kind::kLoop: return TypeProblem("The loop must have the 'recursive' marker to be called recursively.");
    default: return TypeProblem(fmt::format("'{}' object is not callable", TypeName(callee)));
  }
}

Result<Value> Interpreter::EvaluateFilter(const Expression& node, const Value* block) {
  Value input;
  if (node.children[0] == nullptr) {
    input = block == nullptr ? Value() : *block;
  } else if (block != nullptr && node.children[0]->kind == Expression::Kind::kFilter) {
    ASSIGN_OR_RETURN(input, EvaluateFilter(*node.children[0], block));
  } else {
    ASSIGN_OR_RETURN(input, Evaluate(*node.children[0]));
  }
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(node));
  if (node.filter == nullptr) return TypeProblem(fmt::format("No filter named '{}' found.", node.attribute));
  return node.filter(runtime_, input, arguments);
}

Result<Value> Interpreter::EvaluateTest(const Expression& node) {
  ASSIGN_OR_RETURN(Value input, Evaluate(*node.children[0]));
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(node));
  if (node.test == nullptr) return TypeProblem(fmt::format("No test named '{}' found.", node.attribute));
  ASSIGN_OR_RETURN(bool holds, node.test(runtime_, input, arguments));
  return Value::Bool(holds);
}

Result<Value> Interpreter::Attribute(const Value& object, std::string_view name) {
  if (object.Is(Kind::kLoop)) {
    ASSIGN_OR_RETURN(std::optional<Value> value, LoopAttribute(object, name));
    if (value.has_value()) return *std::move(value);
  }
  if (object.Is(Kind::kMacro) && name == "name") return Value::String(object.As<MacroObject>().node->text);
  return GetAttribute(runtime_, object, name);
}

Result<std::optional<Value>> Interpreter::LoopAttribute(const Value& object, std::string_view name) {
  using Found = std::optional<Value>;
  auto& loop = object.As<LoopObject>();
  if (name == "index") return Found(Value::Int(loop.index0 + 1));
  if (name == "index0") return Found(Value::Int(loop.index0));
  if (name == "first") return Found(Value::Bool(loop.index0 == 0));
  if (name == "depth") return Found(Value::Int(1));
  if (name == "depth0") return Found(Value::Int(0));
  if (name == "previtem") return Found(loop.index0 == 0 ? Value::Undefined("there is no previous item") : loop.before);
  if (name == "last" || name == "nextitem") {
    ASSIGN_OR_RETURN(Found next, loop.Peek());
    if (name == "last") return Found(Value::Bool(!next.has_value()));
    return Found(next.has_value() ? *std::move(next) : Value::Undefined("there is no next item"));
  }
  if (name == "length" || name == "revindex" || name == "revindex0") {
    ASSIGN_OR_RETURN(Integer length, loop.Length());
    Integer passed = name == "length" ? 0 : name == "revindex" ? loop.index0 : loop.index0 + 1;
    return Found(Value::Int(length - passed));
  }
  if (name != "cycle" && name != "changed") return Found();
  auto method = std::make_shared<MethodObject>();
  method->name = name;
  method->self = object;
  if (name == "cycle")
    method->call = [](Runtime&, const Value& self, const Arguments& arguments) -> Result<Value> {
      if (arguments.positional.empty() || !arguments.keyword.empty()) return TypeProblem("no items for cycling given");
      Integer count = static_cast<Integer>(arguments.positional.size());
      return arguments.positional[static_cast<size_t>(self.As<LoopObject>().index0 % count)];
    };
  else
    method->call = [](Runtime& runtime, const Value& self, const Arguments& arguments) -> Result<Value> {
      if (!arguments.keyword.empty()) return TypeProblem("changed takes no keyword arguments");
      auto& changed = self.As<LoopObject>().changed;
      uint64_t weight = 1;
      for (const Value& value : arguments.positional) weight = std::min(kWeightMax, weight + value.weight());
      RETURN_IF_ERROR(runtime.Charge(weight));
      bool same = changed.has_value() && std::equal(changed->begin(), changed->end(), arguments.positional.begin(),
                                                    arguments.positional.end(), Equal);
      if (!same) changed = arguments.positional;
      return Value::Bool(!same);
    };
  return Found(Value::Of(Kind::kMethod, std::move(method)));
}

}  // namespace ekiben::text::jinja
