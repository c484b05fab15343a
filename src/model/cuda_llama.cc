#include "model/cuda_llama.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "base/arithmetic.h"
#include "device/cuda/host_upload.h"
#include "model/rope_table.h"
#include "ops/e4m3_rounding.h"
#include "weights/checkpoint.h"

namespace ekiben {
namespace {

using cuda::Bf16;

constexpr float kSynthDeviation = 0.02f;
// A chunk of keys of one generation item: measured best or near it from a batch of 8 on (docs/gpu.md, ladder 3).
constexpr int32_t kSplit = 1024;

Result<void> CheckSupported(const ModelConfig& config, const CudaModelLimits& limits) {
  RETURN_IF_ERROR(Validate(config));
  auto refuse = [](const char* field, int64_t value, const char* why) {
    return Error(Code::kUnsupported, fmt::format("CUDA backend: {} {}: {}; use --device cpu", field, value, why),
                 field);
  };
  if (cuda::HeadStride(config.head_dim) == 0)
    return refuse("head_dim", config.head_dim, "must be a multiple of 8 and at most 256");
  if (config.num_attention_heads / config.num_key_value_heads > cuda::kAttentionGroupMax)
    return refuse("num_attention_heads", config.num_attention_heads, "over 16 query heads a KV head");
  if (config.hidden_size % 8 != 0 || config.hidden_size > 16384)
    return refuse("hidden_size", config.hidden_size, "must be a multiple of 8 and at most 16384");
  if (config.intermediate_size % 8 != 0)
    return refuse("intermediate_size", config.intermediate_size, "must be a multiple of 8");
  if (limits.tokens_max < 1 || limits.outputs_max < 1 || limits.max_seq_len < 1)
    return Error(Code::kInvalid, "CUDA backend: max_num_tokens, max_batch_size and max_seq_len must be positive");
  return {};
}

static_assert(kE4m3ColumnsMax == cuda::kQuantizeColumnsMax);

// Whether the engine leaves a linear in bf16 where others are e4m3.
bool KeepsBf16(const EngineTensors* tensors, const std::string& name) {
  if (tensors == nullptr) return false;
  auto it = tensors->find(name);
  return it != tensors->end() && it->second.keeps_bf16;
}

}  // namespace

Result<CudaAttentionScratch> CudaAttentionScratch::Create(const ModelConfig& config, int32_t slots,
                                                          int32_t max_seq_len) {
  CudaAttentionScratch out;
  out.split = kSplit;
  out.chunks_max = CeilDiv(max_seq_len, kSplit);
  cuda::AttentionScratchSize size = cuda::AttentionScratch(
      slots, config.num_attention_heads, config.num_key_value_heads, cuda::HeadStride(config.head_dim), out.chunks_max);
  ASSIGN_OR_RETURN(out.partial, DeviceBuffer::Create(size.partial_floats * sizeof(float)));
  ASSIGN_OR_RETURN(out.partial_ml, DeviceBuffer::Create(size.partial_ml_floats * sizeof(float)));
  ASSIGN_OR_RETURN(out.arrived, DeviceBuffer::Create(size.counters * sizeof(uint32_t)));
  ASSIGN_OR_RETURN(CudaStream stream, CudaStream::Create());
  RETURN_IF_ERROR(stream.Clear(out.arrived.data(), out.arrived.size()));
  RETURN_IF_ERROR(stream.Wait());
  return out;
}

size_t CudaLlama::WeightBytes(const ModelConfig& c, const CudaPrecision& precision, const EngineTensors* tensors) {
  auto size = [](int64_t value) { return static_cast<size_t>(value); };
  auto linear = [&](const std::string& name, int64_t rows, int64_t columns, bool bias, bool fp8) {
    const bool codes = fp8 && HoldsE4m3(rows, columns) && !KeepsBf16(tensors, name);
    size_t bytes = size(rows * columns) * (codes ? sizeof(cuda::Fp8) : sizeof(Bf16));
    return bytes + size(rows) * sizeof(float) * (size_t{codes} + size_t{bias});
  };
  const bool fp8 = precision.fp8_linears;
  const int64_t hidden = c.hidden_size, query = int64_t{c.num_attention_heads} * c.head_dim,
                key = int64_t{c.num_key_value_heads} * c.head_dim, wide = c.intermediate_size;
  size_t bytes = size(int64_t{c.vocab_size} * hidden) * sizeof(Bf16) + size(hidden) * sizeof(float) +
                 linear("lm_head", c.vocab_size, hidden, false, false);
  for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string at = fmt::format("layers.{}.", i);
    bytes += linear(at + "qkv", query + 2 * key, hidden, c.attention_bias, fp8) +
             linear(at + "o", hidden, query, c.attention_out_bias, fp8) +
             linear(at + "gate_up", 2 * wide, hidden, c.mlp_bias, fp8) +
             linear(at + "down", hidden, wide, c.mlp_bias, fp8) + size(2 * hidden) * sizeof(float);
  }
  return bytes;
}

