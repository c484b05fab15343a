// Proves that stepping allocates nothing: a test program that replaces operator new gives its per-thread counter here,
// and the loop adds what each step allocated to ExecutorStats::allocations_in_steps. Without a counter: always 0.
#pragma once
#include <atomic>
#include <cstdint>

namespace ekiben {

// Allocations of the calling thread since it began.
inline std::atomic<uint64_t (*)()> thread_allocation_counter{nullptr};

inline uint64_t ThreadAllocations() {
  uint64_t (*counter)() = thread_allocation_counter.load(std::memory_order_relaxed);
  return counter == nullptr ? 0 : counter();
}

}  // namespace ekiben
