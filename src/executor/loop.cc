#include "executor/loop.h"

#include "executor/allocation_count.h"

namespace ekiben {

// One turn. With one ticket: plan, run and commit a step. With two: launch step n+1, then finish n.
bool ExecutorLoop::Step() {
  return Turn() != Outcome::kNothing;
}

ExecutorLoop::Outcome ExecutorLoop::Turn() {
  Nanos begin = now_ = clock_.Now();
  uint64_t allocations = ThreadAllocations();
  in_backend_ = in_launch_ = {};
  bool worked = TakeArrivals();
  worked |= EndCancelledAndExpired(begin);
  CompactRunning();
  bool launched = false;
  if (healthy() && !WaitingForCompany(begin)) {
    Plan();
    if (decision_.has_rows()) {
      Act();
      Outcome outcome = Launch();
      if (outcome == Outcome::kTakenOver) return outcome;
      launched = outcome == Outcome::kWorked;
      if (launched && in_flight_ == 1) newest_begin_ = begin;
      if (!decision_.contexts.empty()) context_launch_time_ = in_backend_;
    }
  }
  bool finish = in_flight_ == flights_.size() || (in_flight_ > 0 && !launched);
  if (finish && FinishOldest() == Outcome::kTakenOver) return Outcome::kTakenOver;
  CompactRunning();
  counters_.allocations_in_steps.fetch_add(ThreadAllocations() - allocations, std::memory_order_relaxed);
  PublishStats(begin);
  return worked || launched || finish ? Outcome::kWorked : Outcome::kNothing;
}

}  // namespace ekiben