// Fills the weights, from an engine's tensors or, without, from a seed.
class CudaLlama::Loader {
 public:
  Loader(CudaLlama& model, const EngineTensors* tensors, uint64_t seed)
      : model_(model), tensors_(tensors), seed_(seed) {}

  Result<void> All() {
    ASSIGN_OR_RETURN(stream_, CudaStream::Create());
    queue_.stream = stream_.get();
    if (tensors_ != nullptr) {
      ASSIGN_OR_RETURN(upload_, HostUpload::Create(stream_));
    }
    const ModelConfig& c = model_.config_;
    const int32_t hidden = c.hidden_size, query = c.num_attention_heads * c.head_dim,
                  key = c.num_key_value_heads * c.head_dim;
    const bool fp8 = model_.precision_.fp8_linears;
    RETURN_IF_ERROR(Embedding(c.vocab_size, hidden));
    for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
      std::string at = fmt::format("layers.{}.", i);
      Layer layer;
      ASSIGN_OR_RETURN(layer.attention_norm, Vector(at + "attention_norm", hidden));
      ASSIGN_OR_RETURN(layer.qkv, MakeLinear(CudaOp::kQkv, at + "qkv", query + 2 * key, hidden, c.attention_bias, fp8));
      ASSIGN_OR_RETURN(layer.o, MakeLinear(CudaOp::kO, at + "o", hidden, query, c.attention_out_bias, fp8));
      ASSIGN_OR_RETURN(layer.mlp_norm, Vector(at + "mlp_norm", hidden));
      ASSIGN_OR_RETURN(layer.gate_up,
                       MakeLinear(CudaOp::kGateUp, at + "gate_up", 2 * c.intermediate_size, hidden, c.mlp_bias, fp8));
      ASSIGN_OR_RETURN(layer.down,
                       MakeLinear(CudaOp::kDown, at + "down", hidden, c.intermediate_size, c.mlp_bias, fp8));
      model_.layers_.push_back(std::move(layer));
    }
    ASSIGN_OR_RETURN(model_.final_norm_, Vector("final_norm", hidden));
    ASSIGN_OR_RETURN(model_.lm_head_, MakeLinear(CudaOp::kHead, "lm_head", c.vocab_size, hidden, false, false));
    RETURN_IF_ERROR(stream_.Wait());
    return CudaStatus(queue_.error, "loading weights");
  }

 private:
  Result<const EngineTensor*> Find(const std::string& name, int64_t rows, int64_t columns) const {
    auto it = tensors_->find(name);
    if (it == tensors_->end())
      return Error(Code::kInvalid, fmt::format("engine has no tensor '{}'; build it again", name), name);
    if (it->second.rows != rows || it->second.columns != columns)
      return Error(Code::kInvalid,
                   fmt::format("engine tensor '{}' is {} x {}, the configuration says {} x {}; build the engine again",
                               name, it->second.rows, it->second.columns, rows, columns),
                   name);
    return &it->second;
  }

  Result<DeviceBuffer> Allocate(size_t bytes) {
    model_.weight_bytes_ += bytes;
    return DeviceBuffer::Create(bytes);
  }

  Result<DeviceBuffer> Vector(const std::string& name, int32_t rows) {
    ASSIGN_OR_RETURN(DeviceBuffer out, Allocate(static_cast<size_t>(rows) * sizeof(float)));
    if (tensors_ == nullptr) {
      cuda::FillConstant(queue_, out.as<float>(), rows, 1.0f);
      return out;
    }
    ASSIGN_OR_RETURN(const EngineTensor* tensor, Find(name, rows, 1));
    if (tensor->bytes != out.size())
      return Error(Code::kInvalid,
                   fmt::format("engine tensor '{}' has {} bytes, not {}", name, tensor->bytes, out.size()));
    RETURN_IF_ERROR(stream_.Copy(out.data(), tensor->data, tensor->bytes));
    return out;
  }

  // As plain rows of bf16.
  Result<void> FillRows(const std::string& name, int32_t rows, int32_t columns, Bf16* out) {
    if (tensors_ == nullptr) {
      cuda::FillNormal(queue_, out, int64_t{rows} * columns, seed_++, kSynthDeviation);
    } else {
      ASSIGN_OR_RETURN(const EngineTensor* tensor, Find(name, rows, columns));
      if (tensor->packing != Packing::kBF16)
        return Error(Code::kUnsupported,
                     fmt::format("engine tensor '{}' is packed as {}; the CUDA backend reads bf16: build with "
                                 "--dtype bf16",
                                 name, Name(tensor->packing)),
                     "dtype");
      if (tensor->bytes != PackedBytes(Packing::kBF16, rows, columns))
        return Error(Code::kInvalid,
                     fmt::format("engine tensor '{}' has {} bytes; build it again", name, tensor->bytes));
      RETURN_IF_ERROR(Reserve(staging_, tensor->bytes));
      RETURN_IF_ERROR(upload_->Copy(staging_.data(), tensor->data, tensor->bytes));
      cuda::UnpackBf16(queue_, out, staging_.as<Bf16>(), rows, columns);
    }
    return {};
  }

  Result<Linear> MakeLinear(CudaOp op, const std::string& name, int32_t rows, int32_t columns, bool bias, bool fp8) {
    Linear out{.op = op, .out_features = rows, .in_features = columns};
    out.fp8 = fp8 && HoldsE4m3(rows, columns) && !KeepsBf16(tensors_, name);
    auto count = static_cast<size_t>(rows) * static_cast<size_t>(columns);
    ASSIGN_OR_RETURN(out.weights, Allocate(count * (out.fp8 ? sizeof(cuda::Fp8) : sizeof(Bf16))));
    if (out.fp8) {
      ASSIGN_OR_RETURN(out.scales, Allocate(static_cast<size_t>(rows) * sizeof(float)));
      RETURN_IF_ERROR(Reserve(wide_, count * sizeof(Bf16)));
      RETURN_IF_ERROR(FillRows(name, rows, columns, wide_.as<Bf16>()));
      cuda::Quantize(queue_, out.rows(), wide_.as<Bf16>(), rows, columns);
    } else {
      RETURN_IF_ERROR(FillRows(name, rows, columns, out.weights.as<Bf16>()));
    }
    if (bias) {
      ASSIGN_OR_RETURN(out.bias, Vector(name + ".bias", rows));
    }
    if (rows % 8 == 0 && columns % 8 == 0) {
      out.skinny = std::make_unique<cuda::SkinnyLinear>();
      RETURN_IF_ERROR(CudaStatus(out.skinny->Prepare(out.rows(), rows, columns), "preparing a linear"));
    }
    return out;
  }

  Result<void> Embedding(int32_t rows, int32_t columns) {
    auto count = int64_t{rows} * columns;
    ASSIGN_OR_RETURN(model_.embedding_, Allocate(static_cast<size_t>(count) * sizeof(Bf16)));
    if (tensors_ == nullptr) {
      cuda::FillNormal(queue_, model_.embedding_.as<Bf16>(), count, seed_++, kSynthDeviation);
      return {};
    }
    ASSIGN_OR_RETURN(const EngineTensor* tensor, Find("embedding", rows, columns));
    const DTypeInfo& info = InfoOf(tensor->dtype);
    auto row_bytes = static_cast<size_t>(columns / info.block_elements * info.block_bytes);
    if (columns % info.block_elements != 0 || tensor->bytes != static_cast<size_t>(rows) * row_bytes)
      return Error(Code::kInvalid,
                   fmt::format("engine tensor 'embedding' has {} bytes; build it again", tensor->bytes));
    // On the host, once: a row at a time through f32.
    const auto width = static_cast<size_t>(columns);
    auto make = [&](size_t begin, size_t end, std::byte* out) {
      std::vector<float> values(width);
      auto* rounded = reinterpret_cast<Bf16*>(out);
      for (size_t row = begin / (width * sizeof(Bf16)); row < end / (width * sizeof(Bf16)); ++row, rounded += width) {
        Dequantize(tensor->dtype, tensor->data + row * row_bytes, columns, values.data());
        for (size_t i = 0; i < width; ++i) rounded[i] = F32ToBF16(values[i]);
      }
    };
    return upload_->Make(model_.embedding_.data(), model_.embedding_.size(), width * sizeof(Bf16), make);
  }

  // The buffers are reused in stream order: a copy into one starts when what read it before is done.
  Result<void> Reserve(DeviceBuffer& buffer, size_t bytes) {
    if (buffer.size() >= bytes) return {};
    RETURN_IF_ERROR(stream_.Wait());
    ASSIGN_OR_RETURN(buffer, DeviceBuffer::Create(bytes));
    return {};
  }

  CudaLlama& model_;
  const EngineTensors* tensors_;
  uint64_t seed_;
  CudaStream stream_;
  std::unique_ptr<HostUpload> upload_;  // with tensors
  cuda::Queue queue_{.dependent = false};
  DeviceBuffer staging_, wide_;  // a tensor as packed; a linear in bf16 before it is rounded
};

