#include <algorithm>
#include <unordered_map>

#include "text/jinja_filters.h"
#include "text/jinja_print.h"
#include "text/jinja_unicode.h"

namespace ekiben::text::jinja {
namespace {

using V = const Value&;
using A = const Arguments&;

bool Flag(const Value* value) {
  return value != nullptr && Truth(*value);
}

Result<Value> First(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("first", arguments, {}, 0));
  if (input.Is(Kind::kIterator)) {  // takes one, leaves the rest
    auto& iterator = input.As<IteratorObject>();
    if (iterator.next < iterator.items.size()) return iterator.items[iterator.next++];
  }
  ASSIGN_OR_RETURN(Runtime::Items items, runtime.Iterate(input));
  if (!items.values.empty()) return items.values.front();
  if (items.error.has_value()) return *std::move(items.error);
  return Value::Undefined("No first item, sequence was empty.");
}

Result<Value> Last(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("last", arguments, {}, 0));
  if (input.Is(Kind::kIterator)) return TypeProblem("'generator' object is not reversible");
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(input));
  return items.empty() ? Value::Undefined("No last item, sequence was empty.") : items.back();
}

Result<Value> ListFilter(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("list", arguments, {}, 0));
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(input));
  return runtime.List(std::move(items));
}

Result<Value> Reverse(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("reverse", arguments, {}, 0));
  if (input.Is(Kind::kString)) return GetSlice(runtime, input, Value::None(), Value::None(), Value::Int(-1));
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(input));
  std::reverse(items.begin(), items.end());
  if (input.Is(Kind::kIterator)) return runtime.List(std::move(items));
  return MakeIterator(std::move(items));
}

Result<Value> DictSort(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("dictsort", arguments, {"case_sensitive", "by", "reverse"}, 0));
  bool by_value = false;
  if (bound[1] != nullptr) {
    ASSIGN_OR_RETURN(const Text* by, AsText(*bound[1], "dictsort"));
    if (by->view() != "key" && by->view() != "value")
      return TypeProblem("You can only sort by either \"key\" or \"value\"");
    by_value = by->view() == "value";
  }
  if (!input.Is(Kind::kDict)) return TypeProblem(fmt::format("dictsort: a dict is wanted, got '{}'", TypeName(input)));
  std::vector<Value> keys;
  for (const auto& [key, value] : input.dict().entries) {
    ASSIGN_OR_RETURN(Value sort_key, SortKey(runtime, by_value ? value : key, Flag(bound[0])));
    keys.push_back(std::move(sort_key));
  }
  ASSIGN_OR_RETURN(std::vector<size_t> order, SortedOrder(runtime, keys, Flag(bound[2])));
  std::vector<Value> pairs;
  for (size_t i : order) {
    const auto& [key, value] = input.dict().entries[i];
    ASSIGN_OR_RETURN(Value pair, runtime.Sequence(Kind::kTuple, {key, value}));
    pairs.push_back(std::move(pair));
  }
  return runtime.List(std::move(pairs));
}

// "a,b.c": several paths; the key is the list of what they find.
Result<std::vector<AttributePath>> ParsePaths(Runtime& runtime, const Value* attribute) {
  std::vector<AttributePath> paths;
  if (attribute == nullptr || !attribute->Is(Kind::kString)) {
    ASSIGN_OR_RETURN(AttributePath path, AttributePath::Parse(attribute));
    paths.push_back(std::move(path));
    return paths;
  }
  std::string_view rest = attribute->text().view();
  while (true) {
    RETURN_IF_ERROR(runtime.Charge(1));
    size_t comma = std::min(rest.find(','), rest.size());
    Value part = Value::String(rest.substr(0, comma));
    ASSIGN_OR_RETURN(AttributePath path, AttributePath::Parse(&part));
    paths.push_back(std::move(path));
    if (comma == rest.size()) return paths;
    rest.remove_prefix(comma + 1);
  }
}

Result<Value> Sort(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("sort", arguments, {"reverse", "case_sensitive", "attribute"}, 0));
  ASSIGN_OR_RETURN(std::vector<AttributePath> paths, ParsePaths(runtime, bound[2]));
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(input));
  std::vector<Value> keys;
  for (const Value& item : items) {
    std::vector<Value> parts;
    for (const AttributePath& path : paths) {
      ASSIGN_OR_RETURN(Value part, path.Get(runtime, item));
      ASSIGN_OR_RETURN(part, SortKey(runtime, part, Flag(bound[1])));
      parts.push_back(std::move(part));
    }
    ASSIGN_OR_RETURN(Value key, runtime.List(std::move(parts)));
    keys.push_back(std::move(key));
  }
  ASSIGN_OR_RETURN(std::vector<size_t> order, SortedOrder(runtime, keys, Flag(bound[0])));
  std::vector<Value> sorted;
  for (size_t i : order) sorted.push_back(items[i]);
  return runtime.List(std::move(sorted));
}

