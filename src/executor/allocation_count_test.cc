// Replaces operator new in this test program by one that counts, a counter a thread; see executor/allocation_count.h.
// Not inlined: the compiler would see free() meet a pointer from new and warn.
#include "executor/allocation_count.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

namespace {
thread_local uint64_t allocations = 0;
}

[[gnu::noinline]] void* operator new(size_t size) {
  ++allocations;
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace ekiben {

uint64_t CountedAllocations();
uint64_t CountedAllocations() {
  return allocations;
}

namespace {

TEST(AllocationCount, CountsThisThreadOnly) {
  uint64_t before = CountedAllocations();
  std::vector<int> three(3);
  EXPECT_EQ(CountedAllocations(), before + 1);
  auto other = std::make_unique<std::thread>([] { std::vector<int> four(4); });
  other->join();
  EXPECT_LE(CountedAllocations(), before + 4);  // the thread object and what its start takes
}

}  // namespace
}  // namespace ekiben
