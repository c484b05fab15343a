// A generating inference (ensemble, tensorrt_llm_bls, tensorrt_llm) from its plan to its last response. Its rows are
// requests of the model's Service; their events become responses here: one in all, or one an event of a stream, with
// the final flag on exactly one.
//
// Thread: events of one row come in order from one postprocessing thread; rows may come from several. The sink is
// called under responses_mutex_, so one call at a time; Cancel takes only ids_mutex_, so a sink may call it.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kserve/generation_plan.h"
#include "kserve/inference.h"
#include "kserve/output_forms.h"
#include "kserve/statistics.h"

namespace ekiben::kserve {

class Generation final : public Inference, public std::enable_shared_from_this<Generation> {
 public:
  struct Config {
    std::shared_ptr<serve::ServedModel> model;
    Part part = Part::kEnsemble;
    std::string prefix;  // of the model's names in statistics
    InferResponse head;  // names, version and id of every response; its parameters on all
    std::vector<RequestedOutput> outputs;
    OutputForms forms;
    bool may_stream = false;
    bool accumulate_text = false;  // each response carries the text so far (tensorrt_llm_bls, accumulate_tokens)
  };
  // `ended` runs once, after the sink's last call.
  Generation(Config config, GenerationPlan plan, const Clock& clock, Statistics& statistics,
             std::shared_ptr<InferSink> sink, std::function<void(const StageTimes&)> ended);

  // Submits all rows. An error: nothing reached the sink.
  Result<void> Begin();
  void Cancel() override;
  // Ends it as if it had said all: the sink hears a final response, not an error (TensorRT-LLM's `stop`).
  void StopQuietly();

 private:
  class RowSink;
  struct Sequence {
    std::string text;
    TokenSequence tokens;          // of responses not yet sent
    TokenSequence tail;            // the newest, for stop_sequences
    std::vector<float> log_probs;  // with `tokens`
    float cum_log_prob = 0;
    int32_t sampled = 0, sampled_told = 0;   // tokens, with one that ends it; of those, in responses already sent
    int32_t tokens_new = 0, tokens_all = 0;  // since the last response; in all
    bool ended = false;
  };
  struct Row {
    serve::PromptInfo info;
    std::vector<Sequence> sequences;
    Nanos first_token{}, last_token{};
    bool context_told = false;
  };

  void OnPrompt(size_t row, const serve::PromptInfo& info);
  void OnText(size_t row, const serve::TextEvent& event);
  void OnError(const Error& error);

  bool Take(Row& row, Sequence& sequence, const GenerationPlan::Row& plan, const serve::TextEvent& event);
  void Respond(size_t row, size_t sequence, bool last_of_sequence, Nanos emitted);
  void RespondWhole();  // of all sequences at once
  void Send(InferResponse response, Nanos emitted);
  void Finish();
  void Fail(const Error& error);
  void CountSuccess();
  void CancelRows();
  std::pair<bool, bool> Cancelled();  // asked for, and quietly
  void AddRowOutputs(InferResponse& response, const std::vector<std::pair<size_t, size_t>>& of, bool last);
  void AddLogits(InferResponse& response, const std::vector<std::pair<size_t, size_t>>& of);
  void AddTokenOutputs(InferResponse& response, const std::vector<std::pair<size_t, size_t>>& of) const;
  void AddPerfMetrics(InferResponse& response, const std::vector<std::pair<size_t, size_t>>& of) const;
  bool Wanted(std::string_view output) const { return Wants(config_.outputs, output); }
  StageTimes Times() const;

  const Config config_;
  const GenerationPlan plan_;
  const Clock& clock_;
  Statistics& statistics_;
  const std::function<void(const StageTimes&)> ended_;
  const Nanos arrival_;

  std::mutex responses_mutex_;
  std::shared_ptr<InferSink> sink_;  // let go at the end: a sink may hold its inference
  std::vector<Row> rows_;
  std::vector<ResponseTimes> responses_;
  Nanos last_response_{}, first_response_{};
  size_t sequences_left_ = 0;
  bool done_ = false, pending_ = true;

  std::mutex ids_mutex_;
  std::vector<RequestId> ids_;
  bool cancelled_ = false, quiet_ = false;
};

}  // namespace ekiben::kserve
