#include "serve/service.h"

#include <fmt/format.h>
#include <pthread.h>

#include <mutex>
#include <thread>
#include <unordered_map>

#include "base/bounded_queue.h"
#include "base/log.h"
#include "executor/executor.h"
#include "serve/postprocess.h"
#include "serve/preprocess.h"

namespace ekiben::serve {
namespace {

class Ensemble final : public Service {
 public:
  Ensemble(Executor& executor, const text::Tokenizer& tokenizer, const text::ChatTemplate* chat_template,
           const Clock& clock, const ServiceConfig& config)
      : executor_(executor),
        tokenizer_(tokenizer),
        clock_(clock),
        config_(config),
        preprocessor_(tokenizer, chat_template, clock, config),
        grammars_(text::GrammarCompiler::Create(tokenizer, config.vocab_size, clock)),
        arrivals_(config.preprocessing_queue_max),
        grammar_arrivals_(config.preprocessing_queue_max) {
    for (int i = 0; i < config.postprocessing_instance_count; ++i)
      postprocessors_.push_back(std::make_unique<Postprocessor>(executor, config.postprocessing_queue_max,
                                                                [this](RequestId id) { Release(id); }));
    // Named, so that a profile or `top -H` says which stage a core works for.
    for (auto& instance : postprocessors_)
      threads_.emplace_back([&instance] {
        pthread_setname_np(pthread_self(), "postprocessing");
        instance->Run();
      });
    for (int i = 0; i < config.preprocessing_instance_count; ++i)
      threads_.emplace_back([this] {
        pthread_setname_np(pthread_self(), "preprocessing");
        Preprocess(arrivals_);
      });
    threads_.emplace_back([this] {
      pthread_setname_np(pthread_self(), "grammars");
      Preprocess(grammar_arrivals_);
    });
  }

  ~Ensemble() override {
    arrivals_.Close();
    grammar_arrivals_.Close();
    size_t posts = postprocessors_.size();
    for (size_t i = posts; i < threads_.size(); ++i) threads_[i].join();
    for (auto& instance : postprocessors_) instance->Stop();
    for (size_t i = 0; i < posts; ++i) threads_[i].join();
    // The executor was shut down with these unended; nothing will come.
    for (auto& [id, request] : active_)
      if (!request->failed) request->sink->OnError(Error(Code::kUnavailable, "the server is shutting down"));
  }

  Result<RequestId> Submit(TextRequest request, std::shared_ptr<TextSink> sink) override;
  void Cancel(RequestId id) override;
  Result<std::vector<TokenId>> Tokenize(const TextRequest& request) const override {
    return preprocessor_.Tokenize(request);
  }
  ServiceStats stats() const override;
  const ServiceConfig& config() const override { return config_; }
  const text::Tokenizer& tokenizer() const override { return tokenizer_; }
  Executor& executor() override { return executor_; }

 private:
  using Arrivals = BoundedQueue<std::shared_ptr<ActiveRequest>>;
  void Preprocess(Arrivals& arrivals);
  void PreprocessOne(const std::shared_ptr<ActiveRequest>& request);
  Result<void> Hand(const std::shared_ptr<ActiveRequest>& request);
  void TellCancelled(ActiveRequest& request);
  void Release(RequestId id);
  std::shared_ptr<ActiveRequest> Find(RequestId id) const;

