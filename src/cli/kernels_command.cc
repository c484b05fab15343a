#include <CLI/Config.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <thread>

#include "backend/cuda_backend.h"
#include "backend/cuda_op_timing.h"
#include "base/human.h"
#include "cli/commands.h"
#include "cli/engine_source.h"
#include "cli/options.h"
#include "compile/cuda_profile.h"
#include "compile/op_timing.h"
#include "compile/profile.h"
#include "device/cpu_features.h"

namespace ekiben::cli {
namespace {

struct KernelsOptions {
  EngineSource source;
  std::vector<int32_t> tokens, kv_tokens;  // empty: the device's
  std::string kv_cache_dtype = "auto";
  int32_t threads = 0;
  bool json = false;
};

const std::vector<int32_t> kCpuTokens = {1, 2, 4, 8, 16, 32, 50, 64, 128, 256, 512}, kCpuKvTokens = {150};
const std::vector<int32_t> kCudaTokens = {1, 8, 16, 32, 64, 100, 128, 256, 512, 1024, 2048, 4096, 8192},
                           kCudaKvTokens = {350, 1024, 4096};

// Share of what bounds the op: the larger of its share of the peak and of the bandwidth.
struct Shares {
  double peak = 0, bandwidth = 0;
};
Shares SharesOf(const OpTiming& t, double read_bytes_per_s) {
  return {t.peak_operations > 0 ? t.operations / t.seconds / t.peak_operations : 0,
          t.bytes / t.seconds / read_bytes_per_s};
}

json::object ToJson(const Roofline& r) {
  return {{"int8_operations_per_s", r.int8_operations},
          {"bf16_operations_per_s", r.bf16_operations},
          {"f32_operations_per_s", r.f32_operations},
          {"read_bytes_per_s", r.read_bytes}};
}

json::object ToJson(const CudaLimits& limits) {
  return {{"bf16_operations_per_s", limits.bf16_operations},
          {"fp8_operations_per_s", limits.fp8_operations},
          {"read_bytes_per_s", limits.read_bytes}};
}

json::object ToJson(const OpTiming& t, const Shares& shares) {
  json::object out{{"op", t.op},
                   {"shape", t.shape},
                   {"tokens", t.tokens},
                   {"calls_per_step", t.calls_per_step},
                   {"us", t.seconds * 1e6},
                   {"bytes", t.bytes},
                   {"operations", t.operations},
                   {"share_of_peak", shares.peak},
                   {"share_of_bandwidth", shares.bandwidth}};
  if (!t.kernel.empty()) out["kernel"] = t.kernel;
  return out;
}

json::array ToJson(const std::vector<OpTiming>& timings, double read_bytes_per_s) {
  json::array out;
  for (const OpTiming& t : timings) out.push_back(ToJson(t, SharesOf(t, read_bytes_per_s)));
  return out;
}

void PrintTable(const std::vector<OpTiming>& timings, double read_bytes_per_s) {
  int64_t tokens = -1;
  for (const OpTiming& t : timings) {
    if (t.tokens != tokens) {
      tokens = t.tokens;
      fmt::print("\n{} tokens\n{:<28} {:<44} {:>10} {:>10} {:>10} {:>6} {:>6} {:>10}\n", tokens, "op", "shape", "us",
                 "GB/s", "GOP/s", "peak", "read", "ms a step");
    }
    Shares shares = SharesOf(t, read_bytes_per_s);
    fmt::print("{:<28} {:<44} {:>10.1f} {:>10.1f} {:>10.1f} {:>5.0f}% {:>5.0f}% {:>10.2f}{}{}\n", t.op, t.shape,
               t.seconds * 1e6, t.bytes / t.seconds * 1e-9, t.operations / t.seconds * 1e-9, shares.peak * 100,
               shares.bandwidth * 100, t.seconds * 1e3 * static_cast<double>(t.calls_per_step),
               t.kernel.empty() ? "" : "  ", t.kernel);
  }
}

Result<void> RunCpu(const KernelsOptions& options) {
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngineSource(options.source));
  Engine& engine = opened.engine;
  HoldInHugePages(engine);
  ASSIGN_OR_RETURN(LinearTuning tuning, ReadProfiles(engine.profiles));
  ThreadPool pool(options.threads > 0 ? options.threads
                                      : static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  Roofline roofline = MeasureRoofline(pool, BestIsa());
  ASSIGN_OR_RETURN(std::vector<OpTiming> timings,
                   TimeOps(engine, roofline, tuning, pool, options.tokens.empty() ? kCpuTokens : options.tokens,
                           options.kv_tokens.empty() ? kCpuKvTokens : options.kv_tokens));
  if (options.json) {
    json::object out{{"device", DescribeCpu()},
                     {"threads", pool.size()},
                     {"engine", engine.path.string()},
                     {"peaks", ToJson(roofline)},
                     {"ops", ToJson(timings, roofline.read_bytes)}};
    std::printf("%s\n", json::serialize(out).c_str());
    return {};
  }
  fmt::print("{}, {} threads\nmeasured: int8 {:.0f} GOP/s, bf16 {:.0f} GFLOP/s, f32 {:.0f} GFLOP/s, read {:.1f} GB/s\n",
             DescribeCpu(), pool.size(), roofline.int8_operations * 1e-9, roofline.bf16_operations * 1e-9,
             roofline.f32_operations * 1e-9, roofline.read_bytes * 1e-9);
  PrintTable(timings, roofline.read_bytes);
  return {};
}

Result<void> RunCuda(const KernelsOptions& options) {
  RETURN_IF_ERROR(CheckCudaDevice());  // before an engine is built for it
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngineSource(options.source));
  const Engine& engine = opened.engine;
  CudaOpTimingConfig config;
  config.fp8 = engine.build.dtype == "fp8";
  config.fp8_kv_cache = options.kv_cache_dtype == "fp8";
  config.tokens_per_block = engine.build.tokens_per_block;
  config.max_seq_len = engine.build.max_seq_len;
  config.rows_max = engine.build.max_batch_size;
  config.synth_seed = options.source.synth_seed;
  config.tune = TuneOptionsOf(engine.build);
  ASSIGN_OR_RETURN(config.plan, ReadCudaProfile(engine.profiles));
  // Defaults as far as the engine's sequences reach.
  auto within = [&](const std::vector<int32_t>& given, std::vector<int32_t> usual, int32_t limit) {
    if (!given.empty()) return given;
    std::erase_if(usual, [&](int32_t count) { return count > limit; });
    return usual;
  };
  config.tokens = within(options.tokens, kCudaTokens, config.max_seq_len);
  config.kv_tokens = within(options.kv_tokens, kCudaKvTokens, config.max_seq_len - 1);
  ASSIGN_OR_RETURN(CudaOpTimings timings,
                   TimeCudaOps(engine.model, engine.tensors.empty() ? nullptr : &engine.tensors, config));
  const char* cache = config.fp8_kv_cache ? "fp8" : "bf16";
  if (options.json) {
    json::object out{{"device", timings.device},        {"engine", engine.path.string()},
                     {"dtype", engine.build.dtype},     {"kv_cache_dtype", cache},
                     {"peaks", ToJson(timings.limits)}, {"ops", ToJson(timings.ops, timings.limits.read_bytes)}};
    std::printf("%s\n", json::serialize(out).c_str());
    return {};
  }
  fmt::print("{}, {}, {}, cache {}\nmeasured: bf16 {:.0f} GFLOP/s, fp8 {:.0f} GFLOP/s, read {:.1f} GB/s\n",
             timings.device, opened.model_name, engine.build.dtype, cache, timings.limits.bf16_operations * 1e-9,
             timings.limits.fp8_operations * 1e-9, timings.limits.read_bytes * 1e-9);
  PrintTable(timings.ops, timings.limits.read_bytes);
  return {};
}

Result<void> Run(const KernelsOptions& options) {
  if (options.source.device == "cuda") return RunCuda(options);
  if (options.source.device == "cpu") {
    if (options.kv_cache_dtype == "auto") return RunCpu(options);
    return Error(
        Code::kInvalid,
        fmt::format("kv_cache_dtype: {} needs --device cuda; a CPU's cache follows the engine", options.kv_cache_dtype),
        "kv_cache_dtype");
  }
  return Error(Code::kInvalid, fmt::format("device: {} has no ops to time; name cpu or cuda", options.source.device),
               "device");
}

}  // namespace

void AddKernelsCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<KernelsOptions>();
  options->source.takes_text = false;
  CLI::App* command = app.add_subcommand(
      "kernels", "Every op at the served shapes: time, bytes, operations, share of the measured peaks");
  AddEngineSource(*command, options->source);
  AcceptLongDTypes(
      command->add_option("--kv_cache_dtype", options->kv_cache_dtype, "On cuda: auto (bf16), bf16 or fp8"))
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "bf16", "fp8"}));
  command
      ->add_option(
          "--tokens", options->tokens,
          fmt::format("Token counts; absent: {}; on cuda {}", fmt::join(kCpuTokens, ","), fmt::join(kCudaTokens, ",")))
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--kv_tokens", options->kv_tokens,
                   fmt::format("Cached tokens before each generating sequence; absent: {}; on cuda {}",
                               fmt::join(kCpuKvTokens, ","), fmt::join(kCudaKvTokens, ",")))
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber);
  command->add_option("--threads", options->threads, "Compute threads of a CPU; 0: one for each core")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  command->add_flag("--json", options->json, "JSON on standard output");
  command->callback([options, &outcome] { outcome.result = Run(*options); });
}

}  // namespace ekiben::cli
