// The promise of docs/ARCHITECTURE.md (Determinism on the CPU), through the whole stack: engine, CPU backend, executor.
// A crowd of mixed requests runs one by one, then all together, under every way that the executor has of cutting and
// moving their work. Each sequence must get the same tokens, the same log-probabilities and, at every position, the
// same logits, bit for bit. Each run also proves by counters that what it is meant to force did happen.
//
// EKIBEN_TEST_MODEL: a GGUF file; without it the test is skipped. EKIBEN_STACK_REQUESTS (default 24): the acceptance
// run takes 200.
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>

#include "backend/cpu_backend.h"
#include "base/arithmetic.h"
#include "base/clock.h"
#include "base/mapped_file.h"
#include "base/sanitizers.h"
#include "compile/engine.h"
#include "compile/profile.h"
#include "executor/executor.h"
#include "stack/mixed_requests.h"
#include "stack/recording.h"
#include "text/tokenizer.h"

namespace ekiben {
namespace {

constexpr int32_t kSeqLenMax = 704;  // 600 in, 96 out
// Of 30, in an instrumented build: the same requests, kernels, threads and counters in a fraction of the time. What the
// model says is nonsense then, and must be the same nonsense alone and together.
constexpr int32_t kLayersSanitized = 2;

struct Generated {
  std::vector<TokenId> tokens;
  std::vector<PositionLogProbs> logprobs;
  std::vector<PositionLogProbs> prompt_logprobs;
  FinishReason reason = FinishReason::kNone;
};
using Answers = std::map<std::pair<uint64_t, int32_t>, Generated>;

bool SameBits(const PositionLogProbs& a, const PositionLogProbs& b) {
  auto bits = [](float f) { return std::bit_cast<uint32_t>(f); };
  if (bits(a.chosen) != bits(b.chosen) || a.count != b.count) return false;
  return std::equal(a.best, a.best + a.count, b.best, [&](const TokenLogProb& x, const TokenLogProb& y) {
    return x.token == y.token && bits(x.logprob) == bits(y.logprob);
  });
}

bool SameBits(const std::vector<PositionLogProbs>& a, const std::vector<PositionLogProbs>& b) {
  return std::ranges::equal(a, b, [](const auto& x, const auto& y) { return SameBits(x, y); });
}

class Collector final : public TokenSink {
 public:
  void OnToken(const TokenEvent& event) override {
    Generated& to = answers_[{event.request.value, event.sequence_index}];
    EXPECT_EQ(to.reason, FinishReason::kNone) << "an event after the end";
    if (event.token >= 0) to.tokens.push_back(event.token);
    if (event.logprobs != nullptr) to.logprobs.push_back(*event.logprobs);
    to.reason = event.reason;
    ended_ += event.reason != FinishReason::kNone;
  }
  void OnPromptLogProbs(RequestId id, const std::vector<PositionLogProbs>& positions) override {
    answers_[{id.value, 0}].prompt_logprobs = positions;
  }
  const Answers& answers() const { return answers_; }
  int64_t ended() const { return ended_; }

 private:
  Answers answers_;
  int64_t ended_ = 0;
};

struct RunConfig {
  ExecutorConfig executor;
  int32_t threads = 2, max_batch_size = 64, max_num_tokens = 1024, tokens_per_block = 32;
  int32_t kv_tokens = 64 * kSeqLenMax;
  bool profile = true;  // the engine's choice of kernels, or the built-in one
};

using Requests = std::vector<std::shared_ptr<const Request>>;

// One executor over the real backend, everything recorded.
class RecordedRun {
 public:
  RecordedRun(Model& model, const LinearTuning& tuning, RunConfig config) : model_(model) {
    config.executor.max_batch_size = config.max_batch_size;
    config.executor.max_num_tokens = config.max_num_tokens;
    const Clock& clock = SystemClock::Get();
    auto cpu = CpuBackend::Create(model_,
                                  {.threads = config.threads,
                                   .max_batch_size = config.max_batch_size,
                                   .max_num_tokens = config.max_num_tokens,
                                   .max_seq_len = kSeqLenMax,
                                   .tokens_per_block = config.tokens_per_block,
                                   .kv_blocks = CeilDiv(config.kv_tokens, config.tokens_per_block),
                                   .tuning = config.profile ? &tuning : nullptr},
                                  clock);
    CHECK(cpu.ok(), "{}", cpu.error().message());
    cpu_ = *std::move(cpu);
    backend_ = std::make_unique<RecordBackend>(*cpu_, model_);
    auto executor = Executor::Create(*backend_, config.executor, clock);
    CHECK(executor.ok(), "{}", executor.error().message());
    executor_ = *std::move(executor);
  }