Result<std::unique_ptr<CudaLlama>> CudaLlama::Load(const ModelConfig& config, const EngineTensors& tensors,
                                                   const CudaModelLimits& limits, const CudaPrecision& precision) {
  RETURN_IF_ERROR(CheckSupported(config, limits));
  auto model = std::unique_ptr<CudaLlama>(new CudaLlama(config, limits, precision));
  RETURN_IF_ERROR(model->Allocate());
  RETURN_IF_ERROR(Loader(*model, &tensors, 0).All());
  return model;
}

Result<std::unique_ptr<CudaLlama>> CudaLlama::Synthesize(const ModelConfig& config, uint64_t seed,
                                                         const CudaModelLimits& limits,
                                                         const CudaPrecision& precision) {
  RETURN_IF_ERROR(CheckSupported(config, limits));
  auto model = std::unique_ptr<CudaLlama>(new CudaLlama(config, limits, precision));
  RETURN_IF_ERROR(model->Allocate());
  RETURN_IF_ERROR(Loader(*model, nullptr, seed).All());
  return model;
}

Result<void> CudaLlama::Allocate() {
  ASSIGN_OR_RETURN(cublaslt_, CublasLt::Create());
  const ModelConfig& c = config_;
  const int64_t tokens = limits_.tokens_max, query = int64_t{c.num_attention_heads} * c.head_dim,
                key = int64_t{c.num_key_value_heads} * c.head_dim;
  struct Wanted {
    DeviceBuffer* buffer;
    int64_t columns;
    size_t element;
  };
  for (const Wanted& w :
       {Wanted{&x_, c.hidden_size, 4}, Wanted{&x_kept_, c.hidden_size, 4}, Wanted{&h_.values, c.hidden_size, 2},
        Wanted{&h_.scales, 1, 4}, Wanted{&qkv_, query + 2 * key, 2}, Wanted{&attention_, query, 2},
        Wanted{&attention_kept_, query, 2}, Wanted{&attention_codes_.values, query, 1},
        Wanted{&attention_codes_.scales, 1, 4}, Wanted{&delta_, c.hidden_size, 2},
        Wanted{&gate_up_, int64_t{2} * c.intermediate_size, 2}, Wanted{&mlp_.values, c.intermediate_size, 2},
        Wanted{&mlp_.scales, 1, 4}}) {
    size_t bytes = static_cast<size_t>(tokens * w.columns) * w.element;
    ASSIGN_OR_RETURN(*w.buffer, DeviceBuffer::Create(bytes));
    activation_bytes_ += bytes;
  }
  return UploadRope();
}

