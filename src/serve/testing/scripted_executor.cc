#include "serve/testing/scripted_executor.h"

#include <algorithm>

namespace ekiben::serve::testing {

TokenId EchoToken(const Request& request, int32_t, int32_t position) {
  std::vector<TokenId> bytes;
  for (TokenId token : request.prompt)
    if (token < 256) bytes.push_back(token);
  return bytes.empty() ? 'x' : bytes[static_cast<size_t>(position) % bytes.size()];
}

Result<void> ScriptedExecutor::Submit(std::shared_ptr<const Request> request, TokenSink* sink) {
  {
    std::lock_guard lock(mutex_);
    if (!healthy_ || draining_ || stopping_) return Error(Code::kUnavailable, "the executor takes no requests");
    auto waiting = std::count_if(sequences_.begin(), sequences_.end(), [](const Sequence& s) { return !s.running; });
    if (waiting >= options_.max_queue_size) return Error(Code::kOverloaded, "max_queue_size: the queue is full");
    for (int32_t i = 0; i < request->n; ++i) sequences_.push_back({request, sink, i});
  }
  changed_.notify_all();
  return {};
}

void ScriptedExecutor::Cancel(RequestId id) {
  std::lock_guard lock(mutex_);
  for (Sequence& sequence : sequences_)
    if (sequence.request->id == id) sequence.asked = FinishReason::kCancelled;
}

void ScriptedExecutor::Stop(RequestId id, int32_t sequence_index, FinishReason reason) {
  std::lock_guard lock(mutex_);
  for (Sequence& sequence : sequences_)
    if (sequence.request->id == id && sequence.index == sequence_index) sequence.asked = reason;
}

void ScriptedExecutor::Start() {
  thread_ = std::thread([this] { Run(); });
}

void ScriptedExecutor::Run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !sequences_.empty() || stopping_; });
      if (stopping_ && sequences_.empty()) return;
    }
    if (options_.turn_time > Nanos(0)) std::this_thread::sleep_for(options_.turn_time);
    Step();
    changed_.notify_all();
  }
}

bool ScriptedExecutor::Step() {
  std::lock_guard lock(mutex_);
  int32_t running = 0;
  for (Sequence& sequence : sequences_) running += sequence.running;
  for (Sequence& sequence : sequences_) {
    if (running >= options_.max_batch_size) break;
    if (std::exchange(sequence.running, true)) continue;
    sequence.scheduled = clock_.Now();
    ++running;
  }
  ++stats_.steps;
  bool worked = !sequences_.empty();
  for (auto it = sequences_.begin(); it != sequences_.end();) it = Turn(*it) ? sequences_.erase(it) : std::next(it);
  return worked;
}

// True when the sequence ended.
bool ScriptedExecutor::Turn(Sequence& sequence) {
  const Request& request = *sequence.request;
  TokenEvent event;
  event.request = request.id;
  event.sequence_index = sequence.index;
  event.scheduled = sequence.scheduled;
  event.emitted = clock_.Now();
  event.reason = sequence.asked;
  if (stopping_) event.reason = FinishReason::kCancelled;
  if (!healthy_) event.reason = FinishReason::kError;
  if (request.deadline && clock_.Now() >= *request.deadline) event.reason = FinishReason::kDeadline;
  PositionLogProbs logprobs;
  if (event.reason == FinishReason::kNone && sequence.running) {
    if (sequence.position == 0 && request.prompt_logprobs && sequence.index == 0) {
      PositionLogProbs scored;
      scored.chosen = -1.5f;
      sequence.sink->OnPromptLogProbs(request.id, std::vector<PositionLogProbs>(request.prompt.size() - 1, scored));
    }
    if (request.pooling !=
        Pooling::kNone) {  // how often the low values of a byte occur: a vector that a test can predict
      std::vector<float> pooled(16);
      for (TokenId token : request.prompt) pooled[static_cast<size_t>(token) % pooled.size()] += 1;
      sequence.sink->OnPooled(request.id, pooled);
    }
    if (request.max_tokens == 0) {
      event.reason = FinishReason::kLength;
    } else {
      if (request.logits != nullptr) {  // a row is full of its position, of a generated one 100 more for each sequence
        int32_t width = request.logits->vocab_size(), at = sequence.position;
        for (int32_t p = 0; at == 0 && p < request.logits->prompt_tokens(); ++p)
          std::fill_n(request.logits->Context(p), width, static_cast<float>(p));
        if (request.logits->generation())
          std::fill_n(request.logits->Generation(sequence.index, at), width,
                      static_cast<float>(at + 100 * (sequence.index + 1)));
      }
      event.token = options_.next_token(request, sequence.index, sequence.position++);
      ++stats_.generation_tokens;
      if (event.token < 0) event.token = request.stop_tokens.empty() ? 0 : request.stop_tokens.back();
      bool end =
          std::find(request.stop_tokens.begin(), request.stop_tokens.end(), event.token) != request.stop_tokens.end();
      if (end && !request.ignore_eos && sequence.position > request.sampling.min_tokens)
        event.reason = FinishReason::kEndToken;
      else if (sequence.position == request.max_tokens)
        event.reason = FinishReason::kLength;
    }
    if (request.sampling.logprobs >= 0) {
      logprobs.chosen = -0.25f;
      logprobs.count = request.sampling.logprobs;
      for (int32_t i = 0; i < logprobs.count; ++i)
        logprobs.best[i] = {i == 0 ? event.token : i, -0.25f - static_cast<float>(i)};
      event.logprobs = &logprobs;
    }
  }
  if (event.token < 0 && event.reason == FinishReason::kNone) return false;
  sequence.sink->OnToken(event);
  return event.reason != FinishReason::kNone;
}

void ScriptedExecutor::Drain(Nanos deadline) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  changed_.wait_for(lock, deadline - clock_.Now(), [&] { return sequences_.empty(); });
  for (Sequence& sequence : sequences_) sequence.asked = FinishReason::kCancelled;
}

void ScriptedExecutor::Shutdown() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

ExecutorStats ScriptedExecutor::stats() const {
  std::lock_guard lock(mutex_);
  ExecutorStats stats = stats_;
  for (const Sequence& sequence : sequences_) ++(sequence.running ? stats.running : stats.waiting);
  stats.blocks_total = 100;
  stats.blocks_used = stats.running;
  return stats;
}

void ScriptedExecutor::BreakDevice() {
  healthy_ = false;
}

}  // namespace ekiben::serve::testing
