#include <CLI/Config.hpp>
#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <thread>

#include "backend/cpu_backend.h"
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
  int32_t threads = 0, chunk = 64;
  double max_difference = 0, max_kl = 0;
  bool json = false;
};

struct CheckResult {
  LogitComparison comparison;
  int64_t files = 0, greedy_equal = 0, greedy_total = 0, files_equal = 0;
};

Result<std::vector<std::filesystem::path>> GoldenFiles(const std::filesystem::path& path) {
  std::vector<std::filesystem::path> out;
  if (std::filesystem::is_directory(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.path().extension() == ".golden") out.push_back(entry.path());
    std::sort(out.begin(), out.end());
  } else if (std::filesystem::exists(path)) {
    out.push_back(path);
  }
  if (out.empty())
    return Error(
        Code::kNotFound,
        fmt::format("--against {}: no .golden file there; tests/golden/make_golden.py makes them", path.string()));
  return out;
}

// Runs one sequence through the model, `chunk` tokens a step, all of their logits wanted.
class Runner {
 public:
  Runner(Model& model, const Engine& engine, const LinearTuning& tuning, int32_t threads, int32_t chunk)
      : model_(model),
        chunk_(chunk),
        tokens_max_(engine.build.max_seq_len),
        pool_(threads),
        arena_(model.ScratchBytes(chunk, chunk, threads)),
        ctx_{.pool = &pool_, .arena = &arena_, .isa = BestIsa(), .tuning = &tuning},
        kv_({.layers = engine.model.num_hidden_layers,
             .kv_heads = engine.model.num_key_value_heads,
             .head_dim = engine.model.head_dim,
             .tokens_per_block = engine.build.tokens_per_block,
             .blocks = (tokens_max_ + engine.build.tokens_per_block - 1) / engine.build.tokens_per_block,
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
  int32_t tokens_max() const { return tokens_max_; }

 private:
  Model& model_;
  int32_t chunk_, tokens_max_;
  ThreadPool pool_;
  Arena arena_;
  OpContext ctx_;
  PagedKv kv_;
  std::vector<BlockId> table_;
};

Result<CheckResult> CheckAll(const Engine& engine, const CheckOptions& options) {
  ASSIGN_OR_RETURN(auto paths, GoldenFiles(options.against));
  ASSIGN_OR_RETURN(auto model, Model::Load(engine.model, engine.tensors, engine.build.max_seq_len));
  int32_t threads =
      options.threads > 0 ? options.threads : static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  ASSIGN_OR_RETURN(LinearTuning tuning, ReadProfiles(engine.profiles));
  Runner runner(*model, engine, tuning, threads, options.chunk);
  CheckResult out;
  for (const std::filesystem::path& path : paths) {
    ASSIGN_OR_RETURN(GoldenFile golden, OpenGoldenFile(path));
    if (golden.vocab_size != engine.model.vocab_size || std::ssize(golden.token_ids) > runner.tokens_max())
      return Error(
          Code::kInvalid,
          fmt::format("{}: recorded for a vocabulary of {} and {} tokens; the engine has {} and max_seq_len {}",
                      path.string(), golden.vocab_size, golden.token_ids.size(), engine.model.vocab_size,
                      runner.tokens_max()));
    int64_t equal = CompareWithGolden(golden, runner.Logits(golden.token_ids), out.comparison);
    int64_t total = std::ssize(golden.token_ids) - golden.prompt_tokens;
    out.greedy_equal += equal;
    out.greedy_total += total;
    out.files_equal += equal == total ? 1 : 0;
    ++out.files;
  }
  return out;
}

Result<int> Run(const CheckOptions& options) {
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngineSource(options.source));
  const Engine& engine = opened.engine;
  ASSIGN_OR_RETURN(CheckResult result, CheckAll(engine, options));
  const LogitComparison& c = result.comparison;
  const bool exact = engine.build.dtype == "f32";
  double difference_limit = options.max_difference > 0 ? options.max_difference : exact ? 1e-3 : 0;
  double kl_limit = options.max_kl > 0 ? options.max_kl : exact ? 0 : 5e-3;
  bool ok = (difference_limit == 0 || c.max_difference() < difference_limit) &&
            (kl_limit == 0 || c.mean_kl() < kl_limit) && (!exact || result.greedy_equal == result.greedy_total);
  if (options.json) {
    json::object out{{"engine", engine.path.string()},
                     {"dtype", engine.build.dtype},
                     {"device", DescribeCpu()},
                     {"prompts", result.files},
                     {"positions", c.positions()},
                     {"max_difference", c.max_difference()},
                     {"mean_difference", c.mean_difference()},
                     {"mean_kl", c.mean_kl()},
                     {"max_kl", c.max_kl()},
                     {"top1_agreement", c.top1_agreement()},
                     {"greedy_tokens_equal", result.greedy_equal},
                     {"greedy_tokens", result.greedy_total},
                     {"prompts_greedy_equal", result.files_equal},
                     {"ok", ok}};
    std::printf("%s\n", json::serialize(out).c_str());
  } else {
    fmt::print("{} ({}, {}) against {}: {} prompts\n{}\n", opened.model_name, engine.build.dtype, DescribeCpu(),
               options.against, result.files, c.Describe());
    fmt::print("greedy tokens equal up to the first difference: {} of {}; whole on {} of {} prompts\n",
               result.greedy_equal, result.greedy_total, result.files_equal, result.files);
    std::string limits;
    if (difference_limit > 0) limits += fmt::format(" max |difference| < {:g}", difference_limit);
    if (kl_limit > 0) limits += fmt::format(" mean KL < {:g}", kl_limit);
    if (exact) limits += " all greedy tokens equal";
    fmt::print("{}: wanted{}\n", ok ? "PASS" : "FAIL", limits);
  }
  return ok ? 0 : 1;
}

}  // namespace

void AddCheckCommand(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<CheckOptions>();
  CLI::App* command =
      app.add_subcommand("check", "Compare a model's logits with recorded ones; exit code 1 when apart");
  AddModel(*command, options->source)->required();
  AddEngineOptions(*command, options->source);
  command->add_option("--against", options->against, "A .golden file, or a folder of them")->required();
  command->add_option("--threads", options->threads, "Compute threads; 0: one for each core")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  command->add_option("--chunk", options->chunk, "Tokens of a step")->capture_default_str()->check(CLI::Range(1, 512));
  command->add_option("--max_difference", options->max_difference, "Limit of |difference|; 0: 1e-3 for f32, else none")
      ->capture_default_str();
  command->add_option("--max_kl", options->max_kl, "Limit of the mean KL; 0: 5e-3, none for f32")
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
