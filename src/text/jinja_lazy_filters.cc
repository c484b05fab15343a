// Filters that are generators in jinja2: an error in one item is raised only when that item is reached, and not at all
// when nobody asks. Filters have no effects, so items are made at once here and the error is kept for its place.
#include <algorithm>
#include <unordered_map>

#include "text/jinja_filters.h"

namespace ekiben::text::jinja {
namespace {

using V = const Value&;
using A = const Arguments&;

// Runs make(items) -> Result<void>, which appends to items until it fails.
template <class Make>
Result<Value> Generate(Make make) {
  std::vector<Value> items;
  Result<void> made = make(items);
  if (made.ok()) return MakeIterator(std::move(items));
  return MakeIterator(std::move(items), std::move(made).error());
}

// Calls visit(item) for each item of `input`, and ends with the error that the iteration ends with.
template <class Visit>
Result<void> Each(Runtime& runtime, V input, Visit visit) {
  ASSIGN_OR_RETURN(Runtime::Items items, runtime.Iterate(input));
  for (const Value& item : items.values) {
    RETURN_IF_ERROR(runtime.Charge(1));
    RETURN_IF_ERROR(visit(item));
  }
  if (items.error.has_value()) return *std::move(items.error);
  return {};
}

Result<Value> Items(Runtime& runtime, V input, A arguments) {
  RETURN_IF_ERROR(Bind("items", arguments, {}, 0));
  return Generate([&](std::vector<Value>& out) -> Result<void> {
    if (input.Is(Kind::kUndefined)) return {};
    if (!input.Is(Kind::kDict)) return TypeProblem("Can only get item pairs from a mapping.");
    for (const auto& [key, value] : input.dict().entries) {
      ASSIGN_OR_RETURN(Value pair, runtime.Sequence(Kind::kTuple, {key, value}));
      pair.object()->untrusted = input.object()->untrusted;
      out.push_back(std::move(pair));
    }
    return {};
  });
}

struct Selection {
  bool reject = false, by_attribute = false;
};

Result<void> Select(Runtime& runtime, V input, A arguments, Selection selection, std::vector<Value>& out) {
  if (!Truth(input)) return {};
  size_t used = 0;
  AttributePath path;
  if (selection.by_attribute) {
    if (arguments.positional.empty()) return TypeProblem("Missing parameter for attribute name");
    ASSIGN_OR_RETURN(path, AttributePath::Parse(&arguments.positional[used++]));
  }
  Test test = nullptr;
  Arguments rest;
  if (used < arguments.positional.size()) {
    const Value& name = arguments.positional[used++];
    if (name.Is(Kind::kString)) test = FindTest(name.text().view());
    if (test == nullptr)
      return TypeProblem(fmt::format("No test named {}.", name.Is(Kind::kString) ? name.text().bytes() : "so"));
    rest.positional.assign(arguments.positional.begin() + used, arguments.positional.end());
    rest.keyword = arguments.keyword;
  }
  return Each(runtime, input, [&](const Value& item) -> Result<void> {
    ASSIGN_OR_RETURN(Value subject, path.Get(runtime, item));
    bool chosen = Truth(subject);
    if (test != nullptr) {
      ASSIGN_OR_RETURN(chosen, test(runtime, subject, rest));
    }
    if (chosen != selection.reject) out.push_back(item);
    return {};
  });
}

template <bool kReject, bool kByAttribute>
Result<Value> SelectFilter(Runtime& runtime, V input, A arguments) {
  return Generate([&](std::vector<Value>& out) {
    return Select(runtime, input, arguments, {kReject, kByAttribute}, out);
  });
}

Result<void> MapAttribute(Runtime& runtime, V input, A arguments, std::vector<Value>& out) {
  const Value* attribute = nullptr;
  const Value* fallback = nullptr;
  for (const auto& [name, value] : arguments.keyword) {
    if (name == "attribute")
      attribute = &value;
    else if (name == "default")
      fallback = value.Is(Kind::kNone) ? nullptr : &value;
    else
      return TypeProblem(fmt::format("Unexpected keyword argument '{}'", name));
  }
  ASSIGN_OR_RETURN(AttributePath path, AttributePath::Parse(attribute));
  return Each(runtime, input, [&](const Value& item) -> Result<void> {
    ASSIGN_OR_RETURN(Value value, path.Get(runtime, item, fallback));
    out.push_back(std::move(value));
    return {};
  });
}

Result<void> MapItems(Runtime& runtime, V input, A arguments, std::vector<Value>& out) {
  if (!Truth(input)) return {};
  bool by_attribute = std::any_of(arguments.keyword.begin(), arguments.keyword.end(),
                                  [](const auto& entry) { return entry.first == "attribute"; });
  if (arguments.positional.empty() && by_attribute) return MapAttribute(runtime, input, arguments, out);
  if (arguments.positional.empty()) return TypeProblem("map requires a filter argument");
  const Value& name = arguments.positional[0];
  Filter filter = name.Is(Kind::kString) ? FindFilter(name.text().view()) : nullptr;
  if (filter == nullptr) return TypeProblem("map: no such filter");
  Arguments rest;
  rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
  rest.keyword = arguments.keyword;
  return Each(runtime, input, [&](const Value& item) -> Result<void> {
    ASSIGN_OR_RETURN(Value value, filter(runtime, item, rest));
    out.push_back(std::move(value));
    return {};
  });
}

Result<Value> Map(Runtime& runtime, V input, A arguments) {
  // A map over maps nests one filter in the other; no template needs it, and it would evade the depth limit.
  if (!arguments.positional.empty() && arguments.positional[0].Is(Kind::kString) &&
      arguments.positional[0].text().view() == "map" && arguments.positional.size() > 1 &&
      arguments.positional[1].Is(Kind::kString) && arguments.positional[1].text().view() == "map")
    return TypeProblem("map of map of map is not supported");
  return Generate([&](std::vector<Value>& out) { return MapItems(runtime, input, arguments, out); });
}

Result<Value> Unique(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("unique", arguments, {"case_sensitive", "attribute"}, 0));
  bool case_sensitive = bound[0] != nullptr && Truth(*bound[0]);
  return Generate([&](std::vector<Value>& out) -> Result<void> {
    ASSIGN_OR_RETURN(AttributePath path, AttributePath::Parse(bound[1]));
    DictObject seen;
    return Each(runtime, input, [&](const Value& item) -> Result<void> {
      ASSIGN_OR_RETURN(Value key, path.Get(runtime, item));
      ASSIGN_OR_RETURN(key, SortKey(runtime, key, case_sensitive));
      if (!Hashable(key)) return TypeProblem(fmt::format("unhashable type: '{}'", TypeName(key)));
      RETURN_IF_ERROR(runtime.Charge(key.weight()));
      if (seen.Find(key) != nullptr) return {};
      seen.Set(std::move(key), Value::None());
      out.push_back(item);
      return {};
    });
  });
}

Result<Value> Batch(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("batch", arguments, {"linecount", "fill_with"}, 1));
  const Value* fill = bound[1] != nullptr && !bound[1]->Is(Kind::kNone) ? bound[1] : nullptr;
  return Generate([&](std::vector<Value>& out) -> Result<void> {
    ASSIGN_OR_RETURN(Integer size, AsIndex(*bound[0], "batch"));
    std::vector<Value> row;
    auto flush = [&]() -> Result<void> {
      ASSIGN_OR_RETURN(Value list, runtime.List(std::exchange(row, {})));
      out.push_back(std::move(list));
      return {};
    };
    RETURN_IF_ERROR(Each(runtime, input, [&](const Value& item) -> Result<void> {
      if (static_cast<Integer>(row.size()) == size) RETURN_IF_ERROR(flush());
      row.push_back(item);
      return {};
    }));
    if (row.empty()) return {};
    while (fill != nullptr && static_cast<Integer>(row.size()) < size) {
      RETURN_IF_ERROR(runtime.Charge(1));
      row.push_back(*fill);
    }
    return flush();
  });
}

