// The CUDA backend through its seam: what it says where there is no device, and on one that a request's tokens do not
// depend on chunks, on neighbours, on overlap or on who chooses them.
#include "backend/cuda_backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>

namespace ekiben {
namespace {

// Over tests/cuda_emulation everything is some thousand times slower.
#ifdef EKIBEN_EMULATED
constexpr int32_t kVocab = 256, kHidden = 64, kHeads = 4, kHeadDim = 32, kMaxTokens = 128, kNewTokens = 8;
#else
constexpr int32_t kVocab = 1000, kHidden = 512, kHeads = 8, kHeadDim = 64, kMaxTokens = 256, kNewTokens = 40;
#endif

ModelConfig SmallConfig() {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = kVocab;
  config.hidden_size = kHidden;
  config.intermediate_size = 2 * kHidden;
  config.num_hidden_layers = 2;
  config.num_attention_heads = kHeads;
  config.num_key_value_heads = 2;
  config.head_dim = kHeadDim;
  config.max_position_embeddings = 1024;
  return config;
}

CudaBackendConfig SmallBackend() {
  CudaBackendConfig config;
  config.max_batch_size = 8;
  config.max_num_tokens = kMaxTokens;
  config.max_seq_len = 512;
  config.tokens_per_block = 32;
  config.synth_seed = 5;
  return config;
}

// Runs greedy sequences to their end, `tickets` steps in flight, with plans made here: context in chunks of at most
// `chunk` tokens, generation as soon as a prompt is done.
class Driver {
 public:
  Driver(Backend& backend, int tickets, int32_t chunk)
      : backend_(backend), tickets_(tickets), chunk_(chunk), plan_({8, kMaxTokens, 512, 8}) {}

  struct Sequence {
    Request request;
    int32_t fed = 0;  // tokens of prompt and output that steps have been given
    std::vector<TokenId> output;
    std::vector<PositionLogProbs> prompt_logprobs;
    std::vector<float> logprobs, gaps;  // the chosen token's, and from the best to the second
  };
  int64_t tokens_padded = 0, steps_kernel_by_kernel = 0;

  void Run(std::vector<Sequence>& sequences) {
    for (size_t i = 0; i < sequences.size(); ++i) {
      SlotBinding binding{.slot = {static_cast<int32_t>(i)}, .sequence = {100 + i}};
      binding.request = &sequences[i].request;
      backend_.BindSlot(binding);
    }
    std::deque<Ticket> flight;
    for (;;) {
      bool more = Plan(sequences);
      if (more) {
        auto ticket = backend_.Launch(plan_);
        ASSERT_TRUE(ticket.ok()) << ticket.error().message();
        flight.push_back(*ticket);
      }
      if (flight.empty()) break;
      if (more && static_cast<int>(flight.size()) < tickets_) continue;
      auto result = backend_.Finish(flight.front());
      ASSERT_TRUE(result.ok()) << result.error().message();
      flight.pop_front();
      tokens_padded += result->tokens_padded;
      steps_kernel_by_kernel += result->kernel_by_kernel;
      for (const RowResult& row : result->rows) {
        Sequence& s = sequences[static_cast<size_t>(row.slot.value)];
        EXPECT_TRUE(row.finite);
        s.prompt_logprobs.insert(s.prompt_logprobs.end(), row.prompt_logprobs.begin(), row.prompt_logprobs.end());
        for (TokenId token : row.tokens) s.output.push_back(token);
        if (row.logprobs == nullptr) continue;
        s.logprobs.push_back(row.logprobs->chosen);
        s.gaps.push_back(row.logprobs->best[0].logprob - row.logprobs->best[1].logprob);
      }
    }
  }

 private:
  // False when every sequence has been given all its tokens.
  bool Plan(std::vector<Sequence>& sequences) {
    plan_.Clear();
    for (int pass = 0; pass < 2; ++pass) {
      for (size_t i = 0; i < sequences.size(); ++i) {
        Sequence& s = sequences[i];
        auto prompt = static_cast<int32_t>(s.request.prompt.size());
        bool context = s.fed < prompt;
        if (context != (pass == 0) || s.fed >= prompt + s.request.max_tokens - 1) continue;
        int32_t count = context ? std::min({chunk_, prompt - s.fed, kMaxTokens / 8}) : 1;
        if (pass == 1 && JustPlanned(i)) continue;
        SlotId slot{static_cast<int32_t>(i)};
        for (int32_t at = s.fed; at < s.fed + count; ++at)
          if (at % 32 == 0)
            plan_.AddTableEdit(slot, at / 32, BlockId{static_cast<int32_t>((at / 32) * 8 + (i * 3) % 8)});
        bool last = s.fed + count >= prompt;
        OutputKind output = last ? OutputKind::kSample : OutputKind::kNone;
        if (context && s.request.prompt_logprobs) output = OutputKind::kAllLogits;
        if (context) {
          plan_.AddContextRow(
              {100 + i}, slot, s.fed,
              std::span(s.request.prompt).subspan(static_cast<size_t>(s.fed), static_cast<size_t>(count)), output);
        } else {
          plan_.AddGenerationRow({100 + i}, slot, s.fed, output);
        }
        s.fed += count;
      }
    }
    return !plan_.empty();
  }
  bool JustPlanned(size_t i) const {
    for (const PlanRow& row : plan_.rows())
      if (row.slot.value == static_cast<int32_t>(i)) return true;
    return false;
  }

