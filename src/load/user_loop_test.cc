#include "load/user_loop.h"

#include <gtest/gtest.h>

#include <deque>
#include <memory>

namespace ekiben::load {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Nanos Ms(int64_t ms) {
  return milliseconds(ms);
}

TEST(RampStart, IsLinearAndEndsOneStepBeforeTheRamp) {
  EXPECT_EQ(RampStart(0, 10, seconds(20)), Nanos(0));
  EXPECT_EQ(RampStart(1, 10, seconds(20)), seconds(2));
  EXPECT_EQ(RampStart(9, 10, seconds(20)), seconds(18));
  EXPECT_EQ(RampStart(0, 1, seconds(20)), Nanos(0));
  EXPECT_EQ(RampStart(7, 10, Nanos(0)), Nanos(0));
  EXPECT_EQ(RampStart(2, 3, Nanos(10)), Nanos(6));
  // No overflow at a day's ramp and many users.
  EXPECT_EQ(RampStart(99'999, 100'000, seconds(86'400)), seconds(86'400) - Nanos(864'000'000));
}

// Answers each request by a script of (delay after the send, event), under a clock that it moves itself.
class ScriptedTransport final : public Transport {
 public:
  struct Step {
    Nanos after;
    StreamEvent event;
  };
  ScriptedTransport(FakeClock& clock, std::vector<Step> script) : clock_(clock), script_(std::move(script)) {}

  void Send(int32_t user, const Prompt& prompt, StreamEventSink& sink) override {
    sends.push_back(clock_.Now());
    prompts.emplace_back(prompt.text);
    StreamEvent sent;
    sent.kind = StreamEvent::Kind::kSent;
    sent.user = user;
    sent.when = clock_.Now();
    sink.OnEvent(sent);
    for (Step step : script_) {
      step.event.user = user;
      step.event.when = clock_.Now() + step.after;
      pending_.push_back(step.event);
    }
  }
  void Abort(int32_t user) override {
    ++aborts;
    std::erase_if(pending_, [&](const StreamEvent& event) { return event.user == user; });
  }
  void Poll(Nanos until, StreamEventSink& sink) override {
    auto next = std::min_element(pending_.begin(), pending_.end(),
                                 [](const StreamEvent& a, const StreamEvent& b) { return a.when < b.when; });
    if (next == pending_.end() || next->when > until) {
      clock_.Advance(std::max(until - clock_.Now(), Nanos(0)));
      return;
    }
    StreamEvent event = *next;
    pending_.erase(next);
    clock_.Advance(std::max(event.when - clock_.Now(), Nanos(0)));
    sink.OnEvent(event);
  }

  std::vector<Nanos> sends;
  std::vector<std::string> prompts;
  int aborts = 0;

 private:
  FakeClock& clock_;
  std::vector<Step> script_;
  std::deque<StreamEvent> pending_;
};

StreamEvent Chunk(int32_t total, int32_t text_bytes = 1, int32_t prompt_tokens = 100) {
  StreamEvent event;
  event.kind = StreamEvent::Kind::kChunk;
  event.output_tokens_total = total;
  event.prompt_tokens = total < 0 ? -1 : prompt_tokens;
  event.text_bytes = text_bytes;
  return event;
}
StreamEvent End() {
  StreamEvent event;
  event.kind = StreamEvent::Kind::kEnd;
  return event;
}
StreamEvent Failed(int32_t status) {
  StreamEvent event;
  event.kind = StreamEvent::Kind::kFailed;
  event.failure = Failure::kStatus;
  event.status = status;
  event.message = "busy";
  return event;
}

class UserLoopTest : public testing::Test {
 protected:
  UserLoopTest() {
    PromptOptions options;
    options.prompt_tokens = 100;
    options.output_tokens = 4;
    prompts_ = *PromptSource::Create(options, [](std::string_view text) -> Result<int32_t> {
      return static_cast<int32_t>(std::count(text.begin(), text.end(), ' ') + 1);
    });
    plan_.window_end = seconds(1);
    plan_.check_output = true;
  }
  const Recorder& Run(std::vector<ScriptedTransport::Step> script) {
    transport_ = std::make_unique<ScriptedTransport>(clock_, std::move(script));
    loop_ = std::make_unique<UserLoop>(plan_, *prompts_, *transport_, clock_, stop_);
    loop_->Run();
    return loop_->recorder();
  }

  FakeClock clock_;
  LoopPlan plan_;
  std::atomic<bool> stop_{false};
  std::unique_ptr<PromptSource> prompts_;
  std::unique_ptr<ScriptedTransport> transport_;
  std::unique_ptr<UserLoop> loop_;
};

TEST_F(UserLoopTest, MeasuresByTheDefinitions) {
  // A role chunk, a first token, two tokens in one chunk, one token without text (a held character), the usage again.
  const Recorder& got = Run({{Ms(20), Chunk(0, 0)},
                             {Ms(50), Chunk(1)},
                             {Ms(70), Chunk(3)},
                             {Ms(80), Chunk(4, 0)},
                             {Ms(90), Chunk(4, 0)},
                             {Ms(100), End()}});
  EXPECT_EQ(got.completed, 9u);  // the tenth ends at the window's end, outside it
  EXPECT_EQ(got.cut_off + got.completed_all, 10u);
  EXPECT_EQ(got.ttft.count(), 10u);
  EXPECT_EQ(got.ttft.min(), 50e6);
  EXPECT_EQ(got.ttft.max(), 50e6);
  EXPECT_EQ(got.e2e.max(), 80e6);
  EXPECT_EQ(got.tpot.max(), 10e6);
  EXPECT_EQ(got.itl_chunk.count(), 20u);
  EXPECT_EQ(got.itl_chunk.max(), 20e6);
  EXPECT_EQ(got.itl_token.count(), 30u);
  EXPECT_EQ(got.itl_token.max(), 10e6);
  EXPECT_EQ(got.itl_token.min(), 10e6);
  EXPECT_EQ(got.output_tokens, 40);
  EXPECT_EQ(got.prompt_tokens, 1000);
  EXPECT_EQ(got.chunks, 30u);
  EXPECT_EQ(got.chunks_multi, 10u);
  EXPECT_EQ(got.chunks_counted, 30u);
  EXPECT_EQ(got.output_mismatches, 0u);
  EXPECT_EQ(got.prompt_mismatches, 0u);
  EXPECT_EQ(got.tokens_by_second[0], 40u);
  EXPECT_EQ(got.send_lag.max(), 0);
}

TEST_F(UserLoopTest, CorrectsGuessedCountsByTheFinalUsageWithoutMovingLatencies) {
  const Recorder& got = Run({{Ms(50), Chunk(-1)},
                             {Ms(60), Chunk(-1)},
                             {Ms(61), Chunk(-1, 0)},
                             {Ms(70), Chunk(-1)},
                             {Ms(100), Chunk(4, 0)},
                             {Ms(100), End()}});
  EXPECT_EQ(got.output_tokens, 40 - 1);  // the last correction falls on the window's end
  EXPECT_EQ(got.chunks_counted, 0u);
  EXPECT_EQ(got.itl_chunk.max(), 10e6);
  EXPECT_EQ(got.e2e.max(), 70e6);
  EXPECT_EQ(got.output_mismatches, 0u);
  EXPECT_EQ(got.unchecked, 0u);
}

TEST_F(UserLoopTest, CountsWrongLengthsAndMissingUsage) {
  const Recorder& wrong = Run({{Ms(50), Chunk(3, 1, 99)}, {Ms(90), End()}});
  EXPECT_EQ(wrong.completed_all, 11u);
  EXPECT_EQ(wrong.output_mismatches, 11u);
  EXPECT_EQ(wrong.prompt_mismatches, 11u);
  plan_.start += clock_.Now();
  plan_.window_begin = plan_.start;
  plan_.window_end = plan_.start + seconds(1);
  const Recorder& none = Run({{Ms(50), Chunk(-1)}, {Ms(90), End()}});
  EXPECT_EQ(none.unchecked, 11u);
  EXPECT_EQ(none.output_mismatches, 0u);
}

TEST_F(UserLoopTest, RampsAndMeasuresOnlyTheWindow) {
  plan_.users_total = 4;
  plan_.window_begin = Ms(400);
  plan_.window_end = Ms(600);
  const Recorder& got = Run({{Ms(50), Chunk(1)}, {Ms(60), Chunk(4)}, {Ms(100), End()}});
  EXPECT_EQ(transport_->sends[0], Ms(0));
  EXPECT_EQ(transport_->sends[1], Ms(100));  // user 0 again or user 1: both are due
  EXPECT_EQ(std::count(transport_->sends.begin(), transport_->sends.end(), Ms(100)), 2);
  EXPECT_EQ(std::count(transport_->sends.begin(), transport_->sends.end(), Ms(300)), 4);
  EXPECT_EQ(got.started, 8u);        // 4 at 400 ms and 4 at 500
  EXPECT_EQ(got.output_tokens, 32);  // 450..460 and 550..560
  EXPECT_EQ(got.completed, 8u);      // at 400 and 500
  // 100..300 ms: 1 + 2 + 3 answers, those 8, and 4 whose end falls on the window's.
  EXPECT_EQ(got.completed_all + got.cut_off, 18u);
  EXPECT_EQ(got.cut_off_waiting, 0u);
  EXPECT_EQ(loop_->users_active(), 4);
  EXPECT_EQ(loop_->in_flight(), 0);
}

TEST_F(UserLoopTest, BacksOffAfterAFailureAndKeepsItOutOfLatencies) {
  const Recorder& got = Run({{Ms(1), Failed(429)}});
  EXPECT_EQ(got.failed_all, 10u);  // one each 101 ms
  EXPECT_EQ(got.errors.at("status 429"), 10u);
  EXPECT_EQ(got.error_messages, (std::vector<std::string>{"status 429: busy"}));
  EXPECT_EQ(got.ttft.count(), 0u);
  EXPECT_EQ(got.e2e.count(), 0u);
}

TEST_F(UserLoopTest, TimesOutAndTellsWhatWasStillWaiting) {
  plan_.timeout = Ms(300);
  const Recorder& got = Run({{seconds(5), Chunk(1)}});
  EXPECT_EQ(got.errors.at("timeout"), 2u);  // looked for each 250 ms at ticks of 100: at 300 and 900
  EXPECT_EQ(got.failed_all, 2u);
  EXPECT_EQ(transport_->aborts, 2);
}

TEST_F(UserLoopTest, ReportsTheOldestWait) {
  const Recorder& got = Run({{seconds(5), Chunk(1)}});
  EXPECT_EQ(got.cut_off, 1u);
  EXPECT_EQ(got.cut_off_waiting, 1u);
  EXPECT_EQ(got.oldest_waiting, seconds(1));
  EXPECT_EQ(transport_->aborts, 1);
}

TEST_F(UserLoopTest, StopsAfterTheAskedNumberOfRequests) {
  plan_.requests_max = 3;
  plan_.users_total = 2;
  const Recorder& got = Run({{Ms(10), Chunk(4)}, {Ms(20), End()}});
  EXPECT_EQ(got.completed_all, 3u);
  EXPECT_LT(clock_.Now(), Ms(100));
}

TEST_F(UserLoopTest, AsksEachTimeSomethingElse) {
  plan_.users_total = 3;
  Run({{Ms(10), Chunk(4)}, {Ms(20), End()}});
  std::sort(transport_->prompts.begin(), transport_->prompts.end());
  EXPECT_GT(transport_->prompts.size(), 100u);
  EXPECT_EQ(std::adjacent_find(transport_->prompts.begin(), transport_->prompts.end()), transport_->prompts.end());
}

TEST_F(UserLoopTest, IntervalsAddUpToTheWhole) {
  Run({{Ms(50), Chunk(1)}, {Ms(60), Chunk(4)}, {Ms(99), End()}});
  Interval all = loop_->TakeInterval();
  EXPECT_EQ(all.completed, 10u);
  EXPECT_EQ(all.output_tokens, 40);
  EXPECT_EQ(loop_->TakeInterval().output_tokens, 0);
}

}  // namespace
}  // namespace ekiben::load