Result<Value> Slice(Runtime& runtime, V input, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("slice", arguments, {"slices", "fill_with"}, 1));
  const Value* fill = bound[1] != nullptr && !bound[1]->Is(Kind::kNone) ? bound[1] : nullptr;
  return Generate([&](std::vector<Value>& out) -> Result<void> {
    ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(input));
    ASSIGN_OR_RETURN(Integer slices, AsIndex(*bound[0], "slice"));
    if (slices == 0) return TypeProblem("division by zero");
    if (slices < 0) return {};
    Integer length = static_cast<Integer>(items.size()), each = length / slices, extra = length % slices, at = 0;
    for (Integer number = 0; number < slices; ++number) {
      RETURN_IF_ERROR(runtime.Charge(1));
      std::vector<Value> column;
      for (Integer end = at + each + (number < extra ? 1 : 0); at < end; ++at)
        column.push_back(items[static_cast<size_t>(at)]);
      if (fill != nullptr && number >= extra) column.push_back(*fill);
      ASSIGN_OR_RETURN(Value list, runtime.List(std::move(column)));
      out.push_back(std::move(list));
    }
    return {};
  });
}

}  // namespace

Filter FindLazyFilter(std::string_view name) {
  static const std::unordered_map<std::string_view, Filter> kFilters = {
      {"items", Items},
      {"select", SelectFilter<false, false>},
      {"reject", SelectFilter<true, false>},
      {"selectattr", SelectFilter<false, true>},
      {"rejectattr", SelectFilter<true, true>},
      {"map", Map},
      {"unique", Unique},
      {"batch", Batch},
      {"slice", Slice},
  };
  auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

Filter FindFilter(std::string_view name) {
  for (auto find : {FindTextFilter, FindNumberFilter, FindSequenceFilter, FindLazyFilter})
    if (Filter filter = find(name)) return filter;
  return nullptr;
}

}  // namespace ekiben::text::jinja
