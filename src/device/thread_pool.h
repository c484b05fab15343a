// A fixed team of threads for fork-join work inside one step. The caller is member 0 and works too.
// Members spin for a short while between jobs (a barrier then costs 0.1-0.2 us on two cores), then sleep on a futex, so
// that an idle server burns nothing. Run allocates nothing.
// Thread: Run from one thread at a time.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

namespace ekiben {

class ThreadPool {
 public:
  // `threads` >= 1 counts the caller. 0 is not "all": the caller decides.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }

  // Calls body(member) once for every member 0..size()-1, in parallel; returns when all have returned.
  template <class Body>
  void Run(Body&& body) {
    RunErased([](void* context, int member) { (*static_cast<std::remove_reference_t<Body>*>(context))(member); },
              &body);
  }

  // Splits [0, count) into blocks of `grain` and hands them out dynamically; body(begin, end, member).
  // Which member takes which block may differ between runs: results must not depend on it.
  template <class Body>
  void ParallelFor(int64_t count, int64_t grain, Body&& body) {
    if (threads_ == 1 || count <= grain) {
      if (count > 0) body(int64_t{0}, count, 0);
      return;
    }
    ResetCursor();
    Run([&](int member) {
      for (;;) {
        int64_t begin = NextBlock(grain);
        if (begin >= count) return;
        body(begin, begin + grain < count ? begin + grain : count, member);
      }
    });
  }

  // The same split for work that streams through memory: each member has a contiguous share of [0, count) and takes it
  // in order, `grain` at a time, so that what it fetched ahead is what it takes next; a member that is done helps the
  // others with theirs.
  template <class Body>
  void ParallelStreams(int64_t count, int64_t grain, Body&& body) {
    if (threads_ == 1 || count <= grain) {
      if (count > 0) body(int64_t{0}, count, 0);
      return;
    }
    ResetStreams(count, grain);
    Run([&](int member) {
      for (int i = 0; i < threads_; ++i) {
        int owner = member + i < threads_ ? member + i : member + i - threads_;
        int64_t end = StreamEnd(owner);
        for (;;) {
          int64_t begin = NextOfStream(owner, grain);
          if (begin >= end) break;
          body(begin, begin + grain < end ? begin + grain : end, member);
        }
      }
    });
  }

 private:
  using ErasedBody = void (*)(void*, int);
  void RunErased(ErasedBody body, void* context);
  void ResetCursor();
  int64_t NextBlock(int64_t grain);
  void ResetStreams(int64_t count, int64_t grain);
  int64_t StreamEnd(int owner) const;
  int64_t NextOfStream(int owner, int64_t grain);
  struct State;
  std::unique_ptr<State> state_;
  int threads_;
};

}  // namespace ekiben
