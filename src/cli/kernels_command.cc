#include <CLI/Config.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <thread>

#include "base/human.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "compile/op_timing.h"
#include "compile/profile.h"
#include "device/cpu_features.h"

namespace ekiben::cli {
namespace {

struct KernelsOptions {
  EngineSource source;
  std::vector<int32_t> tokens = {1, 2, 4, 8, 16, 32, 50, 64, 128, 256, 512};
  int32_t kv_tokens = 150, threads = 0;
  bool json = false;
};

// Share of what bounds the op: the larger of its share of the peak and of the bandwidth.
struct Shares {
  double peak = 0, bandwidth = 0;
};
Shares SharesOf(const OpTiming& t, const Roofline& roofline) {
  return {t.peak_operations > 0 ? t.operations / t.seconds / t.peak_operations : 0,
          t.bytes / t.seconds / roofline.read_bytes};
}

json::object ToJson(const Roofline& r) {
  return {{"int8_operations_per_s", r.int8_operations},
          {"bf16_operations_per_s", r.bf16_operations},
          {"f32_operations_per_s", r.f32_operations},
          {"read_bytes_per_s", r.read_bytes}};
}

json::object ToJson(const OpTiming& t, const Shares& shares) {
  return {{"op", t.op},
          {"shape", t.shape},
          {"tokens", t.tokens},
          {"calls_per_step", t.calls_per_step},
          {"us", t.seconds * 1e6},
          {"bytes", t.bytes},
          {"operations", t.operations},
          {"share_of_peak", shares.peak},
          {"share_of_bandwidth", shares.bandwidth}};
}

void PrintTable(const std::vector<OpTiming>& timings, const Roofline& roofline) {
  int64_t tokens = -1;
  for (const OpTiming& t : timings) {
    if (t.tokens != tokens) {
      tokens = t.tokens;
      fmt::print("\n{} tokens\n{:<28} {:<44} {:>10} {:>10} {:>10} {:>6} {:>6} {:>10}\n", tokens, "op", "shape", "us",
                 "GB/s", "GOP/s", "peak", "read", "ms a step");
    }
    Shares shares = SharesOf(t, roofline);
    fmt::print("{:<28} {:<44} {:>10.1f} {:>10.1f} {:>10.1f} {:>5.0f}% {:>5.0f}% {:>10.2f}\n", t.op, t.shape,
               t.seconds * 1e6, t.bytes / t.seconds * 1e-9, t.operations / t.seconds * 1e-9, shares.peak * 100,
               shares.bandwidth * 100, t.seconds * 1e3 * static_cast<double>(t.calls_per_step));
  }
}

Result<void> Run(const KernelsOptions& options) {
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngineSource(options.source));
  Engine& engine = opened.engine;
  HoldInHugePages(engine);
  ASSIGN_OR_RETURN(LinearTuning tuning, ReadProfiles(engine.profiles));
  ThreadPool pool(options.threads > 0 ? options.threads
                                      : static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  Roofline roofline = MeasureRoofline(pool, BestIsa());
  ASSIGN_OR_RETURN(std::vector<OpTiming> timings,
                   TimeOps(engine, roofline, tuning, pool, options.tokens, options.kv_tokens));
  if (options.json) {
    json::array ops;
    for (const OpTiming& t : timings) ops.push_back(ToJson(t, SharesOf(t, roofline)));
    json::object out{{"device", DescribeCpu()},
                     {"threads", pool.size()},
                     {"engine", engine.path.string()},
                     {"peaks", ToJson(roofline)},
                     {"ops", std::move(ops)}};
    std::printf("%s\n", json::serialize(out).c_str());
    return {};
  }
  fmt::print("{}, {} threads\nmeasured: int8 {:.0f} GOP/s, bf16 {:.0f} GFLOP/s, f32 {:.0f} GFLOP/s, read {:.1f} GB/s\n",
             DescribeCpu(), pool.size(), roofline.int8_operations * 1e-9, roofline.bf16_operations * 1e-9,
             roofline.f32_operations * 1e-9, roofline.read_bytes * 1e-9);
  PrintTable(timings, roofline);
  return {};
}

}  // namespace

void AddKernelsCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<KernelsOptions>();
  CLI::App* command = app.add_subcommand(
      "kernels", "Every op at the served shapes: time, bytes, operations, share of the measured peaks");
  AddModel(*command, options->source)->required();
  AddEngineOptions(*command, options->source);
  command->add_option("--tokens", options->tokens, "Token counts")->delimiter(',')->capture_default_str();
  command->add_option("--kv_tokens", options->kv_tokens, "Cached tokens before each generating sequence")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "Compute threads; 0: one for each core")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  command->add_flag("--json", options->json, "JSON on standard output");
  command->callback([options, &outcome] { outcome.result = Run(*options); });
}

}  // namespace ekiben::cli
