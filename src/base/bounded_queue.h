// A queue with a limit, between threads. Full is an answer (TryPush says false at once), never a wait: the caller
// turns it into 429, a dropped log line or a cancelled request. Storage is allocated once, at construction.
// Thread: any number of producers and consumers. Close() wakes every waiter; what is queued can still be popped.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"

namespace ekiben {

template <class T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : ring_(capacity) { CHECK_GT(capacity, 0u); }

  // False when full or closed; `value` is then untouched.
  [[nodiscard]] bool TryPush(T&& value) {
    {
      std::lock_guard lock(mutex_);
      if (closed_ || count_ == ring_.size()) return false;
      ring_[(head_ + count_) % ring_.size()] = std::move(value);
      ++count_;
    }
    ready_.notify_one();
    return true;
  }

  std::optional<T> TryPop() {
    std::lock_guard lock(mutex_);
    return PopLocked();
  }

  // Waits for an element; nullopt once closed and empty.
  std::optional<T> Pop() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return count_ > 0 || closed_; });
    return PopLocked();
  }

  // Waits at most `timeout`; nullopt on timeout or once closed and empty.
  std::optional<T> PopFor(std::chrono::nanoseconds timeout) {
    std::unique_lock lock(mutex_);
    ready_.wait_for(lock, timeout, [&] { return count_ > 0 || closed_; });
    return PopLocked();
  }

  void Close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

  bool closed() const {
    std::lock_guard lock(mutex_);
    return closed_;
  }
  size_t size() const {
    std::lock_guard lock(mutex_);
    return count_;
  }
  size_t capacity() const { return ring_.size(); }

 private:
  std::optional<T> PopLocked() {
    if (count_ == 0) return std::nullopt;
    std::optional<T> out(std::move(ring_[head_]));
    head_ = (head_ + 1) % ring_.size();
    --count_;
    return out;
  }

  mutable std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<T> ring_;
  size_t head_ = 0, count_ = 0;
  bool closed_ = false;
};

}  // namespace ekiben
