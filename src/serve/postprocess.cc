#include "serve/postprocess.h"

#include "executor/executor.h"

namespace ekiben::serve {

void Postprocessor::Run() {
  TokenItem item;
  PositionLogProbs logprobs;
  for (;;) {
    int32_t ticket = channel_.ticket();
    bool stopping = stopping_.load(std::memory_order_acquire);
    bool worked = HandleOverrun();
    while (channel_.Pop(item, logprobs)) {
      Handle(item, logprobs);
      worked = true;
    }
    if (worked) continue;
    if (stopping) return;
    channel_.Wait(ticket);
  }
}

void Postprocessor::Stop() {
  stopping_.store(true, std::memory_order_release);
  channel_.Wake();
}

// What a request pushed into the channel before it overran is older than its place on the overflow list: the channel is
// emptied after the list is taken and before one of it is released, so that nothing in it names a released request.
bool Postprocessor::HandleOverrun() {
  ActiveRequest* taken = channel_.TakeOverflow();
  if (taken == nullptr && overran_.empty()) return false;
  TokenItem item;
  PositionLogProbs logprobs;
  while (channel_.Pop(item, logprobs)) Handle(item, logprobs);
  bool worked = taken != nullptr;
  for (; taken != nullptr; taken = taken->next_overflow) {
    Fail(*taken, Error(Code::kOverloaded, "postprocessing_queue_max: the token queue was full; try again later"));
    overran_.push_back(taken);
  }
  for (size_t i = 0; i < overran_.size();) {
    if (!Ended(*overran_[i])) {
      ++i;
      continue;
    }
    release_(overran_[i]->id);
    overran_[i] = overran_.back();
    overran_.pop_back();
    worked = true;
  }
  return worked;
}

void Postprocessor::Handle(const TokenItem& item, const PositionLogProbs& logprobs) {
  ActiveRequest& request = *item.request;
  if (item.reason != FinishReason::kNone) ++request.ends_seen;
  if (!request.failed) {
    if (item.reason == FinishReason::kError) {
      std::string fault = executor_.fault();
      Fail(request, Error(item.error_code, fault.empty() ? "the model could not compute this request" : fault));
    } else {
      TellPrompt(request, item);
      TellText(request, item, logprobs);
    }
  }
  // With an end lost, HandleOverrun releases it: more of it may be in the channel.
  if (request.ends_seen == request.tokens->n) release_(request.id);
}

void Postprocessor::TellPrompt(ActiveRequest& request, const TokenItem& item) {
  if (request.prompt_told) return;
  request.prompt_told = true;
  PromptInfo info;
  info.id = request.id;
  info.prompt_tokens = static_cast<int32_t>(request.tokens->prompt.size());
  info.cached_tokens = item.prompt_tokens_cached;
  info.times = request.times;
  info.times.scheduled = item.scheduled;
  if (request.input.want_token_ids || request.input.prompt_logprobs) info.prompt = request.tokens->prompt;
  info.prompt_logprobs = std::move(request.prompt_logprobs);
  info.pooled = std::move(request.pooled);
  info.logits = request.tokens->logits;
  request.sink->OnPrompt(info);
}

void Postprocessor::TellText(ActiveRequest& request, const TokenItem& item, const PositionLogProbs& logprobs) {
  auto& sequence = request.sequences[static_cast<size_t>(item.sequence_index)];
  if (sequence.told_end) return;
  TextEvent event;
  event.sequence_index = item.sequence_index;
  event.reason = item.reason;
  event.emitted = item.emitted;
  text_.clear();
  bool stopped = false;
  if (item.token >= 0) {
    event.tokens_new = 1;
    output_tokens_.fetch_add(1, std::memory_order_relaxed);
    if (item.reason == FinishReason::kEndToken) {
      event.stop_token = item.token;
    } else {
      stopped = sequence.detokenizer.Push(item.token, text_);
      if (request.input.want_token_ids) event.tokens.push_back(item.token);
    }
    // Who scores a prompt (lm-eval) counts on an entry for the one token after it, also where that ends the text.
    if (item.has_logprobs && (item.reason != FinishReason::kEndToken || request.input.prompt_logprobs)) {
      event.logprobs.push_back(logprobs);
      event.logprob_tokens.push_back(item.token);
    }
  }
  if (stopped) {
    if (item.reason == FinishReason::kNone) executor_.Stop(request.id, item.sequence_index, FinishReason::kStopText);
    event.reason = FinishReason::kStopText;
    event.stop_text = request.input.stop[static_cast<size_t>(sequence.detokenizer.stop_index())];
  } else if (item.reason != FinishReason::kNone) {
    sequence.detokenizer.Finish(text_);
  }
  sequence.told_end = event.reason != FinishReason::kNone;
  event.text = text_;
  request.sink->OnText(event);
}

void Postprocessor::Fail(ActiveRequest& request, const Error& error) {
  if (request.failed) return;
  request.failed = true;
  executor_.Cancel(request.id);
  request.sink->OnError(error);
}

bool Postprocessor::Ended(const ActiveRequest& request) {
  return request.ends_seen + request.ends_lost.load(std::memory_order_acquire) == request.tokens->n;
}

}  // namespace ekiben::serve
