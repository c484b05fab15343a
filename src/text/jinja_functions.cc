// The functions that a template finds by name.
#include <unordered_map>

#include "text/jinja_print.h"
#include "text/jinja_runtime.h"

namespace ekiben::text::jinja {
namespace {

using A = const Arguments&;

constexpr Integer kRangeMax = 100'000;  // jinja2's sandbox has the same limit

Result<Value> Range(Runtime&, A arguments) {
  size_t count = arguments.positional.size();
  if (count < 1 || count > 3 || !arguments.keyword.empty()) return TypeProblem("range takes 1 to 3 integers");
  Integer parts[3] = {0, 0, 1};
  for (size_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(parts[i], AsIndex(arguments.positional[i], "range"));
    if (parts[i] > kWeightMax || -parts[i] > kWeightMax) return TypeProblem("range: a bound is over the limit");
  }
  if (count == 1) std::swap(parts[0], parts[1]);
  if (parts[2] == 0) return TypeProblem("range() arg 3 must not be zero");
  auto range = std::make_shared<RangeObject>();
  range->start = parts[0];
  range->stop = parts[1];
  range->step = parts[2];
  if (range->Count() > kRangeMax) return TypeProblem("Range too big: the limit is 100000 items");
  range->weight = static_cast<uint64_t>(1 + range->Count());
  return Value::Of(Kind::kRange, std::move(range));
}

// dict(mapping or pairs, **keyword), for dict and for namespace.
Result<std::shared_ptr<DictObject>> BuildDict(Runtime& runtime, A arguments) {
  auto dict = std::make_shared<DictObject>();
  if (arguments.positional.size() > 1) return TypeProblem("dict expected at most 1 argument");
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(source));
    for (size_t i = 0; i < items.size(); ++i) {
      if (source.Is(Kind::kDict)) {
        dict->Set(items[i], source.dict().entries[i].second);
        continue;
      }
      ASSIGN_OR_RETURN(std::vector<Value> pair, runtime.IterateAll(items[i]));
      if (pair.size() != 2) return TypeProblem("dictionary update sequence elements have length 2");
      if (!Hashable(pair[0])) return TypeProblem(fmt::format("unhashable type: '{}'", TypeName(pair[0])));
      dict->Set(pair[0], pair[1]);
    }
  }
  for (const auto& [name, value] : arguments.keyword) dict->Set(Value::String(name), value);
  return dict;
}

Result<Value> Dict(Runtime& runtime, A arguments) {
  ASSIGN_OR_RETURN(std::shared_ptr<DictObject> dict, BuildDict(runtime, arguments));
  return runtime.Dict(std::move(dict));
}

Result<Value> Namespace(Runtime& runtime, A arguments) {
  ASSIGN_OR_RETURN(std::shared_ptr<DictObject> dict, BuildDict(runtime, arguments));
  RETURN_IF_ERROR(runtime.Charge(1 + dict->entries.size()));
  auto object = std::make_shared<NamespaceObject>();
  for (const auto& [key, value] : dict->entries) {
    // Any other key could not be read back.
    if (key.Is(Kind::kString)) object->Set(key.text().view(), value);
  }
  return runtime.Namespace(std::move(object));
}

Result<Value> Cycler(Runtime& runtime, A arguments) {
  if (arguments.positional.empty() || !arguments.keyword.empty())
    return TypeProblem("cycler: at least one item has to be provided");
  ASSIGN_OR_RETURN(Value items, runtime.List(arguments.positional));
  auto cycler = std::make_shared<CyclerObject>();
  cycler->depth = static_cast<uint16_t>(items.depth());
  cycler->items = items.items();
  return Value::Of(Kind::kCycler, std::move(cycler));
}

Result<Value> Joiner(Runtime&, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("joiner", arguments, {"sep"}, 0));
  auto joiner = std::make_shared<JoinerObject>();
  joiner->separator = bound[0] == nullptr ? Value::String(", ") : *bound[0];
  joiner->depth = static_cast<uint16_t>(joiner->separator.depth());
  return Value::Of(Kind::kJoiner, std::move(joiner));
}

// Ends the render with the template's own words, which are all that the user sees.
Result<Value> RaiseException(Runtime& runtime, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("raise_exception", arguments, {"message"}, 1));
  ASSIGN_OR_RETURN(Text message, Str(runtime, *bound[0]));
  return Error(Code::kInvalid, message.bytes(), "messages");
}

Result<Value> StrftimeNow(Runtime& runtime, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("strftime_now", arguments, {"format"}, 1));
  ASSIGN_OR_RETURN(const Text* format, AsText(*bound[0], "strftime_now"));
  RETURN_IF_ERROR(runtime.Charge(100 + format->size()));
  ASSIGN_OR_RETURN(std::string text, FormatTime(format->view(), runtime.wall_seconds()));
  return runtime.String(Text(std::move(text), format->trusted()));
}

}  // namespace

Function FindFunction(std::string_view name) {
  static const std::unordered_map<std::string_view, Function> kFunctions = {
      {"range", Range},
      {"dict", Dict},
      {"namespace", Namespace},
      {"cycler", Cycler},
      {"joiner", Joiner},
      {"raise_exception", RaiseException},
      {"strftime_now", StrftimeNow},
  };
  auto found = kFunctions.find(name);
  return found == kFunctions.end() ? nullptr : found->second;
}

}  // namespace ekiben::text::jinja