Result<void> CudaLlama::UploadRope() {
  RopeTable table(config_, limits_.max_seq_len);
  size_t bytes = static_cast<size_t>(limits_.max_seq_len) * 2 * static_cast<size_t>(config_.head_dim) * sizeof(float);
  ASSIGN_OR_RETURN(rope_, DeviceBuffer::Create(bytes));
  ASSIGN_OR_RETURN(CudaStream stream, CudaStream::Create());
  RETURN_IF_ERROR(stream.Copy(rope_.data(), table.view().table, bytes));
  // Rows of padding and of a graph's unused part are computed too: they must be numbers.
  for (const DeviceBuffer* b :
       {&x_, &x_kept_, &h_.values, &h_.scales, &qkv_, &attention_, &attention_kept_, &attention_codes_.values,
        &attention_codes_.scales, &delta_, &gate_up_, &mlp_.values, &mlp_.scales})
    RETURN_IF_ERROR(stream.Clear(b->data(), b->size()));
  return stream.Wait();
}

Result<void> CudaLlama::BindCache(const cuda::KvLayout& kv) {
  decode_attention_serves_ = cuda::DecodeAttention::Serves(kv, config_.num_attention_heads, config_.sliding_window);
  cluster_attention_serves_ = cuda::ClusterAttention::Serves(kv, config_.sliding_window);
  if (decode_attention_serves_)
    RETURN_IF_ERROR(CudaStatus(decode_attention_.Prepare(kv), "preparing attention of generation"));
  if (cluster_attention_serves_)
    RETURN_IF_ERROR(CudaStatus(cluster_attention_.Prepare(kv), "preparing attention of context"));
  return {};
}

