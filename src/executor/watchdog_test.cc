// The executor's thread and a backend that has time to spare, or that does not come back.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "backend/fake_backend.h"
#include "executor/collector_for_test.h"
#include "executor/executor.h"

namespace ekiben {
namespace {

using std::chrono::milliseconds;

TEST(ExecutorThreads, IdleMomentsAreOfferedToTheBackendUntilItHasNothingToDo) {
  FakeBackendOptions options;
  options.idle_work = 20;
  FakeBackend backend(options);
  auto executor = *Executor::Create(backend, {}, SystemClock::Get());
  executor->Start();
  Collector sink;
  ASSERT_TRUE(executor->Submit(MakeRequest(1, Tokens(8), 10), &sink).ok());
  for (int i = 0; i < 5000 && (sink.ended() < 1 || backend.idle_calls() < 20); ++i)
    std::this_thread::sleep_for(milliseconds(1));
  executor->Shutdown();
  EXPECT_GE(backend.idle_calls(), 20);
  EXPECT_LE(backend.idle_calls(), 30) << "it waits when there is nothing left";
}

// The watchdog ends everybody while the device holds the executor's thread; that thread comes back and leaves.
TEST(ExecutorThreads, ADeviceThatDoesNotAnswerIsAFaultAndNothingHangs) {
  for (int tickets : {1, 2}) {
    std::atomic<bool> hang_ends{false};
    FakeBackendOptions options;
    options.tickets_max = tickets;
    options.finish_hangs_at = 5;
    options.hang_ends = &hang_ends;
    FakeBackend backend(options);
    ExecutorConfig config;
    config.step_timeout = milliseconds(200);
    auto executor = *Executor::Create(backend, config, SystemClock::Get());
    Collector sink;
    for (uint64_t id = 1; id <= 3; ++id) ASSERT_TRUE(executor->Submit(MakeRequest(id, Tokens(8), 100), &sink).ok());
    executor->Start();
    for (int i = 0; i < 5000 && sink.ended() < 3; ++i) std::this_thread::sleep_for(milliseconds(2));
    ASSERT_EQ(sink.ended(), 3u);
    for (uint64_t id = 1; id <= 3; ++id) {
      EXPECT_EQ(sink.stream(id).reason, FinishReason::kError);
      EXPECT_EQ(sink.stream(id).error, Code::kUnavailable);
    }
    EXPECT_FALSE(executor->healthy());
    EXPECT_NE(executor->fault().find("step_timeout_s 0.2"), std::string::npos) << executor->fault();
    auto refused = executor->Submit(MakeRequest(9, Tokens(8), 4), &sink);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code(), Code::kUnavailable);
    hang_ends = true;
    executor->Shutdown();
    EXPECT_EQ(sink.ended(), 3u);
  }
}

TEST(ExecutorThreadsDeathTest, AThreadThatNeverComesBackEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        std::atomic<bool> hang_ends{false};
        FakeBackendOptions options;
        options.finish_hangs_at = 0;
        options.hang_ends = &hang_ends;
        FakeBackend backend(options);
        ExecutorConfig config;
        config.step_timeout = milliseconds(50);
        auto executor = *Executor::Create(backend, config, SystemClock::Get());
        Collector sink;
        (void)executor->Submit(MakeRequest(1, Tokens(8), 100), &sink);
        executor->Start();
        while (executor->healthy()) std::this_thread::sleep_for(milliseconds(1));
        executor->Shutdown();
      },
      testing::ExitedWithCode(1), "");
}

}  // namespace
}  // namespace ekiben
