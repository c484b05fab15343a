#include "executor/executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "backend/fake_backend.h"
#include "base/sanitizers.h"
#include "executor/allocation_count.h"
#include "executor/collector_for_test.h"

namespace ekiben {

uint64_t CountedAllocations();  // allocation_count_test.cc

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

// What one request alone gives.
std::vector<TokenId> Oracle(const FakeBackendOptions& options, const Request& request, int32_t index = 0) {
  std::vector<TokenId> all = request.prompt;
  int32_t max = std::min<int32_t>(request.max_tokens, options.max_seq_len - static_cast<int32_t>(all.size()));
  for (int32_t i = 0; i < max; ++i) {
    TokenId token = FakeNextToken(options, request, index, i, all);
    if (!request.ignore_eos && std::ranges::count(request.stop_tokens, token) > 0) break;
    all.push_back(token);
  }
  return {all.begin() + static_cast<ptrdiff_t>(request.prompt.size()), all.end()};
}

struct Harness {
  explicit Harness(FakeBackendOptions with = {}, const ExecutorConfig& config = {})
      : options(WithClock(std::move(with))), backend(options) {
    auto made = Executor::Create(backend, config, clock);
    EXPECT_TRUE(made.ok());
    executor = *std::move(made);
  }
  FakeBackendOptions WithClock(FakeBackendOptions o) {
    o.fake_clock = &clock;
    if (o.step_time == Nanos(0)) o.step_time = milliseconds(1);
    return o;
  }
  void Run(int steps_max = 100'000) {
    for (int i = 0; i < steps_max; ++i) {
      if (!executor->Step()) break;
      Result<void> audit = executor->Audit();
      ASSERT_TRUE(audit.ok()) << audit.error().message();
    }
    ExecutorStats stats = executor->stats();
    EXPECT_EQ(stats.blocks_used, 0);
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.waiting, 0);
    EXPECT_EQ(stats.paused, 0);
  }
  void ExpectOracle(const Request& request) {
    for (int32_t i = 0; i < request.n; ++i) {
      Stream stream = sink.stream(request.id.value, i);
      EXPECT_EQ(stream.ends, 1) << "request " << request.id.value << " sequence " << i;
      EXPECT_EQ(stream.tokens, Oracle(options, request, i)) << "request " << request.id.value << " sequence " << i;
    }
  }

  FakeClock clock;
  FakeBackendOptions options;
  FakeBackend backend;
  Collector sink;
  std::unique_ptr<Executor> executor;
};

class ExecutorTickets : public testing::TestWithParam<int32_t> {
 protected:
  FakeBackendOptions Options() { return {.tickets_max = GetParam()}; }
};
INSTANTIATE_TEST_SUITE_P(Tickets, ExecutorTickets, testing::Values(1, 2));

TEST_P(ExecutorTickets, OneRequestGivesTheOraclesTokens) {
  Harness h(Options());
  auto request = MakeRequest(1, Tokens(40), 25);
  ASSERT_TRUE(h.executor->Submit(request, &h.sink).ok());
  h.Run();
  h.ExpectOracle(*request);
  EXPECT_EQ(h.sink.stream(1).reason, FinishReason::kLength);
  EXPECT_EQ(h.executor->stats().context_tokens, 40u);
  EXPECT_EQ(h.executor->stats().generation_tokens, 24u);  // the first token comes with the context
}

TEST_P(ExecutorTickets, StopTokenEndsOneStepLateAndTheWastedTokenIsNotEmitted) {
  Harness h(Options());
  auto probe = MakeRequest(1, Tokens(20), 30);
  std::vector<TokenId> free_run = Oracle(h.options, *probe);
  auto request = MakeRequest(1, Tokens(20), 30);
  request->stop_tokens = {free_run[7]};
  ASSERT_TRUE(h.executor->Submit(request, &h.sink).ok());
  h.Run();
  h.ExpectOracle(*request);
  EXPECT_EQ(h.sink.stream(1).reason, FinishReason::kEndToken);
  EXPECT_LE(h.sink.stream(1).tokens.size(), 7u);
  auto ignoring = MakeRequest(2, Tokens(20), 30);
  ignoring->sampling.seed = 1;
  ignoring->stop_tokens = request->stop_tokens;
  ignoring->ignore_eos = true;
  ASSERT_TRUE(h.executor->Submit(ignoring, &h.sink).ok());
  h.Run();
  EXPECT_EQ(h.sink.stream(2).tokens, free_run);
}

TEST_P(ExecutorTickets, MaxSeqLenEndsTheSequence) {
  FakeBackendOptions options = Options();
  options.max_seq_len = 50;
  Harness h(options);
  auto request = MakeRequest(1, Tokens(40), 1000);
  ASSERT_TRUE(h.executor->Submit(request, &h.sink).ok());
  h.Run();
  EXPECT_EQ(h.sink.stream(1).tokens.size(), 10u);
  EXPECT_EQ(h.sink.stream(1).reason, FinishReason::kLength);
  h.ExpectOracle(*request);
}

