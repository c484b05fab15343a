// The values a template computes with: Python's, as far as a template can see them. A Value is small and shares its
// object; every object but a namespace, a loop and an iterator is immutable after it is made, as under Hugging Face's
// sandbox. Containers know how deep they nest, so nothing that walks a value can overflow the stack.
// Thread: a Value may be shared between threads as long as its object is one of the immutable kinds.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/jinja_text.h"

namespace ekiben::text::jinja {

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kDictView,  // d.keys(), d.values(), d.items()
  kRange,
  kIterator,  // what select, map, items, reverse ... return: one pass
  kNamespace,
  kMacro,
  kFunction,  // range, namespace, raise_exception, ...
  kMethod,    // "text".strip
  kLoop,
  kCycler,
  kJoiner,
};

// Enough for JSON's integers and for arithmetic on them; what leaves it is an error, not a wrong number.
using Integer = __int128;

struct Object {
  virtual ~Object() = default;
  uint16_t depth = 0;      // containers: 1 + the deepest item
  uint64_t weight = 1;     // what it costs to walk all of it, shared parts counted each time; saturates
  bool untrusted = false;  // containers: made from a request's inputs
};

struct StringObject;
struct SequenceObject;
struct DictObject;
struct DictViewObject;
struct RangeObject;
struct IteratorObject;
struct NamespaceObject;

inline constexpr uint64_t kWeightMax = uint64_t{1} << 40;

class Value {
 public:
  Value() = default;  // undefined, with no more to say
  static Value Undefined(std::string message);
  static Value None() { return Value(Kind::kNone); }
  static Value Bool(bool value);
  static Value Int(Integer value);
  static Value Float(double value);
  static Value String(Text text, bool markup = false);
  // Template text: trusted.
  static Value String(std::string_view text) { return String(Text(std::string(text), true)); }
  static Value Of(Kind kind, std::shared_ptr<Object> object);

  Kind kind() const { return kind_; }
  bool Is(Kind kind) const { return kind_ == kind; }
  bool IsNumber() const { return kind_ == Kind::kBool || kind_ == Kind::kInt || kind_ == Kind::kFloat; }
  bool IsIntegral() const { return kind_ == Kind::kBool || kind_ == Kind::kInt; }
  // Numbers and None: came from a request's inputs.
  bool untrusted() const { return untrusted_; }
  Value& Distrust() {
    untrusted_ = true;
    return *this;
  }

  bool boolean() const { return number_.boolean; }  // kBool
  Integer integer() const;                          // kBool, kInt
  double real() const;                              // any number
  const Text& text() const;                         // kString
  bool markup() const;                              // kString that |safe or |escape made
  const std::vector<Value>& items() const;          // kList, kTuple
  const DictObject& dict() const;                   // kDict
  const std::string& undefined_message() const;     // kUndefined
  const std::shared_ptr<Object>& object() const { return object_; }
  template <class T>
  T& As() const {
    return static_cast<T&>(*object_);
  }
  size_t depth() const { return object_ == nullptr ? 0 : object_->depth; }
  uint64_t weight() const { return object_ == nullptr ? 1 : object_->weight; }

 private:
  explicit Value(Kind kind) : kind_(kind) {}

  Kind kind_ = Kind::kUndefined;
  bool untrusted_ = false;
  union {
    bool boolean;
    Integer integer;
    double real;
  } number_{};
  std::shared_ptr<Object> object_;
};

struct UndefinedObject : Object {
  std::string message;
};
struct StringObject : Object {
  Text text;
  bool markup = false;
};
struct SequenceObject : Object {
  std::vector<Value> items;
  bool group = false;  // a tuple of groupby: also .grouper and .list
};
struct DictObject : Object {
  const Value* Find(const Value& key) const;  // REQUIRES: Hashable(key)
  const Value* Find(std::string_view key) const;
  // The first key of equal value keeps its place, as in Python. REQUIRES: Hashable(key)
  void Set(Value key, Value value);
  std::vector<std::pair<Value, Value>> entries;

 private:
  size_t Position(const Value& key) const;
  std::unordered_multimap<size_t, size_t> index_;  // hash to position, from kIndexedFrom entries on
};
struct DictViewObject : Object {
  enum class Part { kKeys, kValues, kItems } part = Part::kKeys;
  Value dict;
};
struct RangeObject : Object {
  Integer start = 0, stop = 0, step = 1;
  Integer Count() const;
};
struct IteratorObject : Object {
  std::vector<Value> items;
  size_t next = 0;
  std::optional<Error> error;  // what Python would raise on the item after the last
};
struct NamespaceObject : Object {
  const Value* Find(std::string_view name) const;
  void Set(std::string_view name, Value value);
  std::vector<std::pair<std::string, Value>> attributes;
};

Value MakeIterator(std::vector<Value> items, std::optional<Error> error = std::nullopt);
// Lists and tuples; the caller has checked depth (Runtime::MakeSequence does).
Value MakeSequence(Kind kind, std::vector<Value> items);
Value MakeDict(std::shared_ptr<DictObject> dict);

// An error without a place: the interpreter adds the template's line.
Error TypeProblem(std::string message);

// "dict", "str", ...: Python's type name.
std::string_view TypeName(const Value& value);
bool Truth(const Value& value);
bool Hashable(const Value& value);
size_t Hash(const Value& value);
// Python's ==. Never fails; depth is bounded by the values' own.
bool Equal(const Value& a, const Value& b);
// Python's <; an error where Python raises TypeError.
Result<bool> Less(const Value& a, const Value& b);

// A request's inputs as values. Objects deeper than `depth_max` are an error.
Result<Value> FromJson(const json::value& value, int depth_max);

}  // namespace ekiben::text::jinja
