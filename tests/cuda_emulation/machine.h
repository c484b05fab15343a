// A CUDA device in plain C++, for tests on machines without one: runs the kernels of src/ops/*.cu, compiled by the host
// compiler over include/, and finds wrong indices, layouts, counts and meetings that never happen. It says nothing
// about speed, and nothing about races: copies arrive at once and threads take turns.
//
// A CUDA thread is a fiber. The CTAs of one cluster run together, clusters one after the other; a fiber runs until it
// must wait for others. Collective instructions meet: each thread leaves what it brings, the last one computes for all.
// When every fiber waits and nothing moves, the process aborts and says so. x86-64 only. Thread: one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace ekiben::emulation {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
};

struct Grid {
  Dim ctas, cluster, threads;
  size_t dynamic_shared = 0;
};

// Runs a kernel to its end. `body` is called once by each thread.
void RunGrid(const Grid& grid, const std::function<void()>& body);

// --- For instructions: of the thread that calls ---

void Yield();
// Something happened that a waiting thread may have waited for.
void Moved();

// All of a warp's 32 threads, or of a warpgroup's 128, bring a pointer; the last to come calls `together` with all.
using Together = void (*)(void* const* brought);
void MeetWarp(void* mine, Together together);
void MeetWarpgroup(void* mine, Together together);
void MeetCta();                            // those that have not ended
void MeetNamed(int barrier, int threads);  // the first `threads` that come
uint32_t ClusterRank();
uint32_t ClusterSize();
void ClusterArrive();
void ClusterWait();

// Shared memory by 32-bit address, in the caller's CTA or in that of its cluster with this rank. Checked.
uint32_t SharedAddress(const void* pointer);
std::byte* Shared(uint32_t address, size_t bytes);
std::byte* SharedOf(uint32_t rank, uint32_t address, size_t bytes);
std::byte* DynamicShared();

}  // namespace ekiben::emulation