  Backend& backend_;
  int tickets_;
  int32_t chunk_;
  StepPlan plan_;
};

Driver::Sequence MakeSequence(int32_t seed, int32_t prompt_tokens, int32_t max_tokens) {
  Driver::Sequence out;
  for (int32_t i = 0; i < prompt_tokens; ++i) out.request.prompt.push_back((seed * 37 + i * 91 + i * i) % kVocab);
  out.request.max_tokens = max_tokens;
  out.request.sampling.temperature = 0;
  return out;
}

class CudaBackendTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto parts = OpenCudaBackend(SmallConfig(), nullptr, SmallBackend());
    if (!parts.ok() && parts.error().code() == Code::kUnsupported) GTEST_SKIP() << parts.error().message();
    ASSERT_TRUE(parts.ok()) << parts.error().message();
    backend_ = std::move(parts->backend);
  }
  std::vector<Driver::Sequence> RunAll(int tickets, int32_t chunk, std::vector<Driver::Sequence> sequences) {
    Driver(*backend_, tickets, chunk).Run(sequences);
    return sequences;
  }
  std::unique_ptr<Backend> backend_;
};

TEST(CudaBackendOpen, AnswersWithAReasonOrWithABackend) {
  auto parts = OpenCudaBackend(SmallConfig(), nullptr, SmallBackend());
  if (parts.ok()) {
    EXPECT_EQ(parts->backend->info().tickets_max, 2);
    EXPECT_GT(parts->backend->info().blocks, 0);
  } else {
    auto check = CheckCudaDevice();
    ASSERT_FALSE(check.ok());
    EXPECT_EQ(check.error().field(), "device");
    EXPECT_NE(check.error().message().find("use --device cpu"), std::string::npos) << check.error().message();
    EXPECT_EQ(check.error().message().find('\n'), std::string::npos);
    EXPECT_FALSE(parts.error().message().empty());
  }
}

TEST_F(CudaBackendTest, RefusesSizesThatDoNotFit) {
  CudaBackendConfig config = SmallBackend();
  config.tokens_per_block = 24;
  EXPECT_FALSE(OpenCudaBackend(SmallConfig(), nullptr, config).ok());
  config = SmallBackend();
  config.max_tokens_in_paged_kv_cache = 64;  // less than one sequence
  auto small = OpenCudaBackend(SmallConfig(), nullptr, config);
  ASSERT_FALSE(small.ok());
  EXPECT_EQ(small.error().field(), "max_seq_len");
  ModelConfig odd = SmallConfig();
  odd.head_dim = 44;
  EXPECT_FALSE(OpenCudaBackend(odd, nullptr, SmallBackend()).ok());
}

// Steps of other sizes may round otherwise. Random weights make near ties common: where a text first differs, the two
// best tokens must have been within that rounding.
TEST_F(CudaBackendTest, TokensAreTheSameInAnyCompanyChunkAndOverlapExceptAtNearTies) {
  std::vector<Driver::Sequence> wanted;
  for (int32_t i = 0; i < 7; ++i) wanted.push_back(MakeSequence(i, 3 + 17 * i, kNewTokens));
  std::vector<Driver::Sequence> alone;
  for (auto s : wanted) {
    s.request.sampling.logprobs = 2;
    alone.push_back(RunAll(1, 32, {s})[0]);
    ASSERT_EQ(alone.back().output.size(), size_t{kNewTokens});
  }
  int64_t whole = 0, ties = 0;
  for (auto [tickets, chunk] : {std::pair{1, 32}, {2, 32}, {2, 5}, {1, 1}}) {
    auto together = RunAll(tickets, chunk, wanted);
    for (size_t i = 0; i < wanted.size(); ++i) {
      const auto &a = alone[i].output, &b = together[i].output;
      ASSERT_EQ(a.size(), b.size());
      auto at = static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin()).first - a.begin());
      if (at == a.size()) {
        ++whole;
        continue;
      }
      ++ties;
      EXPECT_LT(alone[i].gaps[at], 0.02f) << "sequence " << i << ", chunk " << chunk << ", token " << at;
    }
  }
  std::cout << whole << " texts equal, " << ties << " apart after a near tie\n";
  EXPECT_GT(whole, ties);
}

