#include "executor/sequence.h"

#include <algorithm>
#include <tuple>

namespace ekiben {
namespace {

// Sequences of one request share blocks even where requests do not: under a salt of their own.
constexpr uint64_t kOneRequest = 0x6f6e6c79206f6e65;

PrefixSalt SaltFor(const Request& request, bool reuse) {
  return reuse ? SaltOf(request.cache_salt) : PrefixSalt{kOneRequest, request.id.value};
}

void AppendKeys(Sequence& sequence, int32_t tokens_per_block) {
  auto stride = static_cast<size_t>(tokens_per_block);
  while ((sequence.keys.size() + 1) * stride <= sequence.tokens.size()) {
    std::span<const TokenId> tokens = sequence.tokens;
    sequence.last_key = NextKey(sequence.last_key, tokens.subspan(sequence.keys.size() * stride, stride));
    sequence.keys.push_back(sequence.last_key);
  }
}

}  // namespace

bool WantsEveryLogit(const Sequence& sequence) {
  const RequestState& state = *sequence.owner;
  const Request& request = *state.request;
  bool keeps = request.logits != nullptr && request.logits->context();
  return sequence.index == 0 && (request.prompt_logprobs || keeps) && !state.prompt_scored;
}

bool StartsBefore(const Sequence& a, const Sequence& b) {
  auto rank = [](const Sequence& s) {
    return std::tuple(-static_cast<int64_t>(s.owner->request->priority), s.owner->arrival_order, s.index);
  };
  return rank(a) < rank(b);
}

std::unique_ptr<RequestState> MakeRequestState(std::shared_ptr<const Request> request, TokenSink* sink,
                                               const SequenceLimits& limits, SequenceId first_id) {
  auto state = std::make_unique<RequestState>();
  const Request& r = *request;
  auto prompt_tokens = static_cast<int32_t>(r.prompt.size());
  state->sink = sink;
  state->alive = r.n;
  state->salt = SaltFor(r, limits.enable_kv_cache_reuse);
  if (r.prompt_logprobs) state->prompt_logprobs.resize(r.prompt.size() - 1);
  state->sequences = std::make_unique<Sequence[]>(static_cast<size_t>(r.n));
  for (int32_t i = 0; i < r.n; ++i) {
    Sequence& sequence = state->sequences[static_cast<size_t>(i)];
    sequence.owner = state.get();
    sequence.id = {first_id.value + static_cast<uint64_t>(i)};
    sequence.index = i;
    sequence.prompt_tokens = prompt_tokens;
    sequence.generated_max = std::min(r.max_tokens, limits.max_seq_len - prompt_tokens);
    auto tokens_max = static_cast<size_t>(prompt_tokens + sequence.generated_max);
    sequence.tokens.reserve(tokens_max);
    sequence.tokens = r.prompt;
    // A sequence that outgrows the window gives its first blocks back, and the tree has no use for a rest.
    bool fits_window = limits.attention_window == 0 || sequence.tokens_at_end() <= limits.attention_window;
    sequence.shares_blocks = fits_window && (limits.enable_kv_cache_reuse || r.n > 1);
    if (limits.enable_kv_cache_reuse || r.n > 1) {
      sequence.last_key = RootKey(state->salt);
      sequence.keys.reserve(tokens_max / static_cast<size_t>(limits.tokens_per_block));
      AppendKeys(sequence, limits.tokens_per_block);
    }
  }
  state->request = std::move(request);
  return state;
}

void AppendToken(Sequence& sequence, TokenId token, int32_t tokens_per_block) {
  sequence.tokens.push_back(token);
  if (sequence.shares_blocks) AppendKeys(sequence, tokens_per_block);
}

}  // namespace ekiben
