// For tests: a checkpoint packed in memory and loaded, and sequences fed through it in any mix of chunks.
// compile/ does the packing of real engines; this one keeps model/ testable without it.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "base/arithmetic.h"
#include "device/buffer.h"
#include "device/thread_pool.h"
#include "model/model.h"
#include "weights/checkpoint.h"

namespace ekiben {

struct PackedModel {
  std::vector<Buffer> buffers;
  EngineTensors tensors;
  std::unique_ptr<Model> model;
};

inline Result<void> PackTensor(const Checkpoint& checkpoint, const PackRule& rule, Packing packing, PackedModel& out) {
  std::vector<LinearSource> pieces;
  for (const std::string& name : rule.sources) {
    ASSIGN_OR_RETURN(const CheckpointTensor* source, checkpoint.Tensor(name));
    pieces.push_back({source->dtype, source->data, source->shape[0]});
  }
  EngineTensor tensor{.name = rule.name, .kind = rule.kind, .rows = rule.rows, .columns = rule.columns};
  if (rule.kind == PackRule::Kind::kLinear) {
    tensor.packing = packing;
    Buffer& buffer = out.buffers.emplace_back(PackedBytes(packing, rule.rows, rule.columns));
    RETURN_IF_ERROR(PackLinear(packing, rule.columns, pieces, std::span(buffer.data(), buffer.size())));
  } else {
    Buffer& buffer = out.buffers.emplace_back(static_cast<size_t>(rule.rows * rule.columns) * sizeof(float));
    float* to = buffer.as<float>();
    for (const LinearSource& piece : pieces) {
      Dequantize(piece.dtype, piece.data, piece.rows * rule.columns, to);
      to += piece.rows * rule.columns;
    }
  }
  tensor.data = out.buffers.back().data();
  tensor.bytes = out.buffers.back().size();
  out.tensors[rule.name] = tensor;
  return {};
}

// Linears go into `packing`, those that keep their precision into `precise`.
inline Result<PackedModel> PackModel(const Checkpoint& checkpoint, Packing packing, Packing precise,
                                     int32_t max_seq_len) {
  PackedModel out;
  ASSIGN_OR_RETURN(std::vector<PackRule> rules, PackRules(checkpoint.config));
  for (const PackRule& rule : rules) {
    RETURN_IF_ERROR(PackTensor(checkpoint, rule, rule.keep_precision ? precise : packing, out));
  }
  ASSIGN_OR_RETURN(out.model, Model::Load(checkpoint.config, out.tensors, max_seq_len));
  return out;
}

// A cache with one block table per sequence, and the arena that a step needs.
class ForwardRunner {
 public:
  ForwardRunner(Model& model, Isa isa, int threads, DType kv_dtype, int32_t tokens_per_block, int32_t blocks,
                int64_t tokens_max)
      : model_(model),
        pool_(threads),
        arena_(model.ScratchBytes(tokens_max, tokens_max, threads)),
        kv_({model.config().num_hidden_layers, model.config().num_key_value_heads, model.config().head_dim,
             tokens_per_block, blocks, kv_dtype}),
        blocks_free_(static_cast<size_t>(blocks)) {
    ctx_ = {&pool_, &arena_, isa};
    for (int32_t i = 0; i < blocks; ++i) blocks_free_[static_cast<size_t>(i)] = BlockId{i};
  }

  struct Sequence {
    std::vector<int32_t> token_ids;
    int32_t done = 0;  // tokens fed
    std::vector<BlockId> blocks;
    std::vector<float> logits;  // [done, vocab_size]
  };
  struct Feed {
    Sequence* sequence;
    int32_t tokens;
  };

  // One step. Logits of every fed token are appended to its sequence.
  void Step(const std::vector<Feed>& feeds) {
    std::vector<int32_t> ids, positions, outputs;
    std::vector<AttentionRow> rows;
    for (const Feed& feed : feeds) {
      Sequence& s = *feed.sequence;
      while (std::ssize(s.blocks) * kv_.shape().tokens_per_block < s.done + feed.tokens) {
        ASSERT_FALSE(blocks_free_.empty());
        s.blocks.push_back(blocks_free_.back());
        blocks_free_.pop_back();
      }
      rows.push_back({static_cast<int32_t>(ids.size()), feed.tokens, s.done, s.blocks.data()});
      for (int32_t i = 0; i < feed.tokens; ++i) {
        outputs.push_back(static_cast<int32_t>(ids.size()));
        ids.push_back(s.token_ids[static_cast<size_t>(s.done + i)]);
        positions.push_back(s.done + i);
      }
    }
    size_t vocab = static_cast<size_t>(model_.config().vocab_size);
    std::vector<float> logits(ids.size() * vocab);
    TensorView view(logits.data(), DType::kF32, {std::ssize(ids), std::ssize(logits) / std::ssize(ids)});
    model_.Forward(ctx_, {ids, positions, rows, outputs}, kv_, view, {});
    EXPECT_EQ(arena_.Mark(), 0u);
    const float* from = logits.data();
    for (const Feed& feed : feeds) {
      size_t count = static_cast<size_t>(feed.tokens) * vocab;
      feed.sequence->logits.insert(feed.sequence->logits.end(), from, from + count);
      feed.sequence->done += feed.tokens;
      from += count;
    }
  }
  void Free(Sequence& s) {
    blocks_free_.insert(blocks_free_.end(), s.blocks.begin(), s.blocks.end());
    s = {};
  }
  std::vector<BlockId>& blocks_free() { return blocks_free_; }
  Arena& arena() { return arena_; }
  PagedKv& kv() { return kv_; }

 private:
  Model& model_;
  ThreadPool pool_;
  Arena arena_;
  PagedKv kv_;
  OpContext ctx_;
  std::vector<BlockId> blocks_free_;
};

}  // namespace ekiben
