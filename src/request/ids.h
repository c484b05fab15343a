// Strong integer types, so that a slot is never passed where a block is wanted. An index is not a count.
#pragma once
#include <fmt/format.h>

#include <compare>
#include <cstdint>
#include <functional>

namespace ekiben {

template <class Tag, class Int>
struct StrongId {
  Int value{};
  // clang-tidy 14 takes the zero that `a < b` compares its result with for a pointer.
  constexpr auto operator<=>(const StrongId&) const = default;  // NOLINT(modernize-use-nullptr)
};

using RequestId = StrongId<struct RequestTag, uint64_t>;    // one per client request, never reused in a process
using SequenceId = StrongId<struct SequenceTag, uint64_t>;  // one per generated stream, never reused in a process
using SlotId = StrongId<struct SlotTag, int32_t>;    // 0..max_batch_size-1, held from admission to end, then reused
using BlockId = StrongId<struct BlockTag, int32_t>;  // index into the KV pool
using TokenId = int32_t;                             // arithmetic is done on these: a plain integer

}  // namespace ekiben

template <class Tag, class Int>
struct std::hash<ekiben::StrongId<Tag, Int>> {
  size_t operator()(ekiben::StrongId<Tag, Int> id) const { return std::hash<Int>()(id.value); }
};

template <class Tag, class Int>
struct fmt::formatter<ekiben::StrongId<Tag, Int>> : fmt::formatter<Int> {
  template <class Context>
  auto format(ekiben::StrongId<Tag, Int> id, Context& context) const {
    return fmt::formatter<Int>::format(id.value, context);
  }
};
