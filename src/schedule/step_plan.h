// One step, decided but not yet done: which rows run, how many tokens each feeds, what each returns, and which block
// table entries and block copies must be in place first. Building a plan changes nothing.
//
// A plan is one pointer-free block of fixed capacity, so that it reaches a device in one copy and can be broadcast to
// ranks. Lengths and last tokens live on the device per slot: a generation row does not carry its token, because it
// may still be computed by the step before. Context rows carry theirs in `tokens`.
// Rows: context first, then generation (TensorRT-LLM's packed order). Tokens of a row are consecutive positions.
// Thread: executor builds, backend reads.   Knows: request/ids.   Must not know: device/, clocks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "request/ids.h"

namespace ekiben {

enum class OutputKind : int32_t {
  kNone,          // a context chunk that is not the last of its prompt
  kSample,        // sample one token after the row's last token
  kAllLogits,     // return log-probabilities of every fed position (prompt_logprobs); and sample, but only where the
                  // row ends its prompt: a chunk before that draws nothing and counts nothing
  kPooledHidden,  // a pooled prompt's rows that matter (embeddings): its last chunk, or every chunk of a mean
};

struct PlanRow {
  SequenceId sequence{};
  SlotId slot{};
  int32_t position = 0;       // of the row's first token = tokens of this sequence already in the cache
  int32_t token_count = 1;    // 1 for generation
  int32_t token_offset = -1;  // into StepPlan::tokens(); -1: the slot's last sampled token, on the device
  OutputKind output = OutputKind::kNone;
};

// Block table of `slot`, entry `index`, becomes `block`. Applied before the step, in order.
struct BlockTableEdit {
  SlotId slot{};
  int32_t index = 0;
  BlockId block{};
};

// The first `token_count` tokens of `source` are copied into `target` before the step (partial prefix reuse).
struct BlockCopy {
  BlockId source{}, target{};
  int32_t token_count = 0;
};

struct StepPlanCapacity {
  int32_t rows = 0;         // max_batch_size
  int32_t tokens = 0;       // max_num_tokens
  int32_t table_edits = 0;  // enough for every block of max_num_tokens plus one a row, plus reused prefixes
  int32_t copies = 0;       // at most one a row
};

class StepPlan {
 public:
  explicit StepPlan(const StepPlanCapacity& capacity);

  void Clear();
  // REQUIRES: equal capacities. One copy of bytes(), as a device would take it.
  void CopyFrom(const StepPlan& other);
  bool empty() const { return header_->row_count == 0; }
  const StepPlanCapacity& capacity() const { return header_->capacity; }

  std::span<const PlanRow> rows() const { return {rows_, static_cast<size_t>(header_->row_count)}; }
  std::span<const TokenId> tokens() const { return {tokens_, static_cast<size_t>(header_->context_token_count)}; }
  std::span<const BlockTableEdit> table_edits() const { return {edits_, static_cast<size_t>(header_->edit_count)}; }
  std::span<const BlockCopy> copies() const { return {copies_, static_cast<size_t>(header_->copy_count)}; }
  int32_t context_row_count() const { return header_->context_row_count; }
  // Tokens fed by all rows: context tokens plus one a generation row. <= capacity().tokens.
  int32_t token_count() const { return header_->token_count; }

  // REQUIRES of all: room is left (HasRoom), context rows before generation rows.
  bool HasRoom(int32_t rows, int32_t tokens) const;
  void AddContextRow(SequenceId sequence, SlotId slot, int32_t position, std::span<const TokenId> tokens,
                     OutputKind output);
  void AddGenerationRow(SequenceId sequence, SlotId slot, int32_t position, OutputKind output);
  void AddTableEdit(SlotId slot, int32_t index, BlockId block);
  void AddCopy(BlockId source, BlockId target, int32_t token_count);
  int32_t table_edits_left() const { return header_->capacity.table_edits - header_->edit_count; }

  // The whole plan as bytes, for the one copy.
  std::span<const std::byte> bytes() const { return {block_.get(), bytes_}; }

 private:
  struct Header {
    StepPlanCapacity capacity;
    int32_t row_count, context_row_count, token_count, context_token_count, edit_count, copy_count;
  };
  std::unique_ptr<std::byte[]> block_;
  size_t bytes_ = 0;
  Header* header_ = nullptr;
  PlanRow* rows_ = nullptr;
  TokenId* tokens_ = nullptr;
  BlockTableEdit* edits_ = nullptr;
  BlockCopy* copies_ = nullptr;
};

}  // namespace ekiben
