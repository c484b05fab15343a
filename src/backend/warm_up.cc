#include "backend/warm_up.h"

#include <algorithm>
#include <array>
#include <map>

#include "base/arithmetic.h"

namespace ekiben {
namespace {

// A longer prompt touches little that this many tokens did not, and would delay the start.
constexpr int32_t kContextTokensMax = 512;
// Positions up to which the first slot generates alone: the first such step still finds the caches full of others'
// rows.
constexpr int32_t kGenerationSteps = 5;

// What a request may ask of the sampler: nothing, and everything. Outlives the bindings made from it.
const std::array<Request, 2>& Requests() {
  static const std::array<Request, 2> requests = [] {
    std::array<Request, 2> out;
    for (Request& request : out) request.prompt = {0};
    out[0].sampling.temperature = 0;
    out[1].sampling = {.temperature = 0.8f,
                       .top_k = 50,
                       .top_p = 0.9f,
                       .min_p = 0.01f,
                       .repetition_penalty = 1.1f,
                       .presence_penalty = 0.1f,
                       .frequency_penalty = 0.1f,
                       .logprobs = 5};
    return out;
  }();
  return requests;
}

class WarmUpSteps {
 public:
  explicit WarmUpSteps(Backend& backend)
      : backend_(backend),
        info_(backend.info()),
        tokens_max_(std::min(
            {info_.max_num_tokens, info_.max_seq_len, kContextTokensMax, info_.blocks * info_.tokens_per_block})),
        // One block a row: rows of one step never write the same place.
        rows_max_(std::min({info_.max_batch_size, info_.max_num_tokens, info_.blocks})),
        plan_({.rows = info_.max_batch_size,
               .tokens = info_.max_num_tokens,
               .table_edits = std::max(CeilDiv(tokens_max_, info_.tokens_per_block), rows_max_),
               .copies = 0}) {}

  // `rows` new sequences with a prompt of `tokens` each, from slot 0 on.
  Result<Nanos> Context(int32_t rows, int32_t tokens) {
    plan_.Clear();
    std::vector<TokenId> prompt(static_cast<size_t>(tokens));
    for (int32_t i = 0; i < tokens; ++i) prompt[static_cast<size_t>(i)] = i % info_.vocab_size;
    const int32_t blocks_each = CeilDiv(tokens, info_.tokens_per_block);
    for (int32_t slot = 0; slot < rows; ++slot) {
      const Request& request = Requests()[static_cast<size_t>(slot) % Requests().size()];
      backend_.BindSlot({.slot = {slot}, .sequence = SequenceOf(slot), .request = &request});
      for (int32_t i = 0; i < blocks_each; ++i) plan_.AddTableEdit({slot}, i, {slot * blocks_each + i});
      plan_.AddContextRow(SequenceOf(slot), {slot}, 0, prompt, OutputKind::kSample);
    }
    return Run();
  }

  // The next token of the sequences in the first `rows` slots, which have `position` tokens.
  Result<Nanos> Generation(int32_t rows, int32_t position) {
    plan_.Clear();
    for (int32_t slot = 0; slot < rows; ++slot)
      plan_.AddGenerationRow(SequenceOf(slot), {slot}, position, OutputKind::kSample);
    return Run();
  }

  int32_t tokens_max() const { return tokens_max_; }
  int32_t rows_max() const { return rows_max_; }

 private:
  static SequenceId SequenceOf(int32_t slot) { return {static_cast<uint64_t>(slot) + 1}; }

  Result<Nanos> Run() {
    ASSIGN_OR_RETURN(Ticket ticket, backend_.Launch(plan_));
    ASSIGN_OR_RETURN(StepResult result, backend_.Finish(ticket));
    CHECK_EQ(result.rows.size(), plan_.rows().size());
    return result.device_time;
  }

  Backend& backend_;
  const BackendInfo& info_;
  const int32_t tokens_max_, rows_max_;
  StepPlan plan_;
};

}  // namespace

Result<std::vector<StepCost>> WarmUp(Backend& backend) {
  WarmUpSteps steps(backend);
  std::map<int32_t, Nanos> costs;
  ASSIGN_OR_RETURN(costs[steps.tokens_max()], steps.Context(1, steps.tokens_max()));
  ASSIGN_OR_RETURN(costs[steps.rows_max()], steps.Context(steps.rows_max(), 1));
  // Within the one block that each row has.
  int32_t positions = std::min(backend.info().tokens_per_block, backend.info().max_seq_len);
  if (positions > 1) {
    ASSIGN_OR_RETURN(costs[steps.rows_max()], steps.Generation(steps.rows_max(), 1));
  }
  for (int32_t position = 2; position < std::min(positions, kGenerationSteps); ++position) {
    ASSIGN_OR_RETURN(costs[1], steps.Generation(1, position));
  }
  std::vector<StepCost> out;
  for (auto [tokens, time] : costs) out.push_back({tokens, time});
  return out;
}

}  // namespace ekiben
