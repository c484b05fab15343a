// Chooses the next token of a sequence from its logits. Per slot it keeps what the rules need: the parameters, which
// tokens occurred, how many were generated. A token is a pure function of the sequence's own logits, parameters,
// history and draw (base/philox.h: seed, sequence index, position), so neighbours, batch and preemption never change
// it.
//
// Order of the rules (vLLM's): log-probabilities are taken from the raw logits; then the grammar, allowed ids, bias,
// bad words, min_tokens, penalties; then temperature; then top_k, top_p, min_p; then the draw. Greedy never computes a
// softmax. A grammar outranks the bans: where these leave none of its tokens, it alone counts.
//
// The draw: weights relative to the best are integers (logit_scan.h), so that sums are exact. Tokens in the order of
// their logits, the lower id first among equals: top_k keeps the first k; top_p the fewest of these that have its share
// of their sum; min_p those of at least its weight. What is kept is laid out in the order of ids, and the token that
// the draw's share of the sum falls on is the choice.
// Thread: Bind from the backend's; Sample for different slots at once from any.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "device/cpu_features.h"
#include "request/request.h"

namespace ekiben {

class Sampler {
 public:
  Sampler(int32_t slots, int32_t vocab_size, Isa isa);

  // Slot `slot` now serves sequence `sequence_index` of `request`, which outlives the binding. `generated`: tokens it
  // produced before a preemption.
  void Bind(SlotId slot, const Request& request, int32_t sequence_index, std::span<const TokenId> generated);

  struct Choice {
    TokenId token = 0;
    bool finite = true;  // false: the row held NaN or infinity, or nothing was allowed; `token` means nothing and the
                         // history is unchanged
  };
  // `logits` [vocab_size] are changed. `logprobs` may be null; else it is filled when the request asked for them.
  Choice Sample(SlotId slot, float* logits, PositionLogProbs* logprobs);

  // Log-probabilities of `chosen` and the `count` best, from unchanged logits. For prompt positions too.
  void LogProbs(const float* logits, TokenId chosen, int32_t count, PositionLogProbs* out) const;

  int32_t generated_count(SlotId slot) const { return slots_[static_cast<size_t>(slot.value)].generated; }

 private:
  struct Seen {
    TokenId token;
    int32_t output_count;  // 0: in the prompt only
  };
  // With Request::constraint only.
  struct GrammarState {
    std::unique_ptr<TokenMatcher> matcher;
    std::vector<int32_t> mask;
    TokenMatcher::Mask allowed = TokenMatcher::Mask::kAll;  // of the row at hand
  };
  struct Slot {
    const Request* request = nullptr;
    int32_t sequence_index = 0;
    int32_t generated = 0;
    std::vector<Seen> seen;     // sorted by token; only when the parameters need history
    std::vector<TokenId> tail;  // prompt and output; only with bad words
    std::optional<GrammarState> grammar;
  };
  void BindGrammar(Slot& slot, std::span<const TokenId> generated) const;
  void ApplyGrammar(const GrammarState& grammar, float* logits) const;
  void ApplyRules(const Slot& slot, float* logits) const;
  bool Remember(Slot& slot, TokenId token) const;
  TokenId DrawUnfiltered(const SamplingParams& params, float draw, const float* logits, float max) const;
  TokenId DrawFiltered(const SamplingParams& params, float draw, const float* logits, float max,
                       std::span<const float> block_max) const;
  TokenId DrawNucleus(const SamplingParams& params, float draw, const float* logits, float max, uint64_t wanted) const;

  std::vector<Slot> slots_;
  int32_t vocab_size_;
  Isa isa_;
};

}  // namespace ekiben
