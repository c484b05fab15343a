#include "backend/cuda_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "backend/cuda_step.h"
#include "base/arithmetic.h"
#include "device/cuda/cuda_device.h"
#include "device/thread_pool.h"
#include "model/cuda_llama.h"
#include "ops/cuda_attention_items.h"
#include "sample/sampler.h"

namespace ekiben {
namespace {

constexpr int32_t kTicketsMax = 2;
// Left free beside the cache: graphs, cuBLASLt's own memory, the driver.
constexpr size_t kReserveBytes = size_t{512} << 20;
constexpr int kSamplingThreadsMax = 8;
constexpr int32_t kTunedTokensMax = 512;

// What the device's argmax does not serve.
bool NeedsHostSampling(const Request& request) {
  const SamplingParams& s = request.sampling;
  return !s.greedy() || s.needs_history() || s.min_tokens > 0 || s.logprobs >= 0 || !s.logit_bias.empty() ||
         !s.allowed_tokens.empty() || request.prompt_logprobs;
}

class CudaBackend final : public Backend {
 public:
  static Result<CudaBackendParts> Open(const ModelConfig& model, const EngineTensors* tensors,
                                       const CudaBackendConfig& config);

  const BackendInfo& info() const override { return info_; }
  void BindSlot(const SlotBinding& binding) override;
  Result<Ticket> Launch(const StepPlan& plan) override;
  Result<StepResult> Finish(Ticket ticket) override;

 private:
  struct Slot {
    const Request* request = nullptr;
    SequenceId sequence{};
    bool host_sampled = false;
    TokenId last_token = 0;  // of a host-sampled slot
  };
  enum class Choice : uint8_t { kNone, kDevice, kHost };
  struct Row {
    SequenceId sequence{};
    SlotId slot{};
    const Request* request = nullptr;
    Choice choice = Choice::kNone;
    int32_t output = 0;                     // index of its last output
    int32_t position = 0, token_count = 0;  // of the plan's row
    bool all_logits = false;
  };
  struct Flight {
    PinnedBuffer staging, results;  // words of the step; a token (or -1) an output
    CudaEvent begin, end;
    std::vector<Row> rows;
    std::vector<RowResult> row_results;
    std::vector<TokenId> sampled;
    std::vector<PositionLogProbs> logprobs, prompt_logprobs;
    bool host_pending = false;         // host rows wait to be chosen
    std::vector<float> prompt_logits;  // [outputs, vocab] of a step with prompt_logprobs; grows when asked for
  };

  explicit CudaBackend(const CudaBackendConfig& config) : config_(config) {}
  Result<void> Allocate(const ModelConfig& model);
  Result<void> AllocateCache(const ModelConfig& model);
  Result<void> WarmUp();
  CudaStepLayout GraphLayout(int32_t bucket) const { return {bucket, bucket, 2 * bucket + 8, 0}; }
  CudaBatch Batch(const CudaStepLayout& layout, int32_t generation_items_max, bool graph) const;

  void Gather(const StepPlan& plan, Flight& flight);
  CudaStepLayout Fill(const StepPlan& plan, int32_t bucket, Flight& flight);
  Result<void> Enqueue(const StepPlan& plan, const CudaStepLayout& layout, bool graph, Flight& flight);
  Result<void> RunForward(const CudaStepLayout& layout, int32_t generation_items_max, bool graph);
  Result<void> RunHead(const CudaStepLayout& layout, int32_t outputs);
  Result<void> CopyHostRows(Flight& flight);
  Result<void> PromptLogits(const CudaStepLayout& layout, int32_t outputs, Flight& flight);
  Result<void> ResolveHostRows(Flight& flight);
  void PromptLogProbs(const Row& row, Flight& flight, RowResult& result);
  const float* HostLogits(const Flight& flight, const Row& row, int32_t host_row) const;
  Flight& FlightOf(uint64_t ticket) { return flights_[ticket % kTicketsMax]; }

  CudaBackendConfig config_;
  BackendInfo info_;
  std::unique_ptr<CudaLlama> model_;
  CudaStream stream_;
  cuda::Queue queue_;
  CudaAttentionScratch attention_;
  cuda::KvLayout kv_;
  cuda::AttentionItemShape item_shape_;
  int32_t multiprocessors_ = 1, blocks_per_slot_ = 0, vocab_ = 0, edits_max_ = 0, outputs_max_ = 0;
  DeviceBuffer step_, tables_, last_tokens_, keys_, values_, logits_, results_, best_;
  PinnedBuffer host_logits_;
  std::vector<Slot> slots_;
  std::vector<int32_t> buckets_;
  std::vector<CudaGraph> graphs_;  // by bucket
  Flight flights_[kTicketsMax];
  uint64_t next_ticket_ = 1, next_finish_ = 1;

