#include "api/completion_call.h"

#include <fmt/format.h>

namespace ekiben::api {

void CallRegistry::Add(const std::shared_ptr<RunningCall>& call) {
  std::lock_guard lock(mutex_);
  calls_.emplace(call.get(), call);
}
void CallRegistry::Remove(RunningCall* call) {
  std::lock_guard lock(mutex_);
  calls_.erase(call);
}
size_t CallRegistry::size() const {
  std::lock_guard lock(mutex_);
  return calls_.size();
}
void CallRegistry::FailAll(const Error& error) {
  std::vector<std::shared_ptr<RunningCall>> calls;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, weak] : calls_)
      if (auto call = weak.lock()) calls.push_back(std::move(call));
  }
  for (const auto& call : calls) call->Fail(error);
}

// One prompt's way back into the call.
class CompletionCall::Sink final : public serve::TextSink {
 public:
  Sink(std::shared_ptr<CompletionCall> call, size_t prompt_index) : call_(std::move(call)), index_(prompt_index) {}
  void OnPrompt(const serve::PromptInfo& info) override { call_->OnPrompt(index_, info); }
  void OnText(const serve::TextEvent& event) override { call_->OnText(index_, event); }
  void OnError(const Error& error) override { call_->Fail(error); }

 private:
  const std::shared_ptr<CompletionCall> call_;
  const size_t index_;
};

CompletionCall::CompletionCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer)
    : context_(context), writer_(std::move(writer)), arrival_(context.clock.Now()) {}

CompletionCall::~CompletionCall() = default;

void CompletionCall::Begin(std::vector<serve::TextRequest> prompts, Nanos first_byte_timeout) {
  context_.registry.Add(shared_from_this());
  context_.metrics.RequestBegins();
  {
    std::lock_guard lock(mutex_);
    prompts_.resize(prompts.size());
    int32_t choice = 0;
    for (size_t i = 0; i < prompts.size(); ++i) {
      prompts_[i].sequences.resize(static_cast<size_t>(prompts[i].n));
      for (Sequence& sequence : prompts_[i].sequences) sequence.index = choice++;
      sequences_left_ += prompts_[i].sequences.size();
    }
    for (size_t i = 0; i < prompts.size() && !done_; ++i) {
      auto id = context_.service.Submit(std::move(prompts[i]), std::make_shared<Sink>(shared_from_this(), i));
      if (!id.ok())
        FailLocked(id.error());
      else
        prompts_[i].id = *id;
    }
  }
  std::weak_ptr<CompletionCall> weak = weak_from_this();
  writer_->OnClosed([weak] {
    if (auto call = weak.lock()) call->ClientLeft();
  });
  if (first_byte_timeout > Nanos(0)) {
    writer_->OnStartTimeout(first_byte_timeout, [weak, first_byte_timeout] {
      if (auto call = weak.lock())
        call->Fail(Error(Code::kDeadline,
                         fmt::format("Not able to process the request in {:g} seconds", Seconds(first_byte_timeout))));
    });
  }
}

void CompletionCall::OnPrompt(size_t prompt_index, const serve::PromptInfo& info) {
  std::lock_guard lock(mutex_);
  if (done_) return;
  Prompt& prompt = prompts_[prompt_index];
  prompt.info = info;
  prompt.known = true;
}

void CompletionCall::OnText(size_t prompt_index, const serve::TextEvent& event) {
  std::lock_guard lock(mutex_);
  if (done_) return;
  if (event.reason == FinishReason::kCancelled)
    return FailLocked(Error(Code::kUnavailable, "the request was cancelled: the server is shutting down"));
  if (event.reason == FinishReason::kDeadline)
    return FailLocked(Error(Code::kDeadline, "timeout: the request was not finished in time"));
  Prompt& prompt = prompts_[prompt_index];
  Sequence& sequence = prompt.sequences[static_cast<size_t>(event.sequence_index)];
  CountTokens(sequence, event);
  if (prompt.known) {
    prompt.known = false;  // told once
    PromptKnown(prompt);
  }
  Text(prompt, sequence, event);
  if (event.reason == FinishReason::kNone) return;
  sequence.reason = event.reason;
  context_.metrics.SequenceEnds(event.reason);
  if (--sequences_left_ > 0) return;
  context_.metrics.RequestEnds(context_.clock.Now() - arrival_, prompt_tokens(), output_tokens());
  AllEnded();
  LeaveLocked();
}

void CompletionCall::CountTokens(Sequence& sequence, const serve::TextEvent& event) {
  if (event.tokens_new == 0) return;
  Nanos now = context_.clock.Now();
  if (!first_token_seen_) context_.metrics.FirstToken(now - arrival_);
  if (sequence.output_tokens > 0) context_.metrics.NextToken(now - sequence.last_token);
  first_token_seen_ = true;
  sequence.last_token = now;
  sequence.output_tokens += event.tokens_new;
}

void CompletionCall::Fail(const Error& error) {
  std::lock_guard lock(mutex_);
  FailLocked(error);
}

void CompletionCall::FailLocked(const Error& error) {
  if (done_) return;
  context_.metrics.RequestFails(error.code());
  Broken(error);
  CancelAllLocked();
  LeaveLocked();
}

void CompletionCall::ClientLeft() {
  std::lock_guard lock(mutex_);
  if (done_) return;
  context_.metrics.RequestFails(Code::kCancelled);
  CancelAllLocked();
  LeaveLocked();
}

void CompletionCall::CancelAllLocked() {
  for (Prompt& prompt : prompts_) {
    bool ended = true;
    for (const Sequence& sequence : prompt.sequences) {
      if (sequence.reason != FinishReason::kNone) continue;
      ended = false;
      context_.metrics.SequenceEnds(FinishReason::kCancelled);
    }
    if (!ended && prompt.id.value != 0) context_.service.Cancel(prompt.id);
  }
}

void CompletionCall::LeaveLocked() {
  done_ = true;
  context_.metrics.RequestLeaves();
  context_.registry.Remove(this);
}

int64_t CompletionCall::prompt_tokens() const {
  int64_t sum = 0;
  for (const Prompt& prompt : prompts_) sum += prompt.info.prompt_tokens;
  return sum;
}
int64_t CompletionCall::cached_tokens() const {
  int64_t sum = 0;
  for (const Prompt& prompt : prompts_) sum += prompt.info.cached_tokens;
  return sum;
}
int64_t CompletionCall::output_tokens() const {
  int64_t sum = 0;
  for (const Prompt& prompt : prompts_)
    for (const Sequence& sequence : prompt.sequences) sum += sequence.output_tokens;
  return sum;
}

}  // namespace ekiben::api