TEST_P(ExecutorTickets, ZeroMaxTokensOnlyScoresThePrompt) {
  Harness h(Options(), {.max_num_tokens = 16});
  auto request = MakeRequest(1, Tokens(50), 0);
  request->prompt_logprobs = true;
  ASSERT_TRUE(h.executor->Submit(request, &h.sink).ok());
  h.Run();
  EXPECT_EQ(h.sink.stream(1).tokens.size(), 0u);
  EXPECT_EQ(h.sink.stream(1).reason, FinishReason::kLength);
  EXPECT_EQ(h.sink.prompt_logprobs.size(), 49u);
}

TEST_P(ExecutorTickets, PromptLogProbsAreTheSameInChunksAndNeverReused) {
  Harness whole(Options()), chunked(Options(), {.max_num_tokens = 16});
  for (Harness* h : {&whole, &chunked}) {
    ASSERT_TRUE(h->executor->Submit(MakeRequest(1, Tokens(70), 5), &h->sink).ok());
    h->Run();
    auto request = MakeRequest(2, Tokens(70), 5);
    request->prompt_logprobs = true;
    request->sampling.logprobs = 3;
    ASSERT_TRUE(h->executor->Submit(request, &h->sink).ok());
    h->Run();
    h->ExpectOracle(*request);
    EXPECT_EQ(h->sink.stream(2).cached, 0);
    ASSERT_EQ(h->sink.prompt_logprobs.size(), 69u);
    EXPECT_EQ(h->sink.prompt_logprobs[5].count, 3);
  }
  for (size_t i = 0; i < 69; ++i) {
    EXPECT_EQ(whole.sink.prompt_logprobs[i].chosen, chunked.sink.prompt_logprobs[i].chosen) << i;
  }
}

TEST_P(ExecutorTickets, ManyTogetherEqualEachAlone) {
  std::array<uint64_t, 2> preemptions{};
  for (auto policy : {CapacityPolicy::kGuaranteedNoEvict, CapacityPolicy::kMaxUtilization}) {
    for (auto batching : {BatchingStrategy::kInflightFusedBatching, BatchingStrategy::kV1}) {
      for (auto chunking : {ChunkingPolicy::kFirstComeFirstServed, ChunkingPolicy::kEqualProgress}) {
        FakeBackendOptions options = Options();
        options.blocks = 30;
        Harness h(options, {.max_batch_size = 8,
                            .max_num_tokens = 48,
                            .batch_scheduler_policy = policy,
                            .batching_strategy = batching,
                            .context_chunking_policy = chunking});
        std::vector<std::shared_ptr<Request>> requests;
        for (int i = 1; i <= 20; ++i) {
          requests.push_back(MakeRequest(static_cast<uint64_t>(i), Tokens(20 + i * 9, i % 3), 30 + i));
          if (i % 4 == 0) requests.back()->sampling.temperature = 0;
          if (i % 5 == 0) requests.back()->n = 3;
          ASSERT_TRUE(h.executor->Submit(requests.back(), &h.sink).ok());
        }
        h.Run();
        for (const auto& request : requests) h.ExpectOracle(*request);
        preemptions[policy == CapacityPolicy::kMaxUtilization] += h.executor->stats().preemptions;
      }
    }
  }
  EXPECT_EQ(preemptions[0], 0u);
  EXPECT_GT(preemptions[1], 10u);
}

TEST_P(ExecutorTickets, SiblingsComputeThePromptOnceAndCopyItsTail) {
  for (bool reuse : {true, false}) {
    Harness h(Options(), {.enable_kv_cache_reuse = reuse});
    auto request = MakeRequest(1, Tokens(100), 20);
    request->n = 4;
    ASSERT_TRUE(h.executor->Submit(request, &h.sink).ok());
    h.Run();
    h.ExpectOracle(*request);
    // Each sibling feeds the prompt's last token again, for its own first draw.
    EXPECT_EQ(h.executor->stats().context_tokens, 103u) << reuse;
    EXPECT_NE(h.sink.stream(1, 0).tokens, h.sink.stream(1, 1).tokens);
  }
}

