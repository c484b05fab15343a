#include "text/jinja_runtime.h"

#include <algorithm>

namespace ekiben::text::jinja {
namespace {

// d.items() and dict iteration order are the dict's own.
Result<std::vector<Value>> ViewItems(Runtime& runtime, const DictViewObject& view) {
  std::vector<Value> items;
  items.reserve(view.dict.dict().entries.size());
  for (const auto& [key, value] : view.dict.dict().entries) {
    if (view.part == DictViewObject::Part::kItems) {
      ASSIGN_OR_RETURN(Value pair, runtime.Sequence(Kind::kTuple, {key, value}));
      pair.object()->untrusted = view.dict.object()->untrusted;
      items.push_back(std::move(pair));
    } else {
      items.push_back(view.part == DictViewObject::Part::kKeys ? key : value);
    }
  }
  return items;
}

std::vector<Value> Characters(const Value& string) {
  std::vector<Value> items;
  const Text& text = string.text();
  for (size_t at = 0; at < text.size();) {
    size_t end = at + CodePointBytes(text.view(), at);
    items.push_back(Value::String(text.Slice(at, end)));
    at = end;
  }
  return items;
}

Runtime::Items TakeRest(IteratorObject& iterator) {
  Runtime::Items items;
  items.values.assign(iterator.items.begin() + iterator.next, iterator.items.end());
  items.error = iterator.error;
  iterator.next = iterator.items.size();
  iterator.error.reset();
  return items;
}

}  // namespace

Runtime::~Runtime() {
  for (const auto& object : namespaces_) object->attributes.clear();
}

Result<void> Runtime::Charge(uint64_t steps) {
  steps_ += std::min(steps, kWeightMax);
  if (steps_ <= limits_.steps_max) return {};
  return TypeProblem(fmt::format("the template takes more than its limit of {} steps", limits_.steps_max));
}

Result<void> Runtime::ChargeSearch(size_t bytes, size_t needle_bytes) {
  Integer product = Integer{bytes} * Integer{needle_bytes} / 1024;
  return Charge(1 + bytes / 64 + static_cast<uint64_t>(std::min<Integer>(product, kWeightMax)));
}

Result<void> Runtime::CheckBytes(Integer bytes) const {
  if (bytes <= static_cast<Integer>(limits_.output_bytes_max)) return {};
  return TypeProblem(fmt::format("the template makes a text over its limit of {} bytes", limits_.output_bytes_max));
}

Result<Value> Runtime::String(Text text, bool markup) {
  RETURN_IF_ERROR(CheckBytes(text.size()));
  RETURN_IF_ERROR(ChargeBytes(text.size()));
  return Value::String(std::move(text), markup);
}

Result<Value> Runtime::Sequence(Kind kind, std::vector<Value> items) {
  RETURN_IF_ERROR(Charge(1 + items.size()));
  Value value = MakeSequence(kind, std::move(items));
  if (value.depth() > static_cast<size_t>(limits_.depth_max))
    return TypeProblem(fmt::format("a value nests deeper than the limit of {}", limits_.depth_max));
  return value;
}

Result<Value> Runtime::Dict(std::shared_ptr<DictObject> dict) {
  RETURN_IF_ERROR(Charge(1 + dict->entries.size()));
  Value value = MakeDict(std::move(dict));
  if (value.depth() > static_cast<size_t>(limits_.depth_max))
    return TypeProblem(fmt::format("a value nests deeper than the limit of {}", limits_.depth_max));
  return value;
}

Value Runtime::Namespace(std::shared_ptr<NamespaceObject> object) {
  namespaces_.push_back(object);
  return Value::Of(Kind::kNamespace, std::move(object));
}

Result<Runtime::Items> Runtime::Iterate(const Value& value) {
  Items items;
  switch (value.kind()) {
    case Kind::kUndefined: break;
    case Kind::kString: {
      RETURN_IF_ERROR(Charge(value.text().size()));
      items.values = Characters(value);
      break;
    }
    case Kind::kList:
    case Kind::kTuple: {
      RETURN_IF_ERROR(Charge(value.items().size()));
      items.values = value.items();
      break;
    }
    case Kind::kDict: {
      RETURN_IF_ERROR(Charge(value.dict().entries.size()));
      for (const auto& entry : value.dict().entries) items.values.push_back(entry.first);
      break;
    }
    case Kind::kDictView: {
      ASSIGN_OR_RETURN(items.values, ViewItems(*this, value.As<DictViewObject>()));
      break;
    }
    case Kind::kRange: {
      const auto& range = value.As<RangeObject>();
      Integer count = range.Count();
      RETURN_IF_ERROR(Charge(static_cast<uint64_t>(count)));
      for (Integer i = 0; i < count; ++i) items.values.push_back(Value::Int(range.start + i * range.step));
      break;
    }
    case Kind::kIterator: {
      RETURN_IF_ERROR(Charge(value.As<IteratorObject>().items.size()));
      items = TakeRest(value.As<IteratorObject>());
      break;
    }
    default: return TypeProblem(fmt::format("'{}' object is not iterable", TypeName(value)));
  }
  return items;
}

Result<std::vector<Value>> Runtime::IterateAll(const Value& value) {
  ASSIGN_OR_RETURN(Items items, Iterate(value));
  if (items.error.has_value()) return *std::move(items.error);
  return std::move(items.values);
}

Result<std::vector<const Value*>> Bind(std::string_view function, const Arguments& arguments,
                                       std::initializer_list<std::string_view> parameters, size_t required,
                                       size_t positional_only) {
  std::vector<const Value*> bound(parameters.size(), nullptr);
  if (arguments.positional.size() > parameters.size())
    return TypeProblem(fmt::format("{}() takes at most {} arguments, got {}", function, parameters.size(),
                                   arguments.positional.size()));
  for (size_t i = 0; i < arguments.positional.size(); ++i) bound[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.keyword) {
    size_t index = std::find(parameters.begin(), parameters.end(), name) - parameters.begin();
    if (index == parameters.size() || index < positional_only)
      return TypeProblem(fmt::format("{}() got an unexpected keyword argument '{}'", function, name));
    if (bound[index] != nullptr)
      return TypeProblem(fmt::format("{}() got multiple values for argument '{}'", function, name));
    bound[index] = &value;
  }
  for (size_t i = 0; i < required; ++i)
    if (bound[i] == nullptr)
      return TypeProblem(fmt::format("{}() is missing the argument '{}'", function, *(parameters.begin() + i)));
  return bound;
}

Result<Integer> AsIndex(const Value& value, std::string_view what) {
  if (value.IsIntegral()) return value.integer();
  if (value.Is(Kind::kUndefined)) return TypeProblem(value.undefined_message());
  return TypeProblem(fmt::format("{}: an integer is wanted, got '{}'", what, TypeName(value)));
}

Result<const Text*> AsText(const Value& value, std::string_view what) {
  if (value.Is(Kind::kString)) return &value.text();
  return TypeProblem(fmt::format("{}: a string is wanted, got '{}'", what, TypeName(value)));
}

}  // namespace ekiben::text::jinja
