#include "backend/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <utility>

#include "base/arithmetic.h"

namespace ekiben {

Result<std::unique_ptr<CpuBackend>> CpuBackend::Create(Model& model, const CpuBackendConfig& config,
                                                       const Clock& clock) {
  if (config.threads < 1 || config.threads > 1024)
    return Error(Code::kInvalid, fmt::format("threads: {} is outside [1, 1024]", config.threads), "threads");
  int32_t blocks_of_one = CeilDiv(config.max_seq_len, config.tokens_per_block);
  if (config.kv_blocks < blocks_of_one)
    return Error(
        Code::kInvalid,
        fmt::format("max_tokens_in_paged_kv_cache: {} tokens do not hold one sequence of max_seq_len {}; raise "
                    "it, or lower --max_seq_len",
                    int64_t{config.kv_blocks} * config.tokens_per_block, config.max_seq_len),
        "max_tokens_in_paged_kv_cache");
  return std::unique_ptr<CpuBackend>(new CpuBackend(model, config, clock));
}

CpuBackend::CpuBackend(Model& model, const CpuBackendConfig& config, const Clock& clock)
    : model_(model),
      clock_(clock),
      pool_(config.threads),
      arena_(model.ScratchBytes(config.max_num_tokens, config.max_num_tokens, config.threads)),
      ctx_{.pool = &pool_, .arena = &arena_, .isa = BestIsa(), .tuning = config.tuning},
      kv_({.layers = model.config().num_hidden_layers,
           .kv_heads = model.config().num_key_value_heads,
           .head_dim = model.config().head_dim,
           .tokens_per_block = config.tokens_per_block,
           .blocks = config.kv_blocks,
           .dtype = config.kv_dtype}),
      sampler_(config.max_batch_size, model.config().vocab_size, BestIsa()),
      blocks_per_slot_(static_cast<size_t>(CeilDiv(config.max_seq_len, config.tokens_per_block))),
      slots_(static_cast<size_t>(config.max_batch_size)),
      tables_(slots_.size() * blocks_per_slot_),
      plan_({.rows = config.max_batch_size, .tokens = config.max_num_tokens, .table_edits = 0, .copies = 0}) {
  const ModelConfig& m = model.config();
  info_ = {.name = "cpu",
           .description = fmt::format("{}, {} threads", DescribeCpu(), config.threads),
           .vocab_size = m.vocab_size,
           .max_batch_size = config.max_batch_size,
           .max_num_tokens = config.max_num_tokens,
           .max_seq_len = config.max_seq_len,
           .tokens_per_block = config.tokens_per_block,
           .blocks = config.kv_blocks,
           .tickets_max = 1,
           .kv_bytes_per_token = static_cast<int64_t>(kv_.bytes_per_block()) / config.tokens_per_block};
  auto tokens = static_cast<size_t>(config.max_num_tokens);
  token_ids_.reserve(tokens);
  positions_.reserve(tokens);
  output_tokens_.reserve(tokens);
  attention_rows_.reserve(slots_.size());
  outputs_.reserve(slots_.size());
  results_.reserve(slots_.size());
  sampled_.resize(slots_.size());
  logprobs_.resize(slots_.size());
  prompt_logprobs_.reserve(tokens);
  // Pages are touched only by as many rows as a step asks for: max_batch_size of them, or all under prompt_logprobs.
  logits_ = Buffer(tokens * static_cast<size_t>(m.vocab_size) * sizeof(float));
  hidden_ = Buffer(tokens * static_cast<size_t>(m.hidden_size) * sizeof(float));
  info_.pools_hidden = info_.gathers_logits = true;
}

CpuBackend::~CpuBackend() = default;

size_t CpuBackend::KvBytesPerBlock(const ModelConfig& m, int32_t tokens_per_block, DType dtype) {
  return ekiben::KvBytesPerBlock({.layers = m.num_hidden_layers,
                                  .kv_heads = m.num_key_value_heads,
                                  .head_dim = m.head_dim,
                                  .tokens_per_block = tokens_per_block,
                                  .blocks = 1,
                                  .dtype = dtype});
}

std::vector<MemoryLine> CpuBackend::memory() const {
  return {{"KV cache", kv_.bytes_per_block() * static_cast<size_t>(info_.blocks)},
          {"activations", arena_.capacity()},
          {"logits (touched on demand)", logits_.size()},
          {"hidden states (touched on demand)", hidden_.size()},
          {"block tables and slots", tables_.size() * sizeof(BlockId) + slots_.size() * sizeof(SlotState)}};
}

void CpuBackend::BindSlot(const SlotBinding& binding) {
  SlotState& slot = slots_[static_cast<size_t>(binding.slot.value)];
  slot.request = binding.request;
  slot.sequence_index = binding.sequence_index;
  slot.last_token = binding.generated.empty() ? 0 : binding.generated.back();
  slot.pooled.clear();
  if (binding.request->pooling != Pooling::kNone) slot.pooled.resize(static_cast<size_t>(model_.config().hidden_size));
  sampler_.Bind(binding.slot, *binding.request, binding.sequence_index, binding.generated);
}

Result<Ticket> CpuBackend::Launch(const StepPlan& plan) {
  CHECK(!in_flight_, "the CPU backend runs one step at a time");
  if (plan_.bytes().size() != plan.bytes().size()) plan_ = StepPlan(plan.capacity());
  std::memcpy(const_cast<std::byte*>(plan_.bytes().data()), plan.bytes().data(), plan.bytes().size());
  in_flight_ = true;
  return Ticket{next_ticket_++};
}

Result<StepResult> CpuBackend::Finish(Ticket ticket) {
  CHECK(in_flight_ && ticket.value + 1 == next_ticket_, "ticket {} is not in flight", ticket.value);
  in_flight_ = false;
  Nanos begin = clock_.Now();
  ApplyTableEdits();
  GatherBatch();
  auto outputs = static_cast<int64_t>(output_tokens_.size());
  // Beside rows that sample, pooled ones go through the head too, for nothing: steps of embeddings alone do not.
  bool all_pooled = pooled_rows_ > 0 && std::cmp_equal(pooled_rows_, outputs_.size());
  arena_.Rewind(0);
  model_.Forward(
      ctx_,
      {.token_ids = token_ids_, .positions = positions_, .rows = attention_rows_, .output_tokens = output_tokens_}, kv_,
      all_pooled ? TensorView() : TensorView(logits_.data(), DType::kF32, {outputs, int64_t{info_.vocab_size}}),
      pooled_rows_ > 0 ? TensorView(hidden_.data(), DType::kF32, {outputs, int64_t{model_.config().hidden_size}})
                       : TensorView());
  SampleRows();
  return StepResult{.ticket = ticket, .rows = results_, .device_time = clock_.Now() - begin};
}

void CpuBackend::ApplyTableEdits() {
  for (const BlockTableEdit& edit : plan_.table_edits()) {
    CHECK(static_cast<size_t>(edit.index) < blocks_per_slot_, "block table index {}", edit.index);
    Table(edit.slot)[edit.index] = edit.block;
  }
  for (const BlockCopy& copy : plan_.copies()) kv_.CopyBlock(copy.source, copy.target, copy.token_count);
}

void CpuBackend::GatherBatch() {
  token_ids_.clear();
  positions_.clear();
  output_tokens_.clear();
  attention_rows_.clear();
  outputs_.clear();
  pooled_rows_ = 0;
  for (const PlanRow& row : plan_.rows()) {
    auto begin = static_cast<int32_t>(token_ids_.size());
    if (row.token_offset >= 0) {
      auto tokens = plan_.tokens().subspan(static_cast<size_t>(row.token_offset), static_cast<size_t>(row.token_count));
      token_ids_.insert(token_ids_.end(), tokens.begin(), tokens.end());
    } else {
      token_ids_.push_back(slots_[static_cast<size_t>(row.slot.value)].last_token);
    }
    for (int32_t i = 0; i < row.token_count; ++i) positions_.push_back(row.position + i);
    attention_rows_.push_back({begin, row.token_count, row.position, Table(row.slot)});
    if (row.output == OutputKind::kNone) continue;
    const Request& request = *slots_[static_cast<size_t>(row.slot.value)].request;
    bool all = row.output == OutputKind::kAllLogits || request.pooling == Pooling::kMean;
    pooled_rows_ += row.output == OutputKind::kPooledHidden;
    int32_t first = all ? begin : begin + row.token_count - 1;
    for (int32_t token = first; token < begin + row.token_count; ++token) output_tokens_.push_back(token);
    auto row_index = static_cast<int32_t>(&row - plan_.rows().data());
    outputs_.push_back({row_index, static_cast<int32_t>(output_tokens_.size()) - 1});
  }
}

void CpuBackend::SampleRows() {
  std::span<const PlanRow> rows = plan_.rows();
  results_.clear();
  for (const PlanRow& row : rows) results_.push_back({.sequence = row.sequence, .slot = row.slot});
  prompt_logprobs_.clear();
  for (const Output& output : outputs_) {
    const PlanRow& row = rows[static_cast<size_t>(output.row)];
    if (row.output == OutputKind::kAllLogits) {
      int32_t first = output.logits_row - row.token_count + 1;
      KeepContextLogits(row, first);
      PromptLogProbs(row, first, results_[static_cast<size_t>(output.row)]);
    }
    if (row.output == OutputKind::kPooledHidden)
      Pool(row, output.logits_row, results_[static_cast<size_t>(output.row)]);
  }
  // Rows are independent: one row a grain, whichever thread is free.
  pool_.ParallelFor(static_cast<int64_t>(outputs_.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const Output& output = outputs_[static_cast<size_t>(i)];
      auto index = static_cast<size_t>(output.row);
      const PlanRow& row = rows[index];
      RowResult& result = results_[index];
      if (row.output == OutputKind::kPooledHidden) continue;
      // A scored chunk that does not end the prompt chooses nothing: no draw, no history.
      const Request& request = *slots_[static_cast<size_t>(row.slot.value)].request;
      if (row.output == OutputKind::kAllLogits && std::cmp_less(row.position + row.token_count, request.prompt.size()))
        continue;
      float* logits = logits_.as<float>() + int64_t{output.logits_row} * info_.vocab_size;
      if (request.logits != nullptr && request.logits->generation()) {  // before the sampler changes them
        int32_t made = row.position + row.token_count - static_cast<int32_t>(request.prompt.size());
        int32_t sequence = slots_[static_cast<size_t>(row.slot.value)].sequence_index;
        std::copy_n(logits, info_.vocab_size, request.logits->Generation(sequence, made));
      }
      PositionLogProbs* logprobs = &logprobs_[index];
      bool wanted = request.sampling.logprobs >= 0;
      Sampler::Choice choice = sampler_.Sample(row.slot, logits, wanted ? logprobs : nullptr);
      sampled_[index] = choice.token;
      result.finite = choice.finite;
      result.token_count = 1;
      result.tokens = {&sampled_[index], 1};
      result.logprobs = wanted ? logprobs : nullptr;
      slots_[static_cast<size_t>(row.slot.value)].last_token = choice.token;
    }
  });
}