TEST_P(ExecutorTickets, PrefixIsReusedOnlyUnderTheSameSalt) {
  Harness h(Options());
  auto first = MakeRequest(1, Tokens(100), 4);
  ASSERT_TRUE(h.executor->Submit(first, &h.sink).ok());
  h.Run();
  auto same = MakeRequest(2, Tokens(100), 4);
  auto longer = MakeRequest(3, Tokens(150), 4);
  auto salted = MakeRequest(4, Tokens(100), 4);
  salted->cache_salt = "tenant";
  for (const auto& request : {same, longer, salted}) {
    ASSERT_TRUE(h.executor->Submit(request, &h.sink).ok());
    h.Run();
    h.ExpectOracle(*request);
  }
  EXPECT_EQ(h.sink.stream(1).cached, 0);
  EXPECT_EQ(h.sink.stream(2).cached, 96);  // six full blocks
  EXPECT_EQ(h.sink.stream(3).cached, 96);
  EXPECT_EQ(h.sink.stream(4).cached, 0);
}

TEST_P(ExecutorTickets, PartOfABlockIsCopied) {
  Harness h(Options());
  ASSERT_TRUE(h.executor->Submit(MakeRequest(1, Tokens(64), 40), &h.sink).ok());
  h.Run();
  std::vector<TokenId> fork = Tokens(64);
  fork[58] = 499;
  auto request = MakeRequest(2, fork, 10);
  ASSERT_TRUE(h.executor->Submit(request, &h.sink).ok());
  h.Run();
  h.ExpectOracle(*request);
  EXPECT_EQ(h.sink.stream(2).cached, 58);
}

TEST_P(ExecutorTickets, RequestIsHeldBackWhileAnotherComputesItsPrefix) {
  Harness h(Options(), {.max_num_tokens = 64});
  std::vector<std::shared_ptr<Request>> requests;
  for (uint64_t i = 1; i <= 5; ++i) {
    std::vector<TokenId> prompt = Tokens(200);
    prompt.push_back(static_cast<TokenId>(i));
    requests.push_back(MakeRequest(i, prompt, 3));
    ASSERT_TRUE(h.executor->Submit(requests.back(), &h.sink).ok());
  }
  h.Run();
  for (const auto& request : requests) h.ExpectOracle(*request);
  EXPECT_LE(h.executor->stats().context_tokens, 201u + 4 * 9);
}

TEST_P(ExecutorTickets, WindowGivesBlocksBackAndFitsWhatWouldNot) {
  FakeBackendOptions options = Options();
  options.attention_window = 40;
  options.blocks = 20;
  for (auto policy : {CapacityPolicy::kGuaranteedNoEvict, CapacityPolicy::kMaxUtilization}) {
    Harness h(options, {.max_num_tokens = 32, .batch_scheduler_policy = policy, .max_attention_window_size = 40});
    auto longer = MakeRequest(1, Tokens(600), 500);  // 69 blocks without a window
    auto shorter = MakeRequest(2, Tokens(30), 11);
    shorter->n = 2;
    ASSERT_TRUE(h.executor->Submit(longer, &h.sink).ok());
    ASSERT_TRUE(h.executor->Submit(shorter, &h.sink).ok());
    h.Run();
    h.ExpectOracle(*longer);
    h.ExpectOracle(*shorter);
  }
}

TEST_P(ExecutorTickets, CancelTakesEffectByTheNextStep) {
  Harness h(Options());
  for (uint64_t i = 1; i <= 3; ++i) ASSERT_TRUE(h.executor->Submit(MakeRequest(i, Tokens(40), 500), &h.sink).ok());
  h.executor->Cancel({3});  // before it was seen
  for (int i = 0; i < 5; ++i) h.executor->Step();
  h.executor->Cancel({1});
  h.executor->Cancel({1});
  h.executor->Cancel({99});
  h.executor->Step();
  EXPECT_EQ(h.sink.stream(1).reason, FinishReason::kCancelled);
  EXPECT_EQ(h.sink.stream(3).reason, FinishReason::kCancelled);
  EXPECT_EQ(h.sink.stream(3).tokens.size(), 0u);
  EXPECT_EQ(h.sink.stream(2).ends, 0);
  h.executor->Cancel({2});
  h.Run();
  EXPECT_EQ(h.sink.stream(2).reason, FinishReason::kCancelled);
  h.executor->Cancel({2});
  EXPECT_FALSE(h.executor->Step());
}

TEST_P(ExecutorTickets, StopEndsOneSequenceWithItsReason) {
  Harness h(Options());
  auto request = MakeRequest(1, Tokens(40), 50);
  request->n = 2;
  ASSERT_TRUE(h.executor->Submit(request, &h.sink).ok());
  for (int i = 0; i < 8; ++i) h.executor->Step();
  h.executor->Stop({1}, 0, FinishReason::kStopText);
  h.executor->Stop({1}, 7, FinishReason::kStopText);
  h.Run();
  EXPECT_EQ(h.sink.stream(1, 0).reason, FinishReason::kStopText);
  EXPECT_EQ(h.sink.stream(1, 1).reason, FinishReason::kLength);
  EXPECT_EQ(h.sink.stream(1, 1).tokens, Oracle(h.options, *request, 1));
}