cuda::AttentionItemShape CudaLlama::item_shape(const CudaAttentionScratch& scratch) const {
  return {.kv_heads = config_.num_key_value_heads,
          .group = config_.num_attention_heads / config_.num_key_value_heads,
          .split = scratch.split,
          .clusters = cluster_attention_serves_ ? cluster_attention_.clusters() : 0};
}

bool CudaLlama::HasUsualType(const Linear& w) const {
  for (const Linear* usual : {&usual_layer().qkv, &usual_layer().o, &usual_layer().gate_up, &usual_layer().down})
    if (usual->op == w.op) return usual->fp8 == w.fp8;
  return true;
}

// Unmeasured, or of another type than what was measured: the own kernel as far as it reaches, then what cuBLASLt offers
// first.
CudaLinearWay CudaLlama::WayOf(const Linear& w, int32_t tokens) const {
  const bool own = RunsOwn(w, tokens);
  const CudaLinearWay* way = HasUsualType(w) ? plan_.Find(KindOf(w.op), tokens) : nullptr;
  if (way == nullptr) return {.own = own};
  return way->own && !own ? CudaLinearWay{} : *way;
}

Result<void> CudaLlama::Product(cuda::Queue& queue, const Linear& w, const CudaLinearWay& way, const cuda::Rows& x,
                                int32_t tokens, void* out, bool out_f32) {
  if (way.own) {
    w.skinny->Run(queue, x, tokens, out, out_f32);
    return {};
  }
  LtOperands operands{.w = w.weights.data(), .x = w.fp8 ? static_cast<const void*>(x.fp8) : x.bf16, .out = out};
  LtShape shape{tokens, w.out_features, w.in_features, w.fp8, out_f32};
  RETURN_IF_ERROR(cublaslt_->Multiply(queue.stream, shape, operands, way.algorithm));
  queue.serial_next = true;
  return {};
}

