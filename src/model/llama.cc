#include "model/llama.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "base/arithmetic.h"
#include "model/rope_table.h"
#include "ops/embedding.h"
#include "ops/paged_attention.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace ekiben {
namespace {

using Kind = PackRule::Kind;

// The sizes that the shapes below are made of.
struct Sizes {
  int64_t vocab, hidden, intermediate, query, key;  // query = heads * head_dim, key = KV heads * head_dim

  explicit Sizes(const ModelConfig& c)
      : vocab(c.vocab_size),
        hidden(c.hidden_size),
        intermediate(c.intermediate_size),
        query(int64_t{c.num_attention_heads} * c.head_dim),
        key(int64_t{c.num_key_value_heads} * c.head_dim) {}
  int64_t qkv() const { return query + 2 * key; }
};

class RuleList {
 public:
  void Vector(std::string name, std::vector<std::string> sources, int64_t rows) {
    rules.push_back({Kind::kVector, std::move(name), std::move(sources), rows, 1, false});
  }
  // `modules` name the checkpoint's linears, without ".weight".
  void Linear(const std::string& name, const std::vector<std::string>& modules, int64_t rows, int64_t columns,
              bool bias, bool keep_precision = false) {
    rules.push_back({Kind::kLinear, name, With(modules, ".weight"), rows, columns, keep_precision});
    if (bias) Vector(name + ".bias", With(modules, ".bias"), rows);
  }
  std::vector<PackRule> rules;

 private:
  static std::vector<std::string> With(std::vector<std::string> names, const char* suffix) {
    for (std::string& name : names) name += suffix;
    return names;
  }
};

struct Layer {
  const float *attention_norm = nullptr, *mlp_norm = nullptr;
  LinearWeight qkv, o, gate_up, down;
};

// Takes tensors out of an engine by the names and shapes that the rules give.
class TensorReader {
 public:
  explicit TensorReader(const EngineTensors& tensors) : tensors_(tensors) {}

  Result<const float*> Vector(const std::string& name, int64_t rows) const {
    ASSIGN_OR_RETURN(const EngineTensor* t, Find(name, Kind::kVector, rows, 1));
    return reinterpret_cast<const float*>(t->data);
  }
  Result<LinearWeight> Linear(const std::string& name, int64_t rows, int64_t columns, bool bias) const {
    ASSIGN_OR_RETURN(const EngineTensor* t, Find(name, Kind::kLinear, rows, columns));
    if (t->bytes != PackedBytes(t->packing, rows, columns)) return Wrong(name, "bytes", t->bytes);
    LinearWeight weight{
        .packing = t->packing, .out_features = rows, .in_features = columns, .data = t->data, .bytes = t->bytes};
    if (bias) {
      ASSIGN_OR_RETURN(weight.bias, Vector(name + ".bias", rows));
    }
    return weight;
  }
  Result<EmbeddingTable> Embedding(const std::string& name, int64_t rows, int64_t columns) const {
    ASSIGN_OR_RETURN(const EngineTensor* t, Find(name, Kind::kEmbedding, rows, columns));
    const DTypeInfo& info = InfoOf(t->dtype);
    if (columns % info.block_elements != 0) return Wrong(name, "columns", t->columns);
    if (t->bytes != static_cast<size_t>(rows * (columns / info.block_elements) * info.block_bytes)) {
      return Wrong(name, "bytes", t->bytes);
    }
    return EmbeddingTable{.dtype = t->dtype, .rows = rows, .columns = columns, .data = t->data};
  }

 private:
  Result<const EngineTensor*> Find(const std::string& name, Kind kind, int64_t rows, int64_t columns) const {
    auto it = tensors_.find(name);
    if (it == tensors_.end()) {
      return Error(Code::kInvalid, fmt::format("engine has no tensor '{}'; build it again", name), name);
    }
    const EngineTensor& t = it->second;
    if (t.kind != kind) return Wrong(name, "kind", static_cast<int64_t>(t.kind));
    if (t.rows != rows) return Wrong(name, "rows", t.rows);
    if (t.columns != columns) return Wrong(name, "columns", t.columns);
    if (kind == Kind::kVector && (t.dtype != DType::kF32 || t.bytes != static_cast<size_t>(rows) * sizeof(float))) {
      return Wrong(name, "bytes", static_cast<int64_t>(t.bytes));
    }
    return &t;
  }
  template <class T>
  static Error Wrong(const std::string& name, const char* field, T value) {
    return Error(Code::kInvalid,
                 fmt::format("engine tensor '{}': {} {} does not match the configuration; build the engine again", name,
                             field, value),
                 name);
  }

