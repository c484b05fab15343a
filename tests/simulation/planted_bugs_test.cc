// Would the simulation find a bug? Six are planted (cache/planted_bug.h), one at a time, in a build of the executor
// and the cache made for this test only; each must be found within kSeedsMax seeds, by a violated invariant or by a
// CHECK. Each hunt is a process of its own, because a CHECK aborts it.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>

#include "base/log.h"
#include "cache/planted_bug.h"
#include "simulation/simulation.h"

namespace ekiben {
namespace {

constexpr uint64_t kSeedsMax = 500;

struct Find {
  uint64_t seed = 0;
  std::string how;
};

[[noreturn]] void HuntInChild(PlantedBug bug, volatile uint64_t* seed_now, int report) {
  dup2(report, STDERR_FILENO);  // a CHECK speaks there
  spdlog::set_level(spdlog::level::off);
  planted_bug = bug;
  for (uint64_t seed = 1; seed <= kSeedsMax; ++seed) {
    *seed_now = seed;
    std::string violation = Simulate(seed).violation;
    if (violation.empty()) continue;
    fmt::print(stderr, "{}\n", violation);
    _exit(1);
  }
  _exit(0);
}

std::optional<Find> Hunt(PlantedBug bug) {
  void* shared = mmap(nullptr, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  EXPECT_NE(shared, MAP_FAILED);
  auto* seed_now = static_cast<volatile uint64_t*>(shared);
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  pid_t child = fork();
  if (child == 0) HuntInChild(bug, seed_now, ends[1]);
  close(ends[1]);
  Find find;
  char buffer[512];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;)
    find.how.append(buffer, static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  find.seed = *seed_now;
  find.how = find.how.substr(0, find.how.find('\n'));
  munmap(shared, sizeof(uint64_t));
  bool clean = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (clean) return std::nullopt;
  return find;
}

struct Case {
  const char* name;
  PlantedBug bug;
};
class PlantedBugs : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Six, PlantedBugs,
                         testing::Values(Case{"Leak", PlantedBug::kLeak}, Case{"DoubleFree", PlantedBug::kDoubleFree},
                                         Case{"StalePrefix", PlantedBug::kStalePrefix},
                                         Case{"BudgetOffByOne", PlantedBug::kBudgetOffByOne},
                                         Case{"LostCancel", PlantedBug::kLostCancel},
                                         Case{"EarlyRelease", PlantedBug::kEarlyRelease}),
                         [](const auto& info) { return info.param.name; });

TEST_P(PlantedBugs, IsFound) {
  std::optional<Find> find = Hunt(GetParam().bug);
  ASSERT_TRUE(find.has_value()) << "not found in " << kSeedsMax << " seeds";
  fmt::print("{}: seed {}: {}\n", GetParam().name, find->seed, find->how);
  EXPECT_FALSE(find->how.empty());
}

TEST(PlantedBugsControl, NothingIsFoundWithoutOne) {
  std::optional<Find> find = Hunt(PlantedBug::kNone);
  EXPECT_FALSE(find.has_value()) << "seed " << find->seed << ": " << find->how;
}

}  // namespace
}  // namespace ekiben
