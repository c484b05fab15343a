#include "kserve/generation.h"

#include <algorithm>

#include "base/arithmetic.h"
#include "executor/executor.h"

namespace ekiben::kserve {
namespace {

bool EndsWith(const TokenSequence& tokens, const TokenSequence& suffix) {
  return tokens.size() >= suffix.size() && std::equal(suffix.rbegin(), suffix.rend(), tokens.rbegin());
}

}  // namespace

// One row's way back into the inference.
class Generation::RowSink final : public serve::TextSink {
 public:
  RowSink(std::shared_ptr<Generation> owner, size_t row) : owner_(std::move(owner)), row_(row) {}
  void OnPrompt(const serve::PromptInfo& info) override { owner_->OnPrompt(row_, info); }
  void OnText(const serve::TextEvent& event) override { owner_->OnText(row_, event); }
  void OnError(const Error& error) override { owner_->OnError(error); }

 private:
  const std::shared_ptr<Generation> owner_;
  const size_t row_;
};

Generation::Generation(Config config, GenerationPlan plan, const Clock& clock, Statistics& statistics,
                       std::shared_ptr<InferSink> sink, std::function<void(const StageTimes&)> ended)
    : config_(std::move(config)),
      plan_(std::move(plan)),
      clock_(clock),
      statistics_(statistics),
      ended_(std::move(ended)),
      arrival_(clock.Now()),
      sink_(std::move(sink)),
      rows_(plan_.rows.size()),
      sequences_left_(rows_.size() * static_cast<size_t>(plan_.n)) {
  for (Row& row : rows_) row.sequences.resize(static_cast<size_t>(plan_.n));
}

// The events of a row that has begun wait for the others to be taken: a row that is refused refuses the request whole.
Result<void> Generation::Begin() {
  std::lock_guard lock(responses_mutex_);
  statistics_.Pending(config_.part, config_.prefix, 1);
  for (size_t i = 0; i < plan_.rows.size(); ++i) {
    auto id = config_.model->service().Submit(plan_.rows[i].request, std::make_shared<RowSink>(shared_from_this(), i));
    if (!id.ok()) {
      done_ = true;
      pending_ = false;
      CancelRows();
      statistics_.Pending(config_.part, config_.prefix, -1);
      statistics_.Failed(config_.part, config_.prefix, FailureOf(id.error().code()), clock_.Now() - arrival_, 0);
      return id.error();
    }
    std::lock_guard ids_lock(ids_mutex_);
    ids_.push_back(*id);
    if (cancelled_) config_.model->service().Cancel(*id);
  }
  return {};
}

void Generation::Cancel() {
  std::lock_guard lock(ids_mutex_);
  if (std::exchange(cancelled_, true)) return;
  for (RequestId id : ids_) config_.model->service().Cancel(id);
}

void Generation::StopQuietly() {
  {
    std::lock_guard lock(ids_mutex_);
    quiet_ = true;
  }
  Cancel();
}

std::pair<bool, bool> Generation::Cancelled() {
  std::lock_guard lock(ids_mutex_);
  return {cancelled_, quiet_};
}

void Generation::CancelRows() {
  std::lock_guard lock(ids_mutex_);
  for (RequestId id : ids_) config_.model->service().Cancel(id);
}

void Generation::OnPrompt(size_t row, const serve::PromptInfo& info) {
  std::lock_guard lock(responses_mutex_);
  rows_[row].info = info;
  if (std::exchange(pending_, false)) statistics_.Pending(config_.part, config_.prefix, -1);
}

void Generation::OnText(size_t row_index, const serve::TextEvent& event) {
  std::lock_guard lock(responses_mutex_);
  if (done_) return;
  Row& row = rows_[row_index];
  auto index = static_cast<size_t>(event.sequence_index);
  Sequence& sequence = row.sequences[index];
  if (sequence.ended) return;
  if (event.reason == FinishReason::kDeadline)
    return Fail(Error(Code::kDeadline, "timeout: the request was not finished in time"));
  if (event.reason == FinishReason::kCancelled) {
    auto [asked, quiet] = Cancelled();
    if (!asked) return Fail(Error(Code::kUnavailable, "the request was cancelled: the server is shutting down"));
    if (!quiet) return Fail(Error(Code::kCancelled, "the request was cancelled"));
  }
  bool ended = Take(row, sequence, plan_.rows[row_index], event);
  if (ended) {
    sequence.ended = true;
    --sequences_left_;
  }
  bool whole = !config_.may_stream;
  if (whole && sequences_left_ == 0) RespondWhole();
  bool visible = config_.part == Part::kTensorRtLlm ? !sequence.tokens.empty() : !event.text.empty();
  if (!whole && (ended || (plan_.stream && visible))) Respond(row_index, index, ended, event.emitted);
  if (sequences_left_ == 0 && !done_) Finish();  // done: a response could not be sent
}

// True when the sequence has ended with this event.
bool Generation::Take(Row& row, Sequence& sequence, const GenerationPlan::Row& plan, const serve::TextEvent& event) {
  Nanos zero{};
  if (event.emitted != zero) {
    if (row.first_token == zero) row.first_token = event.emitted;
    row.last_token = std::max(row.last_token, event.emitted);
  }
  sequence.text.append(event.text);
  int32_t tokens = event.reason == FinishReason::kEndToken ? 0 : event.tokens_new;
  sequence.sampled += event.tokens_new;
  sequence.tokens_new += tokens;
  sequence.tokens_all += tokens;
  sequence.tokens.insert(sequence.tokens.end(), event.tokens.begin(), event.tokens.end());
  for (const PositionLogProbs& position : event.logprobs) {
    sequence.log_probs.push_back(position.chosen);
    sequence.cum_log_prob += position.chosen;
  }
  if (event.reason != FinishReason::kNone) return true;
  size_t longest = 0;
  for (const TokenSequence& stop : plan.stop_sequences) longest = std::max(longest, stop.size());
  if (longest == 0) return false;
  sequence.tail.insert(sequence.tail.end(), event.tokens.begin(), event.tokens.end());
  if (sequence.tail.size() > 2 * longest)
    sequence.tail.erase(sequence.tail.begin(), sequence.tail.end() - static_cast<ptrdiff_t>(longest));
  for (const TokenSequence& stop : plan.stop_sequences) {
    if (!EndsWith(sequence.tail, stop)) continue;
    config_.model->service().executor().Stop(row.info.id, event.sequence_index, FinishReason::kStopText);
    return true;
  }
  return false;
}

void Generation::Respond(size_t row, size_t index, bool last_of_sequence, Nanos emitted) {
  InferResponse response = config_.head;
  response.final = sequences_left_ == 0 && config_.part != Part::kBls;
  Sequence& sequence = rows_[row].sequences[index];
  if (!config_.accumulate_text && !plan_.stream) sequence.text.insert(0, plan_.rows[row].echo);
  AddRowOutputs(response, {{row, index}}, last_of_sequence);
  if (!config_.accumulate_text) sequence.text.clear();
  sequence.tokens.clear();
  sequence.log_probs.clear();
  sequence.tokens_new = 0;
  Send(std::move(response), emitted);
}

void Generation::RespondWhole() {
  InferResponse response = config_.head;
  response.final = true;
  std::vector<std::pair<size_t, size_t>> all;
  Nanos last{};
  for (size_t row = 0; row < rows_.size(); ++row) {
    last = std::max(last, rows_[row].last_token);
    for (size_t i = 0; i < rows_[row].sequences.size(); ++i) {
      rows_[row].sequences[i].text.insert(0, plan_.rows[row].echo);
      all.emplace_back(row, i);
    }
  }
  AddRowOutputs(response, all, true);
  Send(std::move(response), last);
}

void Generation::Send(InferResponse response, Nanos emitted) {
  if (auto formed = config_.forms.Apply(response.outputs); !formed.ok()) return Fail(formed.error());
  Nanos now = clock_.Now();
  if (responses_.empty()) {
    first_response_ = now - arrival_;
    last_response_ = Times().scheduled;
  }
  if (emitted == Nanos(0)) emitted = now;
  responses_.push_back(
      {std::max(emitted - last_response_, Nanos(0)), std::max(now - emitted, Nanos(0)), response.outputs.empty()});
  last_response_ = emitted;
  if (response.final) CountSuccess();  // whoever asks after the last response finds it counted
  sink_->OnResponse(std::move(response));
}

void Generation::AddRowOutputs(InferResponse& response, const std::vector<std::pair<size_t, size_t>>& of, bool last) {
  size_t rows = of.back().first - of.front().first + 1;
  auto batch = static_cast<int64_t>(rows), each = static_cast<int64_t>(of.size() / rows);
  auto add = [&](Tensor tensor) {
    if (Wanted(tensor.name)) response.outputs.push_back(std::move(tensor));
  };
  if (config_.part == Part::kTensorRtLlm) {
    AddTokenOutputs(response, of);
  } else {
    std::vector<std::string> texts;
    for (auto [row, index] : of) texts.push_back(rows_[row].sequences[index].text);
    add(BytesTensor("text_output", {batch * each}, texts));
  }
  std::vector<int32_t> input_tokens, output_tokens, batch_index, sequence_index;
  for (auto [row, index] : of) {
    if (index == of.front().second) input_tokens.push_back(rows_[row].info.prompt_tokens);
    output_tokens.push_back(rows_[row].sequences[index].tokens_new);
    batch_index.push_back(static_cast<int32_t>(row));
    sequence_index.push_back(static_cast<int32_t>(index));
  }
  if (plan_.num_input_tokens) add(Int32Tensor("num_input_tokens", {batch, 1}, input_tokens));
  if (plan_.num_output_tokens) add(Int32Tensor("num_output_tokens", {batch, each}, output_tokens));
  if (plan_.log_probs) {
    std::vector<float> sums, each_token;
    size_t longest = 0;
    for (auto [row, index] : of) longest = std::max(longest, rows_[row].sequences[index].log_probs.size());
    for (auto [row, index] : of) {
      const Sequence& sequence = rows_[row].sequences[index];
      sums.push_back(sequence.cum_log_prob);
      each_token.insert(each_token.end(), sequence.log_probs.begin(), sequence.log_probs.end());
      each_token.resize(sums.size() * longest, 0.0f);
    }
    add(Fp32Tensor("cum_log_probs", {batch, each}, sums));
    add(Fp32Tensor("output_log_probs", {batch, each, static_cast<int64_t>(longest)}, each_token));
  }
  AddLogits(response, of);
  if (rows_.size() > 1) add(Int32Tensor("batch_index", {batch, each}, batch_index));
  if (plan_.n > 1) add(Int32Tensor("sequence_index", {batch, each}, sequence_index));
  if (plan_.perf_metrics && last) AddPerfMetrics(response, of);
}

// context_logits [1, prompt, vocab] once; generation_logits [1, sequences, max_tokens, vocab], rows without a token
// zero, or in a stream [1, 1, new tokens, vocab]. Of one prompt: a batch was refused.
void Generation::AddLogits(InferResponse& response, const std::vector<std::pair<size_t, size_t>>& of) {
  Row& row = rows_[of.front().first];
  if (row.info.logits == nullptr) return;
  const GatheredLogits& logits = *row.info.logits;
  const int64_t vocab = logits.vocab_size();
  const size_t row_bytes = static_cast<size_t>(vocab) * sizeof(float);
  auto append = [&](Tensor& tensor, const float* values) {
    tensor.data.append(reinterpret_cast<const char*>(values), row_bytes);
  };
  if (plan_.context_logits && Wanted("context_logits") && !std::exchange(row.context_told, true)) {
    Tensor tensor{"context_logits", DataType::kFp32, {1, logits.prompt_tokens(), vocab}, {}};
    tensor.data.reserve(row_bytes * static_cast<size_t>(logits.prompt_tokens()));
    for (int32_t i = 0; i < logits.prompt_tokens(); ++i) append(tensor, logits.Context(i));
    response.outputs.push_back(std::move(tensor));
  }
  if (!plan_.generation_logits || !Wanted("generation_logits")) return;
  Sequence& first = row.sequences[of.front().second];
  int32_t tokens = plan_.stream ? first.sampled - first.sampled_told : logits.max_tokens();
  Tensor tensor{"generation_logits", DataType::kFp32, {1, static_cast<int64_t>(of.size()), tokens, vocab}, {}};
  tensor.data.reserve(row_bytes * of.size() * static_cast<size_t>(tokens));
  for (size_t at = 0; at < of.size(); ++at) {
    Sequence& sequence = row.sequences[of[at].second];
    auto index = static_cast<int32_t>(of[at].second);
    int32_t begin = plan_.stream ? std::exchange(sequence.sampled_told, sequence.sampled) : 0;
    for (int32_t i = begin; i < sequence.sampled; ++i) append(tensor, logits.Generation(index, i));
    tensor.data.resize(row_bytes * (at + 1) * static_cast<size_t>(tokens));
  }
  response.outputs.push_back(std::move(tensor));
}

void Generation::AddTokenOutputs(InferResponse& response, const std::vector<std::pair<size_t, size_t>>& of) const {
  size_t rows = of.back().first - of.front().first + 1;
  auto batch = static_cast<int64_t>(rows), each = static_cast<int64_t>(of.size() / rows);
  std::vector<TokenSequence> sequences;
  size_t longest = 0;
  for (auto [row, index] : of) {
    TokenSequence tokens = plan_.rows[row].echo_tokens;
    const TokenSequence& made = rows_[row].sequences[index].tokens;
    tokens.insert(tokens.end(), made.begin(), made.end());
    longest = std::max(longest, tokens.size());
    sequences.push_back(std::move(tokens));
  }
  std::vector<int32_t> ids, lengths;
  for (const TokenSequence& tokens : sequences) {
    lengths.push_back(static_cast<int32_t>(tokens.size()));
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    ids.resize(lengths.size() * longest, -1);
  }
  response.outputs.push_back(Int32Tensor("output_ids", {batch, each, static_cast<int64_t>(longest)}, ids));
  response.outputs.push_back(Int32Tensor("sequence_length", {batch, each}, lengths));
}

void Generation::AddPerfMetrics(InferResponse& response, const std::vector<std::pair<size_t, size_t>>& of) const {
  std::vector<int32_t> new_blocks, reused_blocks, all_blocks;
  std::vector<int64_t> arrival, scheduled, first, last;
  int32_t tokens_per_block = std::max(config_.model->facts().tokens_per_block, 1);
  for (auto [row_index, index] : of) {
    const Row& row = rows_[row_index];
    int32_t cached = row.info.prompt_tokens + std::max(row.sequences[index].tokens_all - 1, 0);  // the last is not
    all_blocks.push_back(CeilDiv(cached, tokens_per_block));
    reused_blocks.push_back(row.info.cached_tokens / tokens_per_block);
    new_blocks.push_back(all_blocks.back() - reused_blocks.back());
    arrival.push_back(row.info.times.arrival.count());
    scheduled.push_back(row.info.times.scheduled.count());
    first.push_back(row.first_token.count());
    last.push_back(row.last_token.count());
  }
  size_t rows = of.back().first - of.front().first + 1;
  std::vector<int64_t> shape = {static_cast<int64_t>(rows), static_cast<int64_t>(of.size() / rows)};
  std::vector<int32_t> none(of.size(), 0);  // there is no draft model
  auto add = [&](Tensor tensor) {
    if (Wanted(tensor.name)) response.outputs.push_back(std::move(tensor));
  };
  add(Int32Tensor("kv_cache_alloc_new_blocks", shape, new_blocks));
  add(Int32Tensor("kv_cache_reused_blocks", shape, reused_blocks));
  add(Int32Tensor("kv_cache_alloc_total_blocks", shape, all_blocks));
  add(Int64Tensor("arrival_time_ns", shape, arrival));
  add(Int64Tensor("first_scheduled_time_ns", shape, scheduled));
  add(Int64Tensor("first_token_time_ns", shape, first));
  add(Int64Tensor("last_token_time_ns", shape, last));
  add(Fp32Tensor("acceptance_rate", shape, std::vector<float>(of.size(), 0.0f)));
  add(Int32Tensor("total_accepted_draft_tokens", shape, none));
  add(Int32Tensor("total_draft_tokens", shape, none));
}

StageTimes Generation::Times() const {
  StageTimes out;
  out.arrival = arrival_;
  out.taken = out.scheduled = Nanos::max();
  for (const Row& row : rows_) {
    out.taken = std::min(out.taken, row.info.times.taken);
    out.submitted = std::max(out.submitted, row.info.times.submitted);
    out.scheduled = std::min(out.scheduled, row.info.times.scheduled);
    out.last_token = std::max(out.last_token, row.last_token);
  }
  // A row may start while another is still tokenized: the stages of the whole follow each other, and add up.
  out.scheduled = std::max(out.scheduled, out.submitted);
  out.last_token = std::max(out.last_token, out.scheduled);
  out.end = clock_.Now();
  return out;
}

void Generation::CountSuccess() {
  Statistics::Success success;
  success.part = config_.part;
  success.prefix = config_.prefix;
  success.times = Times();
  success.wall = clock_.WallNow();
  success.batch = rows_.size();
  success.first_response = first_response_;
  for (const Row& row : rows_) {
    success.input_tokens += static_cast<uint64_t>(row.info.prompt_tokens);
    for (const Sequence& sequence : row.sequences) success.output_tokens += static_cast<uint64_t>(sequence.tokens_all);
  }
  success.responses = std::move(responses_);
  statistics_.Succeeded(success);
}

// tensorrt_llm_bls says its end in a response of its own, as Triton's Python models do.
void Generation::Finish() {
  done_ = true;
  if (config_.may_stream && config_.part == Part::kBls) {
    InferResponse empty = config_.head;
    empty.final = true;
    Send(std::move(empty), Nanos(0));
  }
  ended_(Times());
  sink_.reset();
}

void Generation::OnError(const Error& error) {
  std::lock_guard lock(responses_mutex_);
  if (!done_) Fail(error);
}

void Generation::Fail(const Error& error) {
  done_ = true;
  CancelRows();
  if (std::exchange(pending_, false)) statistics_.Pending(config_.part, config_.prefix, -1);
  statistics_.Failed(config_.part, config_.prefix, FailureOf(error.code()), clock_.Now() - arrival_, responses_.size());
  sink_->OnError(error);
  ended_(Times());
  sink_.reset();
}

}  // namespace ekiben::kserve