  const EngineTensors& tensors_;
};

// Measures what Arena::Take would take.
class ArenaSize {
 public:
  template <class T>
  T* Take(int64_t count) {
    bytes += RoundUp(static_cast<size_t>(count) * sizeof(T), size_t{64});
    return nullptr;
  }
  size_t bytes = 0;
};

// Between two attentions nothing looks at two tokens, so tokens go from one to the next in pieces: what the MLP writes
// is read again while it is in the cache, and scratch does not grow with the step. With kAloneTokens for each thread or
// more, a piece is one thread's work: its rows stay in that core's cache, and the threads meet twice a layer, not nine
// times. With fewer, the threads share every op, because each weight is then read by one core only.
constexpr int64_t kAloneTokens = 24;
constexpr int64_t kPieceTokens = 64, kSharedPieceTokens = kTileTokens;

struct TokenRange {
  int64_t begin, count;
};

class LlamaModel : public Model {
 public:
  LlamaModel(const ModelConfig& config, int32_t max_seq_len)
      : config_(config), sizes_(config), rope_(config, max_seq_len) {}

  Result<void> ReadTensors(const EngineTensors& tensors);
  void Forward(OpContext& ctx, const ForwardBatch& batch, PagedKv& kv, TensorView logits, TensorView hidden) override;
  size_t ScratchBytes(int64_t tokens, int64_t outputs, int threads) const override;
  const ModelConfig& config() const override { return config_; }

 private:
  // The activations of a step. x is the residual stream, f32 like all of them.
  struct Activations {
    TensorView x, h, qkv, attention, delta;

    template <class A>
    Activations(A& arena, const Sizes& s, int64_t tokens) {
      auto take = [&](int64_t columns) { return TakeRows(arena, tokens, columns); };
      x = take(s.hidden);
      h = take(s.hidden);
      qkv = take(s.qkv());
      attention = take(s.query);
      delta = take(s.hidden);
    }
    int64_t tokens() const { return x.shape[0]; }
    Activations Rows(TokenRange range) const {
      Activations rows = *this;
      for (TensorView* view : {&rows.x, &rows.h, &rows.qkv, &rows.attention, &rows.delta}) {
        view->data = view->row<float>(range.begin);
        view->shape[0] = range.count;
      }
      return rows;
    }
    // Only the rows that need logits go on.
    void KeepRows(OpContext& ctx, std::span<const int32_t> rows) {
      GatherRows(ctx, x, x, rows);
      GatherRows(ctx, attention, attention, rows);
      *this = Rows({0, std::ssize(rows)});
    }
  };

  template <class A>
  static TensorView TakeRows(A& arena, int64_t rows, int64_t columns) {
    return TensorView(arena.template Take<float>(rows * columns), DType::kF32, {rows, columns});
  }

  // Calls body(context, range) for all tokens in pieces, on any thread. The context is for that piece only.
  template <class Body>
  void ForPieces(OpContext& ctx, int64_t tokens, Body&& body);
  size_t PieceBytes(int64_t tokens) const;
  // The part of a layer before its attention: queries into a.qkv, keys and values into the cache.
  void BeforeAttention(OpContext& ctx, const Activations& a, int32_t layer, const ForwardBatch& batch, TokenRange range,
                       PagedKv& kv) const;
  // The part after it, for all of a's rows.
  void AfterAttention(OpContext& ctx, const Activations& a, const Layer& layer) const;
  // y = W norm(x + delta), x taking the sum; delta null: W norm(x). Where W multiplies int8, a row is quantised as soon
  // as it is there. h: like x, scratch.
  void NormAndLinear(OpContext& ctx, TensorView y, TensorView h, TensorView x, const TensorView* delta,
                     const float* norm, const LinearWeight& w) const;
  // mlp = swiglu(W norm(x + delta)), x taking the sum; h and gate_up: scratch.
  void NormAndSwiGlu(OpContext& ctx, TensorView mlp, TensorView gate_up, TensorView h, TensorView x, TensorView delta,
                     const Layer& layer) const;