// Sums in the order of positions, so that a mean does not depend on how its prompt was cut into chunks.
void CpuBackend::Pool(const PlanRow& row, int32_t last_hidden_row, RowResult& result) {
  SlotState& slot = slots_[static_cast<size_t>(row.slot.value)];
  const bool mean = slot.request->pooling == Pooling::kMean;
  const int64_t width = model_.config().hidden_size;
  for (int32_t token = last_hidden_row - (mean ? row.token_count - 1 : 0); token <= last_hidden_row; ++token) {
    const float* hidden = hidden_.as<float>() + token * width;
    for (size_t i = 0; i < slot.pooled.size(); ++i) slot.pooled[i] += hidden[i];
  }
  if (std::cmp_less(row.position + row.token_count, slot.request->prompt.size())) return;
  auto count = static_cast<float>(mean ? slot.request->prompt.size() : 1);
  for (float& value : slot.pooled) value /= count;
  result.finite = std::ranges::all_of(slot.pooled, [](float value) { return std::isfinite(value); });
  result.hidden = slot.pooled;
}

void CpuBackend::KeepContextLogits(const PlanRow& row, int32_t first_logits_row) {
  const Request& request = *slots_[static_cast<size_t>(row.slot.value)].request;
  if (request.logits == nullptr || !request.logits->context()) return;
  for (int32_t i = 0; i < row.token_count && std::cmp_less(row.position + i, request.prompt.size()); ++i)
    std::copy_n(logits_.as<float>() + int64_t{first_logits_row + i} * info_.vocab_size, info_.vocab_size,
                request.logits->Context(row.position + i));
}

void CpuBackend::PromptLogProbs(const PlanRow& row, int32_t first_logits_row, RowResult& result) {
  const Request& request = *slots_[static_cast<size_t>(row.slot.value)].request;
  if (!request.prompt_logprobs) return;
  size_t first = prompt_logprobs_.size();
  for (int32_t i = 0; i < row.token_count; ++i) {
    int64_t next = int64_t{row.position} + i + 1;
    if (next >= std::ssize(request.prompt)) break;
    PositionLogProbs& out = prompt_logprobs_.emplace_back();
    sampler_.LogProbs(logits_.as<float>() + int64_t{first_logits_row + i} * info_.vocab_size,
                      request.prompt[static_cast<size_t>(next)], std::max(request.sampling.logprobs, 0), &out);
  }
  result.prompt_logprobs = std::span(prompt_logprobs_).subspan(first);
}

}  // namespace ekiben