TEST_P(ExecutorTickets, DeadlineEndsWaitingAndRunning) {
  Harness h(Options(), {.max_batch_size = 1});
  for (uint64_t i = 1; i <= 2; ++i) {
    auto request = MakeRequest(i, Tokens(40), 1000);
    request->deadline = milliseconds(10 * static_cast<int>(i));
    ASSERT_TRUE(h.executor->Submit(request, &h.sink).ok());
  }
  h.Run();
  EXPECT_EQ(h.sink.stream(1).reason, FinishReason::kDeadline);
  EXPECT_NEAR(static_cast<double>(h.sink.stream(1).tokens.size()), 10, 2);
  EXPECT_EQ(h.sink.stream(2).reason, FinishReason::kDeadline);
}

TEST_P(ExecutorTickets, PriorityThenArrival) {
  Harness h(Options(), {.max_batch_size = 1});
  std::vector<uint64_t> order;
  struct Order final : TokenSink {
    explicit Order(std::vector<uint64_t>& o) : out(o) {}
    void OnToken(const TokenEvent& event) override {
      if (event.reason != FinishReason::kNone) out.push_back(event.request.value);
    }
    std::vector<uint64_t>& out;
  } sink(order);
  for (uint64_t i = 1; i <= 4; ++i) {
    auto request = MakeRequest(i, Tokens(10), 3);
    request->priority = i == 3 ? 5 : 0;
    ASSERT_TRUE(h.executor->Submit(request, &sink).ok());
  }
  h.Run();
  EXPECT_EQ(order, (std::vector<uint64_t>{3, 1, 2, 4}));
}

TEST_P(ExecutorTickets, NonFiniteRowFailsAloneAndIsNotReused) {
  FakeBackendOptions options = Options();
  options.not_finite = [](const Request& r, int32_t, int32_t draw) { return r.id.value == 2 && draw == 3; };
  Harness h(options);
  auto good = MakeRequest(1, Tokens(40, 3), 10);
  ASSERT_TRUE(h.executor->Submit(good, &h.sink).ok());
  ASSERT_TRUE(h.executor->Submit(MakeRequest(2, Tokens(40, 100), 10), &h.sink).ok());
  h.Run();
  h.ExpectOracle(*good);
  EXPECT_EQ(h.sink.stream(2).reason, FinishReason::kError);
  EXPECT_EQ(h.sink.stream(2).error, Code::kInternal);
  EXPECT_EQ(h.sink.stream(2).tokens.size(), 3u);
  auto again = MakeRequest(3, Tokens(40, 100), 10);
  ASSERT_TRUE(h.executor->Submit(again, &h.sink).ok());
  h.Run();
  h.ExpectOracle(*again);
  EXPECT_EQ(h.sink.stream(3).cached, 0);
  EXPECT_TRUE(h.executor->healthy());
}

TEST_P(ExecutorTickets, DeviceFaultFailsEverythingOnce) {
  for (bool at_launch : {true, false}) {
    FakeBackendOptions options = Options();
    (at_launch ? options.launch_fails_at : options.finish_fails_at) = 5;
    Harness h(options, {.max_batch_size = 2});
    for (uint64_t i = 1; i <= 4; ++i) ASSERT_TRUE(h.executor->Submit(MakeRequest(i, Tokens(40), 50), &h.sink).ok());
    h.Run();
    for (uint64_t i = 1; i <= 4; ++i) {
      EXPECT_EQ(h.sink.stream(i).reason, FinishReason::kError);
      EXPECT_EQ(h.sink.stream(i).error, Code::kUnavailable);
      EXPECT_EQ(h.sink.stream(i).ends, 1);
    }
    EXPECT_FALSE(h.executor->healthy());
    EXPECT_NE(h.executor->fault().find("fake device fault"), std::string::npos);
    Result<void> refused = h.executor->Submit(MakeRequest(9, Tokens(4), 5), &h.sink);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code(), Code::kUnavailable);
    int64_t launches = h.backend.launches();
    EXPECT_FALSE(h.executor->Step());
    EXPECT_EQ(h.backend.launches(), launches);
  }
}