  void OneByOne(const Requests& requests) {
    for (const auto& request : requests) {
      Submit(request);
      Finish();
    }
  }
  // Half at once, the others while those run.
  void Together(const Requests& requests) {
    size_t at = 0;
    for (; at < requests.size() / 2; ++at) Submit(requests[at]);
    for (; at < requests.size(); ++at) {
      Submit(requests[at]);
      executor_->Step();
    }
    Finish();
  }

  const Collector& collector() const { return collector_; }
  const RecordBackend& record() const { return *backend_; }
  ExecutorStats stats() const { return executor_->stats(); }

 private:
  void Submit(const std::shared_ptr<const Request>& request) {
    auto result = executor_->Submit(request, &collector_);
    ASSERT_TRUE(result.ok()) << result.error().message();
    wanted_ += request->n;
  }
  void Finish() {
    for (int64_t steps = 0; collector_.ended() < wanted_; ++steps) {
      executor_->Step();
      ASSERT_LT(steps, 1'000'000);
    }
    auto audit = executor_->Audit();
    ASSERT_TRUE(audit.ok()) << audit.error().message();
    EXPECT_EQ(executor_->stats().blocks_used, 0);
  }

  RecordModel model_;
  std::unique_ptr<CpuBackend> cpu_;
  std::unique_ptr<RecordBackend> backend_;
  std::unique_ptr<Executor> executor_;
  Collector collector_;
  int64_t wanted_ = 0;
};

void ExpectSame(const RecordedRun& run, const Answers& alone, const LogitRecord& alone_logits) {
  int64_t tokens = 0, rows = 0, differ = 0;
  for (const auto& [key, want] : alone) {
    const Generated& got = run.collector().answers().at(key);
    bool same = got.tokens == want.tokens && got.reason == want.reason && SameBits(got.logprobs, want.logprobs) &&
                SameBits(got.prompt_logprobs, want.prompt_logprobs) &&
                run.record().logits().at(key) == alone_logits.at(key);
    EXPECT_TRUE(same) << "request " << key.first << " sequence " << key.second << ": " << got.tokens.size()
                      << " tokens, alone " << want.tokens.size();
    tokens += std::ssize(got.tokens);
    rows += std::ssize(run.record().logits().at(key));
    differ += same ? 0 : 1;
  }
  EXPECT_EQ(run.collector().answers().size(), alone.size());
  EXPECT_EQ(run.record().changed(), 0);
  ExecutorStats s = run.stats();
  fmt::print(
      "  {} sequences, {} tokens, {} rows of logits: {} differ; {} steps ({} mixed, up to {} rows), {} chunks, {} "
      "pauses, {} prompt tokens reused, {} rows computed again\n",
      alone.size(), tokens, rows, differ, s.steps, run.record().mixed_steps(), run.record().rows_max(),
      run.record().chunks(), s.preemptions, s.prefix_tokens_reused, run.record().computed_again());
}

// The engine, and the answers of every request alone: made once for all tests.
class BatchedEqualsAlone : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const char* model = std::getenv("EKIBEN_TEST_MODEL");
    if (model == nullptr || *model == '\0') return;
    auto checkpoint = OpenCheckpoint(model);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
    if (kSanitized) checkpoint->config.num_hidden_layers = kLayersSanitized;
    folder_ = std::filesystem::temp_directory_path() / fmt::format("ekiben_stack_test.{}", ::getpid());
    auto built = BuildEngine(*checkpoint, {.multiple_profiles = !kSanitized}, folder_, [](const BuildProgress&) {});
    ASSERT_TRUE(built.ok()) << built.error().message();
    auto engine = OpenEngine(folder_, Verify::kAll);
    ASSERT_TRUE(engine.ok()) << engine.error().message();
    engine_ = std::make_unique<Engine>(*std::move(engine));
    auto tuning = ReadProfiles(engine_->profiles);
    ASSERT_TRUE(tuning.ok());
    tuning_ = *std::move(tuning);
    auto loaded = Model::Load(engine_->model, engine_->tensors, kSeqLenMax);
    ASSERT_TRUE(loaded.ok());
    model_ = *std::move(loaded);
    MakeRequests();
    fmt::print("alone, {} requests:\n", requests_.size());
    RunConfig config{.profile = false};
    config.executor.enable_kv_cache_reuse = false;
    config.executor.enable_chunked_context = false;
    RecordedRun run(*model_, tuning_, config);
    run.OneByOne(requests_);
    ASSERT_EQ(run.record().chunks(), 0);
    alone_ = run.collector().answers();
    alone_logits_ = run.record().logits();
    shared_by_siblings_ = run.stats().prefix_tokens_reused;
    ExpectSame(run, alone_, alone_logits_);
  }
  static void TearDownTestSuite() {
    model_.reset();
    engine_.reset();
    std::filesystem::remove_all(folder_);
  }
  void SetUp() override {
    if (requests_.empty()) GTEST_SKIP() << "EKIBEN_TEST_MODEL is not set";
  }

