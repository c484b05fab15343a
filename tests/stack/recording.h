// Decorators that write down what a run computed: every row of logits that the model produced, as a hash, under the
// request, sequence and position that it belongs to; and what kinds of rows the steps held.
// RecordModel sees logits but not whose they are, RecordBackend sees the plan but no logits: together they know both.
// Thread: the backend's.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"

namespace ekiben {

// Of the model decorated: one hash for each row of logits of the last Forward.
class RecordModel final : public Model {
 public:
  explicit RecordModel(Model& model) : model_(model) {}
  void Forward(OpContext& ctx, const ForwardBatch& batch, PagedKv& kv, TensorView logits, TensorView hidden) override;
  size_t ScratchBytes(int64_t tokens, int64_t outputs, int threads) const override {
    return model_.ScratchBytes(tokens, outputs, threads);
  }
  const ModelConfig& config() const override { return model_.config(); }
  const std::vector<uint64_t>& hashes() const { return hashes_; }

 private:
  Model& model_;
  std::vector<uint64_t> hashes_;
};

// (request, index of its n, position of the token fed) -> hash of the logits after it.
using LogitRecord = std::map<std::pair<uint64_t, int32_t>, std::map<int32_t, uint64_t>>;

class RecordBackend final : public Backend {
 public:
  RecordBackend(Backend& backend, const RecordModel& model) : backend_(backend), model_(model) {}
  const BackendInfo& info() const override { return backend_.info(); }
  void BindSlot(const SlotBinding& binding) override;
  Result<Ticket> Launch(const StepPlan& plan) override;
  Result<StepResult> Finish(Ticket ticket) override;

  const LogitRecord& logits() const { return logits_; }
  // Positions computed more than once (a pause, a shared prompt) whose logits were not the same bits.
  int64_t changed() const { return changed_; }
  int64_t computed_again() const { return computed_again_; }
  int64_t chunks() const { return chunks_; }            // context rows that do not end their prompt
  int64_t mixed_steps() const { return mixed_steps_; }  // with context and generation rows
  int64_t rows_max() const { return rows_max_; }

 private:
  Backend& backend_;
  const RecordModel& model_;
  std::map<SequenceId, std::pair<uint64_t, int32_t>> owners_;
  std::vector<PlanRow> rows_;  // of the launched plan
  LogitRecord logits_;
  int64_t changed_ = 0, computed_again_ = 0, chunks_ = 0, mixed_steps_ = 0, rows_max_ = 0;
};

}  // namespace ekiben
