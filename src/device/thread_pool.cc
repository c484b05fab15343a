#include "device/thread_pool.h"

#include <algorithm>
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

// How long a member spins for the next job before it sleeps: long enough to bridge the host's work between two ops or
// steps, short enough that an idle server is idle.
constexpr auto kSpinForJob = std::chrono::microseconds(200);
// How long the caller spins for members to finish. It must outlast a wake-up: a
// caller that sleeps while a member wakes up comes back after the member has gone to sleep again, and then every small
// op costs two wake-ups (`ekiben kernels` showed 114 us for a SwiGLU of 10 tokens, 2 us after the change) until chance
// breaks the beat.
constexpr auto kSpinForMembers = std::chrono::milliseconds(5);
constexpr int kPausesPerClockRead = 32;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Waits until `word` differs from `old`: spins for `spin`, then sleeps on it.
template <class T>
T AwaitChange(std::atomic<T>& word, T old, std::chrono::microseconds spin) {
  for (int i = 0; i < 4 * kPausesPerClockRead; ++i) {
    if (T now = word.load(std::memory_order_acquire); now != old) return now;
    Pause();
  }
  auto deadline = std::chrono::steady_clock::now() + spin;
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
  struct alignas(128) Stream {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Stream> streams;  // [members]
  ErasedBody body = nullptr;    // null: stop
  void* context = nullptr;
  std::vector<std::thread> members;

  void Serve(int member) {
    uint32_t seen = 0;
    for (;;) {
      seen = AwaitChange(epoch, seen, kSpinForJob);
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
  state_->streams = std::vector<State::Stream>(static_cast<size_t>(threads));
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
  for (int32_t left = s.pending.load(std::memory_order_acquire); left != 0;)
    left = AwaitChange(s.pending, left, kSpinForMembers);
}

void ThreadPool::ResetCursor() {
  state_->cursor.store(0, std::memory_order_relaxed);
}

int64_t ThreadPool::NextBlock(int64_t grain) {
  return state_->cursor.fetch_add(grain, std::memory_order_relaxed);
}

void ThreadPool::ResetStreams(int64_t count, int64_t grain) {
  // Shares are whole grains, so that only the last one is short.
  int64_t grains = (count + grain - 1) / grain;
  for (int m = 0; m < threads_; ++m) {
    State::Stream& stream = state_->streams[static_cast<size_t>(m)];
    stream.next.store(std::min(count, grains * m / threads_ * grain), std::memory_order_relaxed);
    stream.end = std::min(count, grains * (m + 1) / threads_ * grain);
  }
}

int64_t ThreadPool::StreamEnd(int owner) const {
  return state_->streams[static_cast<size_t>(owner)].end;
}

int64_t ThreadPool::NextOfStream(int owner, int64_t grain) {
  State::Stream& stream = state_->streams[static_cast<size_t>(owner)];
  // A look first: a drained stream is asked by every member, and a locked add for nothing moves its line around.
  if (stream.next.load(std::memory_order_relaxed) >= stream.end) return stream.end;
  return stream.next.fetch_add(grain, std::memory_order_relaxed);
}

}  // namespace ekiben
