// Tests of device/: one file, because each piece is small.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>
#include <numeric>
#include <thread>
#include <vector>

#include "device/buffer.h"
#include "device/cpu_features.h"
#include "device/tensor_view.h"
#include "device/thread_pool.h"

namespace {
std::atomic<int64_t> allocations{0};
}

// Counts every allocation of this program, to prove that a job makes none.
[[gnu::noinline]] void* operator new(size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept {
  std::free(p);
}

namespace ekiben {
namespace {

TEST(Buffer, IsZeroedAndAlignedAtEverySize) {
  for (size_t bytes : {size_t{1}, size_t{64}, size_t{100}, size_t{4096}, (size_t{2} << 20) - 1, size_t{2} << 20,
                       (size_t{5} << 20) + 7}) {
    Buffer b(bytes);
    ASSERT_EQ(b.size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 64, 0u);
    EXPECT_EQ(std::accumulate(b.as<uint8_t>(), b.as<uint8_t>() + bytes, uint64_t{0}), 0u);
    b.as<uint8_t>()[bytes - 1] = 7;
  }
}

TEST(Buffer, MovesItsMemory) {
  Buffer a(100), empty;
  std::byte* data = a.data();
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  empty = std::move(b);
  EXPECT_EQ(empty.data(), data);
  EXPECT_EQ(Buffer(0).data(), nullptr);
}

TEST(Arena, TakesAlignedAndRewinds) {
  Arena arena(1024);
  float* a = arena.Take<float>(3);
  size_t mark = arena.Mark();
  int8_t* b = arena.Take<int8_t>(65);
  EXPECT_EQ(reinterpret_cast<std::byte*>(b) - reinterpret_cast<std::byte*>(a), 64);
  arena.Rewind(mark);
  EXPECT_EQ(arena.Take<int8_t>(1), b);
  EXPECT_EQ(arena.peak(), 64u + 128u);
}

TEST(ArenaDeathTest, OverflowIsOurBug) {
  Arena arena(64);
  EXPECT_DEATH(arena.Take<float>(17), "128 vs 64");
}

TEST(TensorView, StridesAreContiguous) {
  float data[24] = {};
  TensorView v(data, DType::kF32, {2, 3, 4});
  EXPECT_EQ(v.stride[0], 12);
  EXPECT_EQ(v.stride[1], 4);
  EXPECT_EQ(v.stride[2], 1);
  EXPECT_EQ(v.elements(), 24);
  EXPECT_EQ(v.row<float>(1), data + 12);
}

TEST(CpuFeatures, IsaIsWithinTheHardware) {
  const CpuFeatures& f = DetectCpuFeatures();
  EXPECT_TRUE(BestIsa() < Isa::kAvx2 || (f.avx2 && f.fma));
  EXPECT_TRUE(BestIsa() < Isa::kAvx512 || (f.avx512f && f.avx512_vnni && f.avx512_bf16));
#if defined(__x86_64__)
  EXPECT_EQ(f.avx2, static_cast<bool>(__builtin_cpu_supports("avx2")));
  EXPECT_EQ(f.avx512_vnni, static_cast<bool>(__builtin_cpu_supports("avx512vnni")));
  EXPECT_EQ(f.avx512_bf16, static_cast<bool>(__builtin_cpu_supports("avx512bf16")));
#endif
  EXPECT_NE(DescribeCpu().find(Name(BestIsa())), std::string::npos);
}

TEST(ThreadPool, RunsEveryMemberOnceEachTime) {
  for (int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    std::vector<int64_t> counts(static_cast<size_t>(threads), 0);
    for (int i = 0; i < 2000; ++i) pool.Run([&](int member) { ++counts[static_cast<size_t>(member)]; });
    for (int64_t count : counts) EXPECT_EQ(count, 2000);
  }
}

TEST(ThreadPool, ParallelForCoversEveryIndexOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 7, 64, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
      pool.ParallelFor(count, 3, [&](int64_t begin, int64_t end, int member) {
        ASSERT_LT(member, threads);
        for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
      });
      for (auto& hit : hits) EXPECT_EQ(hit, 1);
      pool.ParallelStreams(count, 4, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
      });
      for (auto& hit : hits) EXPECT_EQ(hit, 2);
    }
  }
}

TEST(ThreadPool, AMemberThatIsDoneHelpsTheOthers) {
  ThreadPool pool(2);
  std::atomic<int64_t> done{0};
  pool.ParallelStreams(100, 1, [&](int64_t begin, int64_t, int) {
    // Whoever takes the first piece waits until all others are done: impossible unless its share is taken over.
    while (begin == 0 && done.load() != 99) std::this_thread::yield();
    ++done;
  });
  EXPECT_EQ(done, 100);
}

TEST(ThreadPool, WakesMembersThatSleep) {
  ThreadPool pool(2);
  std::atomic<int> ran{0};
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // past the spin
    pool.Run([&](int) { ++ran; });
  }
  EXPECT_EQ(ran, 40);
}

TEST(ThreadPool, CallerSleepsForASlowMember) {
  ThreadPool pool(2);
  std::atomic<bool> done{false};
  pool.Run([&](int member) {
    if (member == 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    done = true;
  });
  EXPECT_TRUE(done);
}

TEST(ThreadPool, RunAllocatesNothing) {
  ThreadPool pool(2);
  std::atomic<int64_t> sum{0};
  pool.Run([&](int) { ++sum; });
  int64_t before = allocations.load();
  for (int i = 0; i < 100; ++i) {
    pool.Run([&](int) { ++sum; });
    pool.ParallelFor(100, 10, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
  }
  EXPECT_EQ(allocations.load() - before, 0);
  EXPECT_EQ(sum, 2 + 200 + 10000);
}

// Prints what a fork-join costs; asserts only that it is no disaster, because the machine is shared.
TEST(ThreadPool, ForkJoinCost) {
  ThreadPool pool(2);
  double best_ns = 1e9;
  for (int round = 0; round < 1000; ++round) {
    auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 20; ++i) pool.Run([](int) {});
    std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    best_ns = std::min(best_ns, took.count() / 20);
  }
  std::printf("fork-join of 2 threads: %.0f ns\n", best_ns);
  EXPECT_LT(best_ns, 1e6);
}

}  // namespace
}  // namespace ekiben
