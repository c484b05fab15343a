// The CUDA backend measured from above its seam, on random weights of a published shape (no checkpoint, no tokenizer):
// single generation steps at given batch sizes, and the executor under users that each send a prompt, wait for its last
// token and send the next; and long prompts that arrive among streams which do nothing but generate.
//
//   cuda_serving_bench OUT.json [--shape llama-3-8b|llama-3.2-1b|smollm2] [--steps 1,8,64,128] [--context 1024]
//                      [--users 10,50,100] [--seconds 30] [--long 8192] [--streams 64] [--max_seq_len 2048]
//                      [--max_num_tokens 2048] [--itl_budget_ms auto|off|N] [--admission paced|greedy]
//                      [--gemm_plugin auto|disable|bfloat16|fp8] [--opt_num_tokens N] [--tune_tokens 512]
//                      [--dtype bf16|fp8] [--kv_cache_dtype bf16|fp8] [--temperature T] [--top_k K] [--top_p P]
//                      [--no_graphs]
//
// Time is the host's, around Launch and Finish, beside what the device's events say. Prompts are 30 to 150 random
// tokens, answers 512, greedy unless a temperature is given, a user arrives every ramp / users seconds. Exit code 1 on
// the first error.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend/cuda_backend.h"
#include "base/clock.h"
#include "executor/executor.h"

