// x.name and x[key] as the sandbox of jinja2 resolves them: an attribute of the Python type first for x.name, an item
// first for x[key]. What would change a list or a dict, and every name with a leading underscore, is unsafe there: it
// reads as undefined and fails when called.
#include <algorithm>

#include "text/jinja_print.h"
#include "text/jinja_runtime.h"

namespace ekiben::text::jinja {
namespace {

constexpr std::string_view kListMutators[] = {"append", "clear", "pop",    "reverse",
                                              "insert", "sort",  "extend", "remove"};
constexpr std::string_view kDictMutators[] = {"clear", "pop", "popitem", "setdefault", "update"};
// Attributes that every Python object has.
constexpr std::string_view kObjectAttributes[] = {
    "__class__",   "__delattr__", "__dir__",           "__doc__",         "__eq__",
    "__format__",  "__ge__",      "__getattribute__",  "__getstate__",    "__gt__",
    "__hash__",    "__init__",    "__init_subclass__", "__le__",          "__lt__",
    "__ne__",      "__new__",     "__reduce__",        "__reduce_ex__",   "__repr__",
    "__setattr__", "__sizeof__",  "__str__",           "__subclasshook__"};

template <size_t kCount>
bool OneOf(const std::string_view (&names)[kCount], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool IsUnsafe(const Value& object, std::string_view name) {
  if (object.Is(Kind::kList) && OneOf(kListMutators, name)) return true;
  if (object.Is(Kind::kDict) && OneOf(kDictMutators, name)) return true;
  if (object.Is(Kind::kNamespace)) return name.starts_with("_") && object.As<NamespaceObject>().Find(name) != nullptr;
  return OneOf(kObjectAttributes, name);
}

Value UnsafeUndefined(const Value& object, std::string_view name) {
  return Value::Undefined(
      fmt::format("access to attribute '{}' of '{}' object is unsafe: a chat template cannot change "
                  "lists or dicts, nor reach into Python",
                  name, TypeName(object)));
}

std::optional<Value> TypeAttribute(const Value& object, std::string_view name) {
  switch (object.kind()) {
    case Kind::kRange: {
      const auto& range = object.As<RangeObject>();
      if (name == "start") return Value::Int(range.start);
      if (name == "stop") return Value::Int(range.stop);
      if (name == "step") return Value::Int(range.step);
      return std::nullopt;
    }
    case Kind::kTuple: {
      if (!object.As<SequenceObject>().group) return std::nullopt;
      if (name == "grouper") return object.items()[0];
      if (name == "list") return object.items()[1];
      return std::nullopt;
    }
    case Kind::kNamespace: {
      const Value* value = object.As<NamespaceObject>().Find(name);
      return value == nullptr ? std::nullopt : std::optional<Value>(*value);
    }
    case Kind::kCycler: {
      const auto& cycler = object.As<CyclerObject>();
      if (name == "current") return cycler.items[cycler.position];
      return std::nullopt;
    }
    default: return std::nullopt;
  }
}

// Python's getattr, then the sandbox's verdict; nullopt where getattr has nothing.
std::optional<Value> SafeAttribute(const Value& object, std::string_view name) {
  if (IsUnsafe(object, name)) return UnsafeUndefined(object, name);
  Method method = object.Is(Kind::kString) ? FindStringMethod(name) : FindContainerMethod(object, name);
  if (method == nullptr) return TypeAttribute(object, name);
  auto bound = std::make_shared<MethodObject>();
  bound->name = name;
  bound->self = object;
  bound->call = method;
  return Value::Of(Kind::kMethod, std::move(bound));
}

Value NoAttribute(const Value& object, std::string_view name) {
  std::string type = object.Is(Kind::kNone) ? "None" : std::string(TypeName(object)) + " object";
  return Value::Undefined(fmt::format("'{}' has no attribute '{}'", type, name));
}

Value NoElement(const Value& object, const Value& key) {
  std::string name = key.IsIntegral() ? IntegerText(key.integer()) : std::string(TypeName(key));
  return Value::Undefined(fmt::format("{} object has no element {}", TypeName(object), name));
}

// object[key]; nullopt where Python raises TypeError or LookupError.
Result<std::optional<Value>> Subscript(Runtime& runtime, const Value& object, const Value& key) {
  std::optional<Value> none;
  if (object.Is(Kind::kDict)) {
    if (!Hashable(key)) return none;
    RETURN_IF_ERROR(runtime.Charge(key.weight()));
    const Value* value = object.dict().Find(key);
    return value == nullptr ? none : std::optional<Value>(*value);
  }
  bool indexable =
      object.Is(Kind::kString) || object.Is(Kind::kList) || object.Is(Kind::kTuple) || object.Is(Kind::kRange);
  if (!indexable || !key.IsIntegral()) return none;
  if (object.Is(Kind::kString)) RETURN_IF_ERROR(runtime.ChargeBytes(object.text().size()));
  ASSIGN_OR_RETURN(Integer length, Length(object));
  Integer index = key.integer() < 0 ? key.integer() + length : key.integer();
  if (index < 0 || index >= length) return none;
  if (object.Is(Kind::kRange)) {
    const auto& range = object.As<RangeObject>();
    return std::optional<Value>(Value::Int(range.start + index * range.step));
  }
  if (!object.Is(Kind::kString)) return std::optional<Value>(object.items()[static_cast<size_t>(index)]);
  const Text& text = object.text();
  size_t begin = ByteOffset(text.view(), static_cast<size_t>(index));
  Text character = text.Slice(begin, begin + CodePointBytes(text.view(), begin));
  return std::optional<Value>(Value::String(std::move(character), object.markup()));
}

}  // namespace

Result<Value> GetAttribute(Runtime& runtime, const Value& object, std::string_view name) {
  if (object.Is(Kind::kUndefined) && !OneOf(kObjectAttributes, name)) return TypeProblem(object.undefined_message());
  std::optional<Value> value = SafeAttribute(object, name);
  if (!value.has_value() && object.Is(Kind::kDict)) {
    RETURN_IF_ERROR(runtime.Charge(1));
    const Value* item = object.dict().Find(name);
    if (item != nullptr) value = *item;
  }
  return value.has_value() ? *std::move(value) : NoAttribute(object, name);
}

Result<Value> GetItem(Runtime& runtime, const Value& object, const Value& key) {
  if (object.Is(Kind::kUndefined)) return TypeProblem(object.undefined_message());
  ASSIGN_OR_RETURN(std::optional<Value> value, Subscript(runtime, object, key));
  if (value.has_value()) return *std::move(value);
  if (!key.Is(Kind::kString)) return NoElement(object, key);
  value = SafeAttribute(object, key.text().view());
  return value.has_value() ? *std::move(value) : NoAttribute(object, key.text().view());
}

}  // namespace ekiben::text::jinja
