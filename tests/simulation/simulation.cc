#include "simulation/simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "backend/fake_backend.h"
#include "executor/executor.h"

namespace ekiben {
namespace {

using std::chrono::microseconds;

// SplitMix64 (Steele et al. 2014): one word of state, the same on every platform.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint64_t Next() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  // In [low, high].
  int32_t Between(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int32_t percent) { return Between(1, 100) <= percent; }
  template <class T>
  T OneOf(std::initializer_list<T> values) {
    return values.begin()[Next() % values.size()];
  }

 private:
  uint64_t state_;
};

constexpr int32_t kVocab = 64;

struct World {
  FakeBackendOptions backend;
  ExecutorConfig config;
  int32_t requests = 0;
  int32_t nan_one_in = 0;  // sequences with a row that is not finite; 0: none

  int32_t window() const {
    int32_t window = config.max_attention_window_size;
    return window > 0 && window < backend.max_seq_len ? window : 0;
  }
};

World MakeWorld(Random& random, FakeClock& clock) {
  World world;
  FakeBackendOptions& b = world.backend;
  b.vocab_size = kVocab;
  b.fake_clock = &clock;
  b.abort_on_violation = false;
  b.model_seed = random.Next();
  b.tokens_per_block = random.OneOf({4, 8, 16});
  b.max_seq_len = random.Between(40, 120);
  b.max_batch_size = random.Between(1, 12);
  b.max_num_tokens = 160;
  b.tickets_max = random.Between(1, 2);
  int32_t longest = (b.max_seq_len + b.tokens_per_block - 1) / b.tokens_per_block;
  b.blocks = random.Chance(60) ? random.Between(longest, 3 * longest) : random.Between(longest, 14 * longest);
  b.step_time = microseconds(random.Between(1, 200));
  b.step_time_per_token = microseconds(random.Between(0, 5));
  if (random.Chance(5)) {
    (random.Chance(50) ? b.launch_fails_at : b.finish_fails_at) = random.Between(0, 150);
  }
  ExecutorConfig& c = world.config;
  c.max_batch_size = b.max_batch_size;
  c.max_num_tokens = random.Chance(20) ? random.Between(1, 16) : random.Between(16, 128);
  c.batch_scheduler_policy = random.OneOf({CapacityPolicy::kGuaranteedNoEvict, CapacityPolicy::kMaxUtilization});
  if (random.Chance(10)) c.batching_strategy = BatchingStrategy::kV1;
  c.context_chunking_policy = random.OneOf({ChunkingPolicy::kFirstComeFirstServed, ChunkingPolicy::kEqualProgress});
  c.enable_chunked_context = !random.Chance(20);
  c.enable_kv_cache_reuse = !random.Chance(25);
  if (random.Chance(25)) c.max_attention_window_size = random.Between(3, b.max_seq_len);
  c.max_queue_size = random.Chance(30) ? random.Between(1, 10) : 1024;
  if (random.Chance(10)) c.max_queue_tokens = random.Between(20, 400);
  if (random.Chance(15)) c.max_queue_delay_microseconds = random.Between(1, 2000);
  if (random.Chance(40)) c.context_admission_policy = ContextAdmissionPolicy::kGreedy;
  b.tokens_limit = c.max_num_tokens;
  b.attention_window = world.window();
  world.requests = random.Between(50, 70);
  if (random.Chance(15)) world.nan_one_in = random.Between(5, 40);
  return world;
}

std::string Describe(const World& world) {
  const FakeBackendOptions& b = world.backend;
  const ExecutorConfig& c = world.config;
  return fmt::format(
      "tickets {} blocks {}x{} max_seq_len {} max_batch_size {} max_num_tokens {} {} {} {}{}{}{} window {} queue {}/{} "
      "delay {}us faults {}/{} nan 1/{}",
      b.tickets_max, b.blocks, b.tokens_per_block, b.max_seq_len, c.max_batch_size, c.max_num_tokens,
      c.batch_scheduler_policy == CapacityPolicy::kMaxUtilization ? "max_utilization" : "guaranteed_no_evict",
      c.batching_strategy == BatchingStrategy::kV1 ? "V1" : "inflight",
      c.context_chunking_policy == ChunkingPolicy::kEqualProgress ? "equal_progress" : "first_come",
      c.context_admission_policy == ContextAdmissionPolicy::kGreedy ? " greedy" : "",
      c.enable_chunked_context ? "" : " unchunked", c.enable_kv_cache_reuse ? " reuse" : "", world.window(),
      c.max_queue_size, c.max_queue_tokens, c.max_queue_delay_microseconds, b.launch_fails_at, b.finish_fails_at,
      world.nan_one_in);
}

// What the crowd will do with one request.
struct Visit {
  std::shared_ptr<Request> request;
  Nanos arrives{};
  Nanos cancels_at = Nanos::max();    // by the client, whenever that is
  int32_t cancels_after_tokens = -1;  // a reader too slow for its buffer: cancelled from inside the sink
  int32_t stops_after_tokens = -1;    // a stop string matched on text, in sequence 0
  bool submitted = false, cancelled = false, stopped = false;
};

// Half of the prompts begin like another one, up to some point, so that whole blocks and parts of blocks are shared.
std::vector<TokenId> MakePrompt(Random& random, int32_t length, uint64_t trunk) {
  Random shared(trunk);
  int32_t common = trunk == 0 ? 0 : random.Between(0, length);
  std::vector<TokenId> prompt(static_cast<size_t>(length));
  for (int32_t i = 0; i < length; ++i)
    prompt[static_cast<size_t>(i)] = (i < common ? shared : random).Between(0, kVocab - 1);
  return prompt;
}

Visit MakeVisit(Random& random, const World& world, uint64_t id, Nanos arrives) {
  Visit visit{.request = std::make_shared<Request>(), .arrives = arrives};
  Request& r = *visit.request;
  int32_t prompt_max = world.backend.max_seq_len - 1;
  if (!world.config.enable_chunked_context) prompt_max = std::min(prompt_max, world.config.max_num_tokens);
  r.id = {id};
  r.prompt = MakePrompt(random, random.Between(1, prompt_max), static_cast<uint64_t>(random.Between(0, 3)));
  r.max_tokens = random.Chance(5) ? random.Between(0, 1) : random.Between(2, 40);
  r.n = random.Chance(15) ? random.Between(2, 4) : 1;
  r.sampling.seed = random.Next();
  if (random.Chance(30)) r.sampling.temperature = 0;
  if (random.Chance(20)) r.sampling.min_tokens = random.Between(1, 10);
  if (random.Chance(10)) r.sampling.logprobs = random.Between(0, 5);
  if (random.Chance(60)) r.stop_tokens = {random.Between(0, kVocab - 1), random.Between(0, kVocab - 1)};
  r.ignore_eos = random.Chance(20);
  r.prompt_logprobs = random.Chance(8);
  if (random.Chance(20)) r.priority = random.Between(-2, 2);
  if (random.Chance(20)) r.cache_salt = random.Chance(50) ? "a" : "b";
  r.arrival = arrives;
  if (random.Chance(10)) r.deadline = arrives + microseconds(random.Between(0, 20'000));
  if (random.Chance(12)) visit.cancels_at = arrives + microseconds(random.Between(0, 10'000));
  if (random.Chance(8)) visit.cancels_after_tokens = random.Between(1, 20);
  if (random.Chance(8)) visit.stops_after_tokens = random.Between(1, 20);
  return visit;
}

class Run final : public TokenSink {
 public:
  explicit Run(uint64_t seed);
  SimulationResult Go();

 private:
  struct Stream {
    std::vector<TokenId> tokens;  // prompt and output
    int32_t generated = 0;
    bool ended = false;
  };
  Visit& visit(RequestId id) { return visits_[id.value - 1]; }
  bool NotFinite(const Request& request, int32_t index, int32_t draw) const;
  void OnToken(const TokenEvent& event) override;
  void OnPromptLogProbs(RequestId id, const std::vector<PositionLogProbs>& positions) override;
  void CheckToken(Visit& from, Stream& stream, const TokenEvent& event);
  void CheckEnd(const Visit& from, const Stream& stream, const TokenEvent& event);
  void Arrive(Visit& arriving);
  void Cancel(Visit& leaving);
  void Happen();
  void CheckStep();
  void CheckIdle();
  bool Ended(const Visit& of) const;
  Nanos NextEvent() const;
  void Violation(std::string what) {
    if (result_.violation.empty()) result_.violation = std::move(what);
  }
  void Trace(uint64_t value) { result_.trace_hash = (result_.trace_hash ^ value) * 0x100000001B3u; }

  Random random_;
  FakeClock clock_;
  World world_;
  std::unique_ptr<FakeBackend> backend_;
  std::unique_ptr<Executor> executor_;
  std::vector<Visit> visits_;
  std::map<std::pair<uint64_t, int32_t>, Stream> streams_;
  std::vector<RequestId> must_end_;  // cancelled since the last step
  uint64_t work_ = 0;
  SimulationResult result_;
};

Run::Run(uint64_t seed) : random_(seed), world_(MakeWorld(random_, clock_)) {
  world_.backend.not_finite = [this](const Request& r, int32_t index, int32_t draw) {
    return NotFinite(r, index, draw);
  };
  backend_ = std::make_unique<FakeBackend>(world_.backend);
  executor_ = *Executor::Create(*backend_, world_.config, clock_);
  result_.config = Describe(world_);
  result_.requests = world_.requests;
  Nanos at{};
  int32_t gap = random_.OneOf({0, 50, 500, 3000});
  for (int32_t i = 0; i < world_.requests; ++i) {
    if (random_.Chance(70)) at += microseconds(random_.Between(0, gap));
    visits_.push_back(MakeVisit(random_, world_, static_cast<uint64_t>(i) + 1, at));
    const Request& r = *visits_.back().request;
    work_ += static_cast<uint64_t>(r.n) * (r.prompt.size() + static_cast<size_t>(r.max_tokens));
  }
}

bool Run::NotFinite(const Request& request, int32_t index, int32_t draw) const {
  if (world_.nan_one_in == 0) return false;
  Random fate(request.sampling.seed + static_cast<uint64_t>(index));
  return fate.Between(1, world_.nan_one_in) == 1 && draw == fate.Between(0, 10);
}

bool Run::Ended(const Visit& of) const {
  for (int32_t i = 0; i < of.request->n; ++i) {
    auto found = streams_.find({of.request->id.value, i});
    if (found == streams_.end() || !found->second.ended) return false;
  }
  return true;
}

void Run::OnToken(const TokenEvent& event) {
  Visit& from = visit(event.request);
  Stream& stream = streams_[{event.request.value, event.sequence_index}];
  if (stream.tokens.empty()) stream.tokens = from.request->prompt;
  if (!from.submitted) Violation(fmt::format("only accepted requests produce events: request {}", event.request));
  if (stream.ended) {
    Violation(fmt::format("every sequence ends once: request {} sequence {}", event.request, event.sequence_index));
  }
  Trace(event.request.value << 32 | static_cast<uint64_t>(event.sequence_index) << 16 |
        static_cast<uint64_t>(event.reason));
  Trace(static_cast<uint64_t>(static_cast<uint32_t>(event.token)));
  Trace(static_cast<uint64_t>(event.emitted.count()));
  if (event.token >= 0) CheckToken(from, stream, event);
  if (event.reason != FinishReason::kNone) CheckEnd(from, stream, event);
  if (stream.generated == from.cancels_after_tokens && !from.cancelled) Cancel(from);
  if (stream.generated == from.stops_after_tokens && event.sequence_index == 0 && !from.stopped) {
    from.stopped = true;
    executor_->Stop(event.request, 0, FinishReason::kStopText);
  }
}

void Run::CheckToken(Visit& from, Stream& stream, const TokenEvent& event) {
  const Request& r = *from.request;
  if (NotFinite(r, event.sequence_index, stream.generated)) {
    Violation(fmt::format("a row that is not finite gives no token: request {}", event.request));
  }
  TokenId expected = FakeNextToken(world_.backend, r, event.sequence_index, stream.generated, stream.tokens);
  if (event.token != expected) {
    Violation(fmt::format("output equals the oracle: request {} sequence {} token {}: {} instead of {}", event.request,
                          event.sequence_index, stream.generated, event.token, expected));
  }
  bool stop = !r.ignore_eos && std::ranges::find(r.stop_tokens, event.token) != r.stop_tokens.end();
  if (stop != (event.reason == FinishReason::kEndToken)) {
    Violation(fmt::format("a stop token ends its sequence: request {}", event.request));
  }
  if ((event.logprobs != nullptr) != (r.sampling.logprobs >= 0)) {
    Violation(fmt::format("log-probabilities come when asked for: request {}", event.request));
  }
  stream.tokens.push_back(event.token);
  ++stream.generated;
  ++result_.tokens;
}

void Run::CheckEnd(const Visit& from, const Stream& stream, const TokenEvent& event) {
  const Request& r = *from.request;
  const_cast<Stream&>(stream).ended = true;
  int32_t limit = std::min(r.max_tokens, world_.backend.max_seq_len - static_cast<int32_t>(r.prompt.size()));
  bool caused = false;
  switch (event.reason) {
    case FinishReason::kNone: break;
    case FinishReason::kEndToken: caused = event.token >= 0; break;
    case FinishReason::kLength: caused = stream.generated == limit; break;
    case FinishReason::kCancelled: caused = from.cancelled; break;
    case FinishReason::kStopText: caused = from.stopped && event.sequence_index == 0; break;
    case FinishReason::kDeadline: caused = r.deadline && *r.deadline <= clock_.Now(); break;
    case FinishReason::kError:
      ++result_.errors;
      caused = !executor_->healthy() || NotFinite(r, event.sequence_index, stream.generated);
      break;
  }
  if (!caused) {
    Violation(fmt::format("an end has a cause: request {} sequence {} {} after {} tokens", event.request,
                          event.sequence_index, FinishReasonName(event.reason), stream.generated));
  }
}

void Run::OnPromptLogProbs(RequestId id, const std::vector<PositionLogProbs>& positions) {
  const Request& r = *visit(id).request;
  bool whole = r.prompt_logprobs && positions.size() + 1 == r.prompt.size();
  bool filled = std::ranges::all_of(positions, [](const PositionLogProbs& p) { return p.chosen < 0; });
  if (!whole || !filled) Violation(fmt::format("prompt log-probabilities cover the prompt: request {}", id));
  if (streams_.contains({id.value, 0}) && streams_[{id.value, 0}].generated > 0) {
    Violation(fmt::format("prompt log-probabilities come before the first token: request {}", id));
  }
  Trace(id.value);
}

void Run::Arrive(Visit& arriving) {
  arriving.submitted = true;
  Result<void> result = executor_->Submit(arriving.request, this);
  if (result.ok()) return;
  arriving.submitted = false;
  ++result_.refused;
  ExecutorStats stats = executor_->stats();
  auto tokens = static_cast<int64_t>(arriving.request->prompt.size());
  bool full = stats.waiting >= world_.config.max_queue_size ||
              (stats.waiting > 0 && stats.waiting_tokens + tokens > world_.config.max_queue_tokens);
  bool allowed = (result.error().code() == Code::kOverloaded && full) ||
                 (result.error().code() == Code::kUnavailable && !executor_->healthy());
  if (!allowed) Violation(fmt::format("a request is refused for a reason: {}", result.error().message()));
  for (int32_t i = 0; i < arriving.request->n; ++i) streams_[{arriving.request->id.value, i}].ended = true;
}

void Run::Cancel(Visit& leaving) {
  leaving.cancelled = true;
  ++result_.cancels;
  executor_->Cancel(leaving.request->id);
  must_end_.push_back(leaving.request->id);
}

// What the world does before the next step.
void Run::Happen() {
  Nanos now = clock_.Now();
  for (Visit& v : visits_) {
    if (!v.submitted && v.arrives <= now && !streams_.contains({v.request->id.value, 0})) Arrive(v);
    if (v.submitted && !v.cancelled && v.cancels_at <= now) Cancel(v);
  }
  if (random_.Chance(2)) executor_->Cancel({random_.Next()});  // unknown
}

Nanos Run::NextEvent() const {
  Nanos next = Nanos::max();
  for (const Visit& v : visits_) {
    if (!v.submitted && !streams_.contains({v.request->id.value, 0})) next = std::min(next, v.arrives);
  }
  return next;
}

void Run::CheckStep() {
  if (!backend_->violations().empty()) return Violation(backend_->violations().front());
  Result<void> audit = executor_->Audit();
  if (!audit.ok()) return Violation(audit.error().message());
  ExecutorStats stats = executor_->stats();
  if (stats.waiting > world_.config.max_queue_size) Violation("the queue is bounded");
  if (stats.waiting > 1 && stats.waiting_tokens > world_.config.max_queue_tokens) {
    Violation("the waiting prompts' tokens are bounded");
  }
  if (stats.waiting == 0 && stats.waiting_tokens != 0) Violation("no prompt waits, no token does");
  if (stats.running > world_.config.max_batch_size) Violation("batch budget never exceeded");
  Trace(static_cast<uint64_t>(stats.blocks_used) << 32 | static_cast<uint64_t>(stats.blocks_cached));
}

void Run::CheckIdle() {
  ExecutorStats stats = executor_->stats();
  if (stats.blocks_used != 0) Violation(fmt::format("idle means empty: {} blocks used", stats.blocks_used));
  if (stats.running != 0 || stats.waiting != 0 || stats.paused != 0) Violation("idle means empty: sequences are left");
  for (const Visit& v : visits_) {
    if (!Ended(v)) Violation(fmt::format("every sequence ends once: request {} never ended", v.request->id));
  }
}

SimulationResult Run::Go() {
  uint64_t steps_max = 1000 + 4 * work_;
  while (result_.violation.empty()) {
    Happen();
    std::vector<RequestId> must_end;
    must_end.swap(must_end_);
    bool worked = executor_->Step();
    ++result_.steps;
    CheckStep();
    for (RequestId id : must_end) {
      if (!Ended(visit(id))) Violation(fmt::format("a cancel takes effect by the next step: request {}", id));
    }
    if (result_.steps > steps_max) Violation(fmt::format("no starvation: not done after {} steps", steps_max));
    if (worked || !must_end_.empty()) continue;
    Nanos next = NextEvent();
    if (executor_->stats().waiting > 0) {  // only for company
      if (world_.config.max_queue_delay_microseconds == 0) Violation("no request is forgotten");
      next = std::min(next, clock_.Now() + microseconds(world_.config.max_queue_delay_microseconds));
    } else if (executor_->stats().running + executor_->stats().paused > 0) {
      Violation(fmt::format("no request is forgotten: {} running, {} paused", executor_->stats().running,
                            executor_->stats().paused));
    }
    if (next == Nanos::max()) break;
    clock_.Advance(std::max(next - clock_.Now(), Nanos(0)));
  }
  if (result_.violation.empty()) CheckIdle();
  ExecutorStats stats = executor_->stats();
  result_.preemptions = stats.preemptions;
  result_.reused_tokens = stats.prefix_tokens_reused;
  result_.device_fault = !executor_->healthy();
  executor_.reset();  // may still end sequences here, after a violation
  return std::move(result_);
}

}  // namespace

SimulationResult Simulate(uint64_t seed) {
  return Run(seed).Go();
}

}  // namespace ekiben
