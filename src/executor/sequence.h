// A request as the executor holds it, and its n sequences. Both are built by the submitting thread with all the memory
// that they will ever need, so that the executor's thread allocates nothing for them.
//
// A sequence's tokens, left to right:
//
//   tokens:  [ prompt ........................ | generated ............ ]  (+ samples in flight, not yet known)
//            [ 0 ........ computed) [ .. cached) [ .. tokens.size() )
//              KV is certain         in flight    KV not asked for yet
//
// cached counts what launched steps have written or will write; computed what finished steps have. They are equal when
// nothing is in flight. A generating sequence has cached == tokens.size() + samples_in_flight - 1.
// Thread: the executor's, but for the atomics (set by Cancel and Stop under the registry's lock).
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "cache/prefix_tree.h"
#include "executor/intrusive_list.h"
#include "request/ids.h"
#include "request/request.h"

namespace ekiben {

struct RequestState;

enum class Phase : uint8_t { kWaiting, kContext, kGeneration, kEnded };

// What a waiting sequence would start with, found when its view is made and used when it is admitted in the same step.
struct StartingPoint {
  int32_t tokens = 0;     // already in the cache
  int32_t blocks = 0;     // taken over whole
  SlotId share_from{-1};  // from this slot's table; else from the tree, `matched`
  BlockId partial_source = kNoBlock;
  int32_t partial_tokens = 0;
};

struct Sequence {
  RequestState* owner = nullptr;
  SequenceId id{};
  int32_t index = 0;  // of n
  Phase phase = Phase::kWaiting;
  SlotId slot{-1};
  std::vector<TokenId> tokens;
  std::vector<BlockKey> keys;  // of the full blocks of `tokens`; empty when nothing is shared
  BlockKey last_key = 0;       // of the last full block, or the root's
  int32_t prompt_tokens = 0;
  int32_t generated_max = 0;  // max_tokens, less where max_seq_len ends it
  int32_t cached = 0, computed = 0;
  int32_t samples_in_flight = 0;
  uint64_t last_ticket = 0;  // newest step that names it
  int32_t prompt_tokens_reused = 0;
  Nanos scheduled{};  // when it first got a slot
  bool reuse_reported = false;
  bool paused = false;  // waits to be computed again
  bool shares_blocks = false;
  StartingPoint start;
  ListLink<Sequence> waiting_link;
  std::atomic<FinishReason> stop{FinishReason::kNone};  // asked for by Stop

  bool may_generate() const { return generated() + samples_in_flight < generated_max; }
  int32_t generated() const { return static_cast<int32_t>(tokens.size()) - prompt_tokens; }
  int32_t tokens_at_end() const { return prompt_tokens + (generated_max > 0 ? generated_max - 1 : 0); }  // in the cache
};

struct RequestState {
  std::shared_ptr<const Request> request;
  TokenSink* sink = nullptr;
  std::unique_ptr<Sequence[]> sequences;  // request->n
  int32_t alive = 0;                      // sequences not ended
  bool started = false;                   // a sequence was admitted: it no longer counts as waiting
  uint64_t arrival_order = 0;
  PrefixSalt salt;
  std::vector<PositionLogProbs> prompt_logprobs;  // prompt.size() - 1, with Request::prompt_logprobs
  bool prompt_scored = false;                     // its log-probabilities were sent, its logits are kept
  ListLink<RequestState> live_link;
  std::atomic<bool> cancelled{false};
};

// Priority, then arrival, then index: the order in which sequences start. A paused one keeps its place.
bool StartsBefore(const Sequence& a, const Sequence& b);

struct SequenceLimits {
  int32_t max_seq_len = 0;
  int32_t tokens_per_block = 0;
  int32_t attention_window = 0;  // 0: none
  bool enable_kv_cache_reuse = false;
};

// Everything a request needs, allocated here. `first_id`: of sequence 0; the others follow.
std::unique_ptr<RequestState> MakeRequestState(std::shared_ptr<const Request> request, TokenSink* sink,
                                               const SequenceLimits& limits, SequenceId first_id);

// The rows of its prompt that are still to be computed are each wanted whole.
bool WantsEveryLogit(const Sequence& sequence);

// Appends a generated token, and its block's key when the token fills one.
void AppendToken(Sequence& sequence, TokenId token, int32_t tokens_per_block);

}  // namespace ekiben
