#include <CLI/Config.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <random>
#include <thread>

#include "backend/cpu_backend.h"
#include "backend/cuda_backend.h"
#include "backend/cuda_logits.h"
#include "base/arithmetic.h"
#include "base/human.h"
#include "cli/commands.h"
#include "cli/engine_source.h"
#include "cli/options.h"
#include "compile/engine.h"
#include "compile/profile.h"
#include "model/golden_file.h"
#include "model/logit_compare.h"

namespace ekiben::cli {
namespace {

struct CheckOptions {
  EngineSource source;
  std::string against;
  std::string kv_cache_dtype = "auto";
  int32_t threads = 0, chunk = 64;
  double max_difference = 0, max_kl = 0;
  bool json = false;
};

// Runs one sequence through the model on the CPU, `chunk` tokens a step, all of their logits wanted.
class Runner {
 public:
  Runner(Model& model, const Engine& engine, const LinearTuning& tuning, int32_t threads, int32_t chunk)
      : model_(model),
        chunk_(chunk),
        pool_(threads),
        arena_(model.ScratchBytes(chunk, chunk, threads)),
        ctx_{.pool = &pool_, .arena = &arena_, .isa = BestIsa(), .tuning = &tuning},
        kv_({.layers = engine.model.num_hidden_layers,
             .kv_heads = engine.model.num_key_value_heads,
             .head_dim = engine.model.head_dim,
             .tokens_per_block = engine.build.tokens_per_block,
             .blocks = CeilDiv(engine.build.max_seq_len, engine.build.tokens_per_block),
             .dtype = engine.build.dtype == "f32" ? DType::kF32 : DType::kBF16}) {
    for (int32_t i = 0; i < kv_.shape().blocks; ++i) table_.push_back({i});
  }

  // f32 [tokens, vocab_size]
  std::vector<float> Logits(std::span<const int32_t> tokens) {
    const int64_t vocab = model_.config().vocab_size;
    std::vector<float> logits(tokens.size() * static_cast<size_t>(vocab));
    for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(chunk_)) {
      auto count = std::min(tokens.size() - begin, static_cast<size_t>(chunk_));
      std::vector<int32_t> positions(count), outputs(count);
      for (size_t i = 0; i < count; ++i) {
        positions[i] = static_cast<int32_t>(begin + i);
        outputs[i] = static_cast<int32_t>(i);
      }
      AttentionRow row{0, static_cast<int32_t>(count), static_cast<int32_t>(begin), table_.data()};
      arena_.Rewind(0);
      model_.Forward(ctx_,
                     {.token_ids = tokens.subspan(begin, count),
                      .positions = positions,
                      .rows = {&row, 1},
                      .output_tokens = outputs},
                     kv_,
                     TensorView(logits.data() + static_cast<int64_t>(begin) * vocab, DType::kF32,
                                {static_cast<int64_t>(count), vocab}),
                     TensorView());
    }
    return logits;
  }