Result<cuda::Factors> CudaLlama::Multiply(cuda::Queue& queue, const Linear& w, const cuda::Rows& x, int32_t tokens,
                                          void* out, bool out_f32) {
  const bool runs = Runs(w.op);
  if (runs) RETURN_IF_ERROR(Product(queue, w, WayOf(w, tokens), x, tokens, out, out_f32));
  cuda::Factors factors;
  if (w.fp8) factors = {w.scales.as<float>(), x.scales};
  if (w.bias.size() == 0) return factors;
  if (runs) cuda::AddBias(queue, static_cast<Bf16*>(out), factors, w.bias.as<float>(), tokens, w.out_features);
  return cuda::Factors{};
}

CudaLinearForm CudaLlama::FormOf(CudaOp op, int32_t tokens) const {
  const Layer& layer = usual_layer();
  const Linear* const all[] = {&layer.qkv, &layer.o, &layer.gate_up, &layer.down, &lm_head_};
  const auto* found = std::ranges::find(all, op, [](const Linear* w) { return w->op; });
  CHECK(found != std::end(all));
  const Linear& w = **found;
  const CudaLinearWay way = WayOf(w, tokens);
  return {w.out_features, w.in_features, w.fp8, way.own ? "own" : fmt::format("cuBLASLt {}", way.candidate)};
}

void CudaLlama::Attend(cuda::Queue& queue, const CudaBatch& batch, const cuda::Factors& qkv, const cuda::KvLayout& kv,
                       const CudaAttentionScratch& scratch, int32_t layer) {
  const float* rotations = rope_.as<float>() + int64_t{2} * config_.head_dim * rotated_further_;
  const cuda::RopeTableView rope{rotations, config_.rope_interleaved};
  if (Runs(CudaOp::kRope) && (batch.context_items_max > 0 || !decode_attention_serves_))
    cuda::RopeAndStoreKv(queue, qkv_.as<Bf16>(), qkv, rope, config_.num_attention_heads, batch.slots, batch.positions,
                         batch.tokens, kv, layer);
  cuda::AttentionArguments a;
  a.q = qkv_.as<Bf16>();
  a.out = attention_.as<Bf16>();
  a.q_stride = (config_.num_attention_heads + 2 * config_.num_key_value_heads) * config_.head_dim;
  a.query_heads = config_.num_attention_heads;
  a.window = config_.sliding_window;
  a.split = scratch.split;
  a.partial = scratch.partial.as<float>();
  a.partial_ml = scratch.partial_ml.as<float>();
  a.arrived = scratch.arrived.as<uint32_t>();
  a.chunks_max = scratch.chunks_max;
  if (Runs(CudaOp::kContextAttention) && batch.context_items_max > 0) {
    a.items = batch.context_items;
    a.item_count = batch.context_item_count;
    a.items_max = batch.context_items_max;
    if (cluster_attention_serves_) {
      cluster_attention_.Run(queue, a, kv, layer);
    } else {
      cuda::ContextAttention(queue, a, kv, layer);
    }
  }
  if (Runs(CudaOp::kGenerationAttention) && batch.generation_items_max > 0) {
    a.items = batch.generation_items;
    a.item_count = batch.generation_item_count;
    a.items_max = batch.generation_items_max;
    if (decode_attention_serves_) {
      decode_attention_.Run(queue, a, qkv, rope, kv, layer, layer > 0);
    } else {
      cuda::GenerationAttention(queue, a, kv, layer);
    }
  }
}

Result<void> CudaLlama::Output(cuda::Queue& queue, const Linear& o, const Bf16* attention, int32_t tokens,
                               cuda::Factors& delta) {
  cuda::Rows input{.bf16 = const_cast<Bf16*>(attention)};
  if (o.fp8) {
    input = attention_codes_.rows(true);
    if (Runs(CudaOp::kQuantize)) cuda::Quantize(queue, input, attention, tokens, o.in_features);
  }
  ASSIGN_OR_RETURN(delta, Multiply(queue, o, input, tokens, delta_.data(), false));
  return {};
}

