#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "base/json.h"
#include "text/grammar.h"

namespace ekiben::text {
namespace {

Error TooMuch(const GrammarSpec& spec, const std::string& what) {
  return Error(Code::kInvalid, spec.field + ": " + what, spec.field);
}

// Of a pattern in regular-expression or EBNF notation: the deepest bracket, and the largest product of the counts of
// {m,n} that can stand inside each other. Counts multiply along a path, so a group hands the largest product inside it
// to the repetition that follows it.
struct PatternCost {
  int depth = 0;
  int64_t repetitions = 1;
};

int64_t Saturated(int64_t a, int64_t b) {
  return a > (int64_t{1} << 40) / std::max<int64_t>(b, 1) ? int64_t{1} << 40 : a * b;
}

// The larger count of "{m}", "{m,}" or "{m,n}" at `at`, 0 when there is none; `at` is moved behind it.
int64_t CountAt(std::string_view text, size_t& at) {
  size_t i = at + 1;
  int64_t largest = 0, number = 0;
  for (; i < text.size() && text[i] != '}'; ++i) {
    if (text[i] >= '0' && text[i] <= '9')
      number = std::min<int64_t>(number * 10 + (text[i] - '0'), int64_t{1} << 40);
    else if (text[i] == ',' || text[i] == ' ')
      number = 0;
    else
      return 0;
    largest = std::max(largest, number);
  }
  if (i == text.size()) return 0;
  at = i;
  return std::max<int64_t>(largest, 1);
}

PatternCost CostOf(std::string_view pattern) {
  PatternCost cost;
  std::vector<int64_t> inside = {1};  // per open group: the largest product so far
  int64_t last = 1;                   // of the item that a repetition would apply to
  for (size_t i = 0; i < pattern.size(); ++i) {
    char c = pattern[i];
    if (c == '\\') {
      ++i;
      last = 1;
    } else if (c == '(') {
      inside.push_back(1);
      cost.depth = std::max(cost.depth, static_cast<int>(inside.size()) - 1);
      if (cost.depth > 4096) return cost;  // over any limit
    } else if (c == ')' && inside.size() > 1) {
      last = inside.back();
      inside.pop_back();
      inside.back() = std::max(inside.back(), last);
    } else if (c == '{') {
      int64_t count = CountAt(pattern, i);
      last = Saturated(last, std::max<int64_t>(count, 1));
      inside.back() = std::max(inside.back(), last);
      cost.repetitions = std::max(cost.repetitions, last);
    } else if (c != '?' && c != '+' && c != '*') {
      last = 1;
    }
  }
  return cost;
}

Result<int64_t> CheckPattern(const GrammarSpec& spec, std::string_view pattern, const GrammarLimits& limits) {
  PatternCost cost = CostOf(pattern);
  if (cost.depth > limits.depth_max)
    return TooMuch(spec, fmt::format("groups {} deep, the limit is {}", cost.depth, limits.depth_max));
  if (cost.repetitions > limits.repetitions_max)
    return TooMuch(spec,
                   fmt::format("repetitions of {} in all, the limit is {}", cost.repetitions, limits.repetitions_max));
  return cost.repetitions;
}

bool IsCount(std::string_view key) {
  return key == "minLength" || key == "maxLength" || key == "minItems" || key == "maxItems" || key == "minProperties" ||
         key == "maxProperties" || key == "minContains" || key == "maxContains";
}

// Counts nest in a schema as they do in a pattern: arrays of arrays. `around`: the product so far; `sum`: of all.
Result<void> CheckSchemaValue(const GrammarSpec& spec, const json::value& value, int64_t around,
                              const GrammarLimits& limits, int64_t& sum) {
  if (value.is_array()) {
    for (const json::value& item : value.get_array())
      RETURN_IF_ERROR(CheckSchemaValue(spec, item, around, limits, sum));
    return {};
  }
  if (!value.is_object()) return {};
  int64_t here = around;
  for (const auto& [key, item] : value.get_object()) {
    if (IsCount(key) && item.is_number()) {
      double count = item.to_number<double>();
      if (!(count >= 0 && count <= static_cast<double>(limits.repetitions_max)))
        return TooMuch(
            spec, fmt::format("\"{}\": {} is outside [0, {}]", std::string_view(key), count, limits.repetitions_max));
      here = std::max(here, Saturated(around, static_cast<int64_t>(count)));
    }
    if (key == "pattern" && item.is_string()) {
      ASSIGN_OR_RETURN(int64_t repetitions, CheckPattern(spec, std::string_view(item.get_string()), limits));
      sum += repetitions;
    }
  }
  if (here > limits.repetitions_max)
    return TooMuch(spec, fmt::format("nested counts of {} in all, the limit is {}", here, limits.repetitions_max));
  if (here > around) sum += here;
  if (sum > limits.repetitions_sum_max)
    return TooMuch(spec,
                   fmt::format("counts and patterns of over {} repetitions together", limits.repetitions_sum_max));
  for (const auto& [key, item] : value.get_object()) RETURN_IF_ERROR(CheckSchemaValue(spec, item, here, limits, sum));
  return {};
}

}  // namespace

Result<void> CheckGrammar(const GrammarSpec& spec, const GrammarLimits& limits) {
  size_t bytes = spec.source.size();
  for (const std::string& choice : spec.choices) bytes += choice.size();
  if (bytes > limits.source_bytes_max)
    return TooMuch(spec, fmt::format("{} bytes, the limit is {}", bytes, limits.source_bytes_max));
  switch (spec.kind) {
    case GrammarSpec::Kind::kJsonObject: return {};
    case GrammarSpec::Kind::kJsonSchema: {
      auto schema = ParseJson(spec.source, {.depth_max = static_cast<size_t>(limits.depth_max)});
      if (!schema.ok()) return TooMuch(spec, "the schema: " + schema.error().message());
      if (!schema->is_object() && !schema->is_bool()) return TooMuch(spec, "a schema is an object");
      int64_t sum = 0;
      return CheckSchemaValue(spec, *schema, 1, limits, sum);
    }
    case GrammarSpec::Kind::kRegex:
    case GrammarSpec::Kind::kEbnf:
      if (spec.source.empty()) return TooMuch(spec, "an empty string");
      RETURN_IF_ERROR(CheckPattern(spec, spec.source, limits));
      return {};
    case GrammarSpec::Kind::kChoice:
      if (spec.choices.empty()) return TooMuch(spec, "an empty array; give at least one choice");
      if (spec.choices.size() > limits.choices_max)
        return TooMuch(spec, fmt::format("{} choices, the limit is {}", spec.choices.size(), limits.choices_max));
      return {};
  }
  return {};
}

}  // namespace ekiben::text
