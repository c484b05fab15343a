#include "model/cuda_forward_runner.h"

#include <algorithm>

#include "base/arithmetic.h"
#include "base/check.h"
#include "ops/cuda_attention_items.h"

namespace ekiben {

Result<std::unique_ptr<CudaForwardRunner>> CudaForwardRunner::Create(std::unique_ptr<CudaLlama> model,
                                                                     const Options& options) {
  auto out = std::unique_ptr<CudaForwardRunner>(new CudaForwardRunner(std::move(model), options));
  RETURN_IF_ERROR(out->Allocate());
  return out;
}

Result<void> CudaForwardRunner::Allocate() {
  const ModelConfig& c = model_->config();
  pitch_ = CeilDiv(options_.max_seq_len, options_.tokens_per_block);
  ASSIGN_OR_RETURN(stream_, CudaStream::Create());
  queue_.stream = stream_.get();
  kv_ = {.fp8 = options_.fp8_kv_cache,
         .layers = c.num_hidden_layers,
         .blocks = options_.slots * pitch_,
         .kv_heads = c.num_key_value_heads,
         .tokens_per_block = options_.tokens_per_block,
         .head_dim = c.head_dim,
         .head_stride = cuda::HeadStride(c.head_dim),
         .table_pitch = pitch_};
  const size_t pool = kv_.layer_bytes() * static_cast<size_t>(c.num_hidden_layers);
  ASSIGN_OR_RETURN(keys_, DeviceBuffer::Create(pool));
  ASSIGN_OR_RETURN(values_, DeviceBuffer::Create(pool));
  RETURN_IF_ERROR(PoisonPool(keys_));
  RETURN_IF_ERROR(PoisonPool(values_));
  kv_.keys = keys_.data();
  kv_.values = values_.data();
  // Every step of `stride` blocks visits each block once.
  int32_t stride = 7;
  while (kv_.blocks % stride == 0) stride += 2;
  std::vector<int32_t> tables(static_cast<size_t>(kv_.blocks));
  for (int32_t i = 0; i < kv_.blocks; ++i) tables[static_cast<size_t>(i)] = (i * stride + 3) % kv_.blocks;
  ASSIGN_OR_RETURN(tables_, Upload(stream_, tables));
  kv_.tables = tables_.as<int32_t>();
  ASSIGN_OR_RETURN(scratch_, CudaAttentionScratch::Create(c, options_.slots, options_.max_seq_len));
  ASSIGN_OR_RETURN(logits_, DeviceBuffer::Create(static_cast<size_t>(model_->limits().outputs_max) *
                                                 static_cast<size_t>(c.vocab_size) * sizeof(float)));
  return model_->BindCache(kv_);
}

// NaN everywhere but in the padding of a head, which the kernels read and must find zero.
Result<void> CudaForwardRunner::PoisonPool(DeviceBuffer& pool) {
  std::vector<uint8_t> host(pool.size(), 0xFF);
  const size_t element = kv_.element_bytes(), stride = static_cast<size_t>(kv_.head_stride) * element,
               used = static_cast<size_t>(kv_.head_dim) * element;
  for (size_t i = 0; i < host.size(); i += stride)
    std::fill_n(host.begin() + static_cast<ptrdiff_t>(i + used), stride - used, uint8_t{0});
  RETURN_IF_ERROR(stream_.Copy(pool.data(), host.data(), pool.size()));
  return stream_.Wait();
}

Result<void> CudaForwardRunner::PointTableAt(int32_t slot, int32_t entry, int32_t other_entry) {
  auto* table = tables_.as<int32_t>() + slot * pitch_;
  return stream_.Copy(table + entry, table + other_entry, sizeof(int32_t));
}

Result<void> CudaForwardRunner::Step(std::span<const Feed> feeds) {
  const ModelConfig& c = model_->config();
  const cuda::AttentionItemShape shape = model_->item_shape(scratch_);
  std::vector<int32_t> source, positions, slots;
  std::vector<cuda::AttentionItem> context, generation;
  for (const Feed& feed : feeds) {
    const Sequence& s = *feed.sequence;
    CHECK_LE(s.done + feed.tokens, options_.max_seq_len);
    auto begin = static_cast<int32_t>(source.size());
    if (feed.tokens == 1) {
      cuda::AddGenerationItems(shape, begin, s.slot, s.done, generation);
    } else {
      cuda::AddContextItems(shape, begin, s.slot, s.done, feed.tokens, context);
    }
    for (int32_t i = 0; i < feed.tokens; ++i) {
      source.push_back(s.token_ids[static_cast<size_t>(s.done + i)]);
      positions.push_back(s.done + i);
      slots.push_back(feed.tokens == 1 && model_->generation_stores_keys() ? -1 : s.slot);
    }
  }
  auto tokens = static_cast<int32_t>(source.size());
  std::vector<int32_t> counts = {static_cast<int32_t>(context.size()), static_cast<int32_t>(generation.size())};
  ASSIGN_OR_RETURN(DeviceBuffer d_source, Upload(stream_, source));
  ASSIGN_OR_RETURN(DeviceBuffer d_positions, Upload(stream_, positions));
  ASSIGN_OR_RETURN(DeviceBuffer d_slots, Upload(stream_, slots));
  ASSIGN_OR_RETURN(DeviceBuffer d_counts, Upload(stream_, counts));
  ASSIGN_OR_RETURN(DeviceBuffer d_context, Upload(stream_, context));
  ASSIGN_OR_RETURN(DeviceBuffer d_generation, Upload(stream_, generation));
  CudaBatch batch;
  batch.tokens = batch.outputs = tokens;
  batch.source = batch.last_tokens = d_source.as<int32_t>();
  batch.positions = d_positions.as<int32_t>();
  batch.slots = d_slots.as<int32_t>();
  batch.context_items = d_context.as<cuda::AttentionItem>();
  batch.generation_items = d_generation.as<cuda::AttentionItem>();
  batch.context_item_count = d_counts.as<int32_t>();
  batch.generation_item_count = d_counts.as<int32_t>() + 1;
  batch.context_items_max = counts[0];
  batch.generation_items_max = counts[1];
  RETURN_IF_ERROR(model_->Forward(queue_, batch, kv_, scratch_));
  RETURN_IF_ERROR(model_->Head(queue_, 0, tokens, logits_.as<float>()));
  const auto vocab = static_cast<size_t>(c.vocab_size);
  std::vector<float> host(static_cast<size_t>(tokens) * vocab);
  RETURN_IF_ERROR(stream_.Copy(host.data(), logits_.data(), host.size() * sizeof(float)));
  RETURN_IF_ERROR(stream_.Wait());
  RETURN_IF_ERROR(CudaStatus(queue_.error, "a step"));
  const float* from = host.data();
  for (const Feed& feed : feeds) {
    const size_t count = static_cast<size_t>(feed.tokens) * vocab;
    feed.sequence->logits.insert(feed.sequence->logits.end(), from, from + count);
    feed.sequence->done += feed.tokens;
    from += count;
  }
  return {};
}

}  // namespace ekiben
