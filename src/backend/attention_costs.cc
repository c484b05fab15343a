#include "backend/attention_costs.h"

#include <algorithm>

#include "base/arithmetic.h"

namespace ekiben {
namespace {

// Every 64 tokens, because a step of cost may lie anywhere; up to more than a bounded step ever takes of one prompt.
constexpr int32_t kSizeStep = 64, kSizeMax = 512;
// Deep enough that attention stands out from noise; filling up to there costs start-up time.
constexpr int32_t kDepthMax = 3072;
constexpr int kRounds = 2;

const Request& Prompt() {
  static const Request request = [] {
    Request out;
    out.prompt = {0};
    out.sampling.temperature = 0;
    return out;
  }();
  return request;
}

// One sequence in the first slot, fed chunk by chunk.
class Prober {
 public:
  explicit Prober(Backend& backend)
      : backend_(backend),
        info_(backend.info()),
        tokens_max_(std::min(info_.max_seq_len, info_.blocks * info_.tokens_per_block)),
        plan_({.rows = 1,
               .tokens = info_.max_num_tokens,
               .table_edits = CeilDiv(tokens_max_, info_.tokens_per_block),
               .copies = 0}),
        prompt_(static_cast<size_t>(info_.max_num_tokens)) {
    for (size_t i = 0; i < prompt_.size(); ++i) prompt_[i] = static_cast<TokenId>(i) % info_.vocab_size;
  }

  void Begin() {
    backend_.BindSlot({.slot = {0}, .sequence = {++sequence_}, .request = &Prompt()});
    position_ = blocks_ = 0;
  }

  Result<Nanos> Chunk(int32_t tokens) {
    plan_.Clear();
    for (; blocks_ < CeilDiv(position_ + tokens, info_.tokens_per_block); ++blocks_)
      plan_.AddTableEdit({0}, blocks_, {blocks_});
    plan_.AddContextRow({sequence_}, {0}, position_, std::span(prompt_).first(static_cast<size_t>(tokens)),
                        OutputKind::kNone);
    position_ += tokens;
    ASSIGN_OR_RETURN(Ticket ticket, backend_.Launch(plan_));
    ASSIGN_OR_RETURN(StepResult result, backend_.Finish(ticket));
    return result.device_time;
  }

  int32_t position() const { return position_; }
  int32_t left() const { return tokens_max_ - position_; }

 private:
  Backend& backend_;
  const BackendInfo& info_;
  const int32_t tokens_max_;
  StepPlan plan_;
  std::vector<TokenId> prompt_;
  uint64_t sequence_ = 0;
  int32_t position_ = 0, blocks_ = 0;
};

double InNanos(Nanos time) {
  return static_cast<double>(time.count());
}

// The keys that a chunk's middle token sees.
double Keys(int32_t position, int32_t tokens) {
  return position + (tokens + 1) / 2.0;
}

struct Front {
  int32_t tokens = 0;
  double nanos = 0;
};

}  // namespace

Result<AttentionCosts> MeasureAttention(Backend& backend, std::span<const StepCost> linears) {
  AttentionCosts out;
  Prober prober(backend);
  const int32_t depth = std::min(prober.left() / 2, kDepthMax), tokens_max = backend.info().max_num_tokens;
  std::vector<Front> fronts;
  for (int32_t size = kSizeStep, left = prober.left() - depth; size <= std::min(kSizeMax, tokens_max);
       size += kSizeStep) {
    left -= kRounds * size;
    if (left < 0) break;
    Nanos best = Nanos::max();
    for (int round = 0; round < kRounds; ++round) {
      prober.Begin();
      ASSIGN_OR_RETURN(Nanos time, prober.Chunk(size));
      best = std::min(best, time);
    }
    fronts.push_back({size, InNanos(best)});
  }
  if (fronts.empty()) return out;
  prober.Begin();
  while (prober.position() < depth) {
    ASSIGN_OR_RETURN([[maybe_unused]] Nanos time, prober.Chunk(std::min(tokens_max, depth - prober.position())));
  }
  const StepCosts costs(linears);
  std::vector<double> rests;
  for (const Front& front : fronts) {
    const double keys = Keys(0, front.tokens);
    double nanos_a_key = std::numeric_limits<double>::infinity();
    for (int round = 0; round < kRounds; ++round) {
      const double more_keys = Keys(prober.position(), front.tokens) - keys;
      ASSIGN_OR_RETURN(Nanos time, prober.Chunk(front.tokens));
      nanos_a_key = std::min(nanos_a_key, std::max(0.0, InNanos(time) - front.nanos) / more_keys);
    }
    out.chunks.push_back({front.tokens, nanos_a_key});
    rests.push_back(front.nanos - costs.Linears(front.tokens) - nanos_a_key * keys);
  }
  std::ranges::nth_element(rests, rests.begin() + std::ssize(rests) / 2);
  out.nanos_a_step = std::max(0.0, rests[rests.size() / 2]);
  return out;
}

}  // namespace ekiben
