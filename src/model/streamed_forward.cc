#include "model/streamed_forward.h"

#include <algorithm>

#include "base/arithmetic.h"
#include "ops/embedding.h"
#include "ops/paged_attention.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace ekiben {
namespace {

constexpr int32_t kBlockTokens = 64;

int64_t QueryColumns(const ModelConfig& c) {
  return int64_t{c.num_attention_heads} * c.head_dim;
}
int64_t QkvColumns(const ModelConfig& c) {
  return QueryColumns(c) + int64_t{2} * c.num_key_value_heads * c.head_dim;
}

size_t ScratchBytes(const ModelConfig& c, int64_t tokens) {
  const int64_t hidden = c.hidden_size, wide = c.intermediate_size, query = QueryColumns(c);
  return std::max({LinearScratchBytes(tokens, hidden, QkvColumns(c)), LinearScratchBytes(tokens, query, hidden),
                   LinearScratchBytes(tokens, hidden, 2 * wide), LinearScratchBytes(tokens, wide, hidden),
                   PagedAttentionScratchBytes(1)});
}

void AddRows(TensorView y, const float* bias) {
  for (int64_t t = 0; t < y.shape[0]; ++t)
    for (int64_t c = 0; c < y.shape[1]; ++c) y.row<float>(t)[c] += bias[c];
}

}  // namespace

StreamedForward::StreamedForward(const ModelConfig& config, std::vector<int32_t> token_ids, ThreadPool& pool)
    : config_(config),
      token_ids_(std::move(token_ids)),
      rope_(config, static_cast<int32_t>(std::ssize(token_ids_))),
      kv_({1, config.num_key_value_heads, config.head_dim, kBlockTokens,
           static_cast<int32_t>(CeilDiv(std::ssize(token_ids_), std::ptrdiff_t{kBlockTokens})), DType::kBF16}),
      x_(std::ssize(token_ids_), config.hidden_size),
      h_(std::ssize(token_ids_), config.hidden_size),
      qkv_(std::ssize(token_ids_), QkvColumns(config)),
      attention_(std::ssize(token_ids_), QueryColumns(config)),
      gate_up_(std::ssize(token_ids_), int64_t{2} * config.intermediate_size),
      mlp_(std::ssize(token_ids_), config.intermediate_size),
      delta_(std::ssize(token_ids_), config.hidden_size),
      arena_(ScratchBytes(config, std::ssize(token_ids_))),
      ctx_{&pool, &arena_, BestIsa()} {
  CHECK(!token_ids_.empty());
  for (int32_t i = 0; i < kv_.shape().blocks; ++i) blocks_.push_back(BlockId{i});
  row_ = {0, static_cast<int32_t>(std::ssize(token_ids_)), 0, blocks_.data()};
}

void StreamedForward::Pass(const EngineTensor& tensor) {
  constexpr std::string_view kLayers = "layers.";
  std::string_view name = tensor.name;
  if (name == "embedding") {
    EmbeddingLookup(ctx_, x_.view, {tensor.dtype, tensor.rows, tensor.columns, tensor.data}, token_ids_);
  } else if (name.starts_with(kLayers)) {
    name.remove_prefix(kLayers.size());
    name.remove_prefix(name.find('.') + 1);
    PassLayer(name, tensor);
  } else if (name == "final_norm") {
    Norm(reinterpret_cast<const float*>(tensor.data));
    input_ = h_.view;
  }
}

void StreamedForward::PassLayer(std::string_view part, const EngineTensor& tensor) {
  const auto* values = reinterpret_cast<const float*>(tensor.data);  // of a vector
  if (part == "attention_norm" || part == "mlp_norm") {
    Norm(values);
  } else if (part.ends_with(".bias")) {
    CHECK(output_ != nullptr);
    AddRows(output_->view, values);
  } else if (part == "qkv") {
    Multiply(qkv_, h_, tensor);
  } else if (part == "o") {
    Attend();
    Multiply(delta_, attention_, tensor);
  } else if (part == "gate_up") {
    Multiply(gate_up_, h_, tensor);
  } else {
    CHECK(part == "down");
    SwiGlu(ctx_, mlp_.view, gate_up_.view);
    Multiply(delta_, mlp_, tensor);
  }
}

void StreamedForward::Norm(const float* weight) {
  const float eps = config_.rms_norm_eps;
  has_delta_ ? AddRmsNorm(ctx_, h_.view, x_.view, delta_.view, weight, eps)
             : RmsNorm(ctx_, h_.view, x_.view, weight, eps);
  has_delta_ = true;
}

void StreamedForward::Attend() {
  RopeAndStoreKv(ctx_, qkv_.view, rope_.view(), config_.num_attention_heads, {&row_, 1}, kv_, 0);
  PagedAttention(ctx_, attention_.view, qkv_.view, config_.num_attention_heads, {&row_, 1}, kv_, 0,
                 config_.sliding_window);
}

void StreamedForward::Multiply(const Rows& y, const Rows& x, const EngineTensor& tensor) {
  CHECK_EQ(x.view.shape[1], tensor.columns);
  CHECK_EQ(y.view.shape[1], tensor.rows);
  Linear(ctx_, y.view, x.view,
         {.packing = tensor.packing,
          .out_features = tensor.rows,
          .in_features = tensor.columns,
          .data = tensor.data,
          .bytes = tensor.bytes});
  output_ = &y;
  input_ = x.view;
}

}  // namespace ekiben
