#include "text/jinja_value.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <functional>

namespace ekiben::text::jinja {
namespace {

constexpr size_t kIndexedFrom = 12;

const std::string kNoMessage = "value is undefined";

// A container grows by `item`: it nests at least one deeper and costs as much more to walk.
void Enclose(Object& container, const Value& item) {
  container.depth = static_cast<uint16_t>(std::max<size_t>(container.depth, 1 + item.depth()));
  container.weight = std::min(kWeightMax, container.weight + item.weight());
}

bool EqualItems(const std::vector<Value>& a, const std::vector<Value>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), Equal);
}

bool EqualDicts(const DictObject& a, const DictObject& b) {
  if (a.entries.size() != b.entries.size()) return false;
  return std::all_of(a.entries.begin(), a.entries.end(), [&](const auto& entry) {
    const Value* other = b.Find(entry.first);
    return other != nullptr && Equal(entry.second, *other);
  });
}

bool EqualRanges(const RangeObject& a, const RangeObject& b) {
  Integer count = a.Count();
  return count == b.Count() && (count == 0 || (a.start == b.start && (count == 1 || a.step == b.step)));
}

Error NotOrdered(const Value& a, const Value& b) {
  if (a.Is(Kind::kUndefined)) return TypeProblem(a.undefined_message());
  if (b.Is(Kind::kUndefined)) return TypeProblem(b.undefined_message());
  return TypeProblem(fmt::format("'<' not supported between instances of '{}' and '{}'", TypeName(a), TypeName(b)));
}

Result<Value> FromJsonObject(const json::object& object, int depth_max) {
  auto dict = std::make_shared<DictObject>();
  dict->untrusted = true;
  dict->entries.reserve(object.size());
  for (const auto& entry : object) {
    ASSIGN_OR_RETURN(Value value, FromJson(entry.value(), depth_max - 1));
    dict->Set(Value::String(Text::FromUntrusted(entry.key())), std::move(value));
  }
  return MakeDict(std::move(dict));
}

Result<Value> FromJsonArray(const json::array& array, int depth_max) {
  std::vector<Value> items;
  items.reserve(array.size());
  for (const json::value& item : array) {
    ASSIGN_OR_RETURN(Value value, FromJson(item, depth_max - 1));
    items.push_back(std::move(value));
  }
  Value list = MakeSequence(Kind::kList, std::move(items));
  list.object()->untrusted = true;
  return list;
}

}  // namespace

Value Value::Undefined(std::string message) {
  auto object = std::make_shared<UndefinedObject>();
  object->message = std::move(message);
  return Of(Kind::kUndefined, std::move(object));
}
Value Value::Bool(bool value) {
  Value out(Kind::kBool);
  out.number_.boolean = value;
  return out;
}
Value Value::Int(Integer value) {
  Value out(Kind::kInt);
  out.number_.integer = value;
  return out;
}
Value Value::Float(double value) {
  Value out(Kind::kFloat);
  out.number_.real = value;
  return out;
}
Value Value::String(Text text, bool markup) {
  auto object = std::make_shared<StringObject>();
  object->weight = 1 + text.size() / 64;
  object->text = std::move(text);
  object->markup = markup;
  return Of(Kind::kString, std::move(object));
}
Value Value::Of(Kind kind, std::shared_ptr<Object> object) {
  Value out(kind);
  out.object_ = std::move(object);
  return out;
}

Integer Value::integer() const {
  return kind_ == Kind::kBool ? Integer{number_.boolean} : number_.integer;
}
double Value::real() const {
  return kind_ == Kind::kFloat ? number_.real : static_cast<double>(integer());
}
const Text& Value::text() const {
  return As<StringObject>().text;
}
bool Value::markup() const {
  return kind_ == Kind::kString && As<StringObject>().markup;
}
const std::vector<Value>& Value::items() const {
  return As<SequenceObject>().items;
}
const DictObject& Value::dict() const {
  return As<DictObject>();
}
const std::string& Value::undefined_message() const {
  return object_ == nullptr ? kNoMessage : As<UndefinedObject>().message;
}

size_t DictObject::Position(const Value& key) const {
  if (index_.empty()) {
    auto found =
        std::find_if(entries.begin(), entries.end(), [&](const auto& entry) { return Equal(entry.first, key); });
    return found - entries.begin();
  }
  auto [begin, end] = index_.equal_range(Hash(key));
  for (; begin != end; ++begin)
    if (Equal(entries[begin->second].first, key)) return begin->second;
  return entries.size();
}

const Value* DictObject::Find(const Value& key) const {
  size_t position = Position(key);
  return position < entries.size() ? &entries[position].second : nullptr;
}

const Value* DictObject::Find(std::string_view key) const {
  if (!index_.empty()) return Find(Value::String(key));
  for (const auto& [name, value] : entries)
    if (name.Is(Kind::kString) && name.text().view() == key) return &value;
  return nullptr;
}

void DictObject::Set(Value key, Value value) {
  Enclose(*this, key);
  Enclose(*this, value);
  size_t position = Position(key);
  if (position < entries.size()) {
    entries[position].second = std::move(value);
    return;
  }
  entries.emplace_back(std::move(key), std::move(value));
  if (entries.size() < kIndexedFrom) return;
  size_t from = index_.empty() ? 0 : position;
  for (size_t i = from; i < entries.size(); ++i) index_.emplace(Hash(entries[i].first), i);
}

Integer RangeObject::Count() const {
  Integer span = step > 0 ? stop - start : start - stop, stride = step > 0 ? step : -step;
  return span <= 0 ? 0 : (span + stride - 1) / stride;
}