  Executor& executor_;
  const text::Tokenizer& tokenizer_;
  const Clock& clock_;
  const ServiceConfig config_;
  const Preprocessor preprocessor_;
  const std::unique_ptr<text::GrammarCompiler> grammars_;  // of the grammar instance
  Arrivals arrivals_;
  // Requests with a grammar have an instance of their own: compiling one may take seconds, and only others with a
  // grammar wait for it.
  Arrivals grammar_arrivals_;
  std::vector<std::unique_ptr<Postprocessor>> postprocessors_;
  std::atomic<uint64_t> next_id_{1}, requests_{0}, errors_{0}, prompt_tokens_{0}, stalls_{0};
  mutable std::mutex mutex_;  // active_
  std::unordered_map<RequestId, std::shared_ptr<ActiveRequest>> active_;
  std::vector<std::thread> threads_;  // postprocessing, then preprocessing
};

Result<RequestId> Ensemble::Submit(TextRequest request, std::shared_ptr<TextSink> sink) {
  auto active = std::make_shared<ActiveRequest>();
  RequestId id{next_id_.fetch_add(1, std::memory_order_relaxed)};
  active->id = id;
  active->times.arrival = clock_.Now();
  active->input = std::move(request);
  active->sink = std::move(sink);
  active->channel = &postprocessors_[id.value % postprocessors_.size()]->channel();
  active->stalls = &stalls_;
  requests_.fetch_add(1, std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    active_.emplace(id, active);
  }
  Arrivals& arrivals = active->input.grammar ? grammar_arrivals_ : arrivals_;
  if (!arrivals.TryPush(std::move(active))) {
    Release(id);
    errors_.fetch_add(1, std::memory_order_relaxed);
    if (arrivals.closed()) return Error(Code::kUnavailable, "the server is shutting down");
    return Error(Code::kOverloaded, fmt::format("preprocessing_queue_max: {} requests are waiting already; try again",
                                                config_.preprocessing_queue_max));
  }
  return id;
}

void Ensemble::Cancel(RequestId id) {
  auto request = Find(id);
  if (request == nullptr) return;
  request->cancelled.store(true, std::memory_order_release);
  executor_.Cancel(id);  // unknown there while preprocessing holds it: Hand asks again
}

void Ensemble::Preprocess(Arrivals& arrivals) {
  while (auto request = arrivals.Pop()) PreprocessOne(*request);
}

void Ensemble::PreprocessOne(const std::shared_ptr<ActiveRequest>& request) {
  request->times.taken = clock_.Now();
  if (request->cancelled.load(std::memory_order_acquire)) return TellCancelled(*request);
  auto handed = [&]() -> Result<void> {
    try {
      return Hand(request);
    } catch (const std::exception& e) {  // a library ran out of memory: this request fails, the server goes on
      return Error(Code::kInternal, fmt::format("preprocessing failed: {}", e.what()));
    }
  }();
  if (handed.ok()) return;
  errors_.fetch_add(1, std::memory_order_relaxed);
  request->sink->OnError(handed.error());
  Release(request->id);
}

Result<void> Ensemble::Hand(const std::shared_ptr<ActiveRequest>& request) {
  if (config_.max_queue_size > 0 && executor_.stats().waiting >= config_.max_queue_size)
    return Error(Code::kOverloaded,
                 fmt::format("max_queue_size: {} requests are waiting already; try again", config_.max_queue_size));
  std::shared_ptr<const TokenConstraint> constraint;
  if (request->input.grammar) {
    ASSIGN_OR_RETURN(constraint, grammars_->Compile(*request->input.grammar));
  }
  ASSIGN_OR_RETURN(request->tokens,
                   preprocessor_.Build(request->id, request->input, request->times.arrival, constraint));
  text::Detokenizer::Options options{request->input.skip_special_tokens, request->input.include_stop_text,
                                     request->input.stop};
  request->sequences.reserve(static_cast<size_t>(request->tokens->n));
  for (int32_t i = 0; i < request->tokens->n; ++i)
    request->sequences.emplace_back(text::Detokenizer(tokenizer_, options));
  // Counted before the first token can be out, and taken back when there will be none.
  auto prompt_tokens = request->tokens->prompt.size();
  prompt_tokens_.fetch_add(prompt_tokens, std::memory_order_relaxed);
  request->times.submitted = clock_.Now();
  auto submitted = executor_.Submit(request->tokens, request.get());
  if (!submitted.ok()) {
    prompt_tokens_.fetch_sub(prompt_tokens, std::memory_order_relaxed);
    return submitted;
  }
  if (request->cancelled.load(std::memory_order_acquire)) executor_.Cancel(request->id);
  return {};
}

void Ensemble::TellCancelled(ActiveRequest& request) {
  PromptInfo info;
  info.id = request.id;
  info.times = request.times;
  request.sink->OnPrompt(info);
  for (int32_t i = 0; i < request.input.n; ++i) {
    TextEvent event;
    event.sequence_index = i;
    event.reason = FinishReason::kCancelled;
    request.sink->OnText(event);
  }
  Release(request.id);
}

void Ensemble::Release(RequestId id) {
  std::shared_ptr<ActiveRequest> last;  // destroyed outside the lock
  std::lock_guard lock(mutex_);
  auto found = active_.find(id);
  if (found == active_.end()) return;
  last = std::move(found->second);
  active_.erase(found);
}

std::shared_ptr<ActiveRequest> Ensemble::Find(RequestId id) const {
  std::lock_guard lock(mutex_);
  auto found = active_.find(id);
  return found == active_.end() ? nullptr : found->second;
}

ServiceStats Ensemble::stats() const {
  ServiceStats stats;
  stats.requests = requests_;
  stats.errors = errors_;
  stats.prompt_tokens = prompt_tokens_;
  stats.preprocessing_queued = arrivals_.size() + grammar_arrivals_.size();
  for (const auto& instance : postprocessors_) {
    stats.output_tokens += instance->output_tokens();
    stats.postprocessing_queued += instance->channel().size();
  }
  stats.postprocessing_stalls = stalls_;
  return stats;
}

Error OutOfRange(const char* field, int64_t value, int64_t low, int64_t high) {
  return Error(Code::kInvalid, fmt::format("{}: {} is outside [{}, {}]", field, value, low, high), field);
}

}  // namespace

Result<std::unique_ptr<Service>> Service::Create(Executor& executor, const text::Tokenizer& tokenizer,
                                                 const text::ChatTemplate* chat_template, const Clock& clock,
                                                 const ServiceConfig& config) {
  if (config.preprocessing_instance_count < 1 || config.preprocessing_instance_count > 64)
    return OutOfRange("preprocessing_instance_count", config.preprocessing_instance_count, 1, 64);
  if (config.postprocessing_instance_count < 1 || config.postprocessing_instance_count > 64)
    return OutOfRange("postprocessing_instance_count", config.postprocessing_instance_count, 1, 64);
  if (config.preprocessing_queue_max < 1)
    return OutOfRange("preprocessing_queue_max", static_cast<int64_t>(config.preprocessing_queue_max), 1, 1 << 20);
  if (config.postprocessing_queue_max < 1)
    return OutOfRange("postprocessing_queue_max", static_cast<int64_t>(config.postprocessing_queue_max), 1, 1 << 26);
  if (config.max_seq_len < 1 || config.max_input_len < 1 || config.max_input_len > config.max_seq_len)
    return OutOfRange("max_input_len", config.max_input_len, 1, config.max_seq_len);
  if (config.vocab_size < 1) return OutOfRange("vocab_size", config.vocab_size, 1, INT32_MAX);
  return std::unique_ptr<Service>(std::make_unique<Ensemble>(executor, tokenizer, chat_template, clock, config));
}

}  // namespace ekiben::serve