  ModelConfig config_;
  Sizes sizes_;
  RopeTable rope_;
  EmbeddingTable embedding_;
  std::vector<Layer> layers_;
  const float* final_norm_ = nullptr;
  LinearWeight lm_head_;
  ThreadPool alone_{1};  // has no state that a job changes: for pieces on several threads at once
};

// The tokens that have an output as rows of their own, or all rows where that is no less to attend to. In the arena.
std::span<const AttentionRow> RowsOfOutputs(OpContext& ctx, const ForwardBatch& batch) {
  size_t count = batch.output_tokens.size();
  if (count > batch.rows.size()) return batch.rows;
  AttentionRow* rows = ctx.arena->Take<AttentionRow>(static_cast<int64_t>(count));
  auto row = batch.rows.begin();
  for (size_t i = 0; i < count; ++i) {
    int32_t token = batch.output_tokens[i];
    while (token >= row->token_begin + row->token_count) ++row;
    rows[i] = {token, 1, row->position + token - row->token_begin, row->blocks};
  }
  return {rows, count};
}

void LlamaModel::Forward(OpContext& ctx, const ForwardBatch& batch, PagedKv& kv, TensorView logits, TensorView hidden) {
  const float eps = config_.rms_norm_eps;
  const int32_t heads = config_.num_attention_heads, window = config_.sliding_window;
  size_t mark = ctx.arena->Mark();
  Activations a(*ctx.arena, sizes_, std::ssize(batch.token_ids));

  EmbeddingLookup(ctx, a.x, embedding_, batch.token_ids);
  for (int32_t i = 0; i < config_.num_hidden_layers; ++i) {
    ForPieces(ctx, a.tokens(), [&](OpContext& own, TokenRange range) {
      Activations piece = a.Rows(range);
      if (i > 0) AfterAttention(own, piece, layers_[static_cast<size_t>(i - 1)]);
      BeforeAttention(own, piece, i, batch, range, kv);
    });
    // After the last layer's cache is written, only rows with an output matter.
    bool last = i + 1 == config_.num_hidden_layers;
    PagedAttention(ctx, a.attention, a.qkv, heads, last ? RowsOfOutputs(ctx, batch) : batch.rows, kv, i, window);
  }
  a.KeepRows(ctx, batch.output_tokens);
  ForPieces(ctx, a.tokens(),
            [&](OpContext& own, TokenRange range) { AfterAttention(own, a.Rows(range), layers_.back()); });
  if (a.x.shape[0] > 0) {
    TensorView last = hidden.data != nullptr ? hidden : a.h;
    AddRmsNorm(ctx, last, a.x, a.delta, final_norm_, eps);
    if (logits.data != nullptr) Linear(ctx, logits, last, lm_head_);
  }
  ctx.arena->Rewind(mark);
}

template <class Body>
void LlamaModel::ForPieces(OpContext& ctx, int64_t tokens, Body&& body) {
  int64_t share = CeilDiv(tokens, int64_t{ctx.pool->size()});
  if (share < kAloneTokens) {
    for (int64_t begin = 0; begin < tokens; begin += kSharedPieceTokens) {
      body(ctx, TokenRange{begin, std::min(kSharedPieceTokens, tokens - begin)});
    }
    return;
  }
  int64_t piece = CeilDiv(share, CeilDiv(share, kPieceTokens));
  size_t mark = ctx.arena->Mark(), bytes = PieceBytes(piece);
  std::byte* scratch = ctx.arena->Take<std::byte>(static_cast<int64_t>(bytes) * ctx.pool->size());
  ctx.pool->ParallelStreams(tokens, piece, [&](int64_t begin, int64_t end, int member) {
    Arena arena(scratch + static_cast<size_t>(member) * bytes, bytes);
    OpContext own{&alone_, &arena, ctx.isa, ctx.tuning};
    for (; begin < end; begin += piece) body(own, TokenRange{begin, std::min(piece, end - begin)});
  });
  ctx.arena->Rewind(mark);
}

void LlamaModel::BeforeAttention(OpContext& ctx, const Activations& a, int32_t layer, const ForwardBatch& batch,
                                 TokenRange range, PagedKv& kv) const {
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  NormAndLinear(ctx, a.qkv, a.h, a.x, layer == 0 ? nullptr : &a.delta, weights.attention_norm, weights.qkv);
  RopeAndStoreKv(ctx, a.qkv, rope_.view(), config_.num_attention_heads, batch.rows, kv, layer, range.begin);
}

void LlamaModel::AfterAttention(OpContext& ctx, const Activations& a, const Layer& layer) const {
  size_t mark = ctx.arena->Mark();
  TensorView gate_up = TakeRows(*ctx.arena, a.tokens(), 2 * sizes_.intermediate);
  TensorView mlp = TakeRows(*ctx.arena, a.tokens(), sizes_.intermediate);
  Linear(ctx, a.delta, a.attention, layer.o);
  NormAndSwiGlu(ctx, mlp, gate_up, a.h, a.x, a.delta, layer);
  Linear(ctx, a.delta, mlp, layer.down);
  ctx.arena->Rewind(mark);
}

void LlamaModel::NormAndLinear(OpContext& ctx, TensorView y, TensorView h, TensorView x, const TensorView* delta,
                               const float* norm, const LinearWeight& w) const {
  const float eps = config_.rms_norm_eps;
  if (!TakesQuantizedRows(w.packing)) {
    delta != nullptr ? AddRmsNorm(ctx, h, x, *delta, norm, eps) : RmsNorm(ctx, h, x, norm, eps);
    Linear(ctx, y, h, w);
    return;
  }
  size_t mark = ctx.arena->Mark();
  LinearQuantized(
      ctx, y,
      delta != nullptr ? AddRmsNormQuantized(ctx, h, x, *delta, norm, eps) : RmsNormQuantized(ctx, h, x, norm, eps), w);
  ctx.arena->Rewind(mark);
}

void LlamaModel::NormAndSwiGlu(OpContext& ctx, TensorView mlp, TensorView gate_up, TensorView h, TensorView x,
                               TensorView delta, const Layer& layer) const {
  const float eps = config_.rms_norm_eps;
  if (!TakesQuantizedRows(layer.gate_up.packing)) {
    AddRmsNorm(ctx, h, x, delta, layer.mlp_norm, eps);
    Linear(ctx, gate_up, h, layer.gate_up);
    SwiGlu(ctx, mlp, gate_up);
    return;
  }
  size_t mark = ctx.arena->Mark();
  LinearSwiGlu(ctx, mlp, gate_up, AddRmsNormQuantized(ctx, h, x, delta, layer.mlp_norm, eps), layer.gate_up);
  ctx.arena->Rewind(mark);
}

// What BeforeAttention or AfterAttention takes for `tokens` tokens.
size_t LlamaModel::PieceBytes(int64_t tokens) const {
  auto linear = [&](const LinearWeight& w) { return LinearScratchBytes(tokens, w.in_features, w.out_features); };
  const Layer& layer = layers_[0];
  ArenaSize arena;
  TakeRows(arena, tokens, 2 * sizes_.intermediate);
  TakeRows(arena, tokens, sizes_.intermediate);
  size_t after = arena.bytes + std::max({linear(layer.o), linear(layer.gate_up), linear(layer.down)});
  return RoundUp(std::max(after, linear(layer.qkv)), size_t{64});
}

size_t LlamaModel::ScratchBytes(int64_t tokens, int64_t outputs, int threads) const {
  ArenaSize arena;
  Activations(arena, sizes_, tokens);
  arena.Take<AttentionRow>(tokens);  // RowsOfOutputs
  size_t shared = PieceBytes(std::min({tokens, kSharedPieceTokens, kAloneTokens * threads}));
  size_t alone = static_cast<size_t>(threads) * PieceBytes(std::min(tokens, kPieceTokens));
  size_t head = LinearScratchBytes(outputs, lm_head_.in_features, lm_head_.out_features);
  return arena.bytes + std::max({PagedAttentionScratchBytes(tokens), shared, alone, head});
}

Result<void> LlamaModel::ReadTensors(const EngineTensors& tensors) {
  TensorReader reader(tensors);
  const Sizes& s = sizes_;
  ASSIGN_OR_RETURN(embedding_, reader.Embedding("embedding", s.vocab, s.hidden));
  for (int32_t i = 0; i < config_.num_hidden_layers; ++i) {
    std::string at = fmt::format("layers.{}.", i);
    Layer layer;
    ASSIGN_OR_RETURN(layer.attention_norm, reader.Vector(at + "attention_norm", s.hidden));
    ASSIGN_OR_RETURN(layer.qkv, reader.Linear(at + "qkv", s.qkv(), s.hidden, config_.attention_bias));
    ASSIGN_OR_RETURN(layer.o, reader.Linear(at + "o", s.hidden, s.query, config_.attention_out_bias));
    ASSIGN_OR_RETURN(layer.mlp_norm, reader.Vector(at + "mlp_norm", s.hidden));
    ASSIGN_OR_RETURN(layer.gate_up, reader.Linear(at + "gate_up", 2 * s.intermediate, s.hidden, config_.mlp_bias));
    ASSIGN_OR_RETURN(layer.down, reader.Linear(at + "down", s.hidden, s.intermediate, config_.mlp_bias));
    layers_.push_back(layer);
  }
  ASSIGN_OR_RETURN(final_norm_, reader.Vector("final_norm", s.hidden));
  ASSIGN_OR_RETURN(lm_head_, reader.Linear("lm_head", s.vocab, s.hidden, false));
  return {};
}

Result<void> CheckSupported(const ModelConfig& config, int32_t max_seq_len) {
  RETURN_IF_ERROR(Validate(config));
  if (config.head_dim > kHeadDimMax) {
    return Error(Code::kUnsupported, fmt::format("head_dim {} is over {}", config.head_dim, kHeadDimMax), "head_dim");
  }
  if (max_seq_len <= 0)
    return Error(Code::kInvalid, fmt::format("max_seq_len {} is not positive", max_seq_len), "max_seq_len");
  return {};
}

}  // namespace

