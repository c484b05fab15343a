#include "schedule/step_plan.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <type_traits>

#include "base/arithmetic.h"
#include "base/check.h"

namespace ekiben {

static_assert(std::is_trivially_copyable_v<PlanRow> && std::is_trivially_copyable_v<BlockTableEdit> &&
              std::is_trivially_copyable_v<BlockCopy>);

StepPlan::StepPlan(const StepPlanCapacity& capacity) {
  auto aligned = [](size_t bytes) { return RoundUp<size_t>(bytes, 64); };
  size_t header = aligned(sizeof(Header));
  size_t rows = aligned(sizeof(PlanRow) * static_cast<size_t>(capacity.rows));
  size_t tokens = aligned(sizeof(TokenId) * static_cast<size_t>(capacity.tokens));
  size_t edits = aligned(sizeof(BlockTableEdit) * static_cast<size_t>(capacity.table_edits));
  size_t copies = aligned(sizeof(BlockCopy) * static_cast<size_t>(capacity.copies));
  bytes_ = header + rows + tokens + edits + copies;
  block_ = std::make_unique<std::byte[]>(bytes_);
  std::byte* at = block_.get();
  header_ = new (at) Header{};
  header_->capacity = capacity;
  rows_ = new (at += header) PlanRow[static_cast<size_t>(capacity.rows)];
  tokens_ = new (at += rows) TokenId[static_cast<size_t>(capacity.tokens)];
  edits_ = new (at += tokens) BlockTableEdit[static_cast<size_t>(capacity.table_edits)];
  copies_ = new (at + edits) BlockCopy[static_cast<size_t>(capacity.copies)];
}

void StepPlan::Clear() {
  *header_ = Header{.capacity = header_->capacity};
}

void StepPlan::CopyFrom(const StepPlan& other) {
  CHECK_EQ(bytes_, other.bytes_);
  std::memcpy(block_.get(), other.block_.get(), bytes_);
}

bool StepPlan::HasRoom(int32_t rows, int32_t tokens) const {
  return header_->row_count + rows <= header_->capacity.rows &&
         header_->token_count + tokens <= header_->capacity.tokens;
}

void StepPlan::AddContextRow(SequenceId sequence, SlotId slot, int32_t position, std::span<const TokenId> tokens,
                             OutputKind output) {
  auto count = static_cast<int32_t>(tokens.size());
  CHECK_GT(count, 0);
  CHECK(HasRoom(1, count), "rows {} tokens {}", header_->row_count, header_->token_count);
  CHECK_EQ(header_->context_row_count, header_->row_count);
  rows_[header_->row_count++] = {sequence, slot, position, count, header_->context_token_count, output};
  std::copy(tokens.begin(), tokens.end(), tokens_ + header_->context_token_count);
  header_->context_token_count += count;
  header_->token_count += count;
  ++header_->context_row_count;
}

void StepPlan::AddGenerationRow(SequenceId sequence, SlotId slot, int32_t position, OutputKind output) {
  CHECK(HasRoom(1, 1), "rows {} tokens {}", header_->row_count, header_->token_count);
  rows_[header_->row_count++] = {sequence, slot, position, 1, -1, output};
  ++header_->token_count;
}

void StepPlan::AddTableEdit(SlotId slot, int32_t index, BlockId block) {
  CHECK_LT(header_->edit_count, header_->capacity.table_edits);
  edits_[header_->edit_count++] = {slot, index, block};
}

void StepPlan::AddCopy(BlockId source, BlockId target, int32_t token_count) {
  CHECK_LT(header_->copy_count, header_->capacity.copies);
  copies_[header_->copy_count++] = {source, target, token_count};
}

}  // namespace ekiben
