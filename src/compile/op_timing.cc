#include "compile/op_timing.h"

#include <algorithm>
#include <random>

#include "base/arithmetic.h"
#include "base/clock.h"
#include "model/rope_table.h"
#include "ops/embedding.h"
#include "ops/paged_attention.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace ekiben {
namespace {

constexpr int kRounds = 7;

class OpTimer {
 public:
  OpTimer(const Engine& engine, const Roofline& roofline, const LinearTuning& tuning, ThreadPool& pool,
          int32_t tokens_max, const std::vector<int32_t>& kv_tokens)
      : engine_(engine),
        m_(engine.model),
        roofline_(roofline),
        kv_tokens_(kv_tokens),
        kv_tokens_max_(kv_tokens.empty() ? 0 : *std::max_element(kv_tokens.begin(), kv_tokens.end())),
        blocks_each_(CeilDiv(std::max(kv_tokens_max_ + 1, tokens_max), engine.build.tokens_per_block)),
        kv_({.layers = m_.num_hidden_layers,
             .kv_heads = m_.num_key_value_heads,
             .head_dim = m_.head_dim,
             .tokens_per_block = engine.build.tokens_per_block,
             .blocks = std::max(blocks_each_, tokens_max * CeilDiv(kv_tokens_max_ + 1, engine.build.tokens_per_block)),
             .dtype = engine.build.dtype == "f32" ? DType::kF32 : DType::kBF16}),
        rope_(m_, std::max(tokens_max, kv_tokens_max_ + 1)) {
    for (const auto& [name, tensor] : engine.tensors) {
      if (tensor.kind != PackRule::Kind::kLinear) continue;
      size_t dot = name.rfind('.');
      linears_.push_back({name.substr(dot == std::string::npos ? 0 : dot + 1),
                          {tensor.packing, tensor.rows, tensor.columns, tensor.data, tensor.bytes}});
    }
    size_t scratch = std::max(LinearTimingScratchBytes(linears_, tokens_max), PagedAttentionScratchBytes(tokens_max));
    arena_ = Arena(scratch);
    ctx_ = {.pool = &pool, .arena = &arena_, .isa = BestIsa(), .tuning = &tuning};
    int64_t widest = std::max<int64_t>(2 * m_.intermediate_size,
                                       (m_.num_attention_heads + 2 * m_.num_key_value_heads) * int64_t{m_.head_dim});
    for (Buffer* buffer : {&a_, &b_, &c_}) *buffer = Buffer(static_cast<size_t>(tokens_max * widest) * sizeof(float));
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < a_.size() / sizeof(float); ++i) a_.as<float>()[i] = b_.as<float>()[i] = normal(rng);
  }

  void TimeAll(int32_t tokens, std::vector<OpTiming>& out) {
    for (const LinearTiming& t : TimeLinears(ctx_, linears_, tokens, kRounds))
      out.push_back({t.name, fmt::format("{} {}x{}", Name(t.packing), t.out_features, t.in_features), tokens, t.weights,
                     t.seconds, t.operations, t.bytes, PeakOf(roofline_, t.packing)});
    TimeEmbedding(tokens, out);
    TimeElementwise(tokens, out);
    TimeAttention(tokens, out);
  }

 private:
  TensorView View(Buffer& buffer, int64_t tokens, int64_t columns) {
    return TensorView(buffer.data(), DType::kF32, {tokens, columns});
  }
  // Median over rounds of the mean over layers, in seconds.
  template <class Call>
  double Median(Call&& call) {
    std::vector<double> seconds;
    const Clock& clock = SystemClock::Get();
    for (int round = 0; round < kRounds; ++round) {
      Nanos begin = clock.Now();
      for (int32_t layer = 0; layer < m_.num_hidden_layers; ++layer) call(layer);
      seconds.push_back(Seconds(clock.Now() - begin) / m_.num_hidden_layers);
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
  }

  void TimeEmbedding(int32_t tokens, std::vector<OpTiming>& out) {
    const EngineTensor& t = engine_.tensors.at("embedding");
    EmbeddingTable table{t.dtype, t.rows, t.columns, t.data};
    std::mt19937 rng(2);
    std::vector<int32_t> ids(static_cast<size_t>(tokens));
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % static_cast<uint32_t>(t.rows));
    double seconds = Median([&](int32_t) { EmbeddingLookup(ctx_, View(c_, tokens, t.columns), table, ids); });
    double row_bytes =
        static_cast<double>(t.bytes) / static_cast<double>(t.rows) + 4.0 * static_cast<double>(t.columns);
    out.push_back({"embedding", fmt::format("{} {}x{}", Name(t.dtype), t.rows, t.columns), tokens, 1, seconds, 0,
                   row_bytes * tokens, 0});
  }

