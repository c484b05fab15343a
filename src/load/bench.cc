#include "load/bench.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <memory>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "load/machine.h"
#include "load/prompts.h"
#include "load/service_transport.h"
#include "load/user_loop.h"

namespace ekiben::load {
namespace {

constexpr Nanos kCallTimeout = std::chrono::seconds(30);
constexpr int32_t kUsersMax = 100'000;
constexpr uint32_t kPreflightLevel = UINT32_MAX - 1;

Nanos FromSeconds(double seconds) {
  return Nanos(static_cast<int64_t>(seconds * 1e9));
}

// What every level of a run shares.
struct Run {
  const BenchConfig& config;
  const Clock& clock = SystemClock::Get();
  Endpoint endpoint;
  RequestShape shape;
  std::unique_ptr<PromptSource> prompts;
  std::atomic<bool> never_stop{false};

  const std::atomic<bool>& stop() const { return config.stop != nullptr ? *config.stop : never_stop; }
  Result<std::unique_ptr<Transport>> NewTransport(int32_t users) const {
    if (config.service != nullptr) return std::make_unique<ServiceTransport>(*config.service, shape, users, clock);
    ASSIGN_OR_RETURN(auto transport, HttpTransport::Create(endpoint, shape, users, clock));
    return std::unique_ptr<Transport>(std::move(transport));
  }
};

Result<void> CheckRange(std::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return {};
  return Error(Code::kInvalid, fmt::format("{}: {} is not in {}..{}", field, value, low, high), std::string(field));
}

Result<void> CheckConfig(const BenchConfig& config) {
  if (config.users.empty()) return Error(Code::kInvalid, "users: none given", "users");
  for (int32_t users : config.users) RETURN_IF_ERROR(CheckRange("users", users, 1, kUsersMax));
  RETURN_IF_ERROR(CheckRange("ramp", config.ramp_s, 0, 86'400));
  RETURN_IF_ERROR(CheckRange("duration", config.duration_s, 0.01, 86'400));
  RETURN_IF_ERROR(CheckRange("think", config.think_s, 0, 86'400));
  RETURN_IF_ERROR(CheckRange("timeout", config.timeout_s, 0.01, 86'400));
  RETURN_IF_ERROR(CheckRange("threads", config.threads, 0, 256));
  RETURN_IF_ERROR(CheckRange("temperature", config.temperature, 0, 2));
  if (config.api == Api::kGenerate && config.service != nullptr) {
    return Error(Code::kUnsupported, "api: generate is an HTTP route; in-process takes completions or chat", "api");
  }
  return {};
}

// `{"a":1}` -> `"a":1`.
Result<std::string> MembersOf(const std::string& extra_json) {
  if (extra_json.empty()) return std::string();
  auto parsed = ParseJson(extra_json);
  if (!parsed.ok()) return std::move(parsed).error().Within("extra_body");
  if (!parsed->is_object()) return Error(Code::kInvalid, "extra_body: not a JSON object", "extra_body");
  std::string text = json::serialize(*parsed);
  return text.substr(1, text.size() - 2);
}

Result<std::string> FirstModel(const Run& run) {
  ASSIGN_OR_RETURN(CallResult answer, Call(run.endpoint, "GET", "/v1/models", run.shape.headers, "", kCallTimeout));
  if (answer.status == 404) return std::string();  // a server without the route takes a request without a model
  if (answer.status != 200) {
    return Error(Code::kUnavailable,
                 fmt::format("GET /v1/models: status {}: {}", answer.status, ErrorMessageOf(answer.body)), "model");
  }
  ASSIGN_OR_RETURN(json::value list, ParseJson(answer.body));
  boost::system::error_code missing;
  const json::value* id = list.find_pointer("/data/0/id", missing);
  if (id == nullptr || !id->is_string()) {
    return Error(Code::kUnavailable, "GET /v1/models: no data[0].id; name the model with --model", "model");
  }
  return std::string(id->as_string());
}

// vLLM's and ekiben's {prompt | messages} -> {count, tokens}; llama.cpp's {content} -> {tokens}.
Result<int32_t> AskTokenCount(const Run& run, std::string_view text) {
  json::object body;
  if (!run.shape.model.empty()) body["model"] = run.shape.model;
  if (run.shape.api == Api::kChat) {
    body["messages"] = json::array{json::object{{"role", "user"}, {"content", text}}};
    body["add_generation_prompt"] = true;
  } else {
    body["prompt"] = text;
    body["content"] = text;
    body["add_special_tokens"] = true;
    body["add_special"] = true;
  }
  ASSIGN_OR_RETURN(json::value answer,
                   CallJson(run.endpoint, "POST", "/tokenize", run.shape.headers, json::serialize(body), kCallTimeout));
  if (answer.is_object()) {
    const json::object& object = answer.as_object();
    ASSIGN_OR_RETURN(auto count, GetInt(object, "count", 0, INT32_MAX));
    if (count) return static_cast<int32_t>(*count);
    ASSIGN_OR_RETURN(const json::array* tokens, GetArray(object, "tokens"));
    if (tokens != nullptr) return static_cast<int32_t>(tokens->size());
  }
  return Error(Code::kUnsupported, "POST /tokenize: neither count nor tokens in the answer", "prompt_tokens");
}

CountTokens CounterFor(const Run& run) {
  if (run.config.count_tokens) return run.config.count_tokens;
  if (run.config.service != nullptr) {
    return [&run](std::string_view text) { return CountPromptTokens(*run.config.service, run.shape.api, text); };
  }
  if (run.shape.api == Api::kGenerate) return nullptr;  // its template lies behind the route
  return [&run](std::string_view text) { return AskTokenCount(run, text); };
}

Result<void> Prepare(Run& run, uint64_t seed) {
  const BenchConfig& config = run.config;
  run.shape.api = config.api;
  run.shape.model = config.model;
  run.shape.ignore_eos = config.ignore_eos;
  run.shape.temperature = config.temperature;
  ASSIGN_OR_RETURN(run.shape.extra_json, MembersOf(config.extra_json));
  if (config.service == nullptr) {
    ASSIGN_OR_RETURN(run.endpoint, ResolveEndpoint(config.url));
    if (!config.api_key.empty()) run.shape.headers = fmt::format("Authorization: Bearer {}\r\n", config.api_key);
    if (config.model.empty() && config.api != Api::kGenerate) {
      ASSIGN_OR_RETURN(run.shape.model, FirstModel(run));
    }
  }
  PromptOptions options;
  options.prompt_tokens = config.prompt_tokens;
  options.shared_prefix_tokens = config.shared_prefix_tokens;
  options.output_tokens = config.output_tokens;
  options.seed = seed;
  options.file = config.prompts_file;
  ASSIGN_OR_RETURN(run.prompts, PromptSource::Create(options, CounterFor(run)));
  if (run.prompts->has_conversations() && config.api != Api::kChat) {
    return Error(Code::kInvalid, fmt::format("prompts: {} holds conversations; use --api chat", config.prompts_file),
                 "prompts");
  }
  return {};
}

// One request alone, its failure told as an error.
Result<void> Preflight(const Run& run) {
  LoopPlan plan;
  plan.level = kPreflightLevel;
  plan.start = plan.window_begin = run.clock.Now();
  plan.timeout = FromSeconds(run.config.timeout_s);
  plan.window_end = plan.start + plan.timeout + std::chrono::seconds(1);
  plan.requests_max = 1;
  ASSIGN_OR_RETURN(auto transport, run.NewTransport(1));
  UserLoop loop(plan, *run.prompts, *transport, run.clock, run.stop());
  loop.Run();
  const Recorder& seen = loop.recorder();
  std::string where = run.config.service != nullptr ? std::string("in-process")
                                                    : fmt::format("http://{}{}{}", run.endpoint.authority(),
                                                                  run.endpoint.base_path, ApiPath(run.shape.api));
  if (!seen.error_messages.empty()) {
    return Error(Code::kUnavailable, fmt::format("{}: {}", where, seen.error_messages.front()), "url");
  }
  if (seen.completed_all == 1 && seen.ttft.count() == 0) {
    return Error(Code::kUnavailable, where + ": the answer carried no token", "url");
  }
  return {};
}

// One level's threads, started on construction and joined by Wait.
class Crowd {
 public:
  struct Worker {
    std::unique_ptr<Transport> transport;
    std::unique_ptr<UserLoop> loop;
    std::thread thread;
  };

  static Result<std::unique_ptr<Crowd>> Create(const Run& run, const LoopPlan& level, int32_t threads) {
    auto out = std::make_unique<Crowd>();
    for (int32_t i = 0; i < threads; ++i) {
      LoopPlan plan = level;
      plan.first_user = i;
      plan.step = threads;
      Worker worker;
      ASSIGN_OR_RETURN(worker.transport, run.NewTransport(UserLoop::UsersOf(plan)));
      worker.loop = std::make_unique<UserLoop>(plan, *run.prompts, *worker.transport, run.clock, run.stop());
      out->workers_.push_back(std::move(worker));
    }
    return out;
  }
  ~Crowd() {
    for (Worker& worker : workers_) {
      if (worker.thread.joinable()) worker.thread.join();
    }
  }

  void Start() {
    running_ = static_cast<int32_t>(workers_.size());
    for (Worker& worker : workers_) {
      worker.thread = std::thread([this, &worker] {
        worker.loop->Run();
        std::lock_guard lock(mutex_);
        --running_;
        ended_.notify_all();
      });
    }
  }
  // False: `until` came first.
  bool WaitUntil(const Clock& clock, Nanos until) {
    std::unique_lock lock(mutex_);
    return ended_.wait_for(lock, std::max(until - clock.Now(), Nanos(0)), [&] { return running_ == 0; });
  }
  Interval TakeInterval() {
    Interval sum;
    for (Worker& worker : workers_) sum.Merge(worker.loop->TakeInterval());
    return sum;
  }
  // After WaitUntil said true.
  Recorder Recorded() {
    Recorder sum;
    for (Worker& worker : workers_) sum.Merge(worker.loop->recorder());
    return sum;
  }
  const std::vector<Worker>& workers() const { return workers_; }

 private:
  std::vector<Worker> workers_;
  std::mutex mutex_;
  std::condition_variable ended_;
  int32_t running_ = 0;  // guarded by mutex_
};

BenchProgress ProgressOf(Crowd& crowd, const LoopPlan& plan, Nanos now, Nanos since) {
  Interval interval = crowd.TakeInterval();
  BenchProgress out;
  out.users = plan.users_total;
  for (const Crowd::Worker& worker : crowd.workers()) {
    out.users_active += worker.loop->users_active();
    out.in_flight += worker.loop->in_flight();
  }
  double seconds = std::max(Seconds(now - since), 1e-9);
  out.elapsed_s = Seconds(now - plan.start);
  out.total_s = Seconds(plan.window_end - plan.start);
  out.ramping = now < plan.window_begin;
  out.tokens_per_s = static_cast<double>(interval.output_tokens) / seconds;
  out.requests_per_s = static_cast<double>(interval.completed) / seconds;
  out.ttft_ms_p50 = interval.ttft.Quantile(0.5) * 1e-6;
  out.ttft_ms_p99 = interval.ttft.Quantile(0.99) * 1e-6;
  out.itl_ms_p50 = interval.itl_chunk.Quantile(0.5) * 1e-6;
  out.itl_ms_p99 = interval.itl_chunk.Quantile(0.99) * 1e-6;
  out.failed = interval.failed;
  return out;
}

std::string_view TokenSourceOf(const Recorder& seen) {
  if (seen.chunks_counted == seen.chunks) return "usage of each chunk";
  return seen.unchecked == seen.completed_all ? "one a chunk" : "one a chunk, corrected by the final usage";
}

LevelReport ReportOf(const Recorder& seen, const LoopPlan& plan, Nanos ended, int32_t threads) {
  LevelReport out;
  out.users = plan.users_total;
  out.window_s = std::max(Seconds(std::min(ended, plan.window_end) - plan.window_begin), 0.0);
  double per_s = out.window_s > 0 ? 1 / out.window_s : 0;
  out.output_tokens = seen.output_tokens;
  out.prompt_tokens = seen.prompt_tokens;
  out.tokens_per_s = static_cast<double>(seen.output_tokens) * per_s;
  out.prompt_tokens_per_s = static_cast<double>(seen.prompt_tokens) * per_s;
  out.requests_per_s = static_cast<double>(seen.completed) * per_s;
  out.started = seen.started;
  out.completed = seen.completed;
  out.failed = seen.failed_all;
  out.errors = seen.errors;
  out.error_messages = seen.error_messages;
  out.cut_off = seen.cut_off;
  out.cut_off_waiting = seen.cut_off_waiting;
  out.oldest_waiting_s = Seconds(seen.oldest_waiting);
  out.ttft = Summarize(seen.ttft);
  out.itl_token = Summarize(seen.itl_token);
  out.itl_chunk = Summarize(seen.itl_chunk);
  out.tpot = Summarize(seen.tpot);
  out.e2e = Summarize(seen.e2e);
  out.chunks = seen.chunks;
  out.chunks_multi = seen.chunks_multi;
  out.token_source = TokenSourceOf(seen);
  out.output_mismatches = seen.output_mismatches;
  out.prompt_mismatches = seen.prompt_mismatches;
  out.unchecked = seen.unchecked;
  out.tokens_by_second = seen.tokens_by_second;
  out.tokens_by_second.resize(static_cast<size_t>(out.window_s));  // whole seconds only
  out.threads = threads;
  out.client_cpu_share = Seconds(seen.busy) * per_s;
  out.busiest_thread_share = seen.busy_share_max;
  out.reconnects = seen.reconnects;
  out.connect = Summarize(seen.connect);
  out.send_lag = Summarize(seen.send_lag);
  out.read_lag = Summarize(seen.read_lag);
  return out;
}

Result<LevelReport> RunLevel(const Run& run, uint32_t level,
                             const std::function<void(const BenchProgress&)>& progress) {
  const BenchConfig& config = run.config;
  LoopPlan plan;
  plan.level = level;
  plan.users_total = config.users[level];
  plan.start = run.clock.Now() + std::chrono::milliseconds(20);  // the threads' start
  plan.window_begin = plan.start + FromSeconds(config.ramp_s);
  plan.window_end = plan.window_begin + FromSeconds(config.duration_s);
  plan.think = FromSeconds(config.think_s);
  plan.timeout = FromSeconds(config.timeout_s);
  plan.check_output = config.ignore_eos;
  int32_t threads = config.threads;
  if (threads == 0) threads = std::clamp(static_cast<int32_t>(std::thread::hardware_concurrency()) / 4, 1, 8);
  threads = std::min(threads, plan.users_total);
  ASSIGN_OR_RETURN(auto crowd, Crowd::Create(run, plan, threads));
  crowd->Start();

  Nanos since = plan.start, next = since + FromSeconds(config.report_every_s);
  CpuTimes machine_begin = ReadCpuTimes();
  bool window_seen = false;
  while (true) {
    Nanos until = window_seen ? next : std::min(next, plan.window_begin);
    if (crowd->WaitUntil(run.clock, until)) break;
    Nanos now = run.clock.Now();
    if (!window_seen && now >= plan.window_begin) {
      machine_begin = ReadCpuTimes();
      window_seen = true;
    }
    if (now < next) continue;
    if (progress) progress(ProgressOf(*crowd, plan, now, since));
    since = now;
    next = now + FromSeconds(config.report_every_s);
  }
  LevelReport out = ReportOf(crowd->Recorded(), plan, run.clock.Now(), threads);
  out.machine_busy_share = BusyShare(machine_begin, ReadCpuTimes());
  JudgeClient(out);
  return out;
}

json::object ConfigJson(const Run& run) {
  const BenchConfig& config = run.config;
  json::object out;
  out["target"] = config.service != nullptr ? "in-process" : config.url;
  out["api"] = ApiPath(config.api);
  out["model"] = run.shape.model;
  out["users"] = json::value_from(config.users);
  out["ramp_s"] = config.ramp_s;
  out["duration_s"] = config.duration_s;
  out["think_s"] = config.think_s;
  out["timeout_s"] = config.timeout_s;
  out["prompt_tokens"] = config.prompt_tokens;
  out["output_tokens"] = config.output_tokens;
  out["shared_prefix_tokens"] = config.shared_prefix_tokens;
  out["prompts_file"] = config.prompts_file;
  out["ignore_eos"] = config.ignore_eos;
  out["temperature"] = config.temperature;
  out["extra_body"] = config.extra_json;
  out["threads"] = config.threads;
  out["command"] = config.command;
  out["commit"] = config.commit;
  return out;
}

std::string UtcNow() {
  std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

Result<BenchReport> RunBench(const BenchConfig& config, const std::function<void(const BenchProgress&)>& progress) {
  RETURN_IF_ERROR(CheckConfig(config));
  BenchReport report;
  report.seed = config.seed.value_or(static_cast<uint64_t>(SystemClock::Get().WallNow().count()));
  report.started_utc = UtcNow();
  Run run{.config = config};
  RETURN_IF_ERROR(Prepare(run, report.seed));
  RETURN_IF_ERROR(Preflight(run));
  report.prompts = run.prompts->description();
  report.config = ConfigJson(run);
  report.machine = DescribeMachine();
  for (uint32_t level = 0; level < config.users.size() && !run.stop(); ++level) {
    if (level > 0) std::this_thread::sleep_for(FromSeconds(config.pause_s));
    ASSIGN_OR_RETURN(LevelReport done, RunLevel(run, level, progress));
    report.levels.push_back(std::move(done));
  }
  report.stopped_early = run.stop();
  return report;
}

}  // namespace ekiben::load