TEST_F(CudaBackendTest, TheSameStepsGiveTheSameTokensWithAndWithoutOverlap) {
  std::vector<Driver::Sequence> wanted;
  for (int32_t i = 0; i < 5; ++i) wanted.push_back(MakeSequence(i + 20, 20 + i, kNewTokens));
  auto one = RunAll(1, 32, wanted), two = RunAll(2, 32, wanted), again = RunAll(2, 32, wanted);
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(one[i].output, two[i].output) << i;
    EXPECT_EQ(two[i].output, again[i].output) << i;
  }
}

// Chunks of context and generated rows in one step, in graphs of every kind: what the capture froze must be sizes only.
TEST_F(CudaBackendTest, StepsInGraphsGiveTheBitsOfStepsKernelByKernel) {
  CudaBackendConfig config = SmallBackend();
  config.graphs = false;
  auto eager = OpenCudaBackend(SmallConfig(), nullptr, config);
  ASSERT_TRUE(eager.ok()) << eager.error().message();
  while (*backend_->UseIdleTime()) {  // the graphs that Open had no time for
  }
  std::vector<Driver::Sequence> wanted;
  for (int32_t i = 0; i < 7; ++i) {
    wanted.push_back(MakeSequence(i + 90, 5 + 23 * i, 12));
    if (i % 2 == 0) wanted.back().request.sampling.logprobs = 2;
  }
  for (auto [tickets, chunk] : {std::pair{2, 32}, {1, 17}, {2, 3}}) {
    std::vector<Driver::Sequence> a = wanted, b = wanted;
    Driver in_graphs(*backend_, tickets, chunk), by_kernel(*eager->backend, tickets, chunk);
    in_graphs.Run(a);
    by_kernel.Run(b);
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_EQ(a[i].output, b[i].output) << i;
      EXPECT_EQ(a[i].logprobs, b[i].logprobs) << i;
      EXPECT_EQ(a[i].gaps, b[i].gaps) << i;
    }
    EXPECT_EQ(in_graphs.steps_kernel_by_kernel, 0);
    EXPECT_GT(by_kernel.steps_kernel_by_kernel, 0);
    EXPECT_EQ(in_graphs.tokens_padded, by_kernel.tokens_padded);
  }
}

TEST_F(CudaBackendTest, KnowsWhatItsStepsCost) {
  const BackendInfo& info = backend_->info();
  ASSERT_FALSE(info.step_costs.empty());
  EXPECT_EQ(info.step_costs.back().tokens, kMaxTokens);
  for (size_t i = 0; i < info.step_costs.size(); ++i) {
    EXPECT_GT(info.step_costs[i].time, Nanos(0));
    if (i > 0) {
      EXPECT_GT(info.step_costs[i].tokens, info.step_costs[i - 1].tokens);
    }
  }
}

TEST_F(CudaBackendTest, TheSamplerChoosesGreedilyWhatTheArgMaxChooses) {
  std::vector<Driver::Sequence> device, host;  // host: by the sampler
  for (int32_t i = 0; i < 4; ++i) {
    device.push_back(MakeSequence(i + 50, 30, kNewTokens));
    host.push_back(device.back());
    host.back().request.sampling.logprobs = 2;  // not the argmax kernel
  }
  host[1] = device[1];  // mixed in one step
  auto a = RunAll(2, 32, device), b = RunAll(2, 32, host);
  for (size_t i = 0; i < device.size(); ++i) EXPECT_EQ(a[i].output, b[i].output) << i;
  EXPECT_EQ(b[0].logprobs.size(), size_t{kNewTokens});
  EXPECT_TRUE(b[1].logprobs.empty());
  for (float logprob : b[0].logprobs) EXPECT_LE(logprob, 0.0f);
}

// A list of all tokens as allowed_tokens changes nothing but who chooses.
TEST_F(CudaBackendTest, TheDevicesSamplerOverlapsStepsAndChoosesWhatTheHostsDoes) {
  std::vector<Driver::Sequence> device, host;
  for (int32_t i = 0; i < 6; ++i) {
    device.push_back(MakeSequence(i + 60, 30 + i, kNewTokens));
    SamplingParams& s = device.back().request.sampling;
    s.temperature = 0.9f;
    s.seed = static_cast<uint64_t>(i);
    if (i % 2 == 0) s.top_p = 0.9f;
    if (i == 3) s.frequency_penalty = 0.5f;
    if (i == 4) s.logprobs = 2;
    host.push_back(device.back());
    for (TokenId token = 0; token < kVocab; ++token) host.back().request.sampling.allowed_tokens.push_back(token);
  }
  auto a = RunAll(2, 32, device), b = RunAll(2, 32, host), alone = RunAll(1, 32, {device[1]});
  for (size_t i = 0; i < device.size(); ++i) EXPECT_EQ(a[i].output, b[i].output) << i;
  EXPECT_EQ(a[4].logprobs.size(), size_t{kNewTokens});
  for (size_t i = 0; i < b[4].logprobs.size(); ++i) EXPECT_NEAR(a[4].logprobs[i], b[4].logprobs[i], 1e-5);
  EXPECT_EQ(alone[0].output.size(), size_t{kNewTokens});
}

