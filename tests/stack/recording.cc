#include "stack/recording.h"

#include <algorithm>
#include <cstring>

namespace ekiben {
namespace {

// Every bit counts: a multiply-rotate over 64-bit words, four lanes to keep up with the model.
uint64_t HashOf(const float* row, int64_t count) {
  uint64_t lanes[4] = {1, 2, 3, 4};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 4; ++lane) {
      uint64_t word = 0;
      std::memcpy(&word, row + i + 2 * lane, sizeof(word));
      uint64_t mixed = (lanes[lane] ^ word) * 0x9E3779B97F4A7C15u;
      lanes[lane] = mixed << 31 | mixed >> 33;
    }
  }
  for (; i < count; ++i) {
    uint32_t word = 0;
    std::memcpy(&word, row + i, sizeof(word));
    lanes[0] = (lanes[0] ^ word) * 0x9E3779B97F4A7C15u;
  }
  uint64_t out = 0;
  for (uint64_t lane : lanes) out = (out ^ lane) * 0xC2B2AE3D27D4EB4Fu;
  return out;
}

}  // namespace

void RecordModel::Forward(OpContext& ctx, const ForwardBatch& batch, PagedKv& kv, TensorView logits,
                          TensorView hidden) {
  model_.Forward(ctx, batch, kv, logits, hidden);
  const int64_t vocab = config().vocab_size;
  hashes_.resize(batch.output_tokens.size());
  for (size_t row = 0; row < hashes_.size(); ++row)
    hashes_[row] = HashOf(logits.as<float>() + static_cast<int64_t>(row) * vocab, vocab);
}

void RecordBackend::BindSlot(const SlotBinding& binding) {
  owners_[binding.sequence] = {binding.request->id.value, binding.sequence_index};
  backend_.BindSlot(binding);
}

Result<Ticket> RecordBackend::Launch(const StepPlan& plan) {
  rows_.assign(plan.rows().begin(), plan.rows().end());
  const int64_t context_rows = plan.context_row_count();
  mixed_steps_ += context_rows > 0 && context_rows < std::ssize(rows_);
  rows_max_ = std::max(rows_max_, static_cast<int64_t>(rows_.size()));
  for (int64_t i = 0; i < context_rows; ++i) chunks_ += rows_[static_cast<size_t>(i)].output == OutputKind::kNone;
  return backend_.Launch(plan);
}

Result<StepResult> RecordBackend::Finish(Ticket ticket) {
  Result<StepResult> result = backend_.Finish(ticket);
  if (!result.ok()) return result;
  size_t hash = 0;
  for (const PlanRow& row : rows_) {
    if (row.output == OutputKind::kNone) continue;
    auto& positions = logits_[owners_.at(row.sequence)];
    const int32_t end = row.position + row.token_count;
    for (int32_t p = row.output == OutputKind::kAllLogits ? row.position : end - 1; p < end; ++p) {
      auto [it, first_time] = positions.emplace(p, model_.hashes().at(hash));
      computed_again_ += first_time ? 0 : 1;
      changed_ += it->second != model_.hashes()[hash] ? 1 : 0;
      ++hash;
    }
  }
  CHECK_EQ(hash, model_.hashes().size());
  return result;
}

}  // namespace ekiben