namespace ekiben {
namespace {

constexpr int32_t kMaxBatch = 128, kOutputTokens = 512;
constexpr double kRampSeconds = 5;
constexpr int kLongPrompts = 4;

struct Options {
  std::string out, shape = "llama-3-8b", dtype = "bf16", kv_cache_dtype = "bf16", command;
  std::vector<int32_t> steps, users;
  int32_t context = 1024, long_tokens = 0, streams = 64, max_seq_len = 2048, max_num_tokens = 2048;
  double seconds = 30;
  bool graphs = true;
  CudaTuneOptions tune;
  int32_t tune_tokens = 512;
  ExecutorConfig executor;
  SamplingParams sampling{.temperature = 0};
};

ModelConfig Shape(const std::string& name) {
  ModelConfig c;
  c.architecture = "llama";
  c.name = name;
  c.vocab_size = 128256;
  c.rope_theta = 500000;
  c.max_position_embeddings = 8192;
  if (name == "llama-3-8b") {
    c.hidden_size = 4096, c.intermediate_size = 14336, c.num_hidden_layers = 32;
    c.num_attention_heads = 32, c.num_key_value_heads = 8, c.head_dim = 128;
  } else if (name == "llama-3.2-1b") {
    c.hidden_size = 2048, c.intermediate_size = 8192, c.num_hidden_layers = 16;
    c.num_attention_heads = 32, c.num_key_value_heads = 8, c.head_dim = 64;
  } else {
    c.vocab_size = 49152, c.hidden_size = 576, c.intermediate_size = 1536, c.num_hidden_layers = 30;
    c.num_attention_heads = 9, c.num_key_value_heads = 3, c.head_dim = 64;
  }
  return c;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

template <class T>
T Must(Result<T> result) {
  if (!result.ok()) {
    fmt::print(stderr, "{}\n", result.error().message());
    std::exit(1);
  }
  return *std::move(result);
}

double Ms(Nanos time) {
  return static_cast<double>(time.count()) * 1e-6;
}

// B sequences of `context` tokens, then generation steps with two in flight.
class StepBench {
 public:
  StepBench(Backend& backend, int32_t batch, int32_t context, int32_t max_num_tokens)
      : backend_(backend),
        batch_(batch),
        context_(context),
        max_num_tokens_(max_num_tokens),
        plan_({kMaxBatch, max_num_tokens, 4 * kMaxBatch + max_num_tokens, 1}) {
    request_.prompt.resize(static_cast<size_t>(context));
    std::mt19937 random(1);
    for (TokenId& token : request_.prompt)
      token = static_cast<TokenId>(random() % static_cast<unsigned>(backend.info().vocab_size));
    request_.sampling.temperature = 0;
  }

  struct Times {
    double context_ms = 0, wall_ms = 0, device_ms = 0, launch_us = 0;
  };

  Times Run(int steps) {
    const Clock& clock = SystemClock::Get();
    Times out;
    Nanos begin = clock.Now();
    FeedContext();
    out.context_ms = Ms(clock.Now() - begin);
    std::vector<double> walls, devices, launches;
    std::deque<Ticket> flight;
    Nanos last = clock.Now();
    for (int step = 0; step < steps + 1; ++step) {
      if (step < steps) {
        plan_.Clear();
        for (int32_t i = 0; i < batch_; ++i) {
          AddEdits(i, context_ + step, 1);
          plan_.AddGenerationRow({static_cast<uint64_t>(i)}, {i}, context_ + step, OutputKind::kSample);
        }
        Nanos before = clock.Now();
        flight.push_back(Must(backend_.Launch(plan_)));
        launches.push_back(Ms(clock.Now() - before) * 1e3);
        if (flight.size() < 2) continue;
      }
      StepResult result = Must(backend_.Finish(flight.front()));
      flight.pop_front();
      for (const RowResult& row : result.rows) {
        if (row.finite && row.token_count == 1) continue;
        fmt::print(stderr, "a row's logits are not finite\n");
        std::exit(1);
      }
      Nanos now = clock.Now();
      walls.push_back(Ms(now - last));
      devices.push_back(Ms(result.device_time));
      last = now;
    }
    out.wall_ms = Median(walls);
    out.device_ms = Median(devices);
    out.launch_us = Median(launches);
    return out;
  }

 private:
  void AddEdits(int32_t slot, int32_t position, int32_t count) {
    int32_t per_block = backend_.info().tokens_per_block;
    for (int32_t at = position; at < position + count; ++at) {
      if (at % per_block != 0 && at != 0) continue;
      plan_.AddTableEdit({slot}, at / per_block, BlockId{(at / per_block) * batch_ + slot});
    }
  }
  void FeedContext() {
    for (int32_t i = 0; i < batch_; ++i) {
      SlotBinding binding{.slot = {i}, .sequence = {static_cast<uint64_t>(i)}};
      binding.request = &request_;
      backend_.BindSlot(binding);
    }
    // As many whole sequences a step as fit, two steps in flight.
    int32_t a_step = std::max(1, max_num_tokens_ / context_);
    std::deque<Ticket> flight;
    for (int32_t first = 0; first < batch_; first += a_step) {
      for (int32_t at = 0; at < context_; at += max_num_tokens_) {
        int32_t count = std::min(max_num_tokens_, context_ - at);
        plan_.Clear();
        for (int32_t i = first; i < std::min(batch_, first + a_step); ++i) {
          AddEdits(i, at, count);
          plan_.AddContextRow({static_cast<uint64_t>(i)}, {i}, at,
                              std::span(request_.prompt).subspan(static_cast<size_t>(at), static_cast<size_t>(count)),
                              at + count == context_ ? OutputKind::kSample : OutputKind::kNone);
        }
        flight.push_back(Must(backend_.Launch(plan_)));
        if (flight.size() == 2) FinishOldest(flight);
      }
    }
    while (!flight.empty()) FinishOldest(flight);
  }

  void FinishOldest(std::deque<Ticket>& flight) {
    (void)Must(backend_.Finish(flight.front()));
    flight.pop_front();
  }

  Backend& backend_;
  int32_t batch_, context_, max_num_tokens_;
  Request request_;
  StepPlan plan_;
};

// One user's stream: times of its tokens.
class User : public TokenSink {
 public:
  void OnToken(const TokenEvent& event) override {
    std::lock_guard lock(mutex_);
    if (event.token >= 0) {
      if (tokens_ == 0) first_ms_.push_back(Ms(event.emitted - sent_));
      if (tokens_ > 0) gaps_.push_back({event.emitted, Ms(event.emitted - last_)});
      last_ = event.emitted;
      ++tokens_;
      ++tokens_total_;
    }
    if (event.reason != FinishReason::kNone) {
      failed_ = failed_ || event.reason == FinishReason::kError;
      busy_ = false;
    }
  }
  // True when the next request may be sent; marks it as sent.
  bool Take(Nanos now) {
    std::lock_guard lock(mutex_);
    if (busy_) return false;
    busy_ = true;
    tokens_ = 0;
    sent_ = now;
    return true;
  }
  bool failed() {
    std::lock_guard lock(mutex_);
    return failed_;
  }
  int64_t tokens() {
    std::lock_guard lock(mutex_);
    return tokens_total_;
  }
  double first_ms() {
    std::lock_guard lock(mutex_);
    return first_ms_.empty() ? 0 : first_ms_.back();
  }
  void Collect(std::vector<double>& first, std::vector<double>& gaps, Nanos from = Nanos::min(),
               Nanos to = Nanos::max()) {
    std::lock_guard lock(mutex_);
    first.insert(first.end(), first_ms_.begin(), first_ms_.end());
    for (auto [at, gap] : gaps_)
      if (at > from && at <= to) gaps.push_back(gap);
  }

 private:
  std::mutex mutex_;
  bool busy_ = false, failed_ = false;
  int64_t tokens_ = 0, tokens_total_ = 0;
  Nanos sent_{}, last_{};
  std::vector<double> first_ms_;
  std::vector<std::pair<Nanos, double>> gaps_;
};

std::shared_ptr<Request> RandomRequest(const Backend& backend, const SamplingParams& sampling, uint64_t id,
                                       size_t prompt_tokens, int32_t max_tokens, std::mt19937& random) {
  auto request = std::make_shared<Request>();
  request->id = {id};
  request->prompt.resize(prompt_tokens);
  for (TokenId& token : request->prompt)
    token = static_cast<TokenId>(random() % static_cast<unsigned>(backend.info().vocab_size));
  request->max_tokens = max_tokens;
  request->ignore_eos = true;
  request->sampling = sampling;
  request->sampling.seed = id;
  request->arrival = SystemClock::Get().Now();
  return request;
}

void Submit(Executor& executor, std::shared_ptr<Request> request, User& user) {
  auto sent = executor.Submit(std::move(request), &user);
  if (sent.ok()) return;
  fmt::print(stderr, "{}\n", sent.error().message());
  std::exit(1);
}

// The executor's own figures of a run, as fields of a JSON object.
std::string ExecutorFields(const ExecutorStats& s) {
  auto a_step = [&](Nanos sum) {
    return static_cast<double>(sum.count()) * 1e-3 / static_cast<double>(std::max<uint64_t>(s.steps, 1));
  };
  fmt::print(
      "    {} steps: {} kernel by kernel, {} over budget; a step {:.1f} us of the executor, {:.1f} us of launch\n",
      s.steps, s.steps_kernel_by_kernel, s.steps_over_budget, a_step(s.host_time), a_step(s.launch_time));
  fmt::print("    steps by padding (0, 2, 4, 8, 16 %, more): {}; {} tokens of padding beside {}\n",
             fmt::join(s.steps_by_padding, " "), s.tokens_padded, s.context_tokens + s.generation_tokens);
  return fmt::format(
      "\"steps\": {}, \"steps_kernel_by_kernel\": {}, \"steps_over_budget\": {}, \"executor_us_a_step\": {:.2f}, "
      "\"launch_us_a_step\": {:.2f}, \"tokens_padded\": {}, \"tokens\": {}, \"steps_by_padding\": [{}]",
      s.steps, s.steps_kernel_by_kernel, s.steps_over_budget, a_step(s.host_time), a_step(s.launch_time),
      s.tokens_padded, s.context_tokens + s.generation_tokens, fmt::join(s.steps_by_padding, ", "));
}

// Prompts of `long_tokens` that arrive one after the other among streams in the middle of their answers.
std::string RunLong(Backend& backend, const Options& options) {
  const Clock& clock = SystemClock::Get();
  auto executor = Must(Executor::Create(backend, options.executor, clock));
  executor->Start();
  std::deque<User> streams(static_cast<size_t>(options.streams));
  std::mt19937 random(7);
  uint64_t id = 1;
  for (User& user : streams) {
    (void)user.Take(clock.Now());
    Submit(*executor, RandomRequest(backend, options.sampling, id++, 30 + random() % 121, 1400, random), user);
  }
  std::this_thread::sleep_for(std::chrono::seconds(2));
  std::vector<double> firsts, during, ratios;
  std::deque<User> prompts(kLongPrompts);
  for (User& user : prompts) {
    Nanos begin = clock.Now();
    (void)user.Take(begin);
    auto request = RandomRequest(backend, options.sampling, id++, static_cast<size_t>(options.long_tokens), 8, random);
    request->arrival = begin;
    Submit(*executor, std::move(request), user);
    while (user.first_ms() == 0 && !user.failed()) std::this_thread::sleep_for(std::chrono::microseconds(200));
    Nanos end = clock.Now();
    firsts.push_back(user.first_ms());
    // Beside it, and in the half second before: the streams' own steps get longer as they go on.
    std::vector<double> unused, beside, before;
    for (User& stream : streams) {
      stream.Collect(unused, beside, begin, end);
      stream.Collect(unused, before, begin - std::chrono::milliseconds(500), begin);
    }
    ratios.push_back(Quantile(beside, 0.99) / Median(before));
    during.insert(during.end(), beside.begin(), beside.end());
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  std::vector<double> first, gaps;
  for (User& user : streams) user.Collect(first, gaps);
  ExecutorStats stats = executor->stats();
  executor->Shutdown();
  fmt::print(
      "prompts of {} among {} streams: first token p50 {:.1f} max {:.1f} ms; between tokens p50 {:.2f} ms of all, "
      "while a context runs p50 {:.2f} p99 {:.2f} max {:.2f} ms; p99 over the p50 of the half second before {:.2f}\n",
      options.long_tokens, options.streams, Median(firsts), Quantile(firsts, 1), Median(gaps), Median(during),
      Quantile(during, 0.99), Quantile(during, 1), fmt::join(ratios, " "));
  return fmt::format(
      "{{\"kind\": \"long\", \"prompt_tokens\": {}, \"streams\": {}, \"first_token_ms\": [{:.1f}], \"gap_ms_p50\": "
      "{:.3f}, \"gap_ms_p50_during\": {:.3f}, \"gap_ms_p99_during\": {:.3f}, \"gap_ms_max_during\": {:.3f}, "
      "\"gap_ratio\": [{:.3f}], {}}}",
      options.long_tokens, options.streams, fmt::join(firsts, ", "), Median(gaps), Median(during),
      Quantile(during, 0.99), Quantile(during, 1), fmt::join(ratios, ", "), ExecutorFields(stats));
}

std::string RunUsers(Backend& backend, int32_t users, const Options& options) {
  const Clock& clock = SystemClock::Get();
  const double seconds = options.seconds;
  auto executor = Must(Executor::Create(backend, options.executor, clock));
  executor->Start();
  std::deque<User> crowd(static_cast<size_t>(users));
  std::mt19937 random(7);
  uint64_t id = 1;
  Nanos begin = clock.Now();
  auto elapsed = [&] { return Ms(clock.Now() - begin) * 1e-3; };
  // Tokens are counted from the end of the ramp on.
  int64_t tokens_at_ramp = -1;
  double ramp_end = 0;
  auto total = [&] {
    int64_t sum = 0;
    for (User& user : crowd) sum += user.tokens();
    return sum;
  };
  while (elapsed() < kRampSeconds + seconds) {
    for (size_t i = 0; i < crowd.size(); ++i) {
      if (elapsed() < kRampSeconds * static_cast<double>(i) / users || !crowd[i].Take(clock.Now())) continue;
      Submit(*executor, RandomRequest(backend, options.sampling, id++, 30 + random() % 121, kOutputTokens, random),
             crowd[i]);
    }
    if (tokens_at_ramp < 0 && elapsed() >= kRampSeconds) {
      tokens_at_ramp = total();
      ramp_end = elapsed();
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  double measured = elapsed() - ramp_end;
  int64_t tokens = total() - tokens_at_ramp;
  ExecutorStats stats = executor->stats();
  executor->Shutdown();
  std::vector<double> first, gaps;
  for (User& user : crowd) {
    user.Collect(first, gaps);
    if (!user.failed()) continue;
    fmt::print(stderr, "a request failed: {}\n", executor->fault());
    std::exit(1);
  }
  double rate = static_cast<double>(tokens) / measured;
  fmt::print(
      "users {:4}: {:8.0f} tok/s, first token p50 {:6.1f} p99 {:6.1f} ms, between tokens p50 {:5.2f} p99 {:6.2f} ms\n",
      users, rate, Median(first), Quantile(first, 0.99), Median(gaps), Quantile(gaps, 0.99));
  return fmt::format(
      "{{\"kind\": \"users\", \"users\": {}, \"seconds\": {:.1f}, \"tokens_per_s\": {:.1f}, \"first_token_ms_p50\": "
      "{:.2f}, \"first_token_ms_p99\": {:.2f}, \"gap_ms_p50\": {:.3f}, \"gap_ms_p99\": {:.3f}, {}}}",
      users, measured, rate, Median(first), Quantile(first, 0.99), Median(gaps), Quantile(gaps, 0.99),
      ExecutorFields(stats));
}

std::vector<int32_t> Numbers(const std::string& text) {
  std::vector<int32_t> out;
  for (size_t at = 0; at < text.size();) {
    out.push_back(std::atoi(text.c_str() + at));
    at = text.find(',', at);
    if (at == std::string::npos) break;
    ++at;
  }
  return out;
}

GemmPlugin GemmOf(const std::string& name) {
  return name == "disable" ? GemmPlugin::kOwn : name == "auto" ? GemmPlugin::kAuto : GemmPlugin::kLibrary;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 0; i < argc; ++i) options.command += (i > 0 ? " " : "") + std::string(argv[i]);
  if (argc < 2) {
    fmt::print(stderr,
               "usage: cuda_serving_bench OUT.json [--shape NAME] [--steps 1,8] [--context 1024] [--users 10] "
               "[--seconds 30] [--long 8192] [--streams 64] [--max_seq_len 2048] [--max_num_tokens 2048] "
               "[--itl_budget_ms auto|off|N] "
               "[--admission paced|greedy] [--gemm_plugin auto] [--opt_num_tokens N] [--tune_tokens 512] "
               "[--dtype fp8] [--kv_cache_dtype fp8] [--temperature T] [--top_k K] "
               "[--top_p P] [--no_graphs]\n");
    return 2;
  }
  options.out = argv[1];
  for (int i = 2; i < argc; ++i) {
    std::string name = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--no_graphs") {
      options.graphs = false;
      continue;
    }
    ++i;
    if (name == "--shape") options.shape = value;
    if (name == "--dtype") options.dtype = value;
    if (name == "--kv_cache_dtype") options.kv_cache_dtype = value;
    if (name == "--gemm_plugin") options.tune.gemm = GemmOf(value);
    if (name == "--tune_tokens") options.tune_tokens = std::atoi(value.c_str());
    if (name == "--opt_num_tokens") {  // one choice, made there
      options.tune.multiple_profiles = false;
      options.tune.opt_num_tokens = std::atoi(value.c_str());
    }
    if (name == "--steps") options.steps = Numbers(value);
    if (name == "--users") options.users = Numbers(value);
    if (name == "--context") options.context = std::atoi(value.c_str());
    if (name == "--seconds") options.seconds = std::atof(value.c_str());
    if (name == "--long") options.long_tokens = std::atoi(value.c_str());
    if (name == "--streams") options.streams = std::atoi(value.c_str());
    if (name == "--max_seq_len") options.max_seq_len = std::atoi(value.c_str());
    if (name == "--max_num_tokens") options.max_num_tokens = std::atoi(value.c_str());
    if (name == "--temperature") options.sampling.temperature = static_cast<float>(std::atof(value.c_str()));
    if (name == "--top_k") options.sampling.top_k = std::atoi(value.c_str());
    if (name == "--top_p") options.sampling.top_p = static_cast<float>(std::atof(value.c_str()));
    if (name == "--itl_budget_ms" && value != "auto")
      options.executor.itl_budget = Nanos(static_cast<int64_t>(std::atof(value.c_str()) * 1e6));  // off: 0
    if (name == "--admission" && value == "greedy")
      options.executor.context_admission_policy = ContextAdmissionPolicy::kGreedy;
  }
  CudaBackendConfig config;
  config.max_batch_size = kMaxBatch;
  config.max_num_tokens = options.max_num_tokens;
  config.max_seq_len = options.max_seq_len;
  config.graphs = options.graphs;
  config.tune = options.tune;
  config.tune_tokens_max = options.tune_tokens;
  config.fp8 = options.dtype == "fp8";
  config.fp8_kv_cache = options.kv_cache_dtype == "fp8";
  const Clock& clock = SystemClock::Get();
  Nanos begin = clock.Now();
  CudaBackendParts parts = Must(OpenCudaBackend(Shape(options.shape), nullptr, config));
  double ready = Ms(clock.Now() - begin) * 1e-3;
  fmt::print("{} on {}: ready in {:.1f} s\n", options.shape, parts.backend->info().description, ready);
  for (const MemoryLine& line : parts.memory)
    fmt::print("  {}: {:.2f} GB\n", line.name, static_cast<double>(line.bytes) * 1e-9);
  std::vector<std::string> rows;
  for (int32_t batch : options.steps) {
    StepBench::Times t = StepBench(*parts.backend, batch, options.context, options.max_num_tokens).Run(40);
    fmt::print(
        "step B={:4} context {}: {:7.3f} ms a step ({:7.3f} on the device), launch {:5.0f} us; context {:.1f} ms\n",
        batch, options.context, t.wall_ms, t.device_ms, t.launch_us, t.context_ms);
    rows.push_back(
        fmt::format("{{\"kind\": \"step\", \"batch\": {}, \"context\": {}, \"step_ms\": {:.4f}, \"device_ms\": "
                    "{:.4f}, \"launch_us\": {:.1f}, \"context_ms\": {:.2f}}}",
                    batch, options.context, t.wall_ms, t.device_ms, t.launch_us, t.context_ms));
  }
  for (const StepCost& cost : parts.backend->info().step_costs)
    rows.push_back(fmt::format("{{\"kind\": \"cost\", \"tokens\": {}, \"ms\": {:.4f}}}", cost.tokens, Ms(cost.time)));
  const AttentionCosts& attention = parts.backend->info().attention_costs;
  for (const ChunkCost& cost : attention.chunks)
    rows.push_back(fmt::format(
        "{{\"kind\": \"attention_cost\", \"tokens\": {}, \"us_a_1000_keys\": {:.2f}, \"us_a_step\": {:.1f}}}",
        cost.tokens, cost.nanos_a_key, attention.nanos_a_step * 1e-3));
  for (int32_t users : options.users) rows.push_back(RunUsers(*parts.backend, users, options));
  if (options.long_tokens > 0) rows.push_back(RunLong(*parts.backend, options));
  std::ofstream file(options.out);
  file << fmt::format(
      "{{\"machine\": \"{}\", \"command\": \"{}\", \"shape\": \"{}\", \"dtype\": \"{}\", \"kv_cache_dtype\": \"{}\",\n "
      "\"ready_s\": {:.2f},\n \"rows\": [\n  {}\n ]}}\n",
      parts.backend->info().description, options.command, options.shape, options.dtype, options.kv_cache_dtype, ready,
      fmt::join(rows, ",\n  "));
  return file.good() ? 0 : 1;
}

}  // namespace
}  // namespace ekiben

int main(int argc, char** argv) {
  return ekiben::Main(argc, argv);
}