const Value* NamespaceObject::Find(std::string_view name) const {
  for (const auto& [key, value] : attributes)
    if (key == name) return &value;
  return nullptr;
}

void NamespaceObject::Set(std::string_view name, Value value) {
  for (auto& [key, held] : attributes) {
    if (key != name) continue;
    held = std::move(value);
    return;
  }
  attributes.emplace_back(name, std::move(value));
}

Value MakeIterator(std::vector<Value> items, std::optional<Error> error) {
  auto object = std::make_shared<IteratorObject>();
  for (const Value& item : items) Enclose(*object, item);
  object->items = std::move(items);
  object->error = std::move(error);
  return Value::Of(Kind::kIterator, std::move(object));
}

Value MakeSequence(Kind kind, std::vector<Value> items) {
  auto object = std::make_shared<SequenceObject>();
  object->depth = 1;
  for (const Value& item : items) Enclose(*object, item);
  object->items = std::move(items);
  return Value::Of(kind, std::move(object));
}

Value MakeDict(std::shared_ptr<DictObject> dict) {
  dict->depth = std::max<uint16_t>(dict->depth, 1);
  return Value::Of(Kind::kDict, std::move(dict));
}

Error TypeProblem(std::string message) {
  return Error(Code::kInvalid, std::move(message));
}

std::string_view TypeName(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return value.markup() ? "Markup" : "str";
    case Kind::kList: return "list";
    case Kind::kTuple: return "tuple";
    case Kind::kDict: return "dict";
    case Kind::kDictView: return "dict_view";
    case Kind::kRange: return "range";
    case Kind::kIterator: return "generator";
    case Kind::kNamespace: return "Namespace";
    case Kind::kMacro: return "Macro";
    case Kind::kFunction: return "function";
    case Kind::kMethod: return "method";
    case Kind::kLoop: return "LoopContext";
    case Kind::kCycler: return "Cycler";
    case Kind::kJoiner: return "Joiner";
  }
  return "object";
}

bool Truth(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool: return value.boolean();
    case Kind::kInt: return value.integer() != 0;
    case Kind::kFloat: return value.real() != 0;
    case Kind::kString: return !value.text().empty();
    case Kind::kList:
    case Kind::kTuple: return !value.items().empty();
    case Kind::kDict: return !value.dict().entries.empty();
    case Kind::kDictView: return Truth(value.As<DictViewObject>().dict);
    case Kind::kRange: return value.As<RangeObject>().Count() > 0;
    default: return true;
  }
}

bool Hashable(const Value& value) {
  if (value.Is(Kind::kTuple)) return std::all_of(value.items().begin(), value.items().end(), Hashable);
  return !value.Is(Kind::kList) && !value.Is(Kind::kDict) && !value.Is(Kind::kDictView);
}

size_t Hash(const Value& value) {
  if (value.IsNumber()) return std::hash<double>()(value.real());
  if (value.Is(Kind::kString)) return std::hash<std::string_view>()(value.text().view());
  if (value.Is(Kind::kTuple)) {
    size_t hash = 17;
    for (const Value& item : value.items()) hash = hash * 1000003 ^ Hash(item);
    return hash;
  }
  return static_cast<size_t>(value.kind());
}

bool Equal(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsIntegral() && b.IsIntegral()) return a.integer() == b.integer();
    return a.real() == b.real();
  }
  if (a.kind() != b.kind()) return false;
  if (a.object() != nullptr && a.object() == b.object()) return true;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return true;
    case Kind::kString: return a.text().view() == b.text().view();
    case Kind::kList:
    case Kind::kTuple: return EqualItems(a.items(), b.items());
    case Kind::kDict: return EqualDicts(a.dict(), b.dict());
    case Kind::kRange: return EqualRanges(a.As<RangeObject>(), b.As<RangeObject>());
    default: return a.object() == b.object();
  }
}

Result<bool> Less(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    if (a.IsIntegral() && b.IsIntegral()) return a.integer() < b.integer();
    return a.real() < b.real();
  }
  if (a.kind() != b.kind()) return NotOrdered(a, b);
  if (a.Is(Kind::kString)) return a.text().view() < b.text().view();  // UTF-8 bytes order as code points do
  if (!a.Is(Kind::kList) && !a.Is(Kind::kTuple)) return NotOrdered(a, b);
  size_t common = std::min(a.items().size(), b.items().size());
  for (size_t i = 0; i < common; ++i)
    if (!Equal(a.items()[i], b.items()[i])) return Less(a.items()[i], b.items()[i]);
  return a.items().size() < b.items().size();
}

Result<Value> FromJson(const json::value& value, int depth_max) {
  if (depth_max < 0) return TypeProblem("inputs nest deeper than the limit of a chat template");
  switch (value.kind()) {
    case json::kind::null: return Value::None().Distrust();
    case json::kind::bool_: return Value::Bool(value.get_bool()).Distrust();
    case json::kind::int64: return Value::Int(value.get_int64()).Distrust();
    case json::kind::uint64: return Value::Int(static_cast<Integer>(value.get_uint64())).Distrust();
    case json::kind::double_: return Value::Float(value.get_double()).Distrust();
    case json::kind::string: return Value::String(Text::FromUntrusted(value.get_string()));
    case json::kind::array: return FromJsonArray(value.get_array(), depth_max);
    case json::kind::object: return FromJsonObject(value.get_object(), depth_max);
  }
  return Value::None();
}

}  // namespace ekiben::text::jinja
