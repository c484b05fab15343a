#include "ops/linear.h"

#include <algorithm>
#include <vector>

#include "base/arithmetic.h"
#include "ops/linear_dispatch.h"
#include "ops/linear_tuning.h"
#include "ops/packing.h"
#include "ops/swiglu.h"

namespace ekiben {
namespace {

int64_t EvenColumns(int64_t in_features) {
  return RoundUp(in_features, int64_t{2});
}

void CheckShapes(const TensorView& y, int64_t tokens, int64_t in_features, const LinearWeight& w) {
  CHECK_EQ(y.rank, 2);
  CHECK(y.dtype == DType::kF32);
  CHECK_EQ(y.shape[0], tokens);
  CHECK_EQ(y.shape[1], w.out_features);
  CHECK_EQ(in_features, w.in_features);
  CHECK_EQ(reinterpret_cast<uintptr_t>(w.data) % 64, 0u);
  DCHECK(w.bytes == PackedBytes(w.packing, w.out_features, w.in_features));
}

using Body = void (*)(const LinearTask&);
Body BodyOf(const LinearKernels& kernels, Packing packing) {
  switch (packing) {
    case Packing::kF32: return kernels.f32;
    case Packing::kBF16: return kernels.bf16;
    case Packing::kInt8: return kernels.int8;
    case Packing::kInt4Block32: return kernels.int4;
  }
  CHECK(false, "packing {}", static_cast<uint32_t>(packing));
  return nullptr;
}

LinearTask TaskOf(const TensorView& y, const LinearWeight& w) {
  LinearTask task;
  task.weight = w.data;
  task.in_features = w.in_features;
  task.out_features = w.out_features;
  task.bias = w.bias;
  task.y = y.as<float>();
  task.y_stride = y.stride[0];
  return task;
}

const LinearVariant& VariantOf(const OpContext& ctx, const LinearWeight& w, int64_t tokens) {
  return ctx.tuning != nullptr ? ctx.tuning->Choose(w, tokens) : LinearTuning::BuiltIn(w, tokens);
}

// Hands out groups of rows; with several tiles, a tile's groups first, so that its activations stay in L2.
void RunGroups(OpContext& ctx, Body body, LinearTask task, int64_t groups, const LinearVariant& variant, int64_t tiles,
               const QuantizedRows* rows) {
  int64_t count = groups * tiles;
  int64_t grain = std::max(int64_t{1}, CeilDiv(count, int64_t{ctx.pool->size()} * variant.pieces_per_thread));
  task.prefetch_bytes = variant.prefetch_bytes;
  ctx.pool->ParallelStreams(count, grain, [&](int64_t begin, int64_t end, int) {
    LinearTask mine = task;
    while (begin < end) {
      int64_t tile = begin / groups;
      mine.group_begin = begin % groups;
      mine.group_end = std::min(groups, mine.group_begin + (end - begin));
      if (rows != nullptr) {
        mine.tile = rows->Tile(tile);
        mine.y = task.y + mine.tile.token_begin * task.y_stride;
      }
      body(mine);
      begin += mine.group_end - mine.group_begin;
    }
  });
}

}  // namespace

const LinearKernels& LinearKernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kReference: return kLinearReference;
    case Isa::kAvx2: return kLinearAvx2;
    case Isa::kAvx512: return kLinearAvx512;
  }
  return kLinearReference;
}

bool TakesQuantizedRows(Packing packing) {
  return packing == Packing::kInt8 || packing == Packing::kInt4Block32;
}

void LinearQuantized(OpContext& ctx, TensorView y, const QuantizedRows& x, const LinearWeight& w) {
  CheckShapes(y, x.tokens, x.in_features, w);
  CHECK(TakesQuantizedRows(w.packing), "packing {} takes no quantised rows", Name(w.packing));
  if (x.tokens == 0) return;
  LinearTask task = TaskOf(y, w);
  RunGroups(ctx, BodyOf(LinearKernelsOf(ctx.isa), w.packing), task, GroupsOf(w.out_features),
            VariantOf(ctx, w, x.tokens), x.tiles, &x);
}

// With fewer tokens the time goes into reading weights, and reading two places by turns costs more than is saved (a
// step of 10 tokens: 8.5 ms fused, 7.7 not).
constexpr int64_t kFusedTokensMin = 32;

void LinearSwiGlu(OpContext& ctx, TensorView y, TensorView gate_up, const QuantizedRows& x, const LinearWeight& w) {
  CheckShapes(gate_up, x.tokens, x.in_features, w);
  CHECK(TakesQuantizedRows(w.packing), "packing {} takes no quantised rows", Name(w.packing));
  CHECK_EQ(y.shape[0], x.tokens);
  CHECK_EQ(2 * y.shape[1], w.out_features);
  if (x.tokens == 0) return;
  const LinearKernels& kernels = LinearKernelsOf(ctx.isa);
  Body body = w.packing == Packing::kInt8 ? kernels.int8_swiglu : kernels.int4_swiglu;
  if (body == nullptr || w.out_features / 2 % kGroupRows != 0 || x.tokens < kFusedTokensMin) {
    LinearQuantized(ctx, gate_up, x, w);
    SwiGlu(ctx, y, gate_up);
    return;
  }
  LinearTask task = TaskOf(y, w);
  RunGroups(ctx, body, task, GroupsOf(w.out_features) / 2, VariantOf(ctx, w, x.tokens), x.tiles, &x);
}

void Linear(OpContext& ctx, TensorView y, TensorView x, const LinearWeight& w) {
  size_t mark = ctx.arena->Mark();
  int64_t tokens = x.shape[0];
  if (TakesQuantizedRows(w.packing)) {
    LinearQuantized(ctx, y, QuantizeRows(ctx, x), w);
    ctx.arena->Rewind(mark);
    return;
  }
  CheckShapes(y, tokens, x.shape[1], w);
  if (tokens == 0) return;
  LinearTask task = TaskOf(y, w);
  task.tokens = tokens;
  task.x = x.data;
  task.x_stride = x.stride[0];
  const LinearKernels& kernels = LinearKernelsOf(ctx.isa);
  if (w.packing == Packing::kBF16) {
    int64_t even = EvenColumns(w.in_features);
    uint16_t* rounded = ctx.arena->Take<uint16_t>(tokens * even);
    ctx.pool->ParallelFor(tokens, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        kernels.to_bf16(x.row<float>(t), w.in_features, rounded + t * even);
        if (even != w.in_features) rounded[t * even + w.in_features] = 0;
      }
    });
    task.x = rounded;
    task.x_stride = even;
  }
  RunGroups(ctx, BodyOf(kernels, w.packing), task, GroupsOf(w.out_features), VariantOf(ctx, w, tokens), 1, nullptr);
  ctx.arena->Rewind(mark);
}

void LinearReference(TensorView y, TensorView x, const LinearWeight& w) {
  int64_t tokens = x.shape[0];
  ThreadPool pool(1);
  Arena arena(LinearScratchBytes(tokens, w.in_features, w.out_features));
  OpContext ctx{&pool, &arena, Isa::kReference};
  Linear(ctx, y, x, w);
}

size_t LinearScratchBytes(int64_t tokens, int64_t in_features, int64_t /*out_features*/) {
  size_t bf16 = static_cast<size_t>(tokens * EvenColumns(in_features)) * sizeof(uint16_t) + 64;
  return std::max(QuantizedRowsBytes(tokens, in_features), bf16) + 64;
}

}  // namespace ekiben