// Allows the tokens whose sum with the number of tokens so far is a multiple of kEvery: a state that every token moves.
class EveryThird final : public TokenConstraint {
 public:
  static constexpr TokenId kEvery = 3;
  static bool Allows(size_t at, TokenId token) { return (token + static_cast<TokenId>(at)) % kEvery == 0; }
  std::unique_ptr<TokenMatcher> NewMatcher() const override { return std::make_unique<Matcher>(); }

 private:
  class Matcher final : public TokenMatcher {
   public:
    Mask Allowed(std::span<int32_t> bits) override {
      std::ranges::fill(bits, 0);
      for (TokenId token = 0; token < kVocab; ++token)
        if (Allows(at_, token)) bits[static_cast<size_t>(token) / 32] |= static_cast<int32_t>(1u << (token % 32));
      return Mask::kSome;
    }
    bool Accept(TokenId token) override { return Allows(at_++, token); }

   private:
    size_t at_ = 0;
  };
};

// A grammar's tokens are chosen on the host, where the next step waits for them; a neighbour must not notice.
TEST_F(CudaBackendTest, AConstrainedRowKeepsToItsGrammarBesideAFreeOne) {
  std::vector<Driver::Sequence> free, bound;
  for (int32_t i = 0; i < 4; ++i) {
    free.push_back(MakeSequence(i + 30, 20 + 7 * i, kNewTokens));
    if (i == 3) free.back().request.sampling.temperature = 0.9f;
    bound.push_back(free.back());
    if (i % 2 == 1) bound.back().request.constraint = std::make_shared<EveryThird>();
  }
  const auto one = RunAll(1, 32, bound), two = RunAll(2, 32, bound), chunks = RunAll(2, 5, bound);
  const auto without = RunAll(2, 32, free);
  for (size_t i = 0; i < bound.size(); ++i) {
    ASSERT_EQ(one[i].output.size(), size_t{kNewTokens});
    EXPECT_EQ(one[i].output, two[i].output) << i;
    if (i % 2 == 0) {
      EXPECT_EQ(one[i].output, without[i].output) << i;
      continue;
    }
    EXPECT_NE(one[i].output, without[i].output) << i;
    for (const auto& run : {one[i], two[i], chunks[i]})
      for (size_t at = 0; at < run.output.size(); ++at)
        EXPECT_TRUE(EveryThird::Allows(at, run.output[at])) << i << ", token " << at << " is " << run.output[at];
  }
}

TEST_F(CudaBackendTest, PromptLogProbsCoverEveryPromptTokenInAnyChunks) {
  auto scored = MakeSequence(77, 50, 4);
  scored.request.prompt_logprobs = true;
  auto neighbour = MakeSequence(78, 40, 10);
  auto whole = RunAll(1, 64, {scored, neighbour}), chunks = RunAll(2, 7, {scored, neighbour});
  ASSERT_EQ(whole[0].prompt_logprobs.size(), 49u);
  ASSERT_EQ(chunks[0].prompt_logprobs.size(), 49u);
  for (size_t i = 0; i < 49; ++i)
    EXPECT_NEAR(whole[0].prompt_logprobs[i].chosen, chunks[0].prompt_logprobs[i].chosen, 2e-2);
  EXPECT_EQ(whole[0].output.size(), 4u);
  EXPECT_EQ(whole[1].output.size(), 10u);
}

TEST_F(CudaBackendTest, SaysWhichMemoryIsMissingBeforeItAllocates) {
  ModelConfig model = SmallConfig();
  model.hidden_size = 16384;
  model.intermediate_size = 65536;
  model.num_hidden_layers = 400;
  auto large = OpenCudaBackend(model, nullptr, SmallBackend());
  ASSERT_FALSE(large.ok());
  EXPECT_EQ(large.error().field(), "dtype");
  EXPECT_NE(large.error().message().find("are missing; take a smaller model"), std::string::npos)
      << large.error().message();
  CudaBackendConfig config = SmallBackend();
  config.max_tokens_in_paged_kv_cache = 64;
  auto cache = OpenCudaBackend(SmallConfig(), nullptr, config);
  ASSERT_FALSE(cache.ok());
  EXPECT_EQ(cache.error().field(), "max_seq_len");
  EXPECT_NE(cache.error().message().find("room for 64 tokens"), std::string::npos) << cache.error().message();
}

}  // namespace
}  // namespace ekiben