  // The step being built.
  std::vector<int32_t> source_, positions_, token_slots_, output_tokens_, sample_slots_;
  std::vector<cuda::AttentionItem> context_items_, generation_items_, balanced_;
  bool all_logits_ = false;

  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<ThreadPool> pool_;
};

Result<CudaBackendParts> CudaBackend::Open(const ModelConfig& model, const EngineTensors* tensors,
                                           const CudaBackendConfig& config) {
  ASSIGN_OR_RETURN(CudaDeviceInfo device, OpenCudaDevice());
  if (config.tokens_per_block < 16 || (config.tokens_per_block & (config.tokens_per_block - 1)) != 0)
    return Error(Code::kInvalid,
                 fmt::format("tokens_per_block: {} is not a power of two >= 16", config.tokens_per_block),
                 "tokens_per_block");
  auto out = std::unique_ptr<CudaBackend>(new CudaBackend(config));
  out->multiprocessors_ = device.multiprocessors;
  out->outputs_max_ = RoundUp(config.max_batch_size, 128);
  CudaModelLimits limits{config.max_seq_len, std::max(config.max_num_tokens, out->outputs_max_), out->outputs_max_};
  CudaPrecision precision{.fp8_linears = config.fp8, .fp8_head = false};
  if (tensors != nullptr) {
    ASSIGN_OR_RETURN(out->model_, CudaLlama::Load(model, *tensors, limits, precision));
  } else {
    ASSIGN_OR_RETURN(out->model_, CudaLlama::Synthesize(model, config.synth_seed, limits, precision));
  }
  RETURN_IF_ERROR(out->Allocate(model));
  RETURN_IF_ERROR(out->AllocateCache(model));
  RETURN_IF_ERROR(out->WarmUp());
  out->info_.name = "cuda";
  out->info_.description = fmt::format(
      "{}, driver {}.{}, {} graphs of generation steps, attention {}", device.name, device.driver_version / 1000,
      device.driver_version % 1000 / 10, out->graphs_.size(),
      cuda::DecodeAttention::Serves(out->kv_, model.num_attention_heads, model.sliding_window) ? "by bulk copies"
                                                                                               : "by tiles");
  CudaBackendParts parts;
  parts.memory = {{"weights on the device", out->model_->weight_bytes()},
                  {"KV cache", out->keys_.size() + out->values_.size()},
                  {"activations", out->model_->activation_bytes()},
                  {"logits", out->logits_.size()},
                  {"attention scratch", out->attention_.partial.size() + out->attention_.partial_ml.size()},
                  {"pinned host memory", out->host_logits_.size() + 2 * out->flights_[0].staging.size()}};
  parts.backend = std::move(out);
  return parts;
}

Result<void> CudaBackend::Allocate(const ModelConfig& model) {
  ASSIGN_OR_RETURN(stream_, CudaStream::Create());
  queue_.stream = stream_.get();
  vocab_ = model.vocab_size;
  auto slots = static_cast<size_t>(config_.max_batch_size);
  slots_.resize(slots);
  blocks_per_slot_ = CeilDiv(config_.max_seq_len, config_.tokens_per_block);
  ASSIGN_OR_RETURN(attention_, CudaAttentionScratch::Create(model, config_.max_batch_size, config_.max_seq_len));
  item_shape_ = {model.num_key_value_heads, model.num_attention_heads / model.num_key_value_heads, attention_.split};

  edits_max_ = config_.max_batch_size * (blocks_per_slot_ + 1);
  int32_t context_items_max =
      model.num_key_value_heads *
      (CeilDiv(config_.max_num_tokens * item_shape_.group, cuda::kQueryTile) + config_.max_batch_size);
  int32_t generation_items_max = config_.max_batch_size * model.num_key_value_heads * attention_.chunks_max;
  int32_t tokens_max = model_->limits().tokens_max;
  CudaStepLayout largest(tokens_max, tokens_max, edits_max_, context_items_max);
  auto words = static_cast<size_t>(largest.Words(generation_items_max));
  ASSIGN_OR_RETURN(step_, DeviceBuffer::Create(words * sizeof(int32_t)));
  ASSIGN_OR_RETURN(tables_, DeviceBuffer::Create(slots * static_cast<size_t>(blocks_per_slot_) * sizeof(int32_t)));
  ASSIGN_OR_RETURN(last_tokens_, DeviceBuffer::Create(slots * sizeof(int32_t)));
  auto outputs = static_cast<size_t>(outputs_max_);
  size_t row_bytes = static_cast<size_t>(vocab_) * sizeof(float);
  ASSIGN_OR_RETURN(logits_, DeviceBuffer::Create(outputs * row_bytes));
  ASSIGN_OR_RETURN(results_, DeviceBuffer::Create(outputs * sizeof(int32_t)));
  ASSIGN_OR_RETURN(best_, DeviceBuffer::Create(outputs * sizeof(uint64_t)));
  ASSIGN_OR_RETURN(host_logits_, PinnedBuffer::Create(slots * row_bytes));
  for (const DeviceBuffer* buffer : {&step_, &tables_, &last_tokens_, &logits_, &results_, &best_})
    RETURN_IF_ERROR(stream_.Clear(buffer->data(), buffer->size()));
  for (Flight& flight : flights_) {
    ASSIGN_OR_RETURN(flight.staging, PinnedBuffer::Create(words * sizeof(int32_t)));
    ASSIGN_OR_RETURN(flight.results, PinnedBuffer::Create(outputs * sizeof(int32_t)));
    ASSIGN_OR_RETURN(flight.begin, CudaEvent::Create());
    ASSIGN_OR_RETURN(flight.end, CudaEvent::Create());
    flight.rows.reserve(slots);
    flight.row_results.reserve(slots);
    flight.sampled.resize(slots);
    flight.logprobs.resize(slots);
  }
  for (auto* list : {&source_, &positions_, &token_slots_, &output_tokens_, &sample_slots_})
    list->reserve(static_cast<size_t>(tokens_max));
  context_items_.reserve(static_cast<size_t>(context_items_max));
  generation_items_.reserve(static_cast<size_t>(generation_items_max));
  balanced_.reserve(static_cast<size_t>(generation_items_max));
  sampler_ = std::make_unique<Sampler>(config_.max_batch_size, vocab_, BestIsa());
  pool_ = std::make_unique<ThreadPool>(
      std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kSamplingThreadsMax));
  return stream_.Wait();
}

Result<void> CudaBackend::AllocateCache(const ModelConfig& model) {
  const double fraction = config_.kv_cache_free_gpu_mem_fraction;
  if (!(fraction > 0 && fraction <= 0.98))
    return Error(Code::kInvalid, fmt::format("kv_cache_free_gpu_mem_fraction: {} is outside (0, 0.98]", fraction),
                 "kv_cache_free_gpu_mem_fraction");
  int32_t stride = cuda::HeadStride(model.head_dim);
  size_t block_bytes = size_t{2} * static_cast<size_t>(model.num_hidden_layers) *
                       static_cast<size_t>(model.num_key_value_heads) * static_cast<size_t>(config_.tokens_per_block) *
                       static_cast<size_t>(stride) * (config_.fp8_kv_cache ? sizeof(cuda::Fp8) : sizeof(cuda::Bf16));
  ASSIGN_OR_RETURN(CudaMemoryInfo memory, CudaMemory());
  size_t usable = memory.free_bytes > kReserveBytes ? memory.free_bytes - kReserveBytes : 0;
  auto blocks = static_cast<int64_t>(static_cast<double>(usable) * fraction / static_cast<double>(block_bytes));
  // More than every slot at its full length is never used.
  blocks = std::min(blocks, int64_t{config_.max_batch_size} * blocks_per_slot_);
  if (config_.max_tokens_in_paged_kv_cache > 0)
    blocks = std::min(blocks, config_.max_tokens_in_paged_kv_cache / config_.tokens_per_block);
  if (blocks < blocks_per_slot_)
    return Error(
        Code::kInvalid,
        fmt::format("the KV cache has room for {} tokens, one sequence of max_seq_len needs {}; lower "
                    "--max_seq_len, or raise --kv_cache_free_gpu_mem_fraction or --max_tokens_in_paged_kv_cache",
                    blocks * config_.tokens_per_block, config_.max_seq_len),
        "max_seq_len");
  size_t half = static_cast<size_t>(blocks) * block_bytes / 2;
  ASSIGN_OR_RETURN(keys_, DeviceBuffer::Create(half));
  ASSIGN_OR_RETURN(values_, DeviceBuffer::Create(half));
  RETURN_IF_ERROR(stream_.Clear(keys_.data(), half));
  RETURN_IF_ERROR(stream_.Clear(values_.data(), half));
  kv_ = {.keys = keys_.data(),
         .values = values_.data(),
         .fp8 = config_.fp8_kv_cache,
         .layers = model.num_hidden_layers,
         .blocks = static_cast<int32_t>(blocks),
         .kv_heads = model.num_key_value_heads,
         .tokens_per_block = config_.tokens_per_block,
         .head_dim = model.head_dim,
         .head_stride = stride,
         .tables = tables_.as<int32_t>(),
         .table_pitch = blocks_per_slot_};
  info_.vocab_size = vocab_;
  info_.max_batch_size = config_.max_batch_size;
  info_.max_num_tokens = config_.max_num_tokens;
  info_.max_seq_len = config_.max_seq_len;
  info_.tokens_per_block = config_.tokens_per_block;
  info_.blocks = kv_.blocks;
  info_.tickets_max = kTicketsMax;
  info_.kv_bytes_per_token = static_cast<int64_t>(block_bytes) / config_.tokens_per_block;
  RETURN_IF_ERROR(stream_.Wait());
  return model_->BindCache(kv_);
}

// Every bucket once as it is, which loads its kernels and finds cuBLASLt's plans, and once into a graph; then every
// padded token count. All rows are padding: nothing is written that counts.
Result<void> CudaBackend::WarmUp() {
  buckets_ = CudaGraphBuckets(config_.max_batch_size);
  // What the heuristic offers first is off by up to 15 % at some sizes (docs/gpu.md, ladder 1).
  for (int32_t bucket : buckets_) RETURN_IF_ERROR(model_->Tune(stream_, bucket));
  for (int32_t tokens = 1; tokens <= std::min(config_.max_num_tokens, kTunedTokensMax); ++tokens) {
    tokens = CudaPaddedTokens(tokens, config_.max_num_tokens);
    RETURN_IF_ERROR(model_->Tune(stream_, tokens));
  }
  auto* words = flights_[0].staging.as<int32_t>();
  auto pad = [&](const CudaStepLayout& layout) {
    std::memset(words, 0, static_cast<size_t>(layout.Words(0)) * sizeof(int32_t));
    std::fill_n(words + layout.slots, layout.tokens, -1);
    std::fill_n(words + layout.sample_slots, layout.outputs, -1);
    return stream_.Copy(step_.data(), words, static_cast<size_t>(layout.Words(0)) * sizeof(int32_t));
  };
  for (int32_t bucket : buckets_) {
    CudaStepLayout layout = GraphLayout(bucket);
    int32_t items_max = bucket * item_shape_.kv_heads * attention_.chunks_max;
    RETURN_IF_ERROR(pad(layout));
    auto run = [&]() -> Result<void> {
      RETURN_IF_ERROR(RunForward(layout, items_max, true));
      return RunHead(layout, bucket);
    };
    RETURN_IF_ERROR(run());
    RETURN_IF_ERROR(stream_.Wait());
    graphs_.emplace_back();
    if (!config_.graphs) continue;
    ASSIGN_OR_RETURN(graphs_.back(), stream_.Capture(run));
  }
  for (int32_t tokens = 1; tokens <= config_.max_num_tokens; ++tokens) {
    tokens = CudaPaddedTokens(tokens, config_.max_num_tokens);
    CudaStepLayout layout(tokens, 8, 8, 0);
    RETURN_IF_ERROR(pad(layout));
    RETURN_IF_ERROR(RunForward(layout, 0, false));
    RETURN_IF_ERROR(stream_.Wait());
  }
  RETURN_IF_ERROR(stream_.Wait());
  return CudaStatus(queue_.error, "warming up");
}

void CudaBackend::BindSlot(const SlotBinding& binding) {
  Slot& slot = slots_[static_cast<size_t>(binding.slot.value)];
  slot.request = binding.request;
  slot.sequence = binding.sequence;
  slot.host_sampled = NeedsHostSampling(*binding.request);
  slot.last_token = binding.generated.empty() ? 0 : binding.generated.back();
  if (slot.host_sampled) sampler_->Bind(binding.slot, *binding.request, binding.sequence_index, binding.generated);
}

CudaBatch CudaBackend::Batch(const CudaStepLayout& layout, int32_t generation_items_max, bool graph) const {
  auto* words = step_.as<int32_t>();
  auto items = [&](int32_t at) { return reinterpret_cast<const cuda::AttentionItem*>(words + at); };
  CudaBatch batch;
  batch.tokens = layout.tokens;
  batch.source = words + layout.source;
  batch.last_tokens = last_tokens_.as<int32_t>();
  batch.positions = words + layout.positions;
  batch.slots = words + layout.slots;
  batch.outputs = layout.outputs;
  batch.output_tokens = graph ? nullptr : words + layout.output_tokens;
  batch.context_items = items(layout.context_items);
  batch.generation_items = items(layout.generation_items);
  batch.context_item_count = words + CudaStepLayout::kContextItemCount;
  batch.generation_item_count = words + CudaStepLayout::kGenerationItemCount;
  batch.context_items_max = layout.context_items_max;
  batch.generation_items_max = generation_items_max;
  return batch;
}

Result<void> CudaBackend::RunForward(const CudaStepLayout& layout, int32_t generation_items_max, bool graph) {
  auto* words = step_.as<int32_t>();
  // The first kernel of a step waits for everything before it; the rest may overlap their starts.
  cuda::Queue first{queue_.stream, false, 0};
  cuda::ApplyTableEdits(first, tables_.as<int32_t>(), reinterpret_cast<const cuda::TableEdit*>(words + layout.edits),
                        words + CudaStepLayout::kEditCount);
  if (queue_.error == 0) queue_.error = first.error;
  return model_->Forward(queue_, Batch(layout, generation_items_max, graph), kv_, attention_);
}

Result<void> CudaBackend::RunHead(const CudaStepLayout& layout, int32_t outputs) {
  if (outputs == 0) return {};
  RETURN_IF_ERROR(model_->Head(queue_, 0, outputs, logits_.as<float>()));
  cuda::ArgMax(queue_, results_.as<int32_t>(), last_tokens_.as<int32_t>(), logits_.as<float>(),
               step_.as<int32_t>() + layout.sample_slots, outputs, vocab_, best_.as<unsigned long long>());
  return {};
}

void CudaBackend::Gather(const StepPlan& plan, Flight& flight) {
  for (auto* list : {&source_, &positions_, &token_slots_, &output_tokens_, &sample_slots_}) list->clear();
  context_items_.clear();
  generation_items_.clear();
  flight.rows.clear();
  all_logits_ = false;
  for (const PlanRow& row : plan.rows()) {
    const Slot& slot = slots_[static_cast<size_t>(row.slot.value)];
    auto begin = static_cast<int32_t>(source_.size());
    if (row.token_offset >= 0) {
      auto tokens = plan.tokens().subspan(static_cast<size_t>(row.token_offset), static_cast<size_t>(row.token_count));
      source_.insert(source_.end(), tokens.begin(), tokens.end());
    } else {
      source_.push_back(slot.host_sampled ? slot.last_token : -1 - row.slot.value);
    }
    for (int32_t i = 0; i < row.token_count; ++i) {
      positions_.push_back(row.position + i);
      token_slots_.push_back(row.slot.value);
    }
    if (row.token_count == 1) {
      cuda::AddGenerationItems(item_shape_, begin, row.slot.value, row.position, generation_items_);
    } else {
      cuda::AddContextItems(item_shape_, begin, row.slot.value, row.position, row.token_count, context_items_);
    }
    Row& to = flight.rows.emplace_back();
    to = {.sequence = row.sequence,
          .slot = row.slot,
          .request = slot.request,
          .position = row.position,
          .token_count = row.token_count};
    if (row.output == OutputKind::kNone) continue;
    CHECK(row.output != OutputKind::kPooledHidden, "pooled outputs are not planned by this version");
    to.all_logits = row.output == OutputKind::kAllLogits;
    all_logits_ = all_logits_ || to.all_logits;
    // A scored chunk that does not end the prompt chooses nothing.
    bool ends = !to.all_logits || static_cast<size_t>(row.position + row.token_count) >= slot.request->prompt.size();
    if (ends) to.choice = slot.host_sampled ? Choice::kHost : Choice::kDevice;
    for (int32_t token = to.all_logits ? begin : begin + row.token_count - 1; token < begin + row.token_count;
         ++token) {
      output_tokens_.push_back(token);
      sample_slots_.push_back(-1);
    }
    to.output = static_cast<int32_t>(output_tokens_.size()) - 1;
    if (to.choice == Choice::kDevice) sample_slots_.back() = row.slot.value;
  }
  cuda::BalanceItems(generation_items_, item_shape_.split, multiprocessors_, balanced_);
}

// The gathered step into the flight's staging, in the layout of `bucket` when that is not 0.
CudaStepLayout CudaBackend::Fill(const StepPlan& plan, int32_t bucket, Flight& flight) {
  auto tokens = static_cast<int32_t>(source_.size()), outputs = static_cast<int32_t>(output_tokens_.size());
  auto edits = static_cast<int32_t>(plan.table_edits().size());
  CHECK_LE(edits, edits_max_);
  CudaStepLayout layout;
  if (bucket > 0) {
    layout = GraphLayout(bucket);
  } else {
    // Few outputs are padded like tokens, so that the head's sizes are few as well; the padding gathers token 0.
    int32_t padded = outputs == 0 || all_logits_ ? outputs : std::min(RoundUp(outputs, 8), outputs_max_);
    layout = CudaStepLayout(CudaPaddedTokens(tokens, config_.max_num_tokens), padded, edits,
                            static_cast<int32_t>(context_items_.size()));
  }
  auto* words = flight.staging.as<int32_t>();
  auto put = [&](int32_t at, const std::vector<int32_t>& values, int32_t count, int32_t padding) {
    std::copy(values.begin(), values.end(), words + at);
    std::fill(words + at + values.size(), words + at + count, padding);
  };
  words[CudaStepLayout::kEditCount] = edits;
  words[CudaStepLayout::kContextItemCount] = static_cast<int32_t>(context_items_.size());
  words[CudaStepLayout::kGenerationItemCount] = static_cast<int32_t>(generation_items_.size());
  put(layout.source, source_, layout.tokens, 0);
  put(layout.positions, positions_, layout.tokens, 0);
  put(layout.slots, token_slots_, layout.tokens, -1);
  put(layout.output_tokens, output_tokens_, layout.outputs, 0);
  put(layout.sample_slots, sample_slots_, layout.outputs, -1);
  int32_t at = layout.edits;
  for (const BlockTableEdit& edit : plan.table_edits()) {
    CHECK(edit.index >= 0 && edit.index < blocks_per_slot_ && edit.block.value >= 0 && edit.block.value < kv_.blocks,
          "block table entry {} becomes block {}", edit.index, edit.block.value);
    words[at++] = edit.slot.value * blocks_per_slot_ + edit.index;
    words[at++] = edit.block.value;
  }
  std::memcpy(words + layout.context_items, context_items_.data(), context_items_.size() * sizeof(cuda::AttentionItem));
  std::memcpy(words + layout.generation_items, generation_items_.data(),
              generation_items_.size() * sizeof(cuda::AttentionItem));
  return layout;
}

Result<Ticket> CudaBackend::Launch(const StepPlan& plan) {
  CHECK_LT(next_ticket_ - next_finish_, uint64_t{kTicketsMax});
  // Tokens chosen on the host must be known before a step that feeds them is built.
  if (next_ticket_ > next_finish_) RETURN_IF_ERROR(ResolveHostRows(FlightOf(next_ticket_ - 1)));
  Flight& flight = FlightOf(next_ticket_);
  Gather(plan, flight);
  auto rows = static_cast<int32_t>(plan.rows().size());
  int32_t bucket = 0;
  if (config_.graphs && context_items_.empty() && !all_logits_ && plan.copies().empty() &&
      std::ssize(output_tokens_) == rows) {
    bucket = CudaBucketFor(buckets_, rows);
    if (std::ssize(plan.table_edits()) > GraphLayout(bucket).edits_max) bucket = 0;
  }
  CudaStepLayout layout = Fill(plan, bucket, flight);
  RETURN_IF_ERROR(Enqueue(plan, layout, bucket > 0, flight));
  return Ticket{next_ticket_++};
}

Result<void> CudaBackend::Enqueue(const StepPlan& plan, const CudaStepLayout& layout, bool graph, Flight& flight) {
  auto items = static_cast<int32_t>(generation_items_.size());
  auto outputs = static_cast<int32_t>(output_tokens_.size());
  RETURN_IF_ERROR(stream_.Record(flight.begin));
  RETURN_IF_ERROR(
      stream_.Copy(step_.data(), flight.staging.data(), static_cast<size_t>(layout.Words(items)) * sizeof(int32_t)));
  cuda::Queue copies{queue_.stream, false, 0};
  for (const BlockCopy& copy : plan.copies())
    cuda::CopyBlock(copies, kv_, copy.source.value, copy.target.value, copy.token_count);
  RETURN_IF_ERROR(CudaStatus(copies.error, "copying blocks"));
  if (graph) {
    size_t index =
        static_cast<size_t>(std::lower_bound(buckets_.begin(), buckets_.end(), layout.tokens) - buckets_.begin());
    RETURN_IF_ERROR(stream_.Launch(graphs_[index]));
  } else {
    RETURN_IF_ERROR(RunForward(layout, items, false));
    if (all_logits_) {
      RETURN_IF_ERROR(PromptLogits(layout, outputs, flight));
    } else {
      RETURN_IF_ERROR(RunHead(layout, layout.outputs));
    }
  }
  RETURN_IF_ERROR(CudaStatus(queue_.error, "queueing a step"));
  if (!all_logits_ && outputs > 0)
    RETURN_IF_ERROR(
        stream_.Copy(flight.results.data(), results_.data(), static_cast<size_t>(outputs) * sizeof(int32_t)));
  RETURN_IF_ERROR(CopyHostRows(flight));
  return stream_.Record(flight.end);
}

Result<void> CudaBackend::CopyHostRows(Flight& flight) {
  flight.host_pending = false;
  size_t row_bytes = static_cast<size_t>(vocab_) * sizeof(float), host_row = 0;
  for (const Row& row : flight.rows) {
    flight.host_pending = flight.host_pending || row.choice == Choice::kHost || row.all_logits;
    if (row.choice != Choice::kHost || all_logits_) continue;
    RETURN_IF_ERROR(stream_.Copy(host_logits_.data() + host_row++ * row_bytes,
                                 logits_.data() + static_cast<size_t>(row.output) * row_bytes, row_bytes));
  }
  return {};
}

// A step with prompt_logprobs: the head in slices, every row to the host, before Launch returns. Device-chosen rows of
// the same step find their argmax slice by slice.
Result<void> CudaBackend::PromptLogits(const CudaStepLayout& layout, int32_t outputs, Flight& flight) {
  auto vocab = static_cast<size_t>(vocab_);
  flight.prompt_logits.resize(static_cast<size_t>(outputs) * vocab);
  for (int32_t first = 0; first < outputs; first += outputs_max_) {
    int32_t count = std::min(outputs_max_, outputs - first);
    RETURN_IF_ERROR(model_->Head(queue_, first, count, logits_.as<float>()));
    cuda::ArgMax(queue_, results_.as<int32_t>(), last_tokens_.as<int32_t>(), logits_.as<float>(),
                 step_.as<int32_t>() + layout.sample_slots + first, count, vocab_, best_.as<unsigned long long>());
    RETURN_IF_ERROR(stream_.Copy(flight.prompt_logits.data() + static_cast<size_t>(first) * vocab, logits_.data(),
                                 static_cast<size_t>(count) * vocab * sizeof(float)));
    RETURN_IF_ERROR(stream_.Copy(flight.results.data(), results_.data(), static_cast<size_t>(count) * sizeof(int32_t)));
    RETURN_IF_ERROR(stream_.Wait());
    // The rows that the device chose in this slice; their results must survive the next slice.
    const auto* tokens = flight.results.as<int32_t>();
    for (size_t i = 0; i < flight.rows.size(); ++i) {
      const Row& row = flight.rows[i];
      if (row.choice == Choice::kDevice && row.output >= first && row.output < first + count)
        flight.sampled[i] = tokens[row.output - first];
    }
  }
  return {};
}

const float* CudaBackend::HostLogits(const Flight& flight, const Row& row, int32_t host_row) const {
  auto vocab = static_cast<int64_t>(vocab_);
  if (!flight.prompt_logits.empty()) return flight.prompt_logits.data() + row.output * vocab;
  return host_logits_.as<float>() + host_row * vocab;
}

// Waits for the step and chooses the tokens of its host rows. Does nothing when there are none, or when it was done.
Result<void> CudaBackend::ResolveHostRows(Flight& flight) {
  if (!flight.host_pending) return {};
  flight.host_pending = false;
  RETURN_IF_ERROR(flight.end.Wait());
  std::vector<std::pair<int32_t, int32_t>> chosen;  // row, host row
  for (size_t i = 0; i < flight.rows.size(); ++i)
    if (flight.rows[i].choice == Choice::kHost)
      chosen.emplace_back(static_cast<int32_t>(i), static_cast<int32_t>(chosen.size()));
  pool_->ParallelFor(std::ssize(chosen), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t c = begin; c < end; ++c) {
      auto [index, host_row] = chosen[static_cast<size_t>(c)];
      auto i = static_cast<size_t>(index);
      const Row& row = flight.rows[i];
      // The slot may serve another sequence by now; what this one would have said is not asked for any more.
      if (slots_[static_cast<size_t>(row.slot.value)].sequence != row.sequence) {
        flight.sampled[i] = 0;
        continue;
      }
      // A prompt's last position is scored from unchanged logits too, so a copy takes the rules.
      auto* logits = const_cast<float*>(HostLogits(flight, row, host_row));
      std::vector<float> copy;
      if (row.all_logits) {
        copy.assign(logits, logits + vocab_);
        logits = copy.data();
      }
      PositionLogProbs* logprobs = row.request->sampling.logprobs >= 0 ? &flight.logprobs[i] : nullptr;
      Sampler::Choice choice = sampler_->Sample(row.slot, logits, logprobs);
      flight.sampled[i] = choice.finite ? choice.token : -1;
      slots_[static_cast<size_t>(row.slot.value)].last_token = choice.token;
    }
  });
  return {};
}

