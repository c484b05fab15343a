// Times a whole forward step of a checkpoint, and its ops apart: forward_bench CHECKPOINT [--threads T] [--dtype D]
// [--rounds R] [--clock cpu] [--scenario PART_OF_NAME]. A development tool; `ekiben kernels` and `ekiben bench` measure
// what is served. The step is the minimum over rounds. Each op is timed alone over all layers, minimum over rounds;
// "linear" is the rest, so the columns add up.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <random>
#include <string_view>

#include "model/packed_model_for_test.h"
#include "ops/paged_attention.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace ekiben {
namespace {

struct Scenario {
  const char* name;
  int32_t sequences, cached, tokens;  // tokens fed by each, after `cached` ones
};

// --clock cpu: the process's CPU time instead, for one thread on a machine that others use too.
clockid_t g_clock = CLOCK_MONOTONIC;

double Milliseconds() {
  timespec now;
  clock_gettime(g_clock, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

template <class Body>
double Best(int rounds, Body&& body) {
  double best = 1e30;
  for (int i = 0; i < rounds; ++i) {
    double start = Milliseconds();
    body();
    best = std::min(best, Milliseconds() - start);
  }
  return best;
}

class ScenarioRun {
 public:
  ScenarioRun(Model& model, const Scenario& s, int threads, DType kv_dtype)
      : model_(model),
        config_(model.config()),
        tokens_(s.sequences * s.tokens),
        per_sequence_((s.cached + s.tokens + 31) / 32),
        kv_({config_.num_hidden_layers, config_.num_key_value_heads, config_.head_dim, 32, per_sequence_ * s.sequences,
             kv_dtype}),
        pool_(threads),
        arena_(model.ScratchBytes(tokens_, s.sequences, threads) + OpBytes()),
        ctx_{&pool_, &arena_, BestIsa()} {
    std::mt19937 rng(1);
    for (int32_t i = 0; i < per_sequence_ * s.sequences; ++i) blocks_.push_back(BlockId{i});
    std::shuffle(blocks_.begin(), blocks_.end(), rng);
    auto* words = reinterpret_cast<uint16_t*>(kv_.Block(0, BlockId{0}));
    for (size_t i = 0; i < kv_.bytes_per_block() * blocks_.size() / 2; ++i) words[i] = F32ToBF16(0.01f * (i % 101));
    for (int32_t i = 0; i < s.sequences; ++i) {
      rows_.push_back({i * s.tokens, s.tokens, s.cached, &blocks_[static_cast<size_t>(i * per_sequence_)]});
      outputs_.push_back((i + 1) * s.tokens - 1);
      for (int32_t t = 0; t < s.tokens; ++t) {
        ids_.push_back(static_cast<int32_t>(rng() % static_cast<uint32_t>(config_.vocab_size)));
        positions_.push_back(s.cached + t);
      }
    }
    logits_.resize(outputs_.size() * static_cast<size_t>(config_.vocab_size));
  }

  void Forward() {
    int64_t outputs = std::ssize(outputs_);
    model_.Forward(ctx_, {ids_, positions_, rows_, outputs_}, kv_,
                   TensorView(logits_.data(), DType::kF32, {outputs, config_.vocab_size}), {});
  }

  void Print(const char* name, int rounds) {
    Forward();
    double step = Best(rounds, [&] { Forward(); });
    int32_t layers = config_.num_hidden_layers, heads = config_.num_attention_heads, d = config_.head_dim;
    int64_t hidden = config_.hidden_size, mlp = config_.intermediate_size;
    auto take = [&](int64_t columns) {
      auto* data = arena_.Take<float>(tokens_ * columns);
      for (int64_t i = 0; i < tokens_ * columns; ++i) data[i] = 0.01f * static_cast<float>(i % 97);
      return TensorView(data, DType::kF32, {tokens_, columns});
    };
    size_t mark = arena_.Mark();
    TensorView x = take(hidden), h = take(hidden), delta = take(hidden);
    TensorView qkv = take(int64_t{heads + 2 * config_.num_key_value_heads} * d), out = take(int64_t{heads} * d);
    TensorView gate_up = take(2 * mlp), act = take(mlp);
    std::vector<float> weight(static_cast<size_t>(hidden), 1.0f), table(static_cast<size_t>(16384 * d), 0.7f);
    RopeView rope{table.data(), 8192, d, config_.rope_interleaved};
    double attention = Best(rounds, [&] {
      for (int32_t i = 0; i < layers; ++i) {
        PagedAttention(ctx_, out, qkv, heads, rows_, kv_, i, config_.sliding_window);
      }
    });
    double store = Best(rounds, [&] {
      for (int32_t i = 0; i < layers; ++i) RopeAndStoreKv(ctx_, qkv, rope, heads, rows_, kv_, i);
    });
    double norms = Best(rounds, [&] {
      for (int32_t i = 0; i < 2 * layers; ++i) AddRmsNorm(ctx_, h, x, delta, weight.data(), 1e-5f);
    });
    double swiglu = Best(rounds, [&] {
      for (int32_t i = 0; i < layers; ++i) SwiGlu(ctx_, act, gate_up);
    });
    arena_.Rewind(mark);
    std::printf(
        "%-22s step %8.2f ms %8.0f tok/s | linear %8.2f  attention %7.2f  rope+kv %6.2f  norm %6.2f  swiglu %6.2f\n",
        name, step, static_cast<double>(tokens_) / step * 1e3, step - attention - store - norms - swiglu, attention,
        store, norms, swiglu);
  }

 private:
  // What Print takes beside the step, for whole tensors of activations.
  size_t OpBytes() const {
    int64_t columns = 3 * config_.hidden_size + 3 * config_.intermediate_size +
                      2 * int64_t{config_.num_attention_heads + config_.num_key_value_heads} * config_.head_dim;
    return static_cast<size_t>(tokens_ * columns) * sizeof(float) + (size_t{1} << 20);
  }

  Model& model_;
  const ModelConfig& config_;
  int32_t tokens_, per_sequence_;
  PagedKv kv_;
  ThreadPool pool_;
  Arena arena_;
  OpContext ctx_;
  std::vector<BlockId> blocks_;
  std::vector<AttentionRow> rows_;
  std::vector<int32_t> outputs_, ids_, positions_;
  std::vector<float> logits_;
};

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(
        stderr,
        "usage: forward_bench CHECKPOINT [--threads T] [--dtype f32|bf16|int8|int4] [--rounds R] [--clock cpu] "
        "[--scenario NAME]\n");
    return 2;
  }
  int threads = 2, rounds = 5;
  std::string_view only;
  Packing packing = Packing::kInt4Block32, precise = Packing::kInt8;
  for (int i = 2; i + 1 < argc; i += 2) {
    std::string_view key = argv[i], value = argv[i + 1];
    if (key == "--threads") threads = std::atoi(argv[i + 1]);
    if (key == "--scenario") only = value;
    if (key == "--rounds") rounds = std::atoi(argv[i + 1]);
    if (key == "--clock" && value == "cpu") g_clock = CLOCK_PROCESS_CPUTIME_ID;
    if (key == "--dtype" && value == "f32") packing = precise = Packing::kF32;
    if (key == "--dtype" && value == "bf16") packing = precise = Packing::kBF16;
    if (key == "--dtype" && value == "int8") packing = precise = Packing::kInt8;
  }
  auto checkpoint = OpenCheckpoint(argv[1]);
  CHECK(checkpoint.ok(), "{}", checkpoint.error().message());
  auto packed = PackModel(*checkpoint, packing, precise, 8192);
  CHECK(packed.ok(), "{}", packed.error().message());
  std::printf("%s, %d threads, linears %s\n", DescribeCpu().c_str(), threads, std::string(Name(packing)).c_str());
  constexpr Scenario kScenarios[] = {{"context 1 x 512", 1, 0, 512},     {"context 4 x 128", 4, 0, 128},
                                     {"generation 1 @150", 1, 150, 1},   {"generation 10 @150", 10, 150, 1},
                                     {"generation 50 @150", 50, 150, 1}, {"generation 1 @4000", 1, 4000, 1}};
  for (const Scenario& s : kScenarios) {
    if (std::string_view(s.name).find(only) == std::string_view::npos) continue;
    ScenarioRun(*packed->model, s, threads, packing == Packing::kF32 ? DType::kF32 : DType::kBF16)
        .Print(s.name, rounds);
  }
  return 0;
}

}  // namespace
}  // namespace ekiben

int main(int argc, char** argv) {
  return ekiben::Main(argc, argv);
}
