// The pieces of the filter table, one file each, and what they share.
// Thread: pure but for the render's budget.
#pragma once
#include "text/jinja_runtime.h"

namespace ekiben::text::jinja {

Filter FindTextFilter(std::string_view name);      // text/jinja_text_filters.cc
Filter FindNumberFilter(std::string_view name);    // text/jinja_number_filters.cc: also tojson, default, length
Filter FindSequenceFilter(std::string_view name);  // text/jinja_sequence_filters.cc
Filter FindLazyFilter(std::string_view name);  // text/jinja_lazy_filters.cc: what yields items as they are asked for

// "a.b.0" applied to an item, as attribute= of many filters is; null: the item itself.
class AttributePath {
 public:
  static Result<AttributePath> Parse(const Value* attribute);
  Result<Value> Get(Runtime& runtime, const Value& item, const Value* fallback = nullptr) const;

 private:
  std::vector<Value> parts_;
};

// Strings in lower case where case does not matter; anything else as it is.
Result<Value> SortKey(Runtime& runtime, const Value& value, bool case_sensitive);
// Python's sorted() by `keys`, stable both ways: the positions in order.
Result<std::vector<size_t>> SortedOrder(Runtime& runtime, const std::vector<Value>& keys, bool reverse);

}  // namespace ekiben::text::jinja
