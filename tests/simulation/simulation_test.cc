// simulation_test [--runs N] [--seed N]: N seeded runs, or one of them again with its configuration printed.
#include "simulation/simulation.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <charconv>
#include <optional>
#include <string_view>

#include "base/log.h"

namespace ekiben {
namespace {

uint64_t runs = 5000;
std::optional<uint64_t> only_seed;

TEST(Simulation, InvariantsHoldForEverySeed) {
  SimulationResult sum;
  uint64_t requests = 0, faults = 0;
  uint64_t first = only_seed.value_or(1), last = only_seed.value_or(runs);
  int failures = 0;
  for (uint64_t seed = first; seed <= last && failures < 10; ++seed) {
    SimulationResult run = Simulate(seed);
    failures += !run.violation.empty();
    EXPECT_EQ(run.violation, "") << "seed " << seed << " (replay: simulation_test --seed " << seed << ")\n"
                                 << run.config;
    if (only_seed) fmt::print("seed {}: {}\ntrace {:016x}\n", seed, run.config, run.trace_hash);
    requests += static_cast<uint64_t>(run.requests);
    faults += run.device_fault;
    sum.steps += run.steps;
    sum.tokens += run.tokens;
    sum.cancels += run.cancels;
    sum.preemptions += run.preemptions;
    sum.reused_tokens += run.reused_tokens;
    sum.refused += run.refused;
    sum.errors += run.errors;
  }
  fmt::print(
      "{} runs, {} requests, {} steps, {} tokens; {} cancels, {} preemptions, {} tokens reused, {} refused, "
      "{} failed rows or faults in {} runs with a device fault\n",
      last - first + 1, requests, sum.steps, sum.tokens, sum.cancels, sum.preemptions, sum.reused_tokens, sum.refused,
      sum.errors, faults);
  if (only_seed || runs < 1000) return;
  // A simulation that meets none of these proves nothing.
  EXPECT_GE(requests, runs * 50);
  EXPECT_GT(sum.cancels, runs);
  EXPECT_GT(sum.preemptions, runs / 2);
  EXPECT_GT(sum.reused_tokens, runs);
  EXPECT_GT(faults, 0u);
}

TEST(Simulation, SameSeedSameTrace) {
  for (uint64_t seed = 1; seed <= 50; ++seed) EXPECT_EQ(Simulate(seed).trace_hash, Simulate(seed).trace_hash) << seed;
}

}  // namespace
}  // namespace ekiben

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  spdlog::set_level(spdlog::level::off);  // thousands of planned faults
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string_view name = argv[i], text = argv[i + 1];
    uint64_t value = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return 2;
    if (name == "--runs") ekiben::runs = value;
    if (name == "--seed") ekiben::only_seed = value;
  }
  return RUN_ALL_TESTS();
}
