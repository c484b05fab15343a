#include "cli/options.h"

#include <fmt/ranges.h>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <map>

#include "weights/published_shapes.h"

namespace ekiben::cli {

void AddSwitch(CLI::App& app, const std::string& name, bool& value, const std::string& help) {
  app.add_option_function<std::string>(
         name, [&value](const std::string& text) { value = text == "enable" || text == "true" || text == "1"; }, help)
      ->check(CLI::IsMember({"enable", "disable", "true", "false", "1", "0"}))
      ->type_name("enable|disable")
      ->default_str(value ? "enable" : "disable");
}

CLI::Option* AcceptLongDTypes(CLI::Option* option) {
  auto shorten = [](std::string& text) {
    if (text == "bfloat16") text = "bf16";
    if (text == "float32") text = "f32";
    return std::string();
  };
  return option->transform(CLI::Validator(shorten, ""));
}

namespace {

constexpr const char* kBuildGroup = "Build";

void Grouped(CLI::Option* option) {
  option->group(kBuildGroup)->capture_default_str();
}

// Options that are part of the engine itself.
void AddPackingOptions(CLI::App& app, BuildConfig& b) {
  Grouped(AcceptLongDTypes(app.add_option(
      "--dtype", b.dtype,
      "Linear layers: auto keeps a quantised checkpoint's bits (int4, int8) and floats as bf16, and is bf16 on CUDA; "
      "or f32 (float32), bf16 (bfloat16), int8, int4; on CUDA bf16 or fp8 (e4m3, for which the build rounds)")));
  Grouped(app.add_option("--max_beam_width", b.max_beam_width, "1: beam search is not offered"));
  Grouped(app.add_option("--opt_num_tokens", b.opt_num_tokens,
                         "Token count to choose kernels for when multiple_profiles is disabled; 0: max_batch_size"));
  Grouped(app.add_option("--tokens_per_block", b.tokens_per_block,
                         fmt::format("Tokens of one KV block, a power of two; 0: {} on the CPU, {} on CUDA",
                                     DefaultsOf("cpu").tokens_per_block, DefaultsOf("cuda").tokens_per_block)));
  Grouped(app.add_option("--gemm_plugin", b.gemm_plugin,
                         "CUDA: bfloat16 or fp8, the type of the linears: cuBLASLt multiplies; disable: own kernels as "
                         "far as they reach, 64 tokens; auto: whichever measured faster for each bucket of token "
                         "counts. CPU: own kernels, which auto and disable both say"));
  Grouped(app.add_option("--kv_cache_type", b.kv_cache_type, "paged"));
  AddSwitch(app, "--multiple_profiles", b.multiple_profiles,
            "Time the kernels for every bucket of token counts and keep the best of each");
  AddSwitch(app, "--use_paged_context_fmha", b.use_paged_context_fmha, "Context attention reads the paged cache");
  AddSwitch(app, "--gather_context_logits", b.gather_context_logits,
            "Requests may ask for the logits of their prompts (Triton's models; CPU)");
  AddSwitch(app, "--gather_generation_logits", b.gather_generation_logits,
            "Requests may ask for the logits of their tokens (Triton's models; CPU)");
  app.get_option("--gather_context_logits")->group(kBuildGroup);
  app.get_option("--gather_generation_logits")->group(kBuildGroup);
  app.get_option("--multiple_profiles")->group(kBuildGroup);
  app.get_option("--use_paged_context_fmha")->group(kBuildGroup);
}

// `whose`: what 0 takes before the device's default, "" or "the engine's, else ".
void AddLimitOptions(CLI::App& app, RunLimits& l, const char* group, const std::string& whose) {
  const DeviceDefaults cpu = DefaultsOf("cpu"), cuda = DefaultsOf("cuda");
  auto add = [&](const char* name, int32_t& value, const std::string& help) {
    app.add_option(name, value, help)->group(group)->capture_default_str();
  };
  add("--max_batch_size", l.max_batch_size,
      fmt::format("Sequences of one step; 0: {}{} on the CPU, {} on CUDA", whose, cpu.max_batch_size,
                  cuda.max_batch_size));
  add("--max_num_tokens", l.max_num_tokens,
      fmt::format("Tokens of one step, context and generation; 0: {}{} on the CPU, {} on CUDA", whose,
                  cpu.max_num_tokens, cuda.max_num_tokens));
  add("--max_seq_len", l.max_seq_len,
      fmt::format("Tokens of one sequence, prompt and output; 0: {}the model's", whose));
  add("--max_input_len", l.max_input_len, fmt::format("Tokens of a prompt; 0: {}max_seq_len - 1", whose));
}

}  // namespace

void AddBuildOptions(CLI::App& app, BuildConfig& b, RunLimits& limits) {
  Grouped(app.add_option("--device", b.device, "What to build for: cpu, or cuda: one Hopper GPU")
              ->check(CLI::IsMember({"cpu", "cuda"})));
  AddLimitOptions(app, limits, kBuildGroup, "");
  AddPackingOptions(app, b);
}

void AddEngineOptions(CLI::App& app, EngineSource& source) {
  AddLimitOptions(app, source.limits,
                  "Limits (at most what the engine was built with; a checkpoint's engine takes any)",
                  "the engine's, else ");
  AddPackingOptions(app, source.build);
}

void AddRuntimeOptions(CLI::App& app, StackOptions& o) {
  constexpr const char* kGroup = "Run time";
  auto add = [&](CLI::Option* option) { option->group(kGroup)->capture_default_str(); };
  auto add_switch = [&](const std::string& name, bool& value, const std::string& help) {
    AddSwitch(app, name, value, help);
    app.get_option(name)->group(kGroup);
  };
  static const std::map<std::string, CapacityPolicy> kPolicies = {
      {"guaranteed_no_evict", CapacityPolicy::kGuaranteedNoEvict},
      {"max_utilization", CapacityPolicy::kMaxUtilization}};
  static const std::map<std::string, BatchingStrategy> kStrategies = {
      {"inflight_fused_batching", BatchingStrategy::kInflightFusedBatching}, {"V1", BatchingStrategy::kV1}};
  static const std::map<std::string, ChunkingPolicy> kChunking = {
      {"first_come_first_served", ChunkingPolicy::kFirstComeFirstServed},
      {"equal_progress", ChunkingPolicy::kEqualProgress}};
  ExecutorConfig& e = o.executor;
  add(app.add_option("--threads", o.threads, "Compute threads; 0: one for each core")->check(CLI::Range(0, 1024)));
  AddChoice(app, "--batch_scheduler_policy", e.batch_scheduler_policy, kPolicies,
            "guaranteed_no_evict: admit what surely fits to its end; max_utilization: admit more, pause and recompute "
            "when the cache is full")
      ->group(kGroup);
  AddChoice(app, "--batching_strategy", e.batching_strategy, kStrategies,
            "inflight_fused_batching, or V1: a batch runs to its end before the next begins")
      ->group(kGroup);
  AddChoice(app, "--context_chunking_policy", e.context_chunking_policy, kChunking,
            "first_come_first_served, or equal_progress")
      ->group(kGroup);
  add(app.add_option(
             "--context_admission_policy", o.context_admission_policy,
             "paced: a step takes half of the waiting prompts, and those who came together leave apart; greedy: "
             "all that fit; auto: greedy on cuda, paced elsewhere")
          ->check(CLI::IsMember({"auto", "paced", "greedy"})));
  add_switch("--enable_chunked_context", e.enable_chunked_context,
             "Split long prompts over steps, so that generation goes on beside them");
  add(app.add_option(
      "--itl_budget_ms", o.itl_budget_ms,
      "Bound of a step's time while something generates, kept by cutting context: milliseconds; off; "
      "auto: on cuda 1.5 to 1.85 steps of generation alone, where its steps' costs are known, off on a CPU"));
  app.add_option(
         "--step_timeout_s", o.step_timeout_s,
         "A step that takes longer is a device fault: its requests fail, serve ends with exit code 1; 0: never; "
         "default: 60 on cuda, 0 elsewhere")
      ->group(kGroup)
      ->check(CLI::Range(0.0, 86400.0));
  add_switch("--enable_kv_cache_reuse", e.enable_kv_cache_reuse, "Keep finished prefixes and reuse their blocks");
  add(app.add_option("--max_attention_window_size", e.max_attention_window_size,
                     "Attend to that many last tokens only; 0: max_seq_len")
          ->check(CLI::NonNegativeNumber));
  add(app.add_option("--max_queue_size", e.max_queue_size, "Waiting requests; one more is answered 429"));
  add(app.add_option("--max_queue_tokens", e.max_queue_tokens,
                     "Tokens of the waiting prompts together; more are answered 429"));
  add(app.add_option("--fake_step_ms", o.fake_step_ms, "With --device fake: a step takes so long; 0: no time")
          ->check(CLI::Range(0.0, 10'000.0)));
  add(app.add_option("--max_queue_delay_microseconds", e.max_queue_delay_microseconds,
                     "An idle executor waits that long for company before its first step"));
  add(app.add_option(
      "--kv_cache_free_gpu_mem_fraction", o.kv_cache_free_mem_fraction,
      fmt::format("Share of the free memory for keys and values; absent: {} of the machine's, {} of a GPU's",
                  DefaultsOf("cpu").kv_cache_free_mem_fraction, DefaultsOf("cuda").kv_cache_free_mem_fraction)));
  add(app.add_option("--max_tokens_in_paged_kv_cache", o.max_tokens_in_paged_kv_cache,
                     "Size of the cache in tokens; with the fraction, the smaller wins; 0: the fraction alone")
          ->check(CLI::NonNegativeNumber));
  add(AcceptLongDTypes(app.add_option("--kv_cache_dtype", o.kv_cache_dtype,
                                      "auto (bf16; f32 for an f32 engine), bf16 or f32; on CUDA bf16 or fp8")));
  add_switch("--weights_in_huge_pages", o.weights_in_huge_pages,
             "Copy the weights into huge pages at start: reads faster; disable: share the engine file's own pages");
  add(app.add_option("--preprocessing_instance_count", o.preprocessing_instance_count,
                     "Threads that render templates and tokenize"));
  add(app.add_option("--postprocessing_instance_count", o.postprocessing_instance_count,
                     "Threads that detokenize and match stop strings"));
}

void AddDeviceOptions(CLI::App& app, EngineSource& source) {
  app.add_option("--device", source.device,
                 "cpu; cuda: one Hopper GPU; or fake: hashed tokens at no cost, to measure everything around the model")
      ->check(CLI::IsMember({"cpu", "cuda", "fake"}))
      ->group("Run time")
      ->capture_default_str();
  app.add_option("--synth", source.synth,
                 fmt::format("Instead of a model: random weights, made on the GPU, in the shape of {}",
                             fmt::join(PublishedShapeNames(), ", ")))
      ->type_name("SHAPE");
  app.add_option("--synth_seed", source.synth_seed, "Of the weights that --synth makes")->capture_default_str();
}

CLI::Option* AddModel(CLI::App& app, EngineSource& source) {
  return app.add_option(
      "MODEL", source.text,
      "An engine folder, a checkpoint (GGUF file or Hugging Face folder) or a tag of the model store; what is "
      "no engine yet is built once into the cache");
}

void AddEngineSource(CLI::App& app, EngineSource& source) {
  AddModel(app, source);
  AddDeviceOptions(app, source);
  AddEngineOptions(app, source);
}

}  // namespace ekiben::cli
