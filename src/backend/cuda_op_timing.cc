#include "backend/cuda_op_timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "backend/cuda_graph_timer.h"
#include "backend/cuda_memory.h"
#include "backend/cuda_sampling.h"
#include "backend/cuda_step.h"
#include "base/arithmetic.h"
#include "device/cuda/cuda_device.h"
#include "model/cuda_llama.h"
#include "ops/cuda_attention_items.h"

namespace ekiben {
namespace {

class CudaOpTimer {
 public:
  CudaOpTimer(const ModelConfig& model, const CudaOpTimingConfig& config, const CudaDeviceInfo& device,
              GraphTimer& timer, CudaOpTimings& out)
      : m_(model), config_(config), device_(device), timer_(timer), out_(out) {}

  Result<void> Open(const EngineTensors* tensors);
  Result<void> TimeAll(int32_t tokens);

 private:
  struct Step {
    CudaBatch batch;
    DeviceBuffer positions, slots, items, counts;
  };
  Result<void> AllocateCache();
  Result<void> DealBlocks(int32_t tokens);
  Result<void> FillCache();
  Result<Step> Generation(int32_t rows, int32_t kv_tokens);
  Result<Step> Context(int32_t tokens, int32_t position);
  Result<void> Finish(Step& step, std::vector<cuda::AttentionItem>& items, const std::vector<int32_t>& positions,
                      const std::vector<int32_t>& slots);
  Result<void> RunWhole(const Step& step);
  Result<double> TimeForward(CudaOp op, const Step& step, int64_t calls);
  Result<void> TimeLinear(CudaOp op, const char* name, const Step& step);
  Result<void> TimeElementwise(const Step& step);
  Result<void> TimeRope(const Step& step);
  Result<void> TimeGeneration(const Step& step, int32_t kv_tokens);
  Result<void> TimeContext(const Step& step, int32_t position);
  Result<void> TimeHead(const Step& step);
  Result<void> TimeSampler(int32_t rows);
  void Add(const char* op, std::string shape, int32_t tokens, int64_t calls, double seconds, double operations,
           double bytes, double peak = 0, std::string kernel = "");

  double query_columns() const { return static_cast<double>(m_.num_attention_heads) * m_.head_dim; }
  double qkv_columns() const {
    return static_cast<double>(m_.num_attention_heads + 2 * m_.num_key_value_heads) * m_.head_dim;
  }
  // Of a token's key and value in one layer.
  double kv_row_bytes() const {
    return 2.0 * m_.num_key_value_heads * kv_.head_stride * static_cast<double>(kv_.element_bytes());
  }
  // Of a row of `columns` that a linear reads, as its maker writes it.
  double input_bytes(double columns) const { return config_.fp8 ? columns + sizeof(float) : 2 * columns; }
  std::string heads_text() const {
    return fmt::format("{}/{} heads of {}", m_.num_attention_heads, m_.num_key_value_heads, m_.head_dim);
  }