Result<Value> Extreme(Runtime& runtime, V input, A arguments, bool largest) {
  ASSIGN_OR_RETURN(auto bound, Bind(largest ? "max" : "min", arguments, {"case_sensitive", "attribute"}, 0));
  ASSIGN_OR_RETURN(AttributePath path, AttributePath::Parse(bound[1]));
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(input));
  if (items.empty()) return Value::Undefined("No aggregated item, sequence was empty.");
  size_t best = 0;
  Value best_key;
  for (size_t i = 0; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(Value key, path.Get(runtime, items[i]));
    ASSIGN_OR_RETURN(key, SortKey(runtime, key, Flag(bound[0])));
    if (i > 0) {
      RETURN_IF_ERROR(runtime.Charge(std::min(key.weight(), best_key.weight())));
      ASSIGN_OR_RETURN(bool better, largest ? Less(best_key, key) : Less(key, best_key));
      if (!better) continue;
    }
    best = i;
    best_key = std::move(key);
  }
  return items[best];
}

Result<Value> Sum(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("sum", arguments, {"attribute", "start"}, 0));
  Value total = bound[1] == nullptr ? Value::Int(0) : *bound[1];
  if (total.Is(Kind::kString)) return TypeProblem("sum() can't sum strings [use ''.join(seq) instead]");
  const Value* attribute = bound[0] != nullptr && !bound[0]->Is(Kind::kNone) ? bound[0] : nullptr;
  ASSIGN_OR_RETURN(AttributePath path, AttributePath::Parse(attribute));
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(input));
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value part, path.Get(runtime, item));
    ASSIGN_OR_RETURN(total, Binary(runtime, BinaryOp::kAdd, total, part));
  }
  return total;
}

// attribute, default, case_sensitive: groups of equal keys, in order of key.
Result<Value> GroupBy(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("groupby", arguments, {"attribute", "default", "case_sensitive"}, 1));
  ASSIGN_OR_RETURN(AttributePath path, AttributePath::Parse(bound[0]));
  const Value* fallback = bound[1] != nullptr && !bound[1]->Is(Kind::kNone) ? bound[1] : nullptr;
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(input));
  std::vector<Value> keys;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value key, path.Get(runtime, item, fallback));
    ASSIGN_OR_RETURN(key, SortKey(runtime, key, Flag(bound[2])));
    keys.push_back(std::move(key));
  }
  ASSIGN_OR_RETURN(std::vector<size_t> order, SortedOrder(runtime, keys, false));
  std::vector<Value> groups;
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin;
    std::vector<Value> members;
    for (; end < order.size() && Equal(keys[order[begin]], keys[order[end]]); ++end)
      members.push_back(items[order[end]]);
    ASSIGN_OR_RETURN(Value grouper, path.Get(runtime, members.front(), fallback));
    ASSIGN_OR_RETURN(Value list, runtime.List(std::move(members)));
    ASSIGN_OR_RETURN(Value group, runtime.Sequence(Kind::kTuple, {std::move(grouper), std::move(list)}));
    group.As<SequenceObject>().group = true;
    groups.push_back(std::move(group));
    begin = end;
  }
  return runtime.List(std::move(groups));
}

}  // namespace

Result<AttributePath> AttributePath::Parse(const Value* attribute) {
  AttributePath path;
  if (attribute == nullptr || attribute->Is(Kind::kNone)) return path;
  if (!attribute->Is(Kind::kString)) {
    path.parts_.push_back(*attribute);
    return path;
  }
  std::string_view rest = attribute->text().view();
  while (true) {
    size_t dot = std::min(rest.find('.'), rest.size());
    std::string_view part = rest.substr(0, dot);
    bool number = !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == std::string_view::npos;
    Integer index = 0;
    for (char c : number ? part : "") index = index * 10 + (c - '0');
    path.parts_.push_back(number ? Value::Int(index) : Value::String(part));
    if (dot == rest.size()) return path;
    rest.remove_prefix(dot + 1);
  }
}

Result<Value> AttributePath::Get(Runtime& runtime, const Value& item, const Value* fallback) const {
  RETURN_IF_ERROR(runtime.Charge(1 + parts_.size()));
  Value value = item;
  for (const Value& part : parts_) {
    ASSIGN_OR_RETURN(value, GetItem(runtime, value, part));
    if (fallback != nullptr && value.Is(Kind::kUndefined)) value = *fallback;
  }
  return value;
}

Result<Value> SortKey(Runtime& runtime, const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.Is(Kind::kString)) return value;
  RETURN_IF_ERROR(runtime.ChargeBytes(value.text().size() * 4));
  return runtime.String(MapCase(value.text(), CaseMap::kLower));
}

Result<std::vector<size_t>> SortedOrder(Runtime& runtime, const std::vector<Value>& keys, bool reverse) {
  std::vector<size_t> order(keys.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::optional<Error> failed;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (failed.has_value()) return false;
    if (reverse) std::swap(a, b);
    Result<void> paid = runtime.Charge(std::min(keys[a].weight(), keys[b].weight()));
    if (!paid.ok()) return failed = paid.error(), false;
    Result<bool> less = Less(keys[a], keys[b]);
    if (!less.ok()) failed = less.error();
    return less.ok() && *less;
  });
  if (failed.has_value()) return *std::move(failed);
  return order;
}

Filter FindSequenceFilter(std::string_view name) {
  static const std::unordered_map<std::string_view, Filter> kFilters = {
      {"first", First},
      {"last", Last},
      {"list", ListFilter},
      {"reverse", Reverse},
      {"dictsort", DictSort},
      {"sort", Sort},
      {"min", [](Runtime& r, V v, A a) { return Extreme(r, v, a, false); }},
      {"max", [](Runtime& r, V v, A a) { return Extreme(r, v, a, true); }},
      {"sum", Sum},
      {"groupby", GroupBy},
  };
  auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace ekiben::text::jinja