TEST(Executor, RefusesWhatItCannotServeNamingTheField) {
  FakeBackendOptions options;
  options.blocks = 8;
  options.max_seq_len = 300;
  Harness h(options, {.max_num_tokens = 64, .enable_chunked_context = false});
  auto field = [&](auto change) {
    auto request = MakeRequest(1, Tokens(10), 10);
    change(*request);
    Result<void> result = h.executor->Submit(request, &h.sink);
    EXPECT_FALSE(result.ok());
    return result.ok() ? "accepted" : result.error().field();
  };
  EXPECT_EQ(field([](Request& r) { r.prompt.clear(); }), "prompt");
  EXPECT_EQ(field([](Request& r) { r.prompt = Tokens(300); }), "prompt");
  EXPECT_EQ(field([](Request& r) { r.prompt = Tokens(65); }), "prompt");
  EXPECT_EQ(field([](Request& r) { r.prompt[3] = 512; }), "prompt");
  EXPECT_EQ(field([](Request& r) { r.prompt[3] = -1; }), "prompt");
  EXPECT_EQ(field([](Request& r) { r.n = 0; }), "n");
  EXPECT_EQ(field([](Request& r) { r.max_tokens = -1; }), "max_tokens");
  EXPECT_EQ(field([](Request& r) { r.max_tokens = 200; }), "max_tokens");  // 13 blocks of 8
  EXPECT_EQ(field([](Request& r) { r.sampling.top_p = 2; }), "top_p");
}

TEST(Executor, QueueIsBounded) {
  Harness h({}, {.max_batch_size = 1, .max_queue_size = 3});
  for (uint64_t i = 1; i <= 3; ++i) ASSERT_TRUE(h.executor->Submit(MakeRequest(i, Tokens(10), 5), &h.sink).ok());
  Result<void> full = h.executor->Submit(MakeRequest(4, Tokens(10), 5), &h.sink);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code(), Code::kOverloaded);
  h.executor->Step();  // one started
  EXPECT_TRUE(h.executor->Submit(MakeRequest(5, Tokens(10), 5), &h.sink).ok());
  EXPECT_FALSE(h.executor->Submit(MakeRequest(6, Tokens(10), 5), &h.sink).ok());
  h.executor->Cancel({5});
  h.executor->Step();
  EXPECT_TRUE(h.executor->Submit(MakeRequest(7, Tokens(10), 5), &h.sink).ok());
  h.Run();
}

TEST(Executor, WaitingPromptTokensAreBounded) {
  Harness h({}, {.max_batch_size = 1, .max_queue_tokens = 25});
  auto submit = [&](uint64_t id, int32_t tokens) {
    return h.executor->Submit(MakeRequest(id, Tokens(tokens), 5), &h.sink);
  };
  ASSERT_TRUE(submit(1, 40).ok());  // alone, a prompt over the bound waits
  Result<void> full = submit(2, 1);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code(), Code::kOverloaded);
  for (const char* part : {"prompt of 1 tokens", "prompts of 40 tokens", "max_queue_tokens is 25"})
    EXPECT_NE(full.error().message().find(part), std::string::npos) << full.error().message();
  EXPECT_EQ(h.executor->stats().waiting_tokens, 40);
  EXPECT_EQ(h.executor->stats().waiting, 1);
  h.executor->Step();  // it started
  EXPECT_EQ(h.executor->stats().waiting_tokens, 0);
  ASSERT_TRUE(submit(3, 15).ok());
  ASSERT_TRUE(submit(4, 10).ok());
  EXPECT_FALSE(submit(5, 1).ok());
  h.executor->Cancel({3});
  h.executor->Step();
  EXPECT_EQ(h.executor->stats().waiting_tokens, 10);
  EXPECT_TRUE(submit(6, 15).ok());
  h.Run();
  EXPECT_EQ(h.executor->stats().waiting_tokens, 0);
}

TEST(Executor, IdleExecutorWaitsForCompany) {
  Harness h({}, {.max_queue_delay_microseconds = 500});
  ASSERT_TRUE(h.executor->Submit(MakeRequest(1, Tokens(10), 5), &h.sink).ok());
  h.executor->Step();
  EXPECT_EQ(h.backend.launches(), 0);
  h.clock.Advance(microseconds(200));
  ASSERT_TRUE(h.executor->Submit(MakeRequest(2, Tokens(10), 5), &h.sink).ok());
  h.executor->Step();
  EXPECT_EQ(h.backend.launches(), 0);
  h.clock.Advance(microseconds(300));
  h.executor->Step();
  EXPECT_EQ(h.executor->stats().last_step_context_tokens, 20);
  h.Run();
}

TEST(Executor, StaticBatchAdmitsOnlyWhenEmpty) {
  Harness h({}, {.max_batch_size = 4, .batching_strategy = BatchingStrategy::kV1});
  for (uint64_t i = 1; i <= 6; ++i) {
    ASSERT_TRUE(
        h.executor->Submit(MakeRequest(i, Tokens(10, static_cast<TokenId>(i)), static_cast<int32_t>(3 * i)), &h.sink)
            .ok());
  }
  while (h.sink.stream(4).ends == 0) {
    ASSERT_TRUE(h.executor->Step());
    EXPECT_EQ(h.sink.stream(5).tokens.size(), 0u);
  }
  h.Run();
  EXPECT_EQ(h.sink.ended(), 6u);
}