  const ModelConfig& m_;
  const CudaOpTimingConfig& config_;
  const CudaDeviceInfo& device_;
  GraphTimer& timer_;
  CudaOpTimings& out_;
  std::unique_ptr<CudaLlama> model_;
  int32_t rows_max_ = 0, tokens_max_ = 0;
  cuda::KvLayout kv_;
  CudaAttentionScratch scratch_;
  CudaSampling sampling_;
  DeviceBuffer keys_, values_, tables_, source_, logits_, results_, last_tokens_, best_, row_numbers_, logprobs_;
};

Result<void> CudaOpTimer::Open(const EngineTensors* tensors) {
  tokens_max_ = *std::ranges::max_element(config_.tokens);
  rows_max_ = std::min(config_.rows_max, tokens_max_);
  const CudaPrecision precision{.fp8_linears = config_.fp8};
  RETURN_IF_ERROR(CheckCudaWeightsFit(m_, precision, tensors));
  const CudaModelLimits limits{config_.max_seq_len, tokens_max_, rows_max_};
  if (tensors != nullptr) {
    ASSIGN_OR_RETURN(model_, CudaLlama::Load(m_, *tensors, limits, precision));
  } else {
    ASSIGN_OR_RETURN(model_, CudaLlama::Synthesize(m_, config_.synth_seed, limits, precision));
  }
  RETURN_IF_ERROR(model_->UseOrTune(config_.plan, config_.tune, kCudaStartTokensMax));
  const auto rows = static_cast<size_t>(rows_max_), vocab = static_cast<size_t>(m_.vocab_size);
  ASSIGN_OR_RETURN(logits_, DeviceBuffer::Create(rows * vocab * sizeof(float)));
  ASSIGN_OR_RETURN(results_, DeviceBuffer::Create(rows * sizeof(int32_t)));
  ASSIGN_OR_RETURN(last_tokens_, DeviceBuffer::Create(rows * sizeof(int32_t)));
  ASSIGN_OR_RETURN(best_, DeviceBuffer::Create(rows * sizeof(unsigned long long)));
  ASSIGN_OR_RETURN(logprobs_, DeviceBuffer::Create(rows * sizeof(cuda::TokenLogProbs)));
  RETURN_IF_ERROR(timer_.stream().Clear(best_.data(), best_.size()));
  std::vector<int32_t> numbers(rows);
  for (size_t i = 0; i < rows; ++i) numbers[i] = static_cast<int32_t>(i);
  ASSIGN_OR_RETURN(row_numbers_, Upload(timer_.stream(), numbers));
  // As many steps' ids as the embedding is timed with.
  std::mt19937 random(1);
  std::vector<int32_t> ids(static_cast<size_t>(tokens_max_) * GraphTimer::kCallsMin);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(m_.vocab_size));
  ASSIGN_OR_RETURN(source_, Upload(timer_.stream(), ids));
  ASSIGN_OR_RETURN(sampling_, CudaSampling::Create(timer_.stream(), rows_max_, m_.vocab_size, config_.max_seq_len));
  ASSIGN_OR_RETURN(scratch_, CudaAttentionScratch::Create(m_, rows_max_, config_.max_seq_len));
  return AllocateCache();
}

Result<void> CudaOpTimer::AllocateCache() {
  // A layer's part of so much is more than ten times what the L2 cache holds.
  constexpr size_t kLayerBytesMax = size_t{512} << 20;
  const int32_t pitch = CeilDiv(config_.max_seq_len, config_.tokens_per_block);
  kv_ = {.fp8 = config_.fp8_kv_cache,
         .layers = m_.num_hidden_layers,
         .blocks = 1,
         .kv_heads = m_.num_key_value_heads,
         .tokens_per_block = config_.tokens_per_block,
         .head_dim = m_.head_dim,
         .head_stride = cuda::HeadStride(m_.head_dim),
         .table_pitch = pitch};
  ASSIGN_OR_RETURN(CudaMemoryInfo memory, CudaMemory());
  const size_t block = 2 * kv_.layer_bytes();
  size_t bytes = std::min(kLayerBytesMax, memory.free_bytes / 2 / static_cast<size_t>(kv_.layers));
  kv_.blocks = static_cast<int32_t>(
      std::min<size_t>(bytes / block, static_cast<size_t>(rows_max_) * static_cast<size_t>(pitch)));
  if (kv_.blocks < pitch)
    return Error(Code::kInvalid,
                 fmt::format("GPU memory: no room for one sequence of max_seq_len {} beside the weights; lower "
                             "--max_seq_len",
                             config_.max_seq_len),
                 "max_seq_len");
  const size_t pool = kv_.layer_bytes() * static_cast<size_t>(kv_.layers);
  ASSIGN_OR_RETURN(keys_, DeviceBuffer::Create(pool));
  ASSIGN_OR_RETURN(values_, DeviceBuffer::Create(pool));
  kv_.keys = keys_.data();
  kv_.values = values_.data();
  ASSIGN_OR_RETURN(tables_, DeviceBuffer::Create(static_cast<size_t>(rows_max_ * pitch) * sizeof(int32_t)));
  kv_.tables = tables_.as<int32_t>();
  RETURN_IF_ERROR(DealBlocks(config_.max_seq_len));
  RETURN_IF_ERROR(FillCache());
  return model_->BindCache(kv_);
}

// Sequences of `tokens` one behind the other over the pool: what comes round again was read a whole pool before.
Result<void> CudaOpTimer::DealBlocks(int32_t tokens) {
  const int32_t pitch = kv_.table_pitch, each = CeilDiv(tokens, config_.tokens_per_block);
  std::vector<int32_t> tables(static_cast<size_t>(rows_max_ * pitch), 0);
  for (int32_t slot = 0; slot < rows_max_; ++slot)
    for (int32_t i = 0; i < each; ++i) tables[static_cast<size_t>(slot * pitch + i)] = (slot * each + i) % kv_.blocks;
  RETURN_IF_ERROR(timer_.stream().Copy(tables_.data(), tables.data(), tables_.size()));
  return timer_.stream().Wait();
}

// Normal values. In e4m3 a head's largest is the largest code, which the cache's scale brings back to about itself.
Result<void> CudaOpTimer::FillCache() {
  constexpr float kFp8Scale = 0.006f;
  const size_t elements = kv_.layer_elements();
  const auto rows = static_cast<int32_t>(elements / static_cast<size_t>(kv_.head_stride));
  if (kv_.fp8) kv_.key_scale = kv_.value_scale = kFp8Scale;
  DeviceBuffer wide, factors;
  ASSIGN_OR_RETURN(wide, DeviceBuffer::Create(elements * sizeof(cuda::Bf16)));
  ASSIGN_OR_RETURN(factors, DeviceBuffer::Create(static_cast<size_t>(rows) * sizeof(float)));
  uint64_t seed = 100;
  for (const DeviceBuffer* pool : {&keys_, &values_}) {
    for (int32_t layer = 0; layer < kv_.layers; ++layer) {
      std::byte* to = pool->data() + static_cast<size_t>(layer) * kv_.layer_bytes();
      cuda::FillNormal(timer_.queue(), wide.as<cuda::Bf16>(), static_cast<int64_t>(elements), seed++, 1);
      if (kv_.fp8) {
        cuda::Quantize(timer_.queue(), {.fp8 = reinterpret_cast<cuda::Fp8*>(to), .scales = factors.as<float>()},
                       wide.as<cuda::Bf16>(), rows, kv_.head_stride);
      } else {
        RETURN_IF_ERROR(timer_.stream().Copy(to, wide.data(), elements * sizeof(cuda::Bf16)));
      }
    }
  }
  RETURN_IF_ERROR(timer_.stream().Wait());
  return CudaStatus(timer_.queue().error, "filling the cache");
}

Result<CudaOpTimer::Step> CudaOpTimer::Generation(int32_t rows, int32_t kv_tokens) {
  Step step;
  RETURN_IF_ERROR(DealBlocks(kv_tokens + 1));
  const cuda::AttentionItemShape shape = model_->item_shape(scratch_);
  std::vector<cuda::AttentionItem> items, balanced;
  std::vector<int32_t> positions(static_cast<size_t>(rows), kv_tokens), slots;
  for (int32_t i = 0; i < rows; ++i) {
    cuda::AddGenerationItems(shape, i, i, kv_tokens, items);
    slots.push_back(model_->generation_stores_keys() ? -1 : i);
  }
  cuda::BalanceItems(items, shape.split, device_.multiprocessors, balanced);
  step.batch.generation_items_max = static_cast<int32_t>(items.size());
  RETURN_IF_ERROR(Finish(step, items, positions, slots));
  return step;
}

Result<CudaOpTimer::Step> CudaOpTimer::Context(int32_t tokens, int32_t position) {
  Step step;
  RETURN_IF_ERROR(DealBlocks(config_.max_seq_len));
  const cuda::AttentionItemShape shape = model_->item_shape(scratch_);
  std::vector<cuda::AttentionItem> items, balanced;
  std::vector<int32_t> positions, slots(static_cast<size_t>(tokens), 0);
  for (int32_t i = 0; i < tokens; ++i) positions.push_back(position + i);
  cuda::AddContextItems(shape, 0, 0, position, tokens, items);
  cuda::BalanceContextItems(items, shape, balanced);
  step.batch.context_items_max = static_cast<int32_t>(items.size());
  RETURN_IF_ERROR(Finish(step, items, positions, slots));
  return step;
}

// Uploads what a step names.
Result<void> CudaOpTimer::Finish(Step& step, std::vector<cuda::AttentionItem>& items,
                                 const std::vector<int32_t>& positions, const std::vector<int32_t>& slots) {
  CudaStream& stream = timer_.stream();
  const std::vector<int32_t> counts = {static_cast<int32_t>(items.size())};
  ASSIGN_OR_RETURN(step.positions, Upload(stream, positions));
  ASSIGN_OR_RETURN(step.slots, Upload(stream, slots));
  ASSIGN_OR_RETURN(step.items, Upload(stream, items));
  ASSIGN_OR_RETURN(step.counts, Upload(stream, counts));
  CudaBatch& batch = step.batch;
  batch.tokens = batch.outputs = static_cast<int32_t>(positions.size());
  batch.source = source_.as<int32_t>();
  batch.last_tokens = last_tokens_.as<int32_t>();
  batch.positions = step.positions.as<int32_t>();
  batch.slots = step.slots.as<int32_t>();
  batch.context_items = batch.generation_items = step.items.as<cuda::AttentionItem>();
  batch.context_item_count = batch.generation_item_count = step.counts.as<int32_t>();
  return {};
}

// All of a step, so that the buffers hold what it brings.
Result<void> CudaOpTimer::RunWhole(const Step& step) {
  model_->Only(std::nullopt);
  RETURN_IF_ERROR(model_->Forward(timer_.queue(), step.batch, kv_, scratch_));
  RETURN_IF_ERROR(timer_.stream().Wait());
  return CudaStatus(timer_.queue().error, "a step");
}

Result<double> CudaOpTimer::TimeForward(CudaOp op, const Step& step, int64_t calls) {
  RETURN_IF_ERROR(RunWhole(step));
  // What the layers' linears read once more: the final norm writes the same rows, in bf16.
  model_->Only(CudaOp::kNorm);
  RETURN_IF_ERROR(model_->Forward(timer_.queue(), step.batch, kv_, scratch_));
  model_->Only(op);
  return timer_.Time(calls, [&](int i) {
    CudaBatch batch = step.batch;
    batch.source += int64_t{i} * batch.tokens;
    return model_->Forward(timer_.queue(), batch, kv_, scratch_);
  });
}

void CudaOpTimer::Add(const char* op, std::string shape, int32_t tokens, int64_t calls, double seconds,
                      double operations, double bytes, double peak, std::string kernel) {
  out_.ops.push_back({op, std::move(shape), tokens, calls, seconds, operations, bytes, peak, std::move(kernel)});
}

Result<void> CudaOpTimer::TimeLinear(CudaOp op, const char* name, const Step& step) {
  const int32_t tokens = step.batch.tokens;
  const int64_t calls = op == CudaOp::kHead ? 1 : m_.num_hidden_layers;
  double seconds = 0;
  if (op == CudaOp::kHead) {
    RETURN_IF_ERROR(RunWhole(step));
    model_->Only(op);
    ASSIGN_OR_RETURN(
        seconds, timer_.Time(calls, [&](int) { return model_->Head(timer_.queue(), 0, tokens, logits_.as<float>()); }));
  } else {
    ASSIGN_OR_RETURN(seconds, TimeForward(op, step, calls));
  }
  CudaLinearForm form = model_->FormOf(op, tokens);
  const double n = form.out_features, k = form.in_features, element = form.fp8 ? 1 : 2,
               factors = form.fp8 ? 4.0 * (n + tokens) : 0, out_element = op == CudaOp::kHead ? 4 : 2;
  Add(name, fmt::format("{} {}x{}", form.fp8 ? "fp8" : "bf16", form.out_features, form.in_features), tokens, calls,
      seconds, 2 * n * k * tokens, (n + tokens) * k * element + factors + tokens * n * out_element,
      form.fp8 ? out_.limits.fp8_operations : out_.limits.bf16_operations, std::move(form.kernel));
  return {};
}

Result<void> CudaOpTimer::TimeElementwise(const Step& step) {
  const int32_t tokens = step.batch.tokens, layers = m_.num_hidden_layers;
  const double hidden = m_.hidden_size, wide = m_.intermediate_size;
  ASSIGN_OR_RETURN(double seconds, TimeForward(CudaOp::kEmbedding, step, 1));
  Add("embedding", fmt::format("bf16 {}x{}", m_.vocab_size, m_.hidden_size), tokens, 1, seconds, 0,
      tokens * (hidden * (2 + 4) + 4));
  const double residual_bytes = tokens * hidden * (4 + 2 + 4) + 4 * hidden;  // read, with delta, and written
  ASSIGN_OR_RETURN(seconds, TimeForward(CudaOp::kFinalNorm, step, 1));
  Add("final_norm", fmt::format("{}", m_.hidden_size), tokens, 1, seconds, 5 * tokens * hidden,
      residual_bytes + 2 * tokens * hidden);
  ASSIGN_OR_RETURN(seconds, TimeForward(CudaOp::kNorm, step, 2 * layers));
  Add(config_.fp8 ? "add_rms_norm, quantise" : "add_rms_norm", fmt::format("{}", m_.hidden_size), tokens, 2 * layers,
      seconds, 5 * tokens * hidden, residual_bytes + tokens * input_bytes(hidden));
  ASSIGN_OR_RETURN(seconds, TimeForward(CudaOp::kSwiGlu, step, layers));
  Add(config_.fp8 ? "swiglu, quantise" : "swiglu", fmt::format("{}", m_.intermediate_size), tokens, layers, seconds,
      12 * tokens * wide, tokens * (4 * wide + input_bytes(wide)));
  if (!config_.fp8) return {};
  ASSIGN_OR_RETURN(seconds, TimeForward(CudaOp::kQuantize, step, layers));
  Add("quantise", fmt::format("{:.0f}", query_columns()), tokens, layers, seconds, 2 * tokens * query_columns(),
      tokens * (2 * query_columns() + input_bytes(query_columns())));
  return {};
}

Result<void> CudaOpTimer::TimeRope(const Step& step) {
  const double tokens = step.batch.tokens;
  ASSIGN_OR_RETURN(double seconds, TimeForward(CudaOp::kRope, step, m_.num_hidden_layers));
  Add("rope_store_kv", heads_text(), step.batch.tokens, m_.num_hidden_layers, seconds, 6 * tokens * qkv_columns(),
      tokens * (2 * qkv_columns() + 2 * query_columns() + kv_row_bytes() + 8.0 * m_.head_dim));
  return {};
}

Result<void> CudaOpTimer::TimeGeneration(const Step& step, int32_t kv_tokens) {
  const double rows = step.batch.tokens;
  ASSIGN_OR_RETURN(double seconds, TimeForward(CudaOp::kGenerationAttention, step, m_.num_hidden_layers));
  const bool own_rope = model_->generation_stores_keys();
  Add(own_rope ? "rope, generation attention" : "generation attention",
      fmt::format("{}, {} tokens before each", heads_text(), kv_tokens), step.batch.tokens, m_.num_hidden_layers,
      seconds, 4 * rows * (kv_tokens + 1) * query_columns(),
      rows *
          ((kv_tokens + 1.0) * kv_row_bytes() + 2 * (own_rope ? qkv_columns() : query_columns()) + 2 * query_columns()),
      out_.limits.bf16_operations, own_rope ? "bulk copies" : "general");
  return {};
}

// Keys of the row are read once, however many tiles of queries read them again from the L2 cache.
Result<void> CudaOpTimer::TimeContext(const Step& step, int32_t position) {
  const double tokens = step.batch.tokens, pairs = tokens * position + 0.5 * tokens * (tokens + 1);
  ASSIGN_OR_RETURN(double seconds, TimeForward(CudaOp::kContextAttention, step, m_.num_hidden_layers));
  Add("context attention", fmt::format("{}, one prompt from {}", heads_text(), position), step.batch.tokens,
      m_.num_hidden_layers, seconds, 4 * pairs * query_columns(),
      (tokens + position) * kv_row_bytes() + 4 * tokens * query_columns(), out_.limits.bf16_operations,
      model_->item_shape(scratch_).clusters > 0 ? "wgmma" : "mma.sync");
  return {};
}

Result<void> CudaOpTimer::TimeHead(const Step& step) {
  const int32_t rows = step.batch.tokens;
  RETURN_IF_ERROR(TimeLinear(CudaOp::kHead, "lm_head", step));
  ASSIGN_OR_RETURN(double seconds, timer_.Time(1, [&](int) -> Result<void> {
    cuda::ArgMax(timer_.queue(), results_.as<int32_t>(), last_tokens_.as<int32_t>(), logits_.as<float>(),
                 row_numbers_.as<int32_t>(), rows, m_.vocab_size, best_.as<unsigned long long>());
    return {};
  }));
  std::vector<int32_t> chosen(static_cast<size_t>(rows));
  RETURN_IF_ERROR(timer_.stream().Copy(chosen.data(), results_.data(), chosen.size() * sizeof(int32_t)));
  RETURN_IF_ERROR(timer_.stream().Wait());
  if (std::ranges::count(chosen, -1) > 0)
    return Error(Code::kInternal,
                 fmt::format("a step of {} tokens has logits that are no numbers: no time of it counts", rows));
  Add("argmax", fmt::format("{}", m_.vocab_size), rows, 1, seconds, 0, 4.0 * rows * m_.vocab_size);
  return TimeSampler(rows);
}

// Not of a greedy step. Bytes: one pass over the logits, however many it takes.
Result<void> CudaOpTimer::TimeSampler(int32_t rows) {
  const struct {
    const char* name;
    int32_t top_k;
    float top_p;
  } cases[] = {{"sample, top_p 0.95", 0, 0.95f}, {"sample, top_k 50", 50, 1}};
  for (const auto& c : cases) {
    std::vector<Request> requests(static_cast<size_t>(rows));
    for (int32_t i = 0; i < rows; ++i) {
      Request& request = requests[static_cast<size_t>(i)];
      request.sampling = {.temperature = 0.8f, .top_k = c.top_k, .top_p = c.top_p, .seed = static_cast<uint64_t>(i)};
      RETURN_IF_ERROR(sampling_.Bind(timer_.stream(), timer_.queue(), {i}, request, 0, {}));
    }
    const cuda::SamplingArguments arguments{.logits = logits_.as<float>(),
                                            .rows = row_numbers_.as<int32_t>(),
                                            .slots = row_numbers_.as<int32_t>(),
                                            .results = results_.as<int32_t>(),
                                            .last_tokens = last_tokens_.as<int32_t>(),
                                            .logprobs = logprobs_.as<cuda::TokenLogProbs>()};
    ASSIGN_OR_RETURN(double seconds, timer_.Time(1, [&](int) -> Result<void> {
      sampling_.Run(timer_.queue(), arguments, rows);
      return {};
    }));
    Add(c.name, fmt::format("{}", m_.vocab_size), rows, 1, seconds, 0, 4.0 * rows * m_.vocab_size);
  }
  return {};
}

Result<void> CudaOpTimer::TimeAll(int32_t tokens) {
  ASSIGN_OR_RETURN(Step context, Context(tokens, 0));
  RETURN_IF_ERROR(TimeElementwise(context));
  const struct {
    CudaOp op;
    const char* name;
  } linears[] = {{CudaOp::kQkv, "qkv"}, {CudaOp::kO, "o"}, {CudaOp::kGateUp, "gate_up"}, {CudaOp::kDown, "down"}};
  for (const auto& linear : linears) RETURN_IF_ERROR(TimeLinear(linear.op, linear.name, context));
  RETURN_IF_ERROR(TimeRope(context));
  if (tokens > 1) RETURN_IF_ERROR(TimeContext(context, 0));
  const int32_t deep = config_.kv_tokens.empty() ? 0 : config_.kv_tokens.back();
  if (tokens > 1 && deep > 0 && tokens + deep <= config_.max_seq_len) {
    ASSIGN_OR_RETURN(Step chunk, Context(tokens, deep));
    RETURN_IF_ERROR(TimeContext(chunk, deep));
  }
  if (tokens > rows_max_) return {};
  for (int32_t kv_tokens : config_.kv_tokens) {
    ASSIGN_OR_RETURN(Step generation, Generation(tokens, kv_tokens));
    RETURN_IF_ERROR(TimeGeneration(generation, kv_tokens));
  }
  return TimeHead(context);
}

}  // namespace

