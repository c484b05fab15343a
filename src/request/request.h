// What the executor is asked to do, in tokens. Text, templates and stop strings live above (serve/).
// A Request is immutable once submitted and is shared by the stages that still need it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "request/gathered_logits.h"
#include "request/ids.h"
#include "request/sampling_params.h"
#include "request/token_constraint.h"

namespace ekiben {

// What stands for a whole prompt (embeddings), from the hidden states behind the final norm.
enum class Pooling : uint8_t { kNone, kLast, kMean };

struct Request {
  RequestId id{};
  std::vector<TokenId> prompt;  // 1..max_input_len
  int32_t max_tokens = 16;      // new tokens; 0: only score the prompt
  int32_t n = 1;                // sequences generated from the one prompt; sequence i draws with sequence index i
  SamplingParams sampling;
  std::shared_ptr<const TokenConstraint> constraint;  // a grammar; null: any token
  std::vector<TokenId> stop_tokens;        // any of them ends a sequence (kEndToken); includes the model's end ids
  bool ignore_eos = false;                 // stop_tokens do not end the sequence
  bool prompt_logprobs = false;            // log-probabilities of the prompt tokens, `sampling.logprobs` alternatives
  std::shared_ptr<GatheredLogits> logits;  // filled while it runs; null: not wanted
  Pooling pooling = Pooling::kNone;        // else OnPooled is told; REQUIRES max_tokens == 0, n == 1
  int32_t priority = 0;                    // higher first; ties in arrival order
  std::string cache_salt;                  // sequences share cached prefixes only under an equal salt
  Nanos arrival{};                         // Clock::Now() at the edge
  std::optional<Nanos> deadline;           // Clock::Now() value after which the request ends with kDeadline
};

enum class FinishReason : uint8_t {
  kNone,       // not finished
  kEndToken,   // an id of stop_tokens; it is not part of the output
  kStopText,   // a stop string matched on text (decided in postprocessing)
  kLength,     // max_tokens or max_seq_len reached
  kCancelled,  // the client left or asked
  kDeadline,   // out of time
  kError,      // see the error
};

std::string_view FinishReasonName(FinishReason reason);  // OpenAI's words: "stop", "length", ...

// One alternative of a position.
struct TokenLogProb {
  TokenId token = 0;
  float logprob = 0;
};

// Log-probabilities of one position: the chosen token's and the best `count` alternatives, best first.
struct PositionLogProbs {
  static constexpr int kAlternativesMax = 20;
  float chosen = 0;
  int32_t count = 0;
  TokenLogProb best[kAlternativesMax];
};

// One token of one sequence, or its end. A plain value: the executor hands out one per token without allocating.
// Order per sequence: tokens in order, then exactly one event with reason != kNone (it may carry the last token).
struct TokenEvent {
  RequestId request{};
  int32_t sequence_index = 0;  // 0..n-1
  TokenId token = -1;          // -1: none (an end without a token)
  FinishReason reason = FinishReason::kNone;
  Code error_code = Code::kInternal;           // with kError
  int32_t prompt_tokens_cached = 0;            // with the first token: prompt tokens served from reused blocks
  Nanos scheduled{};                           // when the sequence first got a slot; zero: it never had one
  Nanos emitted{};                             // Clock::Now() when the executor emitted it
  const PositionLogProbs* logprobs = nullptr;  // valid during the call only
};

// Where tokens go. Called on the executor's thread: must not block, throw or allocate in steady state.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void OnToken(const TokenEvent& event) = 0;
  // With Request::prompt_logprobs: once, before the first token. positions[i] is the log-probability of
  // prompt[i + 1] given prompt[0..i]. Valid during the call only.
  virtual void OnPromptLogProbs(RequestId, const std::vector<PositionLogProbs>&) {}
  // With Request::pooling: once, before the end. Not normalised. Valid during the call only.
  virtual void OnPooled(RequestId, std::span<const float>) {}
};

}  // namespace ekiben
