#include "backend/cuda_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <thread>

#include "backend/attention_costs.h"
#include "backend/cuda_memory.h"
#include "backend/cuda_sampling.h"
#include "backend/cuda_step.h"
#include "backend/start_phases.h"
#include "base/arithmetic.h"
#include "base/log.h"
#include "device/cuda/cuda_device.h"
#include "device/thread_pool.h"
#include "model/cuda_llama.h"
#include "ops/cuda_attention_items.h"
#include "sample/sampler.h"

namespace ekiben {
namespace {

constexpr int32_t kTicketsMax = 2;
constexpr int kSamplingThreadsMax = 8;
constexpr int32_t kStairsFrom = 64, kStairsTo = 512, kCostTokensMax = 2048;  // tokens; more cost in proportion
// Graphs of the shapes that are not sparse are made for so long before ready; the rest in idle gaps.
constexpr Nanos kCaptureTimeMax = std::chrono::milliseconds(1500);

class CudaBackend final : public Backend {
 public:
  static Result<CudaBackendParts> Open(const ModelConfig& model, const EngineTensors* tensors,
                                       const CudaBackendConfig& config);

  const BackendInfo& info() const override { return info_; }
  void BindSlot(const SlotBinding& binding) override;
  Result<Ticket> Launch(const StepPlan& plan) override;
  Result<StepResult> Finish(Ticket ticket) override;
  Result<bool> UseIdleTime() override;

 private:
  // Who chooses a row's token: the device's argmax, the device's sampler, the host's sampler.
  enum class Choice : uint8_t { kNone, kArgMax, kSampler, kHost };
  struct Slot {
    const Request* request = nullptr;
    SequenceId sequence{};
    Choice choice = Choice::kArgMax;
    TokenId last_token = 0;  // chosen on the host
    bool on_host() const { return choice == Choice::kHost; }
  };
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
    PinnedBuffer sampler_logprobs;  // an output each, of rows that the device's sampler chose
    CudaEvent begin, end;
    std::vector<Row> rows;
    std::vector<RowResult> row_results;
    std::vector<TokenId> sampled;
    std::vector<PositionLogProbs> logprobs, prompt_logprobs;
    bool host_pending = false;         // host rows wait to be chosen
    bool any_logprobs = false;         // of the device's sampler
    std::vector<float> prompt_logits;  // [outputs, vocab] of a step with prompt_logprobs; grows when asked for
    int32_t tokens_padded = 0;
    bool kernel_by_kernel = false;
  };

  explicit CudaBackend(const CudaBackendConfig& config) : config_(config) {}
  Result<void> Allocate(const ModelConfig& model);
  Result<void> AllocateCache(const ModelConfig& model);
  Result<void> WarmUp(StartPhases& phases);
  Result<void> ChooseLinears();
  Result<void> WarmUpShapes();
  Result<void> MeasureCosts();
  Result<void> Capture(size_t shape);
  Result<void> Pad(const CudaStepLayout& layout);
  CudaStepLayout LayoutOf(const CudaStepShape& shape) const;
  int32_t ContextItemsMax(int32_t tokens) const;
  // Generation items that a step of this shape may have: the grid of the attention that has a CTA for each.
  int32_t GenerationItemsMax(const CudaStepShape& shape) const;
  CudaBatch Batch(const CudaStepLayout& layout, int32_t generation_items_max, bool gathers) const;

  void Gather(const StepPlan& plan, Flight& flight);
  void Fill(const StepPlan& plan, const CudaStepLayout& layout, Flight& flight);
  Result<void> CopyIn(const StepPlan& plan, const CudaStepLayout& layout, Flight& flight);
  Result<void> RunShape(const CudaStepShape& shape, const CudaStepLayout& layout);
  Result<void> RunAllLogits(const StepPlan& plan, Flight& flight);
  Result<void> RunForward(const CudaStepLayout& layout, int32_t generation_items_max, bool gathers);
  Result<void> RunHead(const CudaStepLayout& layout, int32_t outputs);
  Result<void> CopyHostRows(Flight& flight);
  cuda::SamplingArguments SamplerArguments(const CudaStepLayout& layout, int32_t row, int32_t output) const;
  Result<void> RunSampler(const CudaStepLayout& layout, int32_t first, int32_t count, Flight& flight);
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
  int32_t many_edits_ = 0;  // of step_: table edits of a step that has more than its shape holds
  DeviceBuffer step_, tables_, last_tokens_, keys_, values_, logits_, results_, best_, sampler_logprobs_;
  PinnedBuffer host_logits_;
  std::vector<Slot> slots_;
  CudaSampling sampling_;
  std::optional<Error> bind_error_;  // of BindSlot, which has no other way to say it
  std::string linears_;              // where their choice is from
  CudaStepShapes shapes_;
  std::vector<CudaGraph> graphs_;  // by shape
  std::vector<uint8_t> captured_;  // by shape: it has its graph
  size_t next_capture_ = 0;        // shapes before it have theirs
  size_t graph_bytes_ = 0;
  bool ends_only_ = false;  // while warming up: two layers stand for all
  Flight flights_[kTicketsMax];
  uint64_t next_ticket_ = 1, next_finish_ = 1;

