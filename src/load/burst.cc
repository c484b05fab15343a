#include "load/burst.h"

#include <algorithm>
#include <string>

#include "load/machine.h"
#include "load/target.h"

namespace ekiben::load {
namespace {

// Levels of RunBench are 0, 1, ...: a burst of the same seed asks other prompts.
constexpr uint32_t kBurstLevel = 1u << 30;
constexpr int32_t kSequencesMax = 100'000, kRepeatMax = 10'000;

// Hears one burst to its end.
class BurstSink final : public StreamEventSink {
 public:
  explicit BurstSink(int32_t sequences) : sequences_(static_cast<size_t>(sequences)) {}

  void OnEvent(const StreamEvent& event) override {
    Sequence& at = sequences_[static_cast<size_t>(event.user)];
    switch (event.kind) {
      case StreamEvent::Kind::kSent: at.sent = event.when; break;
      case StreamEvent::Kind::kChunk: OnChunk(at, event); break;
      case StreamEvent::Kind::kEnd: ++ended_; break;
      case StreamEvent::Kind::kFailed:
        ++ended_;
        if (failure_.empty()) failure_ = fmt::format("{}: {}", FailureName(event.failure), event.message);
        break;
    }
  }

  bool done() const { return ended_ == sequences_.size(); }
  const std::string& failure() const { return failure_; }

  BurstRun Measure() const {
    BurstRun out;
    Nanos sent = Nanos::max(), first_last = Nanos(0), last_first = Nanos::max();
    for (const Sequence& at : sequences_) {
      if (at.arrivals.empty()) continue;
      sent = std::min(sent, at.sent);
      first_last = std::max(first_last, at.arrivals.front().when);
      last_first = std::min(last_first, at.arrivals.back().when);
      out.prompt_tokens += std::max(at.prompt_tokens, 0);
    }
    out.context_s = Seconds(first_last - sent);
    if (out.context_s > 0) out.context_tokens_per_s = static_cast<double>(out.prompt_tokens) / out.context_s;
    if (last_first <= first_last) return out;
    for (const Sequence& at : sequences_) {
      for (const Arrival& arrival : at.arrivals) {
        if (arrival.when > first_last && arrival.when <= last_first) out.generation_tokens += arrival.tokens;
      }
    }
    out.generation_s = Seconds(last_first - first_last);
    out.generation_tokens_per_s = static_cast<double>(out.generation_tokens) / out.generation_s;
    return out;
  }

 private:
  struct Arrival {
    Nanos when;
    int32_t tokens;
  };
  struct Sequence {
    Nanos sent{};
    int32_t prompt_tokens = -1, tokens = 0;
    bool said_totals = false;
    std::vector<Arrival> arrivals;
  };

  static void OnChunk(Sequence& at, const StreamEvent& event) {
    at.prompt_tokens = std::max(at.prompt_tokens, event.prompt_tokens);
    int32_t total = event.output_tokens_total;
    bool last_usage = total >= 0 && !at.said_totals && at.tokens > 0;  // only a correction of one token a chunk
    int32_t count = total < 0 || last_usage ? (event.text_bytes > 0 ? 1 : 0) : total - at.tokens;
    at.said_totals |= total >= 0 && !last_usage;
    if (count <= 0) return;
    at.tokens += count;
    at.arrivals.push_back({event.when, count});
  }

  std::vector<Sequence> sequences_;
  size_t ended_ = 0;
  std::string failure_;
};

Result<BurstRun> RunOne(const Target& target, Transport& transport, int32_t sequences, uint32_t number) {
  std::vector<std::string> texts(static_cast<size_t>(sequences));
  std::vector<Prompt> prompts;
  for (int32_t i = 0; i < sequences; ++i) {
    auto user = static_cast<size_t>(i);
    prompts.push_back(target.prompts->Fill(kBurstLevel, static_cast<uint32_t>(i), number, texts[user]));
  }
  BurstSink sink(sequences);
  Nanos deadline = target.clock.Now() + FromSeconds(target.config.timeout_s);
  for (int32_t i = 0; i < sequences; ++i) transport.Send(i, prompts[static_cast<size_t>(i)], sink);
  while (!sink.done()) {
    Nanos now = target.clock.Now();
    if (now >= deadline) {
      return Error(Code::kDeadline, fmt::format("burst of {}: no end within {} s", sequences, target.config.timeout_s));
    }
    if (target.stop()) return Error(Code::kCancelled, "burst: stopped");
    transport.Poll(std::min(deadline, now + std::chrono::milliseconds(100)), sink);
  }
  if (!sink.failure().empty()) return Error(Code::kUnavailable, "burst: " + sink.failure());
  return sink.Measure();
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace

Result<BurstReport> RunBurst(const BenchConfig& config, int32_t sequences, int32_t repeat) {
  RETURN_IF_ERROR(CheckRange("burst", sequences, 1, kSequencesMax));
  RETURN_IF_ERROR(CheckRange("repeat", repeat, 1, kRepeatMax));
  ASSIGN_OR_RETURN(auto target, Target::Create(config));
  ASSIGN_OR_RETURN(auto transport, target->NewTransport(sequences));
  BurstReport out;
  out.sequences = sequences;
  out.seed = target->seed;
  out.config = target->ConfigJson();
  out.machine = DescribeMachine();
  std::vector<double> context, generation;
  for (int32_t i = 0; i < repeat; ++i) {
    ASSIGN_OR_RETURN(BurstRun run, RunOne(*target, *transport, sequences, static_cast<uint32_t>(i)));
    out.runs.push_back(run);
    context.push_back(run.context_tokens_per_s);
    generation.push_back(run.generation_tokens_per_s);
  }
  out.context_median = Median(context);
  out.context_min = *std::min_element(context.begin(), context.end());
  out.context_max = *std::max_element(context.begin(), context.end());
  out.generation_median = Median(generation);
  out.generation_min = *std::min_element(generation.begin(), generation.end());
  out.generation_max = *std::max_element(generation.begin(), generation.end());
  return out;
}

std::string TextReport(const BurstReport& report) {
  std::string out = fmt::format("{} sequences at once, {} times; tokens/s\n", report.sequences, report.runs.size());
  out += fmt::format("  context     median {:>9.1f}   min {:>9.1f}   max {:>9.1f}\n", report.context_median,
                     report.context_min, report.context_max);
  out += fmt::format("  generation  median {:>9.1f}   min {:>9.1f}   max {:>9.1f}\n", report.generation_median,
                     report.generation_min, report.generation_max);
  return out;
}

json::object JsonReport(const BurstReport& report) {
  json::array runs;
  for (const BurstRun& run : report.runs) {
    runs.push_back(json::object{{"context_tokens_per_s", run.context_tokens_per_s},
                                {"generation_tokens_per_s", run.generation_tokens_per_s},
                                {"prompt_tokens", run.prompt_tokens},
                                {"generation_tokens", run.generation_tokens},
                                {"context_s", run.context_s},
                                {"generation_s", run.generation_s}});
  }
  auto spread = [](double median, double min, double max) {
    return json::object{{"median", median}, {"min", min}, {"max", max}};
  };
  return {{"schema", "ekiben.burst"},
          {"schema_version", 1},
          {"sequences", report.sequences},
          {"machine", report.machine},
          {"config", report.config},
          {"seed", report.seed},
          {"context_tokens_per_s", spread(report.context_median, report.context_min, report.context_max)},
          {"generation_tokens_per_s", spread(report.generation_median, report.generation_min, report.generation_max)},
          {"runs", std::move(runs)}};
}

}  // namespace ekiben::load
