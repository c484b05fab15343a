// "x is name".
#include <algorithm>
#include <unordered_map>

#include "text/jinja_print.h"
#include "text/jinja_runtime.h"
#include "text/jinja_strings.h"

namespace ekiben::text::jinja {
namespace {

using V = const Value&;
using A = const Arguments&;

// A test without arguments that asks for the kind of a value.
template <bool (*kPredicate)(V)>
Result<bool> Plain(Runtime&, V input, A arguments) {
  RETURN_IF_ERROR(Bind("a test", arguments, {}, 0));
  return kPredicate(input);
}

template <Kind kKind>
bool OfKind(V value) {
  return value.Is(kKind);
}

bool IsDefined(V value) {
  return !value.Is(Kind::kUndefined);
}
bool IsTrue(V value) {
  return value.Is(Kind::kBool) && value.boolean();
}
bool IsFalse(V value) {
  return value.Is(Kind::kBool) && !value.boolean();
}
bool IsNumber(V value) {
  return value.IsNumber();
}
bool IsEscaped(V value) {
  return value.markup();
}

bool IsIterable(V value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kDictView:
    case Kind::kRange:
    case Kind::kIterator:
    case Kind::kLoop: return true;
    default: return false;
  }
}

bool IsSequence(V value) {
  return IsIterable(value) && !value.Is(Kind::kDictView) && !value.Is(Kind::kIterator) && !value.Is(Kind::kLoop);
}

bool IsCallable(V value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kMacro:
    case Kind::kFunction:
    case Kind::kMethod:
    case Kind::kLoop:
    case Kind::kJoiner: return true;
    default: return false;
  }
}

Result<bool> Remainder(Runtime& runtime, V input, V divisor, Integer wanted) {
  ASSIGN_OR_RETURN(Value rest, Binary(runtime, BinaryOp::kMod, input, divisor));
  return Equal(rest, Value::Int(wanted));
}

Result<bool> Odd(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("odd", arguments, {}, 0));
  return Remainder(runtime, input, Value::Int(2), 1);
}

Result<bool> Even(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("even", arguments, {}, 0));
  return Remainder(runtime, input, Value::Int(2), 0);
}

Result<bool> DivisibleBy(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("divisibleby", arguments, {"num"}, 1));
  return Remainder(runtime, input, *bound[0], 0);
}

// The text of a value is in one case and has letters.
Result<bool> InCase(Runtime& runtime, V input, A arguments, std::string_view method) {
  RETURN_IF_ERROR(Bind(method, arguments, {}, 0));
  ASSIGN_OR_RETURN(Value text, SoftStr(runtime, input));
  ASSIGN_OR_RETURN(Value answer, FindStringMethod(method)(runtime, text, {}));
  return answer.boolean();
}

enum class Order { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual };

template <Order kOrder>
Result<bool> Ordered(Runtime& runtime, V a, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("a comparison", arguments, {"b"}, 1, 1));
  const Value& b = *bound[0];
  RETURN_IF_ERROR(runtime.Charge(std::min(a.weight(), b.weight())));
  if (kOrder == Order::kEqual) return Equal(a, b);
  if (kOrder == Order::kNotEqual) return !Equal(a, b);
  return CompareOrder(a, b, kOrder == Order::kGreater || kOrder == Order::kGreaterEqual,
                      kOrder == Order::kLessEqual || kOrder == Order::kGreaterEqual);
}

Result<bool> SameAs(Runtime&, V a, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("sameas", arguments, {"other"}, 1));
  const Value& b = *bound[0];
  if (a.kind() != b.kind()) return false;
  return a.object() != nullptr || b.object() != nullptr ? a.object() == b.object() : Equal(a, b);
}

Result<bool> In(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("in", arguments, {"seq"}, 1));
  return Contains(runtime, *bound[0], input);
}

template <bool kFilter>
Result<bool> IsKnown(Runtime&, V input, A arguments) {
  RETURN_IF_ERROR(Bind("filter", arguments, {}, 0));
  if (!Hashable(input)) return TypeProblem(fmt::format("unhashable type: '{}'", TypeName(input)));
  if (!input.Is(Kind::kString)) return false;
  return kFilter ? FindFilter(input.text().view()) != nullptr : FindTest(input.text().view()) != nullptr;
}

}  // namespace

Test FindTest(std::string_view name) {
  static const std::unordered_map<std::string_view, Test> kTests = {
      {"defined", Plain<IsDefined>},
      {"undefined", Plain<OfKind<Kind::kUndefined>>},
      {"none", Plain<OfKind<Kind::kNone>>},
      {"boolean", Plain<OfKind<Kind::kBool>>},
      {"true", Plain<IsTrue>},
      {"false", Plain<IsFalse>},
      {"integer", Plain<OfKind<Kind::kInt>>},
      {"float", Plain<OfKind<Kind::kFloat>>},
      {"number", Plain<IsNumber>},
      {"string", Plain<OfKind<Kind::kString>>},
      {"mapping", Plain<OfKind<Kind::kDict>>},
      {"iterable", Plain<IsIterable>},
      {"sequence", Plain<IsSequence>},
      {"callable", Plain<IsCallable>},
      {"escaped", Plain<IsEscaped>},
      {"odd", Odd},
      {"even", Even},
      {"divisibleby", DivisibleBy},
      {"lower", [](Runtime& r, V v, A a) { return InCase(r, v, a, "islower"); }},
      {"upper", [](Runtime& r, V v, A a) { return InCase(r, v, a, "isupper"); }},
      {"sameas", SameAs},
      {"in", In},
      {"filter", IsKnown<true>},
      {"test", IsKnown<false>},
      {"==", Ordered<Order::kEqual>},
      {"eq", Ordered<Order::kEqual>},
      {"equalto", Ordered<Order::kEqual>},
      {"!=", Ordered<Order::kNotEqual>},
      {"ne", Ordered<Order::kNotEqual>},
      {"<", Ordered<Order::kLess>},
      {"lt", Ordered<Order::kLess>},
      {"lessthan", Ordered<Order::kLess>},
      {"<=", Ordered<Order::kLessEqual>},
      {"le", Ordered<Order::kLessEqual>},
      {">", Ordered<Order::kGreater>},
      {"gt", Ordered<Order::kGreater>},
      {"greaterthan", Ordered<Order::kGreater>},
      {">=", Ordered<Order::kGreaterEqual>},
      {"ge", Ordered<Order::kGreaterEqual>},
  };
  auto found = kTests.find(name);
  return found == kTests.end() ? nullptr : found->second;
}

}  // namespace ekiben::text::jinja
