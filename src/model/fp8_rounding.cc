#include "model/fp8_rounding.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/calibration_text.h"
#include "ops/e4m3_rounding.h"
#include "text/tokenizer.h"

namespace ekiben {
namespace {

// Weights times tokens that a build affords: an 8B model sees 128 tokens, one of 70 billion 32.
constexpr double kWorkMax = 1e12;

int64_t LayerWeights(const ModelConfig& c) {
  const int64_t query = int64_t{c.num_attention_heads} * c.head_dim, key = int64_t{c.num_key_value_heads} * c.head_dim;
  return int64_t{c.hidden_size} * (2 * query + 2 * key + int64_t{3} * c.intermediate_size);
}

}  // namespace

int64_t Fp8Rounding::TokensFor(const ModelConfig& config) {
  const double weights = static_cast<double>(LayerWeights(config)) * config.num_hidden_layers;
  const auto tokens = static_cast<int64_t>(std::min(kWorkMax / weights, static_cast<double>(kTokensMax)));
  return std::min<int64_t>(std::max(tokens / 64 * 64, kTokensMin), config.max_position_embeddings);
}

std::vector<std::pair<std::string, std::string>> Fp8Rounding::Kept(const ModelConfig& config) {
  return {{"layers.0.o", "the first attention's output costs most for its bytes"},
          {fmt::format("layers.{}.gate_up", config.num_hidden_layers - 1), "no layer after it evens its errors out"},
          {"lm_head", "its errors are the logits' own"}};
}

bool Fp8Rounding::KeepsBf16(const ModelConfig& config, std::string_view linear) {
  const auto kept = Kept(config);
  return std::any_of(kept.begin(), kept.end(), [&](const auto& row) { return row.first == linear; });
}

Result<std::vector<int32_t>> Fp8Rounding::TextIds(const Checkpoint& checkpoint) {
  if (!checkpoint.has_tokenizer) return std::vector<int32_t>();
  ASSIGN_OR_RETURN(auto tokenizer, text::Tokenizer::Create(checkpoint.tokenizer));
  std::vector<int32_t> ids = tokenizer->Encode(kCalibrationText, {});
  std::erase_if(ids, [&](int32_t id) { return id < 0 || id >= checkpoint.config.vocab_size; });
  ids.resize(std::min(ids.size(), static_cast<size_t>(TokensFor(checkpoint.config))));
  return ids;
}

Fp8Rounding::Fp8Rounding(const ModelConfig& config, std::vector<int32_t> token_ids, ThreadPool& pool)
    : pool_(pool), tokens_(std::ssize(token_ids)) {
  if (!token_ids.empty()) forward_ = std::make_unique<StreamedForward>(config, std::move(token_ids), pool);
}

void Fp8Rounding::Pass(EngineTensor tensor, std::span<const std::byte> bytes) {
  if (forward_ == nullptr) return;
  tensor.data = bytes.data();
  forward_->Pass(tensor);
}

void Fp8Rounding::Round(const EngineTensor& tensor, std::span<std::byte> bytes) {
  if (forward_ == nullptr || tensor.kind != PackRule::Kind::kLinear || tensor.keeps_bf16 ||
      !HoldsE4m3(tensor.rows, tensor.columns))
    return;
  RoundingPlan(BestIsa(), forward_->input()).Round(pool_, tensor.rows, bytes);
  ++rounded_;
}

}  // namespace ekiben
