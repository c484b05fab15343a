#include "machine.h"

#include <cuda_runtime.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "base/check.h"

// Saves the callee's registers and the stack pointer into *from and goes on where `to` was saved.
extern "C" void EkibenSwitch(void** from, void* to);
asm(R"(
.text
.globl EkibenSwitch
.type EkibenSwitch, @function
EkibenSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

// Static __shared__ variables: one set at a time is in place, the others of a cluster are kept aside.
extern std::byte __start_ekiben_shared[] __attribute__((weak));
extern std::byte __stop_ekiben_shared[] __attribute__((weak));

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace ekiben::emulation {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr uint32_t kDynamicBase = 256, kStaticBase = 1 << 20;  // what rounding up to 1,024 must cope with

template <int kSize>
struct Meeting {
  void* brought[kSize] = {};
  int arrived = 0;
  uint64_t turn = 0;
};
struct Counter {
  int arrived = 0;
  uint64_t turn = 0;
};

struct Cta {
  uint3 index{};
  uint32_t rank = 0;
  std::byte* dynamic = nullptr;
  std::vector<std::byte> statics;
  int live = 0;
  Counter all, named[16];
  std::vector<Meeting<32>> warps;
  std::vector<Meeting<128>> groups;
};

struct Thread {
  void* stack_pointer = nullptr;
  Cta* cta = nullptr;
  uint3 index{};
  int number = 0;
  uint64_t cluster_turn = 0;
  bool done = false;
};

struct Machine {
  Grid grid;
  const std::function<void()>* body = nullptr;
  std::vector<std::unique_ptr<Cta>> ctas;  // of the cluster that runs
  std::vector<Thread> threads;
  std::vector<std::byte*> stacks;  // kept
  Counter cluster;
  Thread* current = nullptr;
  Cta* statics_of = nullptr;
  void* scheduler = nullptr;
  bool moved = false;
};
Machine machine;

size_t StaticBytes() {
  return static_cast<size_t>(__stop_ekiben_shared - __start_ekiben_shared);
}

void Enter() {
  (*machine.body)();
  Thread& me = *machine.current;
  me.done = true;
  --me.cta->live;
  Moved();
  EkibenSwitch(&me.stack_pointer, machine.scheduler);
  CHECK(false, "a finished thread ran on");
}

void Prepare(Thread& thread, std::byte* stack) {
  // What EkibenSwitch pops: six registers and where to return to; then the stack as at the start of a function.
  auto** top = reinterpret_cast<void**>(stack + kStackBytes - 64);
  top[6] = reinterpret_cast<void*>(&Enter);
  std::memset(top, 0, 6 * sizeof(void*));
  top[7] = nullptr;
  thread.stack_pointer = top;
}

void Resume(Thread& thread) {
  if (machine.statics_of != thread.cta) {
    if (machine.statics_of != nullptr && StaticBytes() > 0)
      std::memcpy(machine.statics_of->statics.data(), __start_ekiben_shared, StaticBytes());
    if (StaticBytes() > 0) std::memcpy(__start_ekiben_shared, thread.cta->statics.data(), StaticBytes());
    machine.statics_of = thread.cta;
  }
  machine.current = &thread;
  threadIdx = thread.index;
  blockIdx = thread.cta->index;
  EkibenSwitch(&machine.scheduler, thread.stack_pointer);
}

void RunCluster(Dim first) {
  const Grid& grid = machine.grid;
  auto threads = grid.threads.count();
  machine.ctas.clear();
  machine.threads.assign(grid.cluster.count() * threads, {});
  machine.cluster = {};
  machine.statics_of = nullptr;
  while (machine.stacks.size() < machine.threads.size()) {
    void* stack =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(stack != MAP_FAILED);
    machine.stacks.push_back(static_cast<std::byte*>(stack));
  }
  for (uint32_t rank = 0; rank < grid.cluster.count(); ++rank) {
    auto cta = std::make_unique<Cta>();
    cta->rank = rank;
    cta->index = {first.x + rank % grid.cluster.x, first.y + rank / grid.cluster.x % grid.cluster.y,
                  first.z + rank / (grid.cluster.x * grid.cluster.y)};
    // Every byte 0xFF: what was never written is no number.
    size_t bytes = (grid.dynamic_shared + 2047) / 1024 * 1024;
    cta->dynamic = static_cast<std::byte*>(std::aligned_alloc(1024, bytes));
    std::memset(cta->dynamic, 0xFF, bytes);
    cta->statics.assign(StaticBytes(), std::byte{0xFF});
    cta->live = static_cast<int>(threads);
    cta->warps.resize((threads + 31) / 32);
    cta->groups.resize((threads + 127) / 128);
    for (unsigned t = 0; t < threads; ++t) {
      Thread& thread = machine.threads[rank * threads + t];
      thread.cta = cta.get();
      thread.number = static_cast<int>(t);
      thread.index = {t % grid.threads.x, t / grid.threads.x % grid.threads.y, t / (grid.threads.x * grid.threads.y)};
      Prepare(thread, machine.stacks[rank * threads + t]);
    }
    machine.ctas.push_back(std::move(cta));
  }
  for (size_t done = 0; done < machine.threads.size();) {
    machine.moved = false;
    done = 0;
    for (Thread& thread : machine.threads) {
      if (!thread.done) Resume(thread);
      done += thread.done;
    }
    CHECK(machine.moved || done == machine.threads.size(), "a kernel hangs: {} of {} threads wait for ever",
          machine.threads.size() - done, machine.threads.size());
  }
  machine.current = nullptr;
  for (auto& cta : machine.ctas) std::free(cta->dynamic);
}

template <int kSize>
void Meet(Meeting<kSize>& meeting, int place, void* mine, Together together) {
  meeting.brought[place] = mine;
  if (++meeting.arrived == kSize) {
    if (together != nullptr) together(meeting.brought);
    meeting.arrived = 0;
    ++meeting.turn;
    Moved();
    return;
  }
  for (uint64_t turn = meeting.turn; meeting.turn == turn;) Yield();
}

void Count(Counter& counter, int threads) {
  if (++counter.arrived == threads) {
    counter.arrived = 0;
    ++counter.turn;
    Moved();
    return;
  }
  for (uint64_t turn = counter.turn; counter.turn == turn;) Yield();
}

}  // namespace

void RunGrid(const Grid& grid, const std::function<void()>& body) {
  CHECK(machine.current == nullptr, "a kernel inside a kernel");
  machine.grid = grid;
  machine.body = &body;
  CHECK(grid.threads.count() % 32 == 0 && grid.threads.count() <= 1024, "{} threads a CTA", grid.threads.count());
  CHECK(grid.cluster.count() <= 8 && grid.ctas.x % grid.cluster.x == 0 && grid.ctas.y % grid.cluster.y == 0 &&
        grid.ctas.z % grid.cluster.z == 0);
  blockDim = {grid.threads.x, grid.threads.y, grid.threads.z};
  gridDim = {grid.ctas.x, grid.ctas.y, grid.ctas.z};
  for (unsigned z = 0; z < grid.ctas.z; z += grid.cluster.z)
    for (unsigned y = 0; y < grid.ctas.y; y += grid.cluster.y)
      for (unsigned x = 0; x < grid.ctas.x; x += grid.cluster.x) RunCluster({x, y, z});
}

void Yield() {
  Thread& me = *machine.current;
  EkibenSwitch(&me.stack_pointer, machine.scheduler);
}

void Moved() {
  machine.moved = true;
}

void MeetWarp(void* mine, Together together) {
  Thread& me = *machine.current;
  Meet(me.cta->warps[static_cast<size_t>(me.number / 32)], me.number % 32, mine, together);
}

void MeetWarpgroup(void* mine, Together together) {
  Thread& me = *machine.current;
  Meet(me.cta->groups[static_cast<size_t>(me.number / 128)], me.number % 128, mine, together);
}

void MeetCta() {
  Cta& cta = *machine.current->cta;
  Count(cta.all, cta.live);
}

void MeetNamed(int barrier, int threads) {
  Count(machine.current->cta->named[barrier], threads);
}

uint32_t ClusterRank() {
  return machine.current->cta->rank;
}

uint32_t ClusterSize() {
  return machine.grid.cluster.count();
}

void ClusterArrive() {
  Counter& cluster = machine.cluster;
  machine.current->cluster_turn = cluster.turn;
  if (++cluster.arrived < static_cast<int>(machine.threads.size())) return;
  cluster.arrived = 0;
  ++cluster.turn;
  Moved();
}

void ClusterWait() {
  while (machine.cluster.turn == machine.current->cluster_turn) Yield();
}

uint32_t SharedAddress(const void* pointer) {
  const auto* at = static_cast<const std::byte*>(pointer);
  if (at >= __start_ekiben_shared && at < __stop_ekiben_shared)
    return kStaticBase + static_cast<uint32_t>(at - __start_ekiben_shared);
  auto offset = at - DynamicShared();
  CHECK(offset >= 0 && static_cast<size_t>(offset) <= machine.grid.dynamic_shared, "not an address in shared memory");
  return kDynamicBase + static_cast<uint32_t>(offset);
}

std::byte* SharedOf(uint32_t rank, uint32_t address, size_t bytes) {
  CHECK_LT(rank, ClusterSize());
  Cta& cta = *machine.ctas[rank];
  if (address >= kStaticBase) {
    CHECK_LE(address - kStaticBase + bytes, StaticBytes());
    return (&cta == machine.statics_of ? __start_ekiben_shared : cta.statics.data()) + (address - kStaticBase);
  }
  CHECK(address >= kDynamicBase && address - kDynamicBase + bytes <= machine.grid.dynamic_shared,
        "shared memory: {} bytes at {} of {}", bytes, int64_t{address} - kDynamicBase, machine.grid.dynamic_shared);
  return cta.dynamic + address;
}

std::byte* Shared(uint32_t address, size_t bytes) {
  return SharedOf(ClusterRank(), address, bytes);
}

std::byte* DynamicShared() {
  return machine.current->cta->dynamic + kDynamicBase;
}

}  // namespace ekiben::emulation