Result<std::vector<PackRule>> LlamaPackRules(const ModelConfig& config) {
  RETURN_IF_ERROR(CheckSupported(config, 1));
  Sizes s(config);
  RuleList list;
  const std::string embedding = "model.embed_tokens";
  list.rules.push_back({Kind::kEmbedding, "embedding", {embedding + ".weight"}, s.vocab, s.hidden, true});
  for (int32_t i = 0; i < config.num_hidden_layers; ++i) {
    std::string to = fmt::format("layers.{}.", i), from = fmt::format("model.layers.{}.", i);
    std::string attention = from + "self_attn.", mlp = from + "mlp.";
    list.Vector(to + "attention_norm", {from + "input_layernorm.weight"}, s.hidden);
    list.Linear(to + "qkv", {attention + "q_proj", attention + "k_proj", attention + "v_proj"}, s.qkv(), s.hidden,
                config.attention_bias);
    list.Linear(to + "o", {attention + "o_proj"}, s.hidden, s.query, config.attention_out_bias);
    list.Vector(to + "mlp_norm", {from + "post_attention_layernorm.weight"}, s.hidden);
    list.Linear(to + "gate_up", {mlp + "gate_proj", mlp + "up_proj"}, 2 * s.intermediate, s.hidden, config.mlp_bias);
    list.Linear(to + "down", {mlp + "down_proj"}, s.hidden, s.intermediate, config.mlp_bias);
  }
  list.Vector("final_norm", {"model.norm.weight"}, s.hidden);
  list.Linear("lm_head", {config.tie_word_embeddings ? embedding : "lm_head"}, s.vocab, s.hidden, false, true);
  return std::move(list.rules);
}

Result<std::unique_ptr<Model>> LoadLlama(const ModelConfig& config, const EngineTensors& tensors, int32_t max_seq_len) {
  RETURN_IF_ERROR(CheckSupported(config, max_seq_len));
  auto model = std::make_unique<LlamaModel>(config, max_seq_len);
  RETURN_IF_ERROR(model->ReadTensors(tensors));
  return std::unique_ptr<Model>(std::move(model));
}

}  // namespace ekiben
