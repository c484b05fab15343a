// The ensemble: preprocessing instances (chat template, tokenizer) -> executor -> postprocessing instances (incremental
// detokenizer, stop strings) -> the caller's sink. Every wire surface (api/), the terminal chat, the offline batch and
// the in-process load client enter here, so that all of them behave alike.
//
// Queues between the stages are bounded: full is an answer at once (kOverloaded), never a wait.
// Thread: Submit and Cancel from any thread. A sink is called by one postprocessing (or preprocessing, for an early
// error) thread at a time, events of one request in order; it must not block: a slow client's connection buffers up to
// its limit and then cancels.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/result.h"
#include "request/request.h"
#include "text/grammar.h"

namespace ekiben {

class Executor;
namespace text {
class ChatTemplate;
class Tokenizer;
}  // namespace text

namespace serve {

// Messages and what else the model's chat template reads (tools, add_generation_prompt, ...).
struct ChatInput {
  json::object inputs;
  bool continue_final_message = false;                     // the prompt ends where the last message's content does
  std::shared_ptr<const text::ChatTemplate> own_template;  // instead of the model's; any inputs
};

struct TextRequest {
  std::variant<std::string, std::vector<TokenId>, ChatInput> input;
  bool add_special_tokens = true;                 // of a plain prompt; a rendered chat never adds them again
  std::optional<int32_t> max_tokens;              // nullopt: what is left of max_seq_len
  std::optional<int32_t> truncate_prompt_tokens;  // the last so many tokens are the prompt; -1: max_input_len of them
  bool clamp_max_tokens = false;  // more than is left of max_seq_len: take what is left, instead of an error
  int32_t n = 1;
  SamplingParams sampling;
  std::optional<text::GrammarSpec> grammar;  // what the text must be
  std::vector<std::string> stop;             // at most 16 of at most 1,024 bytes
  std::vector<std::string> bad_words;        // tokenized in preprocessing
  std::vector<TokenId> stop_token_ids;
  bool include_stop_text = false, skip_special_tokens = true, ignore_eos = false;
  bool prompt_logprobs = false;
  bool context_logits = false, generation_logits = false;  // PromptInfo::logits
  Pooling pooling = Pooling::kNone;                        // of an embedding: max_tokens is 0
  bool want_token_ids = false;                             // TextEvent::tokens filled
  int32_t priority = 0;
  std::string cache_salt;
  std::optional<Nanos> timeout;
};

// When a request passed from stage to stage, by Clock::Now. Zero: it never got there.
struct RequestTimes {
  Nanos arrival{};    // Submit
  Nanos taken{};      // by a preprocessing instance
  Nanos submitted{};  // to the executor, in tokens
  Nanos scheduled{};  // its first sequence got a slot
};

// Text of one sequence that became certain. Text may be empty (a held character; the end).
struct TextEvent {
  int32_t sequence_index = 0;
  std::string_view text;
  std::vector<TokenId> tokens;                // with want_token_ids
  std::vector<PositionLogProbs> logprobs;     // with sampling.logprobs >= 0: one a token in `logprob_tokens`
  std::vector<TokenId> logprob_tokens;        // the chosen tokens of `logprobs`; with prompt_logprobs also the end's
  int32_t tokens_new = 0;                     // sampled tokens this event accounts for
  FinishReason reason = FinishReason::kNone;  // != kNone: the sequence's last event
  std::string stop_text;                      // kStopText: which string matched
  TokenId stop_token = -1;                    // kEndToken: which id
  Nanos emitted{};                            // Clock::Now when the executor let the token go
};

// Known from the start of generation on.
struct PromptInfo {
  RequestId id{};
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  RequestTimes times;
  std::vector<TokenId> prompt;                    // with want_token_ids or prompt_logprobs
  std::vector<PositionLogProbs> prompt_logprobs;  // with prompt_logprobs
  std::vector<float> pooled;                      // with pooling; not normalised
  // With context_logits or generation_logits. Of a sequence, the rows of tokens whose events were seen may be read.
  std::shared_ptr<const GatheredLogits> logits;
};

class TextSink {
 public:
  virtual ~TextSink() = default;
  // Once, before the first OnText.
  virtual void OnPrompt(const PromptInfo& info) = 0;
  virtual void OnText(const TextEvent& event) = 0;
  // Instead of the rest; nothing follows. Also for an error before OnPrompt (bad input, overload).
  virtual void OnError(const Error& error) = 0;
};

struct ServiceConfig {
  std::string model_name;
  int32_t preprocessing_instance_count = 1;
  int32_t postprocessing_instance_count = 1;
  size_t preprocessing_queue_max = 1024;    // requests
  size_t postprocessing_queue_max = 65536;  // tokens, each instance
  int32_t max_input_len = 0, max_seq_len = 0, vocab_size = 0;
  int64_t logits_bytes_max = int64_t{1} << 30;  // of all requests together
  int32_t max_queue_size = 0;  // the executor's: a full queue refuses before any text is tokenized; 0: not checked
};

struct ServiceStats {
  uint64_t requests = 0, errors = 0, prompt_tokens = 0, output_tokens = 0;
  size_t preprocessing_queued = 0, postprocessing_queued = 0;
  uint64_t postprocessing_stalls = 0;  // tokens that found an instance's queue full; their requests are failed
};

class Service {
 public:
  // All references outlive the service. `chat_template` may be null: chat input is then refused. The service may be
  // destroyed once the executor is shut down or has nothing of its requests left.
  static Result<std::unique_ptr<Service>> Create(Executor& executor, const text::Tokenizer& tokenizer,
                                                 const text::ChatTemplate* chat_template, const Clock& clock,
                                                 const ServiceConfig& config);
  virtual ~Service() = default;

  // Returns at once. Every outcome but a full queue reaches the sink.
  virtual Result<RequestId> Submit(TextRequest request, std::shared_ptr<TextSink> sink) = 0;
  // Idempotent. The sink hears FinishReason::kCancelled for what was still running.
  virtual void Cancel(RequestId id) = 0;
  // Renders and tokenizes as Submit would (for /tokenize). Runs on the caller's thread.
  virtual Result<std::vector<TokenId>> Tokenize(const TextRequest& request) const = 0;

  virtual ServiceStats stats() const = 0;
  virtual const ServiceConfig& config() const = 0;
  virtual const text::Tokenizer& tokenizer() const = 0;
  virtual Executor& executor() = 0;
};

}  // namespace serve
}  // namespace ekiben