TEST(Executor, WithoutChunkingAContextFitsWholeOrWaits) {
  Harness h({}, {.max_num_tokens = 64,
                 .context_admission_policy = ContextAdmissionPolicy::kGreedy,
                 .enable_chunked_context = false,
                 .enable_kv_cache_reuse = false});
  for (uint64_t i = 1; i <= 3; ++i) {
    ASSERT_TRUE(h.executor->Submit(MakeRequest(i, Tokens(40, static_cast<TokenId>(i)), 5), &h.sink).ok());
  }
  for (int i = 0; i < 3; ++i) {
    h.executor->Step();
    EXPECT_EQ(h.executor->stats().last_step_context_tokens, 40);
  }
  h.Run();
}

TEST(Executor, PacedPromptsThatComeTogetherLeaveApart) {
  Harness h({.tickets_max = 1}, {.max_num_tokens = 256, .enable_kv_cache_reuse = false});
  for (uint64_t i = 1; i <= 2; ++i) {
    ASSERT_TRUE(h.executor->Submit(MakeRequest(i, Tokens(40, static_cast<TokenId>(i)), 9), &h.sink).ok());
  }
  std::vector<int32_t> context_tokens;
  for (int i = 0; i < 4; ++i) {
    h.executor->Step();
    context_tokens.push_back(h.executor->stats().last_step_context_tokens);
  }
  // The second one lets a step of the first's generation pass.
  EXPECT_EQ(context_tokens, (std::vector<int32_t>{40, 0, 40, 0}));
  h.Run();
}

TEST_P(ExecutorTickets, SteadyStateAllocatesNothing) {
  thread_allocation_counter = CountedAllocations;
  FakeBackendOptions options = Options();
  options.blocks = 4096;
  Harness h(options, {.max_batch_size = 16, .max_num_tokens = 256});
  class Nothing final : public TokenSink {
    void OnToken(const TokenEvent&) override {}
  } sink;
  uint64_t id = 0;
  auto top_up = [&] {
    while (h.executor->stats().waiting < 8) {
      ++id;
      auto request = MakeRequest(id, Tokens(static_cast<int32_t>(20 + id % 200), static_cast<TokenId>(id % 5)),
                                 static_cast<int32_t>(10 + id % 50));
      request->n = id % 7 == 0 ? 2 : 1;
      ASSERT_TRUE(h.executor->Submit(request, &sink).ok());
      if (id % 11 == 0) h.executor->Cancel({id - 9});
    }
  };
  for (int i = 0; i < 50; ++i) {  // the backend and the logger warm up
    top_up();
    h.executor->Step();
  }
  uint64_t before = h.executor->stats().allocations_in_steps;
  uint64_t finished = h.executor->stats().requests_finished;
  for (int i = 0; i < 1000; ++i) {
    top_up();
    h.executor->Step();
  }
  EXPECT_EQ(h.executor->stats().allocations_in_steps - before, 0u);
  EXPECT_GT(h.executor->stats().requests_finished - finished, 200u);
  thread_allocation_counter = nullptr;
}

// Prompts of 300 tokens beside 4 streams: a step of generation alone takes 5.4 ms, so 8.1 ms leave 2.7 ms, 27 tokens.
TEST(Executor, ABoundOnStepsCutsContextAndNobodyStarves) {
  FakeBackendOptions options;
  options.knows_step_costs = true;
  options.step_time = milliseconds(5);
  options.step_time_per_token = microseconds(100);
  ExecutorConfig config;
  for (Nanos bound : {ExecutorConfig::kItlAuto, Nanos(0)}) {
    config.itl_budget = bound;
    Harness h(options, config);
    for (uint64_t id = 1; id <= 4; ++id) ASSERT_TRUE(h.executor->Submit(MakeRequest(id, Tokens(8), 200), &h.sink).ok());
    for (int i = 0; i < 20; ++i) h.executor->Step();
    auto late = MakeRequest(9, Tokens(300, 3), 4);
    late->arrival = h.clock.Now();
    ASSERT_TRUE(h.executor->Submit(late, &h.sink).ok());
    Nanos longest{};
    for (int i = 0; i < 150 && h.sink.stream(9).tokens.empty(); ++i) {
      Nanos begin = h.clock.Now();
      h.executor->Step();
      longest = std::max(longest, h.clock.Now() - begin);
    }
    EXPECT_FALSE(h.sink.stream(9).tokens.empty());
    if (bound == Nanos(0)) {
      EXPECT_GT(longest, milliseconds(30));
    } else {
      EXPECT_LE(longest, microseconds(8100));
      EXPECT_LE(h.clock.Now() - late->arrival, milliseconds(300));
    }
    h.Run();
    h.ExpectOracle(*late);
    EXPECT_EQ(h.executor->stats().steps_over_budget, 0u);
  }
}