 private:
  Model& model_;
  int32_t chunk_;
  ThreadPool pool_;
  Arena arena_;
  OpContext ctx_;
  PagedKv kv_;
  std::vector<BlockId> table_;
};

Result<SequenceLogits> OpenCpu(const Engine& engine, const CheckOptions& options) {
  ASSIGN_OR_RETURN(auto loaded, Model::Load(engine.model, engine.tensors, engine.build.max_seq_len));
  const int32_t threads =
      options.threads > 0 ? options.threads : static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  ASSIGN_OR_RETURN(LinearTuning profiles, ReadProfiles(engine.profiles));
  std::shared_ptr<Model> model = std::move(loaded);
  auto tuning = std::make_shared<LinearTuning>(std::move(profiles));
  auto runner = std::make_shared<Runner>(*model, engine, *tuning, threads, options.chunk);
  return SequenceLogits([model, tuning, runner](std::span<const int32_t> tokens) -> Result<std::vector<float>> {
    return runner->Logits(tokens);
  });
}

Result<SequenceLogits> OpenCuda(const Engine& engine, const CheckOptions& options) {
  return OpenCudaLogits(engine.model, engine.tensors,
                        {.fp8 = engine.build.dtype == "fp8",
                         .fp8_kv_cache = options.kv_cache_dtype == "fp8",
                         .tokens_per_block = engine.build.tokens_per_block,
                         .max_seq_len = engine.build.max_seq_len,
                         .chunk = options.chunk});
}

Result<SequenceLogits> OpenChecked(const Engine& engine, const CheckOptions& options) {
  return options.source.device == "cuda" ? OpenCuda(engine, options) : OpenCpu(engine, options);
}

// Where nothing was recorded: the same checkpoint as float32 on the CPU, over sequences of random tokens.
Result<GoldenComparison> CheckAgainstCpu(const Engine& engine, const CheckOptions& options) {
  constexpr int kSequences = 3;
  constexpr int32_t kTokens = 128;
  EngineSource source = options.source;
  source.device = "cpu";
  source.build.dtype = "f32";
  source.build.multiple_profiles = false;
  source.build.gemm_plugin = "auto";
  auto opened = OpenEngineSource(source);
  if (!opened.ok()) return std::move(opened).error().Within("against cpu needs the checkpoint, to build it as f32");
  ASSIGN_OR_RETURN(SequenceLogits reference_of, OpenCpu(opened->engine, options));
  ASSIGN_OR_RETURN(SequenceLogits logits_of, OpenChecked(engine, options));
  GoldenComparison out;
  std::mt19937 random(1);
  const auto vocab = static_cast<size_t>(engine.model.vocab_size);
  for (int i = 0; i < kSequences; ++i) {
    std::vector<int32_t> tokens(static_cast<size_t>(std::min(kTokens, engine.build.max_seq_len)));
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
    ASSIGN_OR_RETURN(std::vector<float> reference, reference_of(tokens));
    ASSIGN_OR_RETURN(std::vector<float> logits, logits_of(tokens));
    for (size_t at = 0; at < reference.size(); at += vocab)
      out.comparison.Add(std::span(reference).subspan(at, vocab), std::span(logits).subspan(at, vocab));
    ++out.files;
  }
  return out;
}

Result<GoldenComparison> CheckAll(const Engine& engine, const CheckOptions& options) {
  if (options.against == "cpu") return CheckAgainstCpu(engine, options);
  ASSIGN_OR_RETURN(std::vector<GoldenFile> files, OpenGoldenFiles(options.against));
  ASSIGN_OR_RETURN(SequenceLogits logits_of, OpenChecked(engine, options));
  GoldenComparison out;
  for (const GoldenFile& golden : files) {
    if (golden.vocab_size != engine.model.vocab_size || std::ssize(golden.token_ids) > engine.build.max_seq_len)
      return Error(
          Code::kInvalid,
          fmt::format("{}: recorded for a vocabulary of {} and {} tokens; the engine has {} and max_seq_len {}",
                      golden.path.string(), golden.vocab_size, golden.token_ids.size(), engine.model.vocab_size,
                      engine.build.max_seq_len));
    ASSIGN_OR_RETURN(std::vector<float> logits, logits_of(golden.token_ids));
    out.Add(golden, logits);
  }
  return out;
}

// What is wanted of the mean KL when the options do not say: fp8's is that of the GPU's targets.
double KlLimit(const Engine& engine, bool cuda) {
  if (engine.build.dtype == "f32") return 0;
  if (!cuda) return 5e-3;
  return engine.build.dtype == "fp8" ? 2e-2 : 1e-3;
}

Result<int> Run(const CheckOptions& options) {
  const bool cuda = options.source.device == "cuda";
  if (!cuda && options.kv_cache_dtype != "auto")
    return Error(
        Code::kInvalid,
        fmt::format("kv_cache_dtype: {} needs --device cuda; a CPU's cache follows the engine", options.kv_cache_dtype),
        "kv_cache_dtype");
  if (cuda) RETURN_IF_ERROR(CheckCudaDevice());  // before an engine is built for it
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngineSource(options.source));
  const Engine& engine = opened.engine;
  ASSIGN_OR_RETURN(GoldenComparison result, CheckAll(engine, options));
  const LogitComparison& c = result.comparison;
  const bool exact = engine.build.dtype == "f32";
  double difference_limit = options.max_difference > 0 ? options.max_difference : exact ? 1e-3 : 0;
  double kl_limit = options.max_kl > 0 ? options.max_kl : KlLimit(engine, cuda);
  bool ok = (difference_limit == 0 || c.max_difference() < difference_limit) &&
            (kl_limit == 0 || c.mean_kl() < kl_limit) && (!exact || result.greedy_equal == result.greedy_total);
  const std::string device =
      cuda ? fmt::format("cuda, cache {}", options.kv_cache_dtype == "fp8" ? "fp8" : "bf16") : DescribeCpu();
  if (options.json) {
    json::object out{{"engine", engine.path.string()},
                     {"dtype", engine.build.dtype},
                     {"device", device},
                     {"prompts", result.files},
                     {"positions", c.positions()},
                     {"max_difference", c.max_difference()},
                     {"mean_difference", c.mean_difference()},
                     {"relative_error", c.relative_error()},
                     {"mean_kl", c.mean_kl()},
                     {"max_kl", c.max_kl()},
                     {"top1_agreement", c.top1_agreement()},
                     {"greedy_tokens_equal", result.greedy_equal},
                     {"greedy_tokens", result.greedy_total},
                     {"prompts_greedy_equal", result.files_equal},
                     {"tie_max", result.tie_max},
                     {"ok", ok}};
    std::printf("%s\n", json::serialize(out).c_str());
  } else {
    const bool random = options.against == "cpu";
    fmt::print("{} ({}, {}) against {}: {} {}\n{}\n", opened.model_name, engine.build.dtype, device, options.against,
               result.files, random ? "sequences of random tokens" : "prompts", c.Describe());
    if (result.greedy_total > 0)
      fmt::print("greedy tokens equal up to the first difference: {} of {}; whole on {} of {} prompts\n",
                 result.greedy_equal, result.greedy_total, result.files_equal, result.files);
    if (result.greedy_equal < result.greedy_total)
      fmt::print("where a text first differs, the reference's best two logits are at most {:.3g} apart\n",
                 result.tie_max);
    std::string limits;
    if (difference_limit > 0) limits += fmt::format(" max |difference| < {:g}", difference_limit);
    if (kl_limit > 0) limits += fmt::format(" mean KL < {:g}", kl_limit);
    if (exact) limits += " all greedy tokens equal";
    fmt::print("{}: wanted{}\n", ok ? "PASS" : "FAIL", limits);
    if (!ok && random && engine.build.dtype == "fp8")
      fmt::print(
          "that bound is of text, which random tokens are not: compare with recorded prompts (--against FOLDER), or "
          "give "
          "--max_kl\n");
  }
  return ok ? 0 : 1;
}

}  // namespace

void AddCheckCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<CheckOptions>();
  options->source.takes_text = false;
  CLI::App* command =
      app.add_subcommand("check", "Compare a model's logits with recorded ones or the CPU's; exit code 1 when apart");
  AddModel(*command, options->source)->required();
  AddEngineOptions(*command, options->source);
  command->add_option("--device", options->source.device, "cpu; or cuda: one Hopper GPU")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda"}));
  AcceptLongDTypes(
      command->add_option("--kv_cache_dtype", options->kv_cache_dtype, "On cuda: auto (bf16), bf16 or fp8"))
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "bf16", "fp8"}));
  command
      ->add_option(
          "--against", options->against,
          "A .golden file, a folder of them, or cpu: the same checkpoint as f32 on the CPU, over random tokens")
      ->required();
  command->add_option("--threads", options->threads, "Compute threads; 0: one for each core")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  command->add_option("--chunk", options->chunk, "Tokens of a step")->capture_default_str()->check(CLI::Range(1, 512));
  command->add_option("--max_difference", options->max_difference, "Limit of |difference|; 0: 1e-3 for f32, else none")
      ->capture_default_str();
  command
      ->add_option("--max_kl", options->max_kl,
                   "Limit of the mean KL; 0: 5e-3 on a CPU, none for f32; on cuda 1e-3, 2e-2 for fp8")
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->callback([options, &outcome] {
    auto result = Run(*options);
    if (!result.ok()) {
      outcome.result = std::move(result).error();
    } else {
      outcome.exit_code = *result;
    }
  });
}

}  // namespace ekiben::cli
