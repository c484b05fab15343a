// Seeded simulation of the executor: the real loop, schedule and cache on FakeBackend and FakeClock, with a crowd that
// arrives, cancels, reads slowly, runs out of time, shares prefixes and asks for several sequences, and with a device
// that sometimes fails. One seed is one run: configuration, requests and events all come from it.
//
// After every step the invariants are checked; the first that breaks ends the run and is named in the result.
//   every block has its holders   (Executor::Audit: none lost, none freed twice, free + used + cached = total)
//   the plan is legal             (FakeBackend: budgets, tables, no block taken while a step names it)
//   output equals the oracle      (each token, as it comes, against the request alone)
//   every sequence ends once      (nothing follows the end; the reason is one that the run gave cause for)
//   a cancel takes effect by the next step
//   no request is forgotten       (an executor with nothing to do has nobody waiting)
//   no starvation                 (all done within a number of steps that follows from the work asked for)
//   idle means empty              (at the end no block is used, nothing waits)
// Method: deterministic simulation testing as FoundationDB (Zhou et al. 2021) and TigerBeetle do it.
#pragma once
#include <cstdint>
#include <string>

namespace ekiben {

struct SimulationResult {
  std::string violation;    // empty: all invariants held
  std::string config;       // one line, to print beside a failure
  uint64_t trace_hash = 0;  // of every event in order: equal for equal seeds
  int32_t requests = 0;
  uint64_t steps = 0, tokens = 0, cancels = 0, preemptions = 0, reused_tokens = 0, refused = 0, errors = 0;
  bool device_fault = false;
};

SimulationResult Simulate(uint64_t seed);

}  // namespace ekiben
