// Bugs that the simulation plants on purpose, to prove that it would find them. In the product Planted() is a constant
// false and the branch is gone; only the simulation's own build of these sources (EKIBEN_PLANTED_BUGS) has the switch.
#pragma once
#include <cstdint>

namespace ekiben {

enum class PlantedBug : uint8_t {
  kNone,
  kLeak,            // a cancelled sequence forgets one block
  kDoubleFree,      // a paused sequence's last block is released twice
  kStalePrefix,     // a partial prefix match claims one token more than agree
  kBudgetOffByOne,  // the step's token budget is one too large
  kLostCancel,      // a cancel of a request that has not started is forgotten
  kEarlyRelease,    // an ended sequence's blocks return while a step in flight still names them
};

#ifdef EKIBEN_PLANTED_BUGS
inline PlantedBug planted_bug = PlantedBug::kNone;
inline bool Planted(PlantedBug bug) {
  return planted_bug == bug;
}
#else
constexpr bool Planted(PlantedBug) {
  return false;
}
#endif

}  // namespace ekiben
