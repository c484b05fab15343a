// How a report reads: the progress line, the table, the JSON, and the sentence on the client's own part.
#include <fmt/format.h>
#include <boost/json/value_from.hpp>

#include <algorithm>
#include <cmath>
#include <string>

#include "load/bench.h"

namespace ekiben::load {
namespace {

// A thread this busy has queued events in itself.
constexpr double kThreadBusyMax = 0.90;
// The client's own delay may be this share of a latency before the report says that it spoils the number, and delays
// below the floor never do.
constexpr double kLagShareMax = 0.10;
constexpr double kLagFloorMs = 1.0;

std::string Ms(double ms) {
  if (ms == 0) return "-";
  if (ms >= 10'000) return fmt::format("{:.1f}s", ms / 1000);
  if (ms >= 100) return fmt::format("{:.0f}", ms);
  return ms >= 10 ? fmt::format("{:.1f}", ms) : fmt::format("{:.2f}", ms);
}

double Round(double value) {
  return std::round(value * 1e4) / 1e4;
}

json::object LatencyJson(const LatencySummary& in) {
  return {{"count", in.count},    {"mean", Round(in.mean)}, {"min", Round(in.min)}, {"p50", Round(in.p50)},
          {"p90", Round(in.p90)}, {"p95", Round(in.p95)},   {"p99", Round(in.p99)}, {"max", Round(in.max)}};
}

json::object LevelJson(const LevelReport& level) {
  json::object errors;
  for (const auto& [kind, count] : level.errors) errors[kind] = count;
  json::object out;
  out["users"] = level.users;
  out["window_s"] = Round(level.window_s);
  out["tokens_per_s"] = Round(level.tokens_per_s);
  out["prompt_tokens_per_s"] = Round(level.prompt_tokens_per_s);
  out["requests_per_s"] = Round(level.requests_per_s);
  out["output_tokens"] = level.output_tokens;
  out["prompt_tokens"] = level.prompt_tokens;
  out["requests"] = {{"started", level.started},
                     {"completed", level.completed},
                     {"failed", level.failed},
                     {"cut_off", level.cut_off},
                     {"cut_off_waiting", level.cut_off_waiting},
                     {"oldest_waiting_s", Round(level.oldest_waiting_s)}};
  out["errors"] = std::move(errors);
  out["error_messages"] = json::value_from(level.error_messages);
  out["ttft_ms"] = LatencyJson(level.ttft);
  out["itl_token_ms"] = LatencyJson(level.itl_token);
  out["itl_chunk_ms"] = LatencyJson(level.itl_chunk);
  out["tpot_ms"] = LatencyJson(level.tpot);
  out["e2e_ms"] = LatencyJson(level.e2e);
  out["chunks"] = level.chunks;
  out["chunks_multi"] = level.chunks_multi;
  out["token_source"] = level.token_source;
  out["mismatches"] = {{"output_length", level.output_mismatches},
                       {"prompt_length", level.prompt_mismatches},
                       {"unchecked", level.unchecked}};
  out["tokens_by_second"] = json::value_from(level.tokens_by_second);
  out["client"] = {{"threads", level.threads},
                   {"cpu_share", Round(level.client_cpu_share)},
                   {"busiest_thread_share", Round(level.busiest_thread_share)},
                   {"machine_busy_share", Round(level.machine_busy_share)},
                   {"reconnects", level.reconnects},
                   {"connect_ms", LatencyJson(level.connect)},
                   {"send_lag_ms", LatencyJson(level.send_lag)},
                   {"read_lag_ms", LatencyJson(level.read_lag)},
                   {"bottleneck", level.client_bottleneck},
                   {"verdict", level.client_verdict}};
  return out;
}

std::string MultiShare(const LevelReport& level) {
  if (level.chunks == 0 || level.token_source != "usage of each chunk") return "?";
  return fmt::format("{:.1f}%", 100.0 * static_cast<double>(level.chunks_multi) / static_cast<double>(level.chunks));
}

// What a reader must know before using a row's numbers.
std::string LevelNotes(const LevelReport& level) {
  std::string out = fmt::format("{} users: {}\n", level.users, level.client_verdict);
  if (level.token_source != "usage of each chunk") out += fmt::format("  tokens counted: {}\n", level.token_source);
  if (level.output_mismatches > 0) {
    out += fmt::format("  {} answers had another length than asked\n", level.output_mismatches);
  }
  if (level.prompt_mismatches > 0) {
    out += fmt::format("  {} prompts had another length in the server's count\n", level.prompt_mismatches);
  }
  if (level.unchecked > 0) out += fmt::format("  {} answers had no usage to check\n", level.unchecked);
  if (level.reconnects > 0) out += fmt::format("  {} kept connections were found closed\n", level.reconnects);
  for (const auto& [kind, count] : level.errors) out += fmt::format("  {} requests failed: {}\n", count, kind);
  for (const std::string& message : level.error_messages) out += fmt::format("    {}\n", message);
  if (level.cut_off_waiting > 0) {
    out += fmt::format(
        "  {} requests were still waiting for a first token at the end, the oldest for {:.1f} s: "
        "they are in no TTFT\n",
        level.cut_off_waiting, level.oldest_waiting_s);
  }
  return out;
}

}  // namespace

LatencySummary Summarize(const Histogram& nanos) {
  LatencySummary out;
  out.count = nanos.count();
  out.mean = nanos.mean() * 1e-6;
  out.min = nanos.min() * 1e-6;
  out.p50 = nanos.Quantile(0.5) * 1e-6;
  out.p90 = nanos.Quantile(0.9) * 1e-6;
  out.p95 = nanos.Quantile(0.95) * 1e-6;
  out.p99 = nanos.Quantile(0.99) * 1e-6;
  out.max = nanos.max() * 1e-6;
  return out;
}

void JudgeClient(LevelReport& level) {
  double lag_p50 = std::max(level.read_lag.p50, level.send_lag.p50);
  double lag_p99 = std::max(level.read_lag.p99, level.send_lag.p99);
  std::string used = fmt::format("client {:.1f} % of a core, lag p50 {:.2f} ms, p99 {:.2f} ms",
                                 100 * level.client_cpu_share, lag_p50, lag_p99);
  if (level.machine_busy_share >= 0) used += fmt::format("; machine {:.0f} % busy", 100 * level.machine_busy_share);
  if (level.busiest_thread_share > kThreadBusyMax) {
    level.client_bottleneck = true;
    level.client_verdict = fmt::format(
        "THE CLIENT WAS THE BOTTLENECK: one of its {} threads was busy {:.0f} % of the "
        "time; use more --load_threads or another machine ({})",
        level.threads, 100 * level.busiest_thread_share, used);
  } else if (lag_p50 > std::max(kLagFloorMs, kLagShareMax * level.itl_chunk.p50)) {
    level.client_bottleneck = true;
    level.client_verdict = fmt::format(
        "THE CLIENT WAS THE BOTTLENECK: half of all events reached it {:.1f} ms late "
        "or later; give it a free core ({})",
        lag_p50, used);
  } else if (lag_p99 > std::max(kLagFloorMs, kLagShareMax * level.itl_chunk.p99)) {
    level.client_verdict =
        fmt::format("the client is in the tail: its lag p99 is over a tenth of the ITL p99 ({})", used);
  } else {
    level.client_verdict = "the client was not the bottleneck (" + used + ")";
  }
}

std::string ProgressLine(const BenchProgress& at) {
  std::string line = fmt::format(
      "{:>5} users {:>4.0f}/{:.0f} s{}  active {:>4}  in flight {:>4}  {:>8.1f} tok/s {:>7.2f} req/s  TTFT p50 {} p99 "
      "{} ms  "
      "ITL p50 {} p99 {} ms",
      at.users, at.elapsed_s, at.total_s, at.ramping ? " ramp" : "     ", at.users_active, at.in_flight,
      at.tokens_per_s, at.requests_per_s, Ms(at.ttft_ms_p50), Ms(at.ttft_ms_p99), Ms(at.itl_ms_p50), Ms(at.itl_ms_p99));
  if (at.failed > 0) line += fmt::format("  {} FAILED", at.failed);
  return line;
}

std::string TextReport(const BenchReport& report) {
  auto text = [&](const char* key) { return std::string(report.config.at(key).as_string()); };
  std::string out = fmt::format("target   {}{}, model {}\nprompts  {}; {} tokens out{}; seed {}\n", text("target"),
                                text("target") == "in-process" ? " as " + text("api") : text("api"),
                                text("model").empty() ? "-" : text("model"), report.prompts,
                                report.config.at("output_tokens").as_int64(),
                                report.config.at("ignore_eos").as_bool() ? " exactly" : " at most", report.seed);
  out += fmt::format("window   {} s after a ramp of {} s, closed loop; latencies in ms{}\n\n",
                     report.config.at("duration_s").as_double(), report.config.at("ramp_s").as_double(),
                     report.stopped_early ? "; STOPPED EARLY" : "");
  out += fmt::format(
      "{:>6} {:>9} {:>8} | {:>8} {:>8} {:>8} | {:>7} {:>7} {:>7} | {:>7} {:>7} | {:>8} {:>8} | {:>6} {:>6} {:>7}\n",
      "users", "tok/s", "req/s", "TTFT p50", "p90", "p99", "ITL p50", "p90", "p99", "TPOTp50", "p99", "e2e p50", "p99",
      "multi", "failed", "cut off");
  for (const LevelReport& at : report.levels) {
    out += fmt::format(
        "{:>6} {:>9.1f} {:>8.2f} | {:>8} {:>8} {:>8} | {:>7} {:>7} {:>7} | {:>7} {:>7} | {:>8} {:>8} | {:>6} {:>6} "
        "{:>7}\n",
        at.users, at.tokens_per_s, at.requests_per_s, Ms(at.ttft.p50), Ms(at.ttft.p90), Ms(at.ttft.p99),
        Ms(at.itl_token.p50), Ms(at.itl_token.p90), Ms(at.itl_token.p99), Ms(at.tpot.p50), Ms(at.tpot.p99),
        Ms(at.e2e.p50), Ms(at.e2e.p99), MultiShare(at), at.failed, at.cut_off);
  }
  out += "\nITL per token; multi: chunks with more than one token (ITL per chunk is in the JSON).\n";
  for (const LevelReport& level : report.levels) out += LevelNotes(level);
  return out;
}

json::object JsonReport(const BenchReport& report) {
  json::array levels;
  for (const LevelReport& level : report.levels) levels.push_back(LevelJson(level));
  return {{"schema", "ekiben.bench"},
          {"schema_version", BenchReport::kSchemaVersion},
          {"started_utc", report.started_utc},
          {"machine", report.machine},
          {"config", report.config},
          {"prompts", report.prompts},
          {"seed", report.seed},
          {"stopped_early", report.stopped_early},
          {"levels", std::move(levels)}};
}

}  // namespace ekiben::load