Result<CudaOpTimings> TimeCudaOps(const ModelConfig& model, const EngineTensors* tensors,
                                  const CudaOpTimingConfig& config) {
  CudaOpTimings out;
  if (config.tokens.empty()) return out;
  const int32_t tokens_max = *std::ranges::max_element(config.tokens),
                kv_tokens_max = config.kv_tokens.empty() ? 0 : *std::ranges::max_element(config.kv_tokens);
  if (tokens_max > config.max_seq_len || kv_tokens_max >= config.max_seq_len)
    return Error(Code::kInvalid,
                 fmt::format("tokens: {}, or one behind {}, do not fit in max_seq_len {}", tokens_max, kv_tokens_max,
                             config.max_seq_len),
                 "tokens");
  ASSIGN_OR_RETURN(CudaDeviceInfo device, OpenCudaDevice());
  GraphTimer timer;
  RETURN_IF_ERROR(timer.Open(device.emulated));
  out.device = device.name;
  ASSIGN_OR_RETURN(out.limits, MeasureCudaLimits(timer, device.emulated));
  CudaOpTimer ops(model, config, device, timer, out);
  RETURN_IF_ERROR(ops.Open(tensors));
  for (int32_t tokens : config.tokens) RETURN_IF_ERROR(ops.TimeAll(tokens));
  return out;
}

}  // namespace ekiben