  // The step being built.
  std::vector<int32_t> source_, positions_, token_slots_, output_tokens_, sample_slots_, sampled_rows_;
  std::vector<cuda::AttentionItem> context_items_, generation_items_, balanced_;
  bool all_logits_ = false;

  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<ThreadPool> pool_;
};

Result<CudaBackendParts> CudaBackend::Open(const ModelConfig& model, const EngineTensors* tensors,
                                           const CudaBackendConfig& config) {
  StartPhases phases(SystemClock::Get());
  phases.Begin("device");
  ASSIGN_OR_RETURN(CudaDeviceInfo device, OpenCudaDevice());
  if (config.tokens_per_block < 16 || (config.tokens_per_block & (config.tokens_per_block - 1)) != 0)
    return Error(Code::kInvalid,
                 fmt::format("tokens_per_block: {} is not a power of two >= 16", config.tokens_per_block),
                 "tokens_per_block");
  auto out = std::unique_ptr<CudaBackend>(new CudaBackend(config));
  out->multiprocessors_ = device.multiprocessors;
  out->outputs_max_ = RoundUp(config.max_batch_size, 128);
  CudaModelLimits limits{config.max_seq_len, std::max(config.max_num_tokens, out->outputs_max_), out->outputs_max_};
  CudaPrecision precision{.fp8_linears = config.fp8};
  phases.Begin("weights");
  RETURN_IF_ERROR(CheckCudaWeightsFit(model, precision, tensors));
  if (tensors != nullptr) {
    ASSIGN_OR_RETURN(out->model_, CudaLlama::Load(model, *tensors, limits, precision));
  } else {
    ASSIGN_OR_RETURN(out->model_, CudaLlama::Synthesize(model, config.synth_seed, limits, precision));
  }
  phases.Begin("memory");
  RETURN_IF_ERROR(out->Allocate(model));
  RETURN_IF_ERROR(out->AllocateCache(model));
  out->item_shape_ = out->model_->item_shape(out->attention_);  // now with what suits the cache
  RETURN_IF_ERROR(out->WarmUp(phases));
  phases.Begin("costs of attention");
  ASSIGN_OR_RETURN(out->info_.attention_costs, MeasureAttention(*out, out->info_.step_costs));
  out->slots_[0] = {};
  LOG_INFO("GPU ready in {}", phases.Text());
  out->info_.name = "cuda";
  out->info_.description = fmt::format(
      "{}, driver {}.{}, graphs of {} of {} shapes of steps, attention {}, {}", device.name,
      device.driver_version / 1000, device.driver_version % 1000 / 10, std::ranges::count(out->captured_, 1),
      out->captured_.size(), out->model_->generation_stores_keys() ? "by bulk copies" : "by tiles", out->linears_);
  ASSIGN_OR_RETURN(CudaMemoryInfo left, CudaMemory());
  CudaBackendParts parts;
  parts.memory = {{"weights on the device", out->model_->weight_bytes()},
                  {"KV cache", out->keys_.size() + out->values_.size()},
                  {"activations", out->model_->activation_bytes()},
                  {"logits", out->logits_.size()},
                  {"sampling", out->sampling_.bytes()},
                  {"attention scratch", out->attention_.partial.size() + out->attention_.partial_ml.size()},
                  {"graphs", out->graph_bytes_},
                  {"left on the device", left.free_bytes},
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
  item_shape_ = model_->item_shape(attention_);

  shapes_ = CudaStepShapes(config_.max_batch_size, config_.max_num_tokens);
  graphs_.resize(shapes_.all().size());
  captured_.resize(shapes_.all().size());
  edits_max_ = config_.max_batch_size * (blocks_per_slot_ + 1);
  int32_t context_items_max = ContextItemsMax(config_.max_num_tokens);
  int32_t generation_items_max = config_.max_batch_size * model.num_key_value_heads * attention_.chunks_max;
  int32_t tokens_max = model_->limits().tokens_max;
  CudaStepLayout largest(tokens_max, tokens_max, edits_max_, context_items_max);
  many_edits_ = RoundUp(largest.Words(generation_items_max), 4);
  auto words = static_cast<size_t>(many_edits_ + edits_max_ * CudaStepLayout::kEditWords);
  ASSIGN_OR_RETURN(step_, DeviceBuffer::Create(words * sizeof(int32_t)));
  ASSIGN_OR_RETURN(tables_, DeviceBuffer::Create(slots * static_cast<size_t>(blocks_per_slot_) * sizeof(int32_t)));
  ASSIGN_OR_RETURN(last_tokens_, DeviceBuffer::Create(slots * sizeof(int32_t)));
  auto outputs = static_cast<size_t>(outputs_max_);
  size_t row_bytes = static_cast<size_t>(vocab_) * sizeof(float);
  ASSIGN_OR_RETURN(logits_, DeviceBuffer::Create(outputs * row_bytes));
  ASSIGN_OR_RETURN(results_, DeviceBuffer::Create(outputs * sizeof(int32_t)));
  ASSIGN_OR_RETURN(best_, DeviceBuffer::Create(outputs * sizeof(uint64_t)));
  ASSIGN_OR_RETURN(sampler_logprobs_, DeviceBuffer::Create(outputs * sizeof(PositionLogProbs)));
  ASSIGN_OR_RETURN(sampling_, CudaSampling::Create(stream_, config_.max_batch_size, vocab_, config_.max_seq_len));
  ASSIGN_OR_RETURN(host_logits_, PinnedBuffer::Create(slots * row_bytes));
  for (const DeviceBuffer* buffer : {&step_, &tables_, &last_tokens_, &logits_, &results_, &best_})
    RETURN_IF_ERROR(stream_.Clear(buffer->data(), buffer->size()));
  for (Flight& flight : flights_) {
    ASSIGN_OR_RETURN(flight.staging, PinnedBuffer::Create(words * sizeof(int32_t)));
    ASSIGN_OR_RETURN(flight.results, PinnedBuffer::Create(outputs * sizeof(int32_t)));
    ASSIGN_OR_RETURN(flight.sampler_logprobs, PinnedBuffer::Create(outputs * sizeof(PositionLogProbs)));
    ASSIGN_OR_RETURN(flight.begin, CudaEvent::Create());
    ASSIGN_OR_RETURN(flight.end, CudaEvent::Create());
    flight.rows.reserve(slots);
    flight.row_results.reserve(slots);
    flight.sampled.resize(slots);
    flight.logprobs.resize(slots);
  }
  for (auto* list : {&source_, &positions_, &token_slots_, &output_tokens_, &sample_slots_, &sampled_rows_})
    list->reserve(static_cast<size_t>(tokens_max));
  for (auto* list : {&context_items_, &generation_items_, &balanced_})
    list->reserve(static_cast<size_t>(std::max(context_items_max, generation_items_max)));
  sampler_ = std::make_unique<Sampler>(config_.max_batch_size, vocab_, BestIsa());
  pool_ = std::make_unique<ThreadPool>(
      std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kSamplingThreadsMax));
  return stream_.Wait();
}

Result<void> CudaBackend::AllocateCache(const ModelConfig& model) {
  const int32_t stride = cuda::HeadStride(model.head_dim);
  const size_t block_bytes = CudaBlockBytes(model, config_);
  ASSIGN_OR_RETURN(int64_t blocks, CudaCacheBlocks(model, config_, model_->activation_bytes()));
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

int32_t CudaBackend::ContextItemsMax(int32_t tokens) const {
  // A row of context has at least two tokens, and at most one tile that is not full.
  int32_t rows = std::min(config_.max_batch_size, tokens / 2);
  return item_shape_.kv_heads * (CeilDiv(tokens * item_shape_.group, cuda::kQueryTile) + rows);
}

int32_t CudaBackend::GenerationItemsMax(const CudaStepShape& shape) const {
  return std::min(shape.tokens, config_.max_batch_size) * item_shape_.kv_heads * attention_.chunks_max;
}

CudaStepLayout CudaBackend::LayoutOf(const CudaStepShape& shape) const {
  constexpr int32_t kSomeEdits = 8;
  if (!shape.context) return {shape.tokens, shape.outputs, 2 * shape.tokens + kSomeEdits, 0};
  int32_t rows = std::min(config_.max_batch_size, shape.tokens);
  return {shape.tokens, shape.outputs, CeilDiv(shape.tokens, config_.tokens_per_block) + 2 * rows + kSomeEdits,
          ContextItemsMax(shape.tokens)};
}

// A step of nothing but padding: nothing is written that counts.
Result<void> CudaBackend::Pad(const CudaStepLayout& layout) {
  auto* words = flights_[0].staging.as<int32_t>();
  std::memset(words, 0, static_cast<size_t>(layout.Words(0)) * sizeof(int32_t));
  std::fill_n(words + layout.slots, layout.tokens, -1);
  std::fill_n(words + layout.sample_slots, layout.outputs, -1);
  return stream_.Copy(step_.data(), words, static_cast<size_t>(layout.Words(0)) * sizeof(int32_t));
}

// Every size once as it is, which loads its kernels and finds cuBLASLt's plans; then graphs.
Result<void> CudaBackend::WarmUp(StartPhases& phases) {
  phases.Begin("choice of kernels");
  RETURN_IF_ERROR(ChooseLinears());
  phases.Begin("first steps");
  RETURN_IF_ERROR(WarmUpShapes());
  phases.Begin("costs of steps");
  RETURN_IF_ERROR(MeasureCosts());
  if (!config_.graphs) return {};
  phases.Begin("graphs");
  ASSIGN_OR_RETURN(CudaMemoryInfo before, CudaMemory());
  Nanos begin = SystemClock::Get().Now();
  for (size_t i = 0; i < graphs_.size(); ++i)
    if (shapes_.all()[i].sparse) RETURN_IF_ERROR(Capture(i));
  bool more = true;
  while (more && SystemClock::Get().Now() - begin < kCaptureTimeMax) {
    ASSIGN_OR_RETURN(more, UseIdleTime());
  }
  ASSIGN_OR_RETURN(CudaMemoryInfo after, CudaMemory());
  graph_bytes_ = before.free_bytes - std::min(before.free_bytes, after.free_bytes);
  return CudaStatus(queue_.error, "warming up");
}

// What cuBLASLt offers first is off by up to 15 % at some sizes (docs/gpu.md, ladder 1).
Result<void> CudaBackend::ChooseLinears() {
  ASSIGN_OR_RETURN(bool used, model_->UseOrTune(config_.plan, config_.tune, config_.tune_tokens_max));
  linears_ =
      used ? "linears as the engine says" : fmt::format("linears timed for {} sizes", model_->plan().buckets.size());
  if (config_.plan && !used)
    LOG_INFO("the engine's linears were timed on {} with cuBLASLt {} for {}: they were timed again here",
             config_.plan->device, config_.plan->library, config_.plan->fp8 ? "fp8" : "bf16");
  return {};
}

Result<void> CudaBackend::WarmUpShapes() {
  ends_only_ = true;
  int32_t tokens_before = 0;
  for (const CudaStepShape& shape : shapes_.all()) {
    CudaStepLayout layout = LayoutOf(shape);
    RETURN_IF_ERROR(Pad(layout));
    if (shape.tokens != tokens_before || shape.sparse) {
      RETURN_IF_ERROR(RunShape(shape, layout));
    } else {
      RETURN_IF_ERROR(RunHead(layout, shape.outputs));
    }
    RETURN_IF_ERROR(stream_.Wait());
    tokens_before = shape.tokens;
  }
  ends_only_ = false;
  // The sampler too, as a greedy choice for slot 0.
  CudaStepLayout layout = LayoutOf(shapes_.all()[0]);
  RETURN_IF_ERROR(Pad(layout));
  RETURN_IF_ERROR(stream_.Clear(step_.as<int32_t>() + layout.sample_slots, sizeof(int32_t)));
  sampling_.Run(queue_, SamplerArguments(layout, 0, 0), 1);
  RETURN_IF_ERROR(stream_.Wait());
  return CudaStatus(queue_.error, "warming up");
}

// What steps of some sizes take without attention: the planner's measure of context. Every size where sizes are cut
// finely beside generation, and where what cuBLASLt's kernels take goes up in stairs; a line stands for the others.
Result<void> CudaBackend::MeasureCosts() {
  Flight& flight = flights_[0];
  for (const CudaStepShape& shape : shapes_.all()) {
    const bool stairs = shape.tokens >= kStairsFrom && shape.tokens <= kStairsTo;
    if (!shape.context || !(shape.sparse || stairs) || shape.tokens > kCostTokensMax) continue;
    if (!info_.step_costs.empty() && info_.step_costs.back().tokens == shape.tokens) continue;
    CudaStepLayout layout = LayoutOf(shape);
    RETURN_IF_ERROR(Pad(layout));
    // Behind a step that has the device busy, so that starting kernel by kernel does not count.
    if (stairs) RETURN_IF_ERROR(RunShape(shape, layout));
    RETURN_IF_ERROR(stream_.Record(flight.begin));
    RETURN_IF_ERROR(RunShape(shape, layout));
    RETURN_IF_ERROR(stream_.Record(flight.end));
    RETURN_IF_ERROR(flight.end.Wait());
    ASSIGN_OR_RETURN(Nanos time, flight.end.Since(flight.begin));
    info_.step_costs.push_back({shape.tokens, time});
  }
  return {};
}

// REQUIRES: the shape has run once.
Result<void> CudaBackend::Capture(size_t shape) {
  const CudaStepShape& s = shapes_.all()[shape];
  ASSIGN_OR_RETURN(graphs_[shape], stream_.Capture([&] { return RunShape(s, LayoutOf(s)); }));
  captured_[shape] = 1;
  return CudaStatus(queue_.error, "capturing a step");
}

// One graph more. False when every shape has its own.
Result<bool> CudaBackend::UseIdleTime() {
  while (next_capture_ < graphs_.size() && captured_[next_capture_] != 0) ++next_capture_;
  if (!config_.graphs || next_capture_ == graphs_.size()) return false;
  Result<void> captured = Capture(next_capture_);
  if (captured.ok()) return true;
  // The sparse ones serve every step: no room for one more is no fault.
  LOG_WARNING("{} of {} shapes of steps stay without a graph: {}", std::ranges::count(captured_, 0), captured_.size(),
              captured.error().message());
  next_capture_ = graphs_.size();
  return false;
}

void CudaBackend::BindSlot(const SlotBinding& binding) {
  Slot& slot = slots_[static_cast<size_t>(binding.slot.value)];
  slot.request = binding.request;
  slot.sequence = binding.sequence;
  slot.last_token = binding.generated.empty() ? 0 : binding.generated.back();
  slot.choice = Choice::kArgMax;
  if (IsPlainGreedy(*binding.request)) return;
  if (!DeviceSamples(*binding.request)) {
    slot.choice = Choice::kHost;
    return sampler_->Bind(binding.slot, *binding.request, binding.sequence_index, binding.generated);
  }
  slot.choice = Choice::kSampler;
  auto bound =
      sampling_.Bind(stream_, queue_, binding.slot, *binding.request, binding.sequence_index, binding.generated);
  if (!bound.ok()) bind_error_ = std::move(bound).error();
}

CudaBatch CudaBackend::Batch(const CudaStepLayout& layout, int32_t generation_items_max, bool gathers) const {
  auto* words = step_.as<int32_t>();
  auto items = [&](int32_t at) { return reinterpret_cast<const cuda::AttentionItem*>(words + at); };
  CudaBatch batch;
  batch.tokens = layout.tokens;
  batch.source = words + layout.source;
  batch.last_tokens = last_tokens_.as<int32_t>();
  batch.positions = words + layout.positions;
  batch.slots = words + layout.slots;
  batch.outputs = layout.outputs;
  batch.output_tokens = gathers ? words + layout.output_tokens : nullptr;
  batch.context_items = items(layout.context_items);
  batch.generation_items = items(layout.generation_items);
  batch.context_item_count = words + CudaStepLayout::kContextItemCount;
  batch.generation_item_count = words + CudaStepLayout::kGenerationItemCount;
  batch.context_items_max = layout.context_items_max;
  batch.generation_items_max = generation_items_max;
  batch.ends_only = ends_only_;
  return batch;
}

Result<void> CudaBackend::RunForward(const CudaStepLayout& layout, int32_t generation_items_max, bool gathers) {
  auto* words = step_.as<int32_t>();
  // The first kernel of a step waits for everything before it; the rest may overlap their starts.
  cuda::Queue first{queue_.stream, false, 0};
  cuda::ApplyTableEdits(first, tables_.as<int32_t>(), reinterpret_cast<const cuda::TableEdit*>(words + layout.edits),
                        words + CudaStepLayout::kEditCount);
  if (queue_.error == 0) queue_.error = first.error;
  return model_->Forward(queue_, Batch(layout, generation_items_max, gathers), kv_, attention_);
}

Result<void> CudaBackend::RunHead(const CudaStepLayout& layout, int32_t outputs) {
  if (outputs == 0) return {};
  RETURN_IF_ERROR(model_->Head(queue_, 0, outputs, logits_.as<float>()));
  cuda::ArgMax(queue_, results_.as<int32_t>(), last_tokens_.as<int32_t>(), logits_.as<float>(),
               step_.as<int32_t>() + layout.sample_slots, outputs, vocab_, best_.as<unsigned long long>());
  return {};
}

void CudaBackend::Gather(const StepPlan& plan, Flight& flight) {
  for (auto* list : {&source_, &positions_, &token_slots_, &output_tokens_, &sample_slots_, &sampled_rows_})
    list->clear();
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
      source_.push_back(slot.on_host() ? slot.last_token : -1 - row.slot.value);
    }
    const bool stores_itself = row.token_count == 1 && model_->generation_stores_keys();
    for (int32_t i = 0; i < row.token_count; ++i) {
      positions_.push_back(row.position + i);
      token_slots_.push_back(stores_itself ? -1 : row.slot.value);
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
    if (ends) to.choice = slot.choice;
    for (int32_t token = to.all_logits ? begin : begin + row.token_count - 1; token < begin + row.token_count;
         ++token) {
      output_tokens_.push_back(token);
      sample_slots_.push_back(-1);
    }
    to.output = static_cast<int32_t>(output_tokens_.size()) - 1;
    if (to.choice == Choice::kArgMax || to.choice == Choice::kSampler) sample_slots_.back() = row.slot.value;
    // Of a step with every logit the head runs in slices of outputs_max_.
    if (to.choice == Choice::kSampler) sampled_rows_.push_back(to.output % outputs_max_);
  }
  cuda::BalanceItems(generation_items_, item_shape_.split, multiprocessors_, balanced_);
  cuda::BalanceContextItems(context_items_, item_shape_, balanced_);
}

// The gathered step into the flight's staging. Table edits that the layout has no room for go behind everything else.
void CudaBackend::Fill(const StepPlan& plan, const CudaStepLayout& layout, Flight& flight) {
  auto edits = static_cast<int32_t>(plan.table_edits().size());
  CHECK_LE(edits, edits_max_);
  bool many = edits > layout.edits_max;
  auto* words = flight.staging.as<int32_t>();
  auto put = [&](int32_t at, const std::vector<int32_t>& values, int32_t count, int32_t padding) {
    std::copy(values.begin(), values.end(), words + at);
    std::fill(words + at + values.size(), words + at + count, padding);
  };
  words[CudaStepLayout::kEditCount] = many ? 0 : edits;
  words[CudaStepLayout::kManyEditCount] = many ? edits : 0;
  words[CudaStepLayout::kContextItemCount] = static_cast<int32_t>(context_items_.size());
  words[CudaStepLayout::kGenerationItemCount] = static_cast<int32_t>(generation_items_.size());
  put(layout.source, source_, layout.tokens, 0);
  put(layout.positions, positions_, layout.tokens, 0);
  put(layout.slots, token_slots_, layout.tokens, -1);
  put(layout.output_tokens, output_tokens_, layout.outputs, 0);
  put(layout.sample_slots, sample_slots_, layout.outputs, -1);
  put(layout.sampled_rows, sampled_rows_, layout.outputs, 0);
  int32_t at = many ? many_edits_ : layout.edits;
  for (const BlockTableEdit& edit : plan.table_edits()) {
    CHECK(edit.index >= 0 && edit.index < blocks_per_slot_ && edit.block.value >= 0 && edit.block.value < kv_.blocks,
          "block table entry {} becomes block {}", edit.index, edit.block.value);
    words[at++] = edit.slot.value * blocks_per_slot_ + edit.index;
    words[at++] = edit.block.value;
  }
  std::memcpy(words + layout.context_items, context_items_.data(), context_items_.size() * sizeof(cuda::AttentionItem));
  std::memcpy(words + layout.generation_items, generation_items_.data(),
              generation_items_.size() * sizeof(cuda::AttentionItem));
}

Result<Ticket> CudaBackend::Launch(const StepPlan& plan) {
  CHECK_LT(next_ticket_ - next_finish_, uint64_t{kTicketsMax});
  if (bind_error_) return *std::exchange(bind_error_, std::nullopt);
  // Tokens chosen on the host must be known before a step that feeds them is built.
  if (next_ticket_ > next_finish_) RETURN_IF_ERROR(ResolveHostRows(FlightOf(next_ticket_ - 1)));
  Flight& flight = FlightOf(next_ticket_);
  Gather(plan, flight);
  if (all_logits_) {
    RETURN_IF_ERROR(RunAllLogits(plan, flight));
  } else {
    auto tokens = static_cast<int32_t>(source_.size()), outputs = static_cast<int32_t>(output_tokens_.size());
    bool context = !context_items_.empty() || output_tokens_.size() != plan.rows().size();
    size_t index = shapes_.Find(tokens, outputs, context, config_.graphs ? captured_ : std::span<const uint8_t>());
    const CudaStepShape& shape = shapes_.all()[index];
    CudaStepLayout layout = LayoutOf(shape);
    Fill(plan, layout, flight);
    RETURN_IF_ERROR(CopyIn(plan, layout, flight));
    RETURN_IF_ERROR(config_.graphs ? stream_.Launch(graphs_[index]) : RunShape(shape, layout));
    flight.tokens_padded = shape.tokens - tokens;
    flight.kernel_by_kernel = !config_.graphs;
    RETURN_IF_ERROR(RunSampler(layout, 0, outputs, flight));
    RETURN_IF_ERROR(
        stream_.Copy(flight.results.data(), results_.data(), static_cast<size_t>(outputs) * sizeof(int32_t)));
  }
  RETURN_IF_ERROR(CudaStatus(queue_.error, "queueing a step"));
  RETURN_IF_ERROR(CopyHostRows(flight));
  RETURN_IF_ERROR(stream_.Record(flight.end));
  return Ticket{next_ticket_++};
}

// The step's words, and what a graph does not hold: copies of blocks, and more table edits than usual.
Result<void> CudaBackend::CopyIn(const StepPlan& plan, const CudaStepLayout& layout, Flight& flight) {
  auto items = static_cast<int32_t>(generation_items_.size());
  RETURN_IF_ERROR(stream_.Record(flight.begin));
  RETURN_IF_ERROR(
      stream_.Copy(step_.data(), flight.staging.data(), static_cast<size_t>(layout.Words(items)) * sizeof(int32_t)));
  cuda::Queue before{queue_.stream, false, 0};
  auto* words = step_.as<int32_t>();
  auto edits = static_cast<size_t>(flight.staging.as<int32_t>()[CudaStepLayout::kManyEditCount]);
  if (edits > 0) {
    RETURN_IF_ERROR(
        stream_.Copy(words + many_edits_, flight.staging.as<int32_t>() + many_edits_, edits * sizeof(cuda::TableEdit)));
    cuda::ApplyTableEdits(before, tables_.as<int32_t>(), reinterpret_cast<cuda::TableEdit*>(words + many_edits_),
                          words + CudaStepLayout::kManyEditCount);
  }
  for (const BlockCopy& copy : plan.copies())
    cuda::CopyBlock(before, kv_, copy.source.value, copy.target.value, copy.token_count);
  return CudaStatus(before.error, "copying blocks");
}

Result<void> CudaBackend::RunShape(const CudaStepShape& shape, const CudaStepLayout& layout) {
  RETURN_IF_ERROR(RunForward(layout, GenerationItemsMax(shape), shape.context));
  return RunHead(layout, shape.outputs);
}

// A step with prompt_logprobs has an output a token: no graph, and its logits are read before Launch returns.
Result<void> CudaBackend::RunAllLogits(const StepPlan& plan, Flight& flight) {
  auto tokens = static_cast<int32_t>(source_.size()), outputs = static_cast<int32_t>(output_tokens_.size());
  CudaStepLayout layout(CudaPaddedTokens(tokens, config_.max_num_tokens), outputs, edits_max_,
                        static_cast<int32_t>(context_items_.size()));
  Fill(plan, layout, flight);
  RETURN_IF_ERROR(CopyIn(plan, layout, flight));
  RETURN_IF_ERROR(RunForward(layout, static_cast<int32_t>(generation_items_.size()), true));
  flight.tokens_padded = layout.tokens - tokens;
  flight.kernel_by_kernel = true;
  return PromptLogits(layout, outputs, flight);
}

// `row`: the first of the step's sampled rows; `output`: the one whose logits come first.
cuda::SamplingArguments CudaBackend::SamplerArguments(const CudaStepLayout& layout, int32_t row, int32_t output) const {
  auto* words = step_.as<int32_t>();
  return {.logits = logits_.as<float>(),
          .rows = words + layout.sampled_rows + row,
          .slots = words + layout.sample_slots + output,
          .results = results_.as<int32_t>(),
          .last_tokens = last_tokens_.as<int32_t>(),
          .logprobs = sampler_logprobs_.as<cuda::TokenLogProbs>()};
}

// For the rows with a logits row in [first, first + count): the head's slice of a step, nearly always all of it.
Result<void> CudaBackend::RunSampler(const CudaStepLayout& layout, int32_t first, int32_t count, Flight& flight) {
  int32_t before = 0, rows = 0;
  flight.any_logprobs = false;
  for (const Row& row : flight.rows) {
    if (row.choice != Choice::kSampler) continue;
    before += row.output < first;
    if (row.output < first || row.output >= first + count) continue;
    ++rows;
    flight.any_logprobs = flight.any_logprobs || row.request->sampling.logprobs >= 0;
  }
  if (rows == 0) return {};
  sampling_.Run(queue_, SamplerArguments(layout, before, first), rows);
  if (!flight.any_logprobs) return {};
  return stream_.Copy(flight.sampler_logprobs.data(), sampler_logprobs_.data(),
                      static_cast<size_t>(count) * sizeof(PositionLogProbs));
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
    RETURN_IF_ERROR(RunSampler(layout, first, count, flight));
    RETURN_IF_ERROR(stream_.Copy(flight.prompt_logits.data() + static_cast<size_t>(first) * vocab, logits_.data(),
                                 static_cast<size_t>(count) * vocab * sizeof(float)));
    RETURN_IF_ERROR(stream_.Copy(flight.results.data(), results_.data(), static_cast<size_t>(count) * sizeof(int32_t)));
    RETURN_IF_ERROR(stream_.Wait());
    // The rows that the device chose in this slice; their results must survive the next slice.
    const auto* tokens = flight.results.as<int32_t>();
    for (size_t i = 0; i < flight.rows.size(); ++i) {
      const Row& row = flight.rows[i];
      bool on_device = row.choice == Choice::kArgMax || row.choice == Choice::kSampler;
      if (!on_device || row.output < first || row.output >= first + count) continue;
      flight.sampled[i] = tokens[row.output - first];
      if (row.choice == Choice::kSampler)
        flight.logprobs[i] = flight.sampler_logprobs.as<PositionLogProbs>()[row.output - first];
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
    if (row.choice != Choice::kHost && flight.prompt_logits.empty()) {
      flight.sampled[i] = flight.results.as<int32_t>()[row.output];
      if (row.choice == Choice::kSampler && row.request->sampling.logprobs >= 0)
        flight.logprobs[i] = flight.sampler_logprobs.as<PositionLogProbs>()[row.output];
    }
    result.finite = flight.sampled[i] >= 0;
    flight.sampled[i] = std::max(flight.sampled[i], 0);
    result.token_count = 1;
    result.tokens = {&flight.sampled[i], 1};
    bool logprobs = row.choice != Choice::kArgMax && row.request->sampling.logprobs >= 0;
    result.logprobs = logprobs ? &flight.logprobs[i] : nullptr;
  }
  flight.prompt_logits.clear();
  return StepResult{.ticket = ticket,
                    .rows = flight.row_results,
                    .device_time = device_time,
                    .tokens_padded = flight.tokens_padded,
                    .kernel_by_kernel = flight.kernel_by_kernel};
}

}  // namespace

Result<CudaBackendParts> OpenCudaBackend(const ModelConfig& model, const EngineTensors* tensors,
                                         const CudaBackendConfig& config) {
  return CudaBackend::Open(model, tensors, config);
}

}  // namespace ekiben