  static void MakeRequests() {
    const char* count = std::getenv("EKIBEN_STACK_REQUESTS");
    auto tokenizer = text::Tokenizer::Create(engine_->tokenizer);
    ASSERT_TRUE(tokenizer.ok());
    auto licence = ReadFile(EKIBEN_SOURCE_DIR "/LICENSE", 1 << 20);
    ASSERT_TRUE(licence.ok());
    std::vector<TokenId> text = (*tokenizer)->Encode(*licence, {.add_special = false});
    requests_ =
        MixedRequests({.count = count == nullptr ? 24 : std::atoi(count), .vocab_size = engine_->model.vocab_size},
                      text, engine_->tokenizer.end_ids, 20'261'123);
  }

  // Runs everything together and compares; the run, for its counters.
  static std::unique_ptr<RecordedRun> Together(const RunConfig& config) {
    auto run = std::make_unique<RecordedRun>(*model_, tuning_, config);
    run->Together(requests_);
    ExpectSame(*run, alone_, alone_logits_);
    return run;
  }
  // Of the steps while several run: without this, "together" would say nothing.
  static void ExpectCrowded(const RecordedRun& run) {
    EXPECT_GT(run.record().mixed_steps(), 0);
    EXPECT_GE(run.record().rows_max(), 6);
  }

  static inline std::filesystem::path folder_;
  static inline std::unique_ptr<Engine> engine_;
  static inline LinearTuning tuning_;
  static inline std::unique_ptr<Model> model_;
  static inline Requests requests_;
  static inline Answers alone_;
  static inline LogitRecord alone_logits_;
  static inline uint64_t shared_by_siblings_ = 0;  // prompt tokens that n > 1 computes once, also without reuse
};

TEST_F(BatchedEqualsAlone, InOneBatch) {
  RunConfig config;
  config.executor.enable_kv_cache_reuse = false;
  auto run = Together(config);
  ExpectCrowded(*run);
  EXPECT_EQ(run->stats().preemptions, 0u);
}

TEST_F(BatchedEqualsAlone, OnOneThread) {
  RunConfig config{.threads = 1, .profile = false};
  config.executor.enable_kv_cache_reuse = false;
  ExpectCrowded(*Together(config));
}

TEST_F(BatchedEqualsAlone, WithPromptsCutIntoChunks) {
  RunConfig config{.max_batch_size = 32, .max_num_tokens = 48};
  config.executor.enable_kv_cache_reuse = false;
  auto run = Together(config);
  ExpectCrowded(*run);
  EXPECT_GT(run->record().chunks(), std::ssize(requests_));
}

TEST_F(BatchedEqualsAlone, WithReusedPrefixes) {
  RunConfig config{.max_num_tokens = 200};
  auto run = Together(config);
  ExpectCrowded(*run);
  EXPECT_GT(run->stats().prefix_tokens_reused, shared_by_siblings_ + 500);
}

TEST_F(BatchedEqualsAlone, WithPausesInAFullCache) {
  RunConfig config{.tokens_per_block = 16, .kv_tokens = kSeqLenMax};  // answers outgrow the block left for each
  config.executor.batch_scheduler_policy = CapacityPolicy::kMaxUtilization;
  config.executor.enable_kv_cache_reuse = false;
  auto run = Together(config);
  EXPECT_GT(run->stats().preemptions, 0u);
  EXPECT_GT(run->record().mixed_steps(), 0);
}

TEST_F(BatchedEqualsAlone, WithAllOfThatAtOnceOnOneThread) {
  RunConfig config{
      .threads = 1, .max_batch_size = 24, .max_num_tokens = 64, .tokens_per_block = 16, .kv_tokens = kSeqLenMax};
  config.executor.batch_scheduler_policy = CapacityPolicy::kMaxUtilization;
  config.executor.context_chunking_policy = ChunkingPolicy::kEqualProgress;
  auto run = Together(config);
  EXPECT_GT(run->stats().preemptions, 0u);
  EXPECT_GT(run->record().chunks(), 0);
  EXPECT_GT(run->stats().prefix_tokens_reused, shared_by_siblings_);
}

}  // namespace
}  // namespace ekiben
