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

// After attention a layer runs this many tokens to its end before the next: what the MLP writes (0.8 MB a chunk of
// SmolLM2) is read again while it is in the cache, and a step's scratch does not grow with its widest activation.
constexpr int64_t kChunkTokens = kTileTokens;

class LlamaModel : public Model {
 public:
  LlamaModel(const ModelConfig& config, int32_t max_seq_len)
      : config_(config), sizes_(config), rope_(config, max_seq_len) {}

  Result<void> ReadTensors(const EngineTensors& tensors);
  void Forward(OpContext& ctx, const ForwardBatch& batch, PagedKv& kv, TensorView logits, TensorView hidden) override;
  size_t ScratchBytes(int64_t tokens, int64_t outputs) const override;
  const ModelConfig& config() const override { return config_; }

 private:
  // The activations of a step. x is the residual stream, f32 like all of them; gate_up and mlp hold a chunk of tokens.
  struct Activations {
    TensorView x, h, qkv, attention, delta, gate_up, mlp;

    template <class A>
    Activations(A& arena, const Sizes& s, int64_t tokens) {
      auto take_rows = [&](int64_t rows, int64_t columns) {
        return TensorView(arena.template Take<float>(rows * columns), DType::kF32, {rows, columns});
      };
      auto take = [&](int64_t columns) { return take_rows(tokens, columns); };
      int64_t chunk = std::min(tokens, kChunkTokens);
      x = take(s.hidden);
      h = take(s.hidden);
      qkv = take(s.qkv());
      attention = take(s.query);
      delta = take(s.hidden);
      gate_up = take_rows(chunk, 2 * s.intermediate);
      mlp = take_rows(chunk, s.intermediate);
    }
    // Only the rows that need logits go on.
    void KeepRows(OpContext& ctx, std::span<const int32_t> rows) {
      GatherRows(ctx, x, x, rows);
      GatherRows(ctx, attention, attention, rows);
      for (TensorView* view : {&x, &h, &qkv, &attention, &delta}) view->shape[0] = std::ssize(rows);
    }
  };

  // The rest of a layer, for all of a's rows.
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
    const Layer& layer = layers_[static_cast<size_t>(i)];
    NormAndLinear(ctx, a.qkv, a.h, a.x, i == 0 ? nullptr : &a.delta, layer.attention_norm, layer.qkv);
    RopeAndStoreKv(ctx, a.qkv, rope_.view(), heads, batch.rows, kv, i);
    // After the last layer's cache is written, only rows with an output matter.
    bool last = i + 1 == config_.num_hidden_layers;
    PagedAttention(ctx, a.attention, a.qkv, heads, last ? RowsOfOutputs(ctx, batch) : batch.rows, kv, i, window);
    if (last) a.KeepRows(ctx, batch.output_tokens);
    if (a.x.shape[0] == 0) break;
    AfterAttention(ctx, a, layer);
  }
  if (a.x.shape[0] > 0) {
    TensorView last = hidden.data != nullptr ? hidden : a.h;
    AddRmsNorm(ctx, last, a.x, a.delta, final_norm_, eps);
    if (logits.data != nullptr) Linear(ctx, logits, last, lm_head_);
  }
  ctx.arena->Rewind(mark);
}

void LlamaModel::AfterAttention(OpContext& ctx, const Activations& a, const Layer& layer) const {
  // Chunks of nearly equal size. Nothing here looks at two tokens, so the results do not depend on them.
  int64_t tokens = a.x.shape[0], chunks = CeilDiv(tokens, kChunkTokens);
  for (int64_t i = 0, begin = 0; i < chunks; ++i) {
    int64_t count = (tokens - begin) / (chunks - i);
    auto rows = [&](const TensorView& view) {
      TensorView part = view;
      part.data = view.row<float>(begin);
      part.shape[0] = count;
      return part;
    };
    TensorView gate_up = a.gate_up, mlp = a.mlp, delta = rows(a.delta);
    gate_up.shape[0] = mlp.shape[0] = count;
    Linear(ctx, delta, rows(a.attention), layer.o);
    NormAndSwiGlu(ctx, mlp, gate_up, rows(a.h), rows(a.x), delta, layer);
    Linear(ctx, delta, mlp, layer.down);
    begin += count;
  }
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

size_t LlamaModel::ScratchBytes(int64_t tokens, int64_t outputs) const {
  ArenaSize arena;
  Activations(arena, sizes_, tokens);
  arena.Take<AttentionRow>(tokens);  // RowsOfOutputs
  auto linear = [](int64_t rows, const LinearWeight& w) {
    return LinearScratchBytes(rows, w.in_features, w.out_features);
  };
  const Layer& layer = layers_[0];
  size_t op = std::max({PagedAttentionScratchBytes(tokens), linear(tokens, layer.qkv), linear(outputs, lm_head_)});
  int64_t chunk = std::min(tokens, kChunkTokens);
  for (const LinearWeight* w : {&layer.o, &layer.gate_up, &layer.down}) op = std::max(op, linear(chunk, *w));
  return arena.bytes + op;
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