void CudaBackend::PromptLogProbs(const Row& row, Flight& flight, RowResult& result) {
  size_t first = flight.prompt_logprobs.size();
  const Request& request = *row.request;
  int32_t first_output = row.output - row.token_count + 1;
  for (int32_t i = 0; i < row.token_count; ++i) {
    auto next = static_cast<size_t>(row.position + i + 1);
    if (next >= request.prompt.size()) break;
    const float* logits = flight.prompt_logits.data() + int64_t{first_output + i} * vocab_;
    sampler_->LogProbs(logits, request.prompt[next], std::max(request.sampling.logprobs, 0),
                       &flight.prompt_logprobs.emplace_back());
  }
  result.prompt_logprobs = std::span(flight.prompt_logprobs).subspan(first);
}

Result<StepResult> CudaBackend::Finish(Ticket ticket) {
  CHECK(ticket.value == next_finish_ && next_finish_ < next_ticket_, "ticket {} is not the oldest in flight",
        ticket.value);
  Flight& flight = FlightOf(next_finish_++);
  RETURN_IF_ERROR(flight.end.Wait());
  RETURN_IF_ERROR(ResolveHostRows(flight));
  ASSIGN_OR_RETURN(Nanos device_time, flight.end.Since(flight.begin));
  flight.row_results.clear();
  flight.prompt_logprobs.clear();
  flight.prompt_logprobs.reserve(flight.prompt_logits.size() / static_cast<size_t>(vocab_));
  for (size_t i = 0; i < flight.rows.size(); ++i) {
    const Row& row = flight.rows[i];
    RowResult& result = flight.row_results.emplace_back();
    result.sequence = row.sequence;
    result.slot = row.slot;
    if (row.all_logits) PromptLogProbs(row, flight, result);
    if (row.choice == Choice::kNone) continue;
    if (row.choice == Choice::kDevice && flight.prompt_logits.empty())
      flight.sampled[i] = flight.results.as<int32_t>()[row.output];
    result.finite = flight.sampled[i] >= 0;
    flight.sampled[i] = std::max(flight.sampled[i], 0);
    result.token_count = 1;
    result.tokens = {&flight.sampled[i], 1};
    result.logprobs =
        row.choice == Choice::kHost && row.request->sampling.logprobs >= 0 ? &flight.logprobs[i] : nullptr;
  }
  flight.prompt_logits.clear();
  return StepResult{.ticket = ticket, .rows = flight.row_results, .device_time = device_time};
}

}  // namespace

Result<CudaBackendParts> OpenCudaBackend(const ModelConfig& model, const EngineTensors* tensors,
                                         const CudaBackendConfig& config) {
  return CudaBackend::Open(model, tensors, config);
}

}  // namespace ekiben