  void TimeElementwise(int32_t tokens, std::vector<OpTiming>& out) {
    const auto* norm = reinterpret_cast<const float*>(engine_.tensors.at("final_norm").data);
    double n = static_cast<double>(tokens) * m_.hidden_size;
    double seconds = Median([&](int32_t) {
      AddRmsNorm(ctx_, View(c_, tokens, m_.hidden_size), View(a_, tokens, m_.hidden_size),
                 View(b_, tokens, m_.hidden_size), norm, m_.rms_norm_eps);
    });
    out.push_back({"add_rms_norm", fmt::format("{}", m_.hidden_size), tokens, 2 * m_.num_hidden_layers, seconds, 5 * n,
                   16 * n, roofline_.f32_operations});
    double w = static_cast<double>(tokens) * m_.intermediate_size;
    seconds = Median([&](int32_t) {
      SwiGlu(ctx_, View(c_, tokens, m_.intermediate_size), View(b_, tokens, 2 * m_.intermediate_size));
    });
    out.push_back({"swiglu", fmt::format("{}", m_.intermediate_size), tokens, m_.num_hidden_layers, seconds, 12 * w,
                   12 * w, roofline_.f32_operations});
  }

  // `tokens` as one prompt from its start, and as that many sequences with each of kv_tokens_ before them.
  void TimeAttention(int32_t tokens, std::vector<OpTiming>& out) {
    std::vector<BlockId> table(static_cast<size_t>(kv_.shape().blocks));
    for (size_t i = 0; i < table.size(); ++i) table[i] = {static_cast<int32_t>(i)};
    AttentionRow prompt{0, tokens, 0, table.data()};
    double pairs = 0.5 * tokens * (tokens + 1.0);
    TimeAttentionOf("context", {&prompt, 1}, tokens, pairs, tokens, fmt::format("one prompt of {}", tokens), out);
    for (int32_t kv_tokens : kv_tokens_) {
      int32_t blocks_each = CeilDiv(kv_tokens + 1, engine_.build.tokens_per_block);
      std::vector<AttentionRow> rows;
      for (int32_t i = 0; i < tokens; ++i) rows.push_back({i, 1, kv_tokens, table.data() + i * blocks_each});
      double read = static_cast<double>(tokens) * (kv_tokens + 1);
      TimeAttentionOf("generation", rows, tokens, read, read, fmt::format("{} tokens before each", kv_tokens), out);
    }
  }

  // `pairs`: query and key tokens that meet; `read`: cached tokens that must be read once.
  void TimeAttentionOf(const char* phase, std::span<const AttentionRow> rows, int32_t tokens, double pairs, double read,
                       const std::string& text, std::vector<OpTiming>& out) {
    const int64_t columns = (m_.num_attention_heads + 2 * m_.num_key_value_heads) * int64_t{m_.head_dim};
    const auto element = static_cast<double>(InfoOf(kv_.shape().dtype).block_bytes);
    const double kv_row = 2.0 * m_.num_key_value_heads * m_.head_dim * element;
    TensorView qkv = View(b_, tokens, columns);
    TensorView result = View(c_, tokens, int64_t{m_.num_attention_heads} * m_.head_dim);
    std::string shape =
        fmt::format("{}/{} heads of {}, {}", m_.num_attention_heads, m_.num_key_value_heads, m_.head_dim, text);
    double seconds = Median(
        [&](int32_t layer) { RopeAndStoreKv(ctx_, qkv, rope_.view(), m_.num_attention_heads, rows, kv_, layer); });
    out.push_back({fmt::format("rope_store_kv {}", phase), shape, tokens, m_.num_hidden_layers, seconds,
                   6.0 * tokens * static_cast<double>(columns), tokens * (8.0 * static_cast<double>(columns) + kv_row),
                   roofline_.f32_operations});
    seconds = Median([&](int32_t layer) {
      PagedAttention(ctx_, result, qkv, m_.num_attention_heads, rows, kv_, layer, m_.sliding_window);
    });
    const double query = static_cast<double>(m_.num_attention_heads) * m_.head_dim;
    out.push_back({fmt::format("paged_attention {}", phase), shape, tokens, m_.num_hidden_layers, seconds,
                   4 * pairs * query, read * kv_row + 8 * tokens * query,
                   kv_.shape().dtype == DType::kBF16 ? roofline_.bf16_operations : roofline_.f32_operations});
  }

  const Engine& engine_;
  const ModelConfig& m_;
  const Roofline& roofline_;
  std::vector<int32_t> kv_tokens_;
  int32_t kv_tokens_max_, blocks_each_;
  PagedKv kv_;
  RopeTable rope_;
  std::vector<NamedLinear> linears_;
  Arena arena_;
  OpContext ctx_;
  Buffer a_, b_, c_;
};

}  // namespace

Result<std::vector<OpTiming>> TimeOps(const Engine& engine, const Roofline& roofline, const LinearTuning& tuning,
                                      ThreadPool& pool, const std::vector<int32_t>& token_counts,
                                      const std::vector<int32_t>& kv_tokens) {
  if (token_counts.empty()) return std::vector<OpTiming>();
  int32_t tokens_max = *std::max_element(token_counts.begin(), token_counts.end());
  int32_t kv_tokens_max = kv_tokens.empty() ? 0 : *std::max_element(kv_tokens.begin(), kv_tokens.end());
  if (tokens_max > engine.build.max_seq_len || kv_tokens_max >= engine.build.max_seq_len)
    return Error(Code::kInvalid,
                 fmt::format("tokens: {} with {} before each do not fit in max_seq_len {}", tokens_max, kv_tokens_max,
                             engine.build.max_seq_len),
                 "tokens");
  OpTimer timer(engine, roofline, tuning, pool, tokens_max, kv_tokens);
  std::vector<OpTiming> out;
  for (int32_t tokens : token_counts) timer.TimeAll(tokens, out);
  return out;
}

}  // namespace ekiben
