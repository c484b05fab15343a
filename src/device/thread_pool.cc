#include "device/thread_pool.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/check.h"

namespace ekiben {
namespace {

// Long enough to bridge the host's work between two ops of a step, short enough that an idle server is idle.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kPausesPerClockRead = 32;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Waits until `word` differs from `old`: spins for kSpin, then sleeps on it.
template <class T>
T AwaitChange(std::atomic<T>& word, T old) {
  for (int i = 0; i < 4 * kPausesPerClockRead; ++i) {
    if (T now = word.load(std::memory_order_acquire); now != old) return now;
    Pause();
  }
  auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (T now = word.load(std::memory_order_acquire); now != old) return now;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  T now;
  while ((now = word.load(std::memory_order_acquire)) == old) word.wait(old, std::memory_order_acquire);
  return now;
}

}  // namespace

// epoch counts jobs: a member runs the job when it changes. pending counts members still in the job; the last one wakes
// the caller. Each word that one side spins on has its own cache line (two: the prefetcher pairs them).
struct ThreadPool::State {
  alignas(128) std::atomic<uint32_t> epoch{0};
  alignas(128) std::atomic<int32_t> pending{0};
  alignas(128) std::atomic<int64_t> cursor{0};
  ErasedBody body = nullptr;  // null: stop
  void* context = nullptr;
  std::vector<std::thread> members;

  void Serve(int member) {
    uint32_t seen = 0;
    for (;;) {
      seen = AwaitChange(epoch, seen);
      if (body == nullptr) return;
      body(context, member);
      if (pending.fetch_sub(1, std::memory_order_seq_cst) == 1) pending.notify_one();
    }
  }
  void Publish() {
    epoch.fetch_add(1, std::memory_order_seq_cst);
    epoch.notify_all();  // no system call unless a member sleeps
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()), threads_(threads) {
  CHECK_GE(threads, 1);
  for (int member = 1; member < threads; ++member) {
    state_->members.emplace_back([state = state_.get(), member] { state->Serve(member); });
  }
}

ThreadPool::~ThreadPool() {
  state_->body = nullptr;
  state_->Publish();
  for (std::thread& member : state_->members) member.join();
}

void ThreadPool::RunErased(ErasedBody body, void* context) {
  if (threads_ == 1) {
    body(context, 0);
    return;
  }
  State& s = *state_;
  s.body = body;
  s.context = context;
  s.pending.store(threads_ - 1, std::memory_order_relaxed);
  s.Publish();
  body(context, 0);
  for (int32_t left = s.pending.load(std::memory_order_acquire); left != 0;) left = AwaitChange(s.pending, left);
}

void ThreadPool::ResetCursor() {
  state_->cursor.store(0, std::memory_order_relaxed);
}

int64_t ThreadPool::NextBlock(int64_t grain) {
  return state_->cursor.fetch_add(grain, std::memory_order_relaxed);
}

}  // namespace ekiben
