// What one render may still spend, and the makers of values that spend it. Every filter, method and function goes
// through here to build a string or a container, so that no template can use more than its limits, whatever it does.
// Thread: one render.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/chat_template.h"
#include "text/jinja_value.h"

namespace ekiben::text::jinja {

class Runtime {
 public:
  Runtime(const TemplateLimits& limits, int64_t wall_seconds) : limits_(limits), wall_seconds_(wall_seconds) {}
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // One step is an expression, a statement, or 64 bytes copied.
  Result<void> Charge(uint64_t steps);
  // Before work that is proportional to a text's bytes.
  Result<void> ChargeBytes(uint64_t bytes) { return Charge(1 + bytes / 64); }
  // Before looking for `needle_bytes` in `bytes`, which is their product at worst.
  Result<void> ChargeSearch(size_t bytes, size_t needle_bytes);

  // An error when a text of `bytes` would be over the limit; to be asked before it is built.
  Result<void> CheckBytes(Integer bytes) const;
  Result<Value> String(Text text, bool markup = false);
  Result<Value> Sequence(Kind kind, std::vector<Value> items);
  Result<Value> List(std::vector<Value> items) { return Sequence(Kind::kList, std::move(items)); }
  Result<Value> Dict(std::shared_ptr<DictObject> dict);
  // Namespaces can point at each other; they are emptied when the render ends.
  Value Namespace(std::shared_ptr<NamespaceObject> object);

  // Python's iter() then list(): an iterator is used up. The error is what the iteration would end with.
  struct Items {
    std::vector<Value> values;
    std::optional<Error> error;
  };
  Result<Items> Iterate(const Value& value);
  // The same where an error on the way fails the whole.
  Result<std::vector<Value>> IterateAll(const Value& value);

  const TemplateLimits& limits() const { return limits_; }
  int64_t wall_seconds() const { return wall_seconds_; }

 private:
  TemplateLimits limits_;
  int64_t wall_seconds_;
  uint64_t steps_ = 0;
  std::vector<std::shared_ptr<NamespaceObject>> namespaces_;
};

// The arguments of a call, a filter or a test.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keyword;
  bool empty() const { return positional.empty() && keyword.empty(); }
};

// Matches arguments to Python parameters. `parameters`: names in order; the first `required` have no default; the
// first `positional_only` take no keyword. The result has one entry a parameter, nullptr where the default stands.
Result<std::vector<const Value*>> Bind(std::string_view function, const Arguments& arguments,
                                       std::initializer_list<std::string_view> parameters, size_t required,
                                       size_t positional_only = 0);

// What Python's operator.index / int parameter accepts: bool or int. `what` names it in the error.
Result<Integer> AsIndex(const Value& value, std::string_view what);
// A str parameter.
Result<const Text*> AsText(const Value& value, std::string_view what);

// environment.getattr / getitem of the sandbox (text/jinja_attributes.cc).
Result<Value> GetAttribute(Runtime& runtime, const Value& object, std::string_view name);
Result<Value> GetItem(Runtime& runtime, const Value& object, const Value& key);
// object[start:stop:step]; null pointers are absent.
Result<Value> GetSlice(Runtime& runtime, const Value& object, const Value& start, const Value& stop, const Value& step);
// len(); an error where Python has none.
Result<Integer> Length(const Value& value);
// a in b
Result<bool> Contains(Runtime& runtime, const Value& container, const Value& item);

// a < b, a > b, or with `or_equal` a <= b, a >= b, by Python's rules.
Result<bool> CompareOrder(const Value& a, const Value& b, bool greater, bool or_equal);

enum class BinaryOp : uint8_t { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
Result<Value> Binary(Runtime& runtime, BinaryOp op, const Value& a, const Value& b);
Result<Value> Negate(const Value& value, bool minus);

// "text" % arguments (a tuple, a dict or one value) and "text".format(...): text/jinja_format.cc.
Result<Value> FormatPercent(Runtime& runtime, const Value& format, const Value& arguments);
Result<Value> FormatBraces(Runtime& runtime, const Value& format, const Arguments& arguments);

// time.strftime in UTC, in the C locale.
Result<std::string> FormatTime(std::string_view format, int64_t wall_seconds);

using Filter = Result<Value> (*)(Runtime&, const Value& input, const Arguments&);
using Test = Result<bool> (*)(Runtime&, const Value& input, const Arguments&);
using Function = Result<Value> (*)(Runtime&, const Arguments&);
using Method = Result<Value> (*)(Runtime&, const Value& self, const Arguments&);
// nullptr: no such name.
Filter FindFilter(std::string_view name);
Test FindTest(std::string_view name);
Function FindFunction(std::string_view name);  // the globals: range, dict, namespace, ...
Method FindStringMethod(std::string_view name);
Method FindContainerMethod(const Value& self, std::string_view name);

struct FunctionObject : Object {
  std::string name;
  Function call = nullptr;
};
struct MethodObject : Object {
  std::string name;
  Value self;
  Method call = nullptr;
};
struct CyclerObject : Object {
  std::vector<Value> items;
  size_t position = 0;
};
struct JoinerObject : Object {
  Value separator;
  bool used = false;
};

}  // namespace ekiben::text::jinja
