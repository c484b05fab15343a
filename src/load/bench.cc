#include "load/bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <condition_variable>
#include <ctime>
#include <memory>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "load/machine.h"
#include "load/target.h"
#include "load/user_loop.h"

namespace ekiben::load {
namespace {

constexpr int32_t kUsersMax = 100'000;

// One connection a user: raises this process's soft limit when that is enough.
Result<void> CheckOpenFiles(int32_t users) {
  constexpr rlim_t kOthers = 128;  // an in-process engine, logs, the calls before the run
  rlim_t wanted = static_cast<rlim_t>(users) + kOthers;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return {};
  limit.rlim_cur = std::min(wanted, limit.rlim_max);
  if (limit.rlim_cur == wanted && setrlimit(RLIMIT_NOFILE, &limit) == 0) return {};
  return Error(Code::kInvalid,
               fmt::format("users: {} need {} open files, {} are allowed; raise the hard limit (ulimit -Hn)", users,
                           wanted, limit.rlim_max),
               "users");
}

Result<void> CheckConfig(const BenchConfig& config) {
  if (config.users.empty()) return Error(Code::kInvalid, "users: none given", "users");
  for (int32_t users : config.users) RETURN_IF_ERROR(CheckRange("users", users, 1, kUsersMax));
  if (config.service == nullptr) {
    RETURN_IF_ERROR(CheckOpenFiles(*std::max_element(config.users.begin(), config.users.end())));
  }
  RETURN_IF_ERROR(CheckRange("ramp", config.ramp_s, 0, 86'400));
  RETURN_IF_ERROR(CheckRange("duration", config.duration_s, 0.01, 86'400));
  RETURN_IF_ERROR(CheckRange("think", config.think_s, 0, 86'400));
  RETURN_IF_ERROR(CheckRange("timeout", config.timeout_s, 0.01, 86'400));
  RETURN_IF_ERROR(CheckRange("threads", config.threads, 0, 256));
  RETURN_IF_ERROR(CheckRange("temperature", config.temperature, 0, 2));
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

  static Result<std::unique_ptr<Crowd>> Create(const Target& target, const LoopPlan& level, int32_t threads) {
    auto out = std::make_unique<Crowd>();
    for (int32_t i = 0; i < threads; ++i) {
      LoopPlan plan = level;
      plan.first_user = i;
      plan.step = threads;
      Worker worker;
      ASSIGN_OR_RETURN(worker.transport, target.NewTransport(UserLoop::UsersOf(plan)));
      worker.loop = std::make_unique<UserLoop>(plan, *target.prompts, *worker.transport, target.clock, target.stop());
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

Result<LevelReport> RunLevel(const Target& target, uint32_t level,
                             const std::function<void(const BenchProgress&)>& progress) {
  const BenchConfig& config = target.config;
  LoopPlan plan;
  plan.level = level;
  plan.users_total = config.users[level];
  plan.start = target.clock.Now() + std::chrono::milliseconds(20);  // the threads' start
  plan.window_begin = plan.start + FromSeconds(config.ramp_s);
  plan.window_end = plan.window_begin + FromSeconds(config.duration_s);
  plan.think = FromSeconds(config.think_s);
  plan.timeout = FromSeconds(config.timeout_s);
  plan.check_output = config.ignore_eos;
  int32_t threads = config.threads;
  if (threads == 0) threads = std::clamp(static_cast<int32_t>(std::thread::hardware_concurrency()) / 4, 1, 8);
  threads = std::min(threads, plan.users_total);
  ASSIGN_OR_RETURN(auto crowd, Crowd::Create(target, plan, threads));
  crowd->Start();

  Nanos since = plan.start, next = since + FromSeconds(config.report_every_s);
  CpuTimes machine_begin = ReadCpuTimes();
  bool window_seen = false;
  while (true) {
    Nanos until = window_seen ? next : std::min(next, plan.window_begin);
    if (crowd->WaitUntil(target.clock, until)) break;
    Nanos now = target.clock.Now();
    if (!window_seen && now >= plan.window_begin) {
      machine_begin = ReadCpuTimes();
      window_seen = true;
    }
    if (now < next) continue;
    if (progress) progress(ProgressOf(*crowd, plan, now, since));
    since = now;
    next = now + FromSeconds(config.report_every_s);
  }
  LevelReport out = ReportOf(crowd->Recorded(), plan, target.clock.Now(), threads);
  out.machine_busy_share = BusyShare(machine_begin, ReadCpuTimes());
  JudgeClient(out);
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
  report.started_utc = UtcNow();
  ASSIGN_OR_RETURN(auto target, Target::Create(config));
  report.seed = target->seed;
  report.prompts = target->prompts->description();
  report.config = target->ConfigJson();
  report.machine = DescribeMachine();
  for (uint32_t level = 0; level < config.users.size() && !target->stop(); ++level) {
    if (level > 0) std::this_thread::sleep_for(FromSeconds(config.pause_s));
    ASSIGN_OR_RETURN(LevelReport done, RunLevel(*target, level, progress));
    report.levels.push_back(std::move(done));
  }
  report.stopped_early = target->stop();
  return report;
}

}  // namespace ekiben::load
