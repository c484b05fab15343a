#include "backend/start_phases.h"

#include <gtest/gtest.h>

namespace ekiben {
namespace {

TEST(StartPhases, EachPhaseHasTheTimeUntilTheNextBegins) {
  FakeClock clock;
  StartPhases phases(clock);
  clock.Advance(Nanos(std::chrono::milliseconds(500)));  // nobody's
  phases.Begin("device");
  clock.Advance(Nanos(std::chrono::milliseconds(230)));
  phases.Begin("weights");
  clock.Advance(Nanos(std::chrono::milliseconds(1'250)));
  EXPECT_EQ(phases.Text(), "device 0.23 s, weights 1.25 s");
}

}  // namespace
}  // namespace ekiben
