// The step on the CPU: the small device, and the oracle of every other one.
// A step runs inside Finish, on the caller's thread and the pool's: the cores are busy either way, so steps do not
// overlap (tickets_max = 1). Slot state (block table, length, last token, sampling) lives here, as it would on a
// device. Nothing is allocated after Create, except by requests that ask for log-probabilities with logit rules.
// Thread: one, the executor's.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/clock.h"
#include "device/thread_pool.h"
#include "model/model.h"
#include "sample/sampler.h"

namespace ekiben {

struct CpuBackendConfig {
  int32_t threads = 1;         // >= 1
  int32_t max_batch_size = 1;  // slots
  int32_t max_num_tokens = 1;
  int32_t max_seq_len = 1;
  int32_t tokens_per_block = 32;
  int32_t kv_blocks = 1;
  DType kv_dtype = DType::kBF16;
  const LinearTuning* tuning = nullptr;  // outlives the backend; null: the built-in choice
};

class CpuBackend final : public Backend {
 public:
  // `model` and `clock` outlive the backend.
  static Result<std::unique_ptr<CpuBackend>> Create(Model& model, const CpuBackendConfig& config, const Clock& clock);
  ~CpuBackend() override;

  const BackendInfo& info() const override { return info_; }
  void BindSlot(const SlotBinding& binding) override;
  Result<Ticket> Launch(const StepPlan& plan) override;
  Result<StepResult> Finish(Ticket ticket) override;

  std::vector<MemoryLine> memory() const;
  // Bytes of keys and values of one block, all layers: for sizing `kv_blocks`.
  static size_t KvBytesPerBlock(const ModelConfig& model, int32_t tokens_per_block, DType dtype);

 private:
  CpuBackend(Model& model, const CpuBackendConfig& config, const Clock& clock);
  struct SlotState {
    const Request* request = nullptr;
    int32_t sequence_index = 0;
    TokenId last_token = 0;
    std::vector<float> pooled;  // of Request::pooling: a sum until the prompt ends
  };
  struct Output {            // one row with outputs
    int32_t row = 0;         // of the plan
    int32_t logits_row = 0;  // its last, of logits_ or hidden_
  };
  BlockId* Table(SlotId slot) { return tables_.data() + static_cast<size_t>(slot.value) * blocks_per_slot_; }
  void ApplyTableEdits();
  void GatherBatch();
  void SampleRows();
  void Pool(const PlanRow& row, int32_t last_hidden_row, RowResult& result);
  void KeepContextLogits(const PlanRow& row, int32_t first_logits_row);
  void PromptLogProbs(const PlanRow& row, int32_t first_logits_row, RowResult& result);

  Model& model_;
  const Clock& clock_;
  BackendInfo info_;
  ThreadPool pool_;
  Arena arena_;
  OpContext ctx_;
  PagedKv kv_;
  Sampler sampler_;
  size_t blocks_per_slot_;
  std::vector<SlotState> slots_;
  std::vector<BlockId> tables_;  // [slot][blocks_per_slot_]

  // The launched step and its batch; sized once.
  StepPlan plan_;
  bool in_flight_ = false;
  uint64_t next_ticket_ = 1;
  std::vector<int32_t> token_ids_, positions_, output_tokens_;
  std::vector<AttentionRow> attention_rows_;
  std::vector<Output> outputs_;
  int32_t pooled_rows_ = 0;  // of outputs_
  Buffer logits_, hidden_;
  std::vector<RowResult> results_;
  std::vector<TokenId> sampled_;            // [rows]
  std::vector<PositionLogProbs> logprobs_;  // [rows]
  std::vector<PositionLogProbs> prompt_logprobs_;
};

}  // namespace ekiben