// Context costs as on a GPU: tiles of 256 tokens, each of them walks all keys. 8,000 tokens among 16 streams: known
// from the first step on, so no step is over the bound of 1.85 generation steps, and steps are as full as it lets them
// be.
TEST(Executor, StairsThatWereMeasuredKeepEveryStepWithinItsBound) {
  FakeBackendOptions options;
  options.max_seq_len = 8192;
  options.blocks = 2048;
  options.knows_step_costs = true;
  options.step_time = milliseconds(5);
  options.step_time_per_token = microseconds(15);
  options.context_tile = 256;
  options.tile_nanos_a_key = 300;
  for (int32_t tickets : {1, 2}) {
    options.tickets_max = tickets;
    ExecutorConfig config;
    config.itl_budget = ExecutorConfig::kItlAuto;
    Harness h(options, config);
    for (uint64_t id = 1; id <= 16; ++id)
      ASSERT_TRUE(h.executor->Submit(MakeRequest(id, Tokens(8), 400), &h.sink).ok());
    for (int i = 0; i < 20; ++i) h.executor->Step();
    auto late = MakeRequest(99, Tokens(8000, 3), 4);
    late->arrival = h.clock.Now();
    ASSERT_TRUE(h.executor->Submit(late, &h.sink).ok());
    Nanos longest{};
    int steps = 0;
    for (; steps < 100 && h.sink.stream(99).tokens.empty(); ++steps) {
      Nanos begin = h.clock.Now();
      h.executor->Step();
      if (tickets == 1) longest = std::max(longest, h.clock.Now() - begin);
    }
    EXPECT_FALSE(h.sink.stream(99).tokens.empty());
    EXPECT_LE(longest, microseconds(9694)) << "1.85 times 5.24 ms";
    // 256 tokens fit up to 2,000 keys (5.24 + 3.84 + 0.6 ms), 140 of them at the end.
    EXPECT_LE(steps, 60);
    EXPECT_EQ(h.executor->stats().steps_over_budget, 0u);
    h.Run();
    h.ExpectOracle(*late);
  }
}

TEST(Executor, StepsAreCountedByTheShareOfTheirPadding) {
  FakeBackendOptions options;
  options.pads_to = 8;
  Harness h(options);
  ASSERT_TRUE(h.executor->Submit(MakeRequest(1, Tokens(95), 11), &h.sink).ok());  // 95 of 96, then ten times 1 of 8
  h.Run();
  ExecutorStats stats = h.executor->stats();
  EXPECT_EQ(stats.tokens_padded, 1u + 10 * 7);
  EXPECT_EQ(stats.steps_by_padding, (std::array<uint64_t, 6>{0, 1, 0, 0, 0, 10}));
  EXPECT_EQ(stats.steps_kernel_by_kernel, 0u);
}