Result<void> CudaLlama::Mlp(cuda::Queue& queue, const Layer& layer, float* x, int32_t tokens, cuda::Factors& delta) {
  cuda::Rows h = h_.rows(layer.gate_up.fp8), mlp = mlp_.rows(layer.down.fp8);
  if (Runs(CudaOp::kNorm))
    cuda::AddRmsNorm(queue, h, x, delta_.as<Bf16>(), delta, layer.mlp_norm.as<float>(), config_.rms_norm_eps, tokens,
                     config_.hidden_size);
  ASSIGN_OR_RETURN(cuda::Factors gate_up, Multiply(queue, layer.gate_up, h, tokens, gate_up_.data(), false));
  if (Runs(CudaOp::kSwiGlu)) cuda::SwiGlu(queue, mlp, gate_up_.as<Bf16>(), gate_up, tokens, config_.intermediate_size);
  ASSIGN_OR_RETURN(delta, Multiply(queue, layer.down, mlp, tokens, delta_.data(), false));
  return {};
}

Result<void> CudaLlama::Forward(cuda::Queue& queue, const CudaBatch& batch, const cuda::KvLayout& kv,
                                const CudaAttentionScratch& scratch) {
  const ModelConfig& c = config_;
  CHECK_LE(batch.tokens, limits_.tokens_max);
  int32_t tokens = batch.tokens;
  auto* x = x_.as<float>();
  auto* attention = attention_.as<Bf16>();
  cuda::Factors delta;
  if (Runs(CudaOp::kEmbedding))
    cuda::EmbeddingLookup(queue, x, embedding_.as<Bf16>(), batch.source, batch.last_tokens, tokens, c.hidden_size);
  for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
    // The last layer goes on with outputs only, so where the first keeps its o in bf16 the second stands for the
    // others.
    const int32_t first_ones = HasUsualType(layers_[0].o) ? 1 : 2;
    if (batch.ends_only && i >= first_ones && i + 1 < c.num_hidden_layers) continue;
    const Layer& layer = layers_[static_cast<size_t>(i)];
    cuda::Rows h = h_.rows(layer.qkv.fp8);
    if (Runs(CudaOp::kNorm))
      cuda::AddRmsNorm(queue, h, x, i == 0 ? nullptr : delta_.as<Bf16>(), delta, layer.attention_norm.as<float>(),
                       c.rms_norm_eps, tokens, c.hidden_size);
    ASSIGN_OR_RETURN(cuda::Factors qkv, Multiply(queue, layer.qkv, h, tokens, qkv_.data(), false));
    Attend(queue, batch, qkv, kv, scratch, i);
    // After the last layer's cache is written, only rows with an output matter.
    if (i + 1 == c.num_hidden_layers && batch.output_tokens != nullptr) {
      tokens = batch.outputs;
      if (tokens == 0) return {};
      if (!only_)
        cuda::GatherRows(queue, x_kept_.as<float>(), x, c.hidden_size, attention_kept_.as<Bf16>(), attention,
                         c.num_attention_heads * c.head_dim, batch.output_tokens, tokens);
      x = x_kept_.as<float>();
      attention = attention_kept_.as<Bf16>();
    }
    RETURN_IF_ERROR(Output(queue, layer.o, attention, tokens, delta));
    RETURN_IF_ERROR(Mlp(queue, layer, x, tokens, delta));
  }
  if (Runs(CudaOp::kFinalNorm))
    cuda::AddRmsNorm(queue, h_.rows(false), x, delta_.as<Bf16>(), delta, final_norm_.as<float>(), c.rms_norm_eps,
                     tokens, c.hidden_size);
  return {};
}

Result<void> CudaLlama::Head(cuda::Queue& queue, int32_t first, int32_t count, float* logits) {
  CHECK_LE(count, limits_.outputs_max);
  cuda::Rows h = h_.rows(false);
  h.bf16 += int64_t{first} * config_.hidden_size;
  ASSIGN_OR_RETURN(cuda::Factors none, Multiply(queue, lm_head_, h, count, logits, true));
  CHECK(none.columns == nullptr);
  return {};
}

}  // namespace ekiben