TEST(ExecutorThreads, ManySubmittersCancelsDrain) {
  FakeBackendOptions options;
  options.tickets_max = 2;
  options.blocks = 256;
  FakeBackend backend(options);
  auto executor = *Executor::Create(
      backend, {.max_batch_size = 16, .batch_scheduler_policy = CapacityPolicy::kMaxUtilization}, SystemClock::Get());
  executor->Start();
  Collector sink;
  std::atomic<uint64_t> accepted{0};
  std::vector<std::thread> clients;
  for (uint64_t client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(static_cast<unsigned>(client));
      for (uint64_t i = 0; i < 200; ++i) {
        uint64_t id = client * 1000 + i;
        auto request = MakeRequest(id, Tokens(static_cast<int32_t>(1 + random() % 100), static_cast<TokenId>(client)),
                                   static_cast<int32_t>(random() % 60));
        if (executor->Submit(request, &sink).ok()) ++accepted;
        if (random() % 3 == 0) executor->Cancel({client * 1000 + random() % (i + 1)});
        if (random() % 5 == 0) executor->Stop({id}, 0, FinishReason::kStopText);
        if (random() % 20 == 0) std::this_thread::yield();
        (void)executor->stats();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  executor->Drain(SystemClock::Get().Now() + seconds(60));
  EXPECT_EQ(sink.ended(), accepted.load());
  EXPECT_FALSE(executor->Submit(MakeRequest(99999, Tokens(5), 5), &sink).ok());
  executor->Shutdown();
  EXPECT_EQ(executor->stats().blocks_used, 0);
  EXPECT_TRUE(executor->Audit().ok());
}

TEST(ExecutorThreads, DrainCancelsAtTheDeadline) {
  FakeBackendOptions options;
  options.step_time = milliseconds(1);
  options.real_time = true;
  FakeBackend backend(options);
  auto executor = *Executor::Create(backend, {}, SystemClock::Get());
  executor->Start();
  Collector sink;
  ASSERT_TRUE(executor->Submit(MakeRequest(1, Tokens(5), 2000), &sink).ok());
  ASSERT_TRUE(executor->Submit(MakeRequest(2, Tokens(5), 5), &sink).ok());
  executor->Drain(SystemClock::Get().Now() + milliseconds(100));
  EXPECT_EQ(sink.stream(1).reason, FinishReason::kCancelled);
  EXPECT_EQ(sink.stream(2).reason, FinishReason::kLength);
}

TEST(ExecutorThreads, DrainLetsFiftyStreamsFinish) {
  FakeBackendOptions options;
  options.step_time = microseconds(500);
  options.real_time = true;
  FakeBackend backend(options);
  auto executor = *Executor::Create(backend, {}, SystemClock::Get());
  executor->Start();
  Collector sink;
  std::vector<std::shared_ptr<Request>> requests;
  for (uint64_t i = 1; i <= 50; ++i) {
    requests.push_back(MakeRequest(i, Tokens(20, static_cast<TokenId>(i)), 100));
    ASSERT_TRUE(executor->Submit(requests.back(), &sink).ok());
  }
  while (sink.stream(1).tokens.empty()) std::this_thread::yield();
  executor->Drain(SystemClock::Get().Now() + seconds(60));
  for (const auto& request : requests) {
    EXPECT_EQ(sink.stream(request->id.value).reason, FinishReason::kLength);
    EXPECT_EQ(sink.stream(request->id.value).tokens, Oracle(options, *request));
  }
}

int64_t ResidentKib() {
  std::ifstream in("/proc/self/statm");
  int64_t size = 0, resident = 0;
  in >> size >> resident;
  return resident * 4;
}

// Clients that leave after their first tokens, one after the other, fifty at a time.
TEST(ExecutorThreads, TenThousandDisconnectsLeaveNothingBehind) {
  constexpr uint64_t kRequests = 10'000, kAtOnce = 50;
  FakeBackendOptions options;
  options.tickets_max = 2;
  options.blocks = 2048;
  FakeBackend backend(options);
  auto executor = *Executor::Create(backend, {.max_batch_size = 32}, SystemClock::Get());
  class Leaving final : public TokenSink {
   public:
    explicit Leaving(Executor& executor) : executor_(executor) {}
    void OnToken(const TokenEvent& event) override {
      if (event.reason != FinishReason::kNone) {
        cancelled += event.reason == FinishReason::kCancelled;
        ++ended;
      } else if (event.request.value % 3 != 0) {
        executor_.Cancel(event.request);  // the others are cancelled from outside
      }
    }
    std::atomic<uint64_t> ended{0}, cancelled{0};

   private:
    Executor& executor_;
  } sink(*executor);
  executor->Start();
  int64_t resident_early = 0;
  for (uint64_t id = 1; id <= kRequests; ++id) {
    ASSERT_TRUE(executor->Submit(MakeRequest(id, Tokens(static_cast<int32_t>(1 + id % 90)), 1900), &sink).ok());
    if (id > kAtOnce) executor->Cancel({id - kAtOnce});
    while (id - sink.ended > kAtOnce) std::this_thread::yield();
    if (id == kRequests / 5) resident_early = ResidentKib();
  }
  for (uint64_t id = kRequests - kAtOnce; id <= kRequests; ++id) executor->Cancel({id});
  executor->Drain(SystemClock::Get().Now() + seconds(60));
  int64_t grown = ResidentKib() - resident_early;
  EXPECT_EQ(sink.ended, kRequests);
  EXPECT_EQ(sink.cancelled, kRequests);
  executor->Shutdown();
  EXPECT_EQ(executor->stats().blocks_used, 0);
  EXPECT_TRUE(executor->Audit().ok());
  std::printf("10,000 disconnects: %ld KiB more than after 2,000\n", static_cast<long>(grown));
  if (!kSanitized) {
    EXPECT_LT(grown, 4096);
  }
}

TEST(ExecutorThreads, ShutdownUnderLoadEndsEveryRequestOnce) {
  for (int round = 0; round < 20; ++round) {
    FakeBackendOptions options;
    options.tickets_max = 1 + round % 2;
    FakeBackend backend(options);
    auto executor = *Executor::Create(backend, {.max_batch_size = 4}, SystemClock::Get());
    executor->Start();
    Collector sink;
    size_t accepted = 0;
    std::thread client([&] {
      for (uint64_t i = 1; i <= 100; ++i) {
        accepted += executor->Submit(MakeRequest(i, Tokens(50), 100), &sink).ok();
      }
    });
    if (round % 2 == 0) client.join();
    executor->Shutdown();
    if (client.joinable()) client.join();
    EXPECT_EQ(sink.ended(), accepted);
    EXPECT_TRUE(executor->Audit().ok());
  }
}

}  // namespace
}  // namespace ekiben
