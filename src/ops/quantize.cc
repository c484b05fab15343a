#include "ops/quantize.h"

#include "ops/linear_dispatch.h"
#include "ops/linear_kernels.h"
#include "ops/packing.h"

namespace ekiben {
namespace {

// Tiles of nearly equal size, so that the last one is no stub.
int64_t TilesOf(int64_t tokens) {
  return (tokens + kTileTokens - 1) / kTileTokens;
}

size_t RoundTo64(size_t bytes) {
  return (bytes + 63) & ~size_t{63};
}

struct TileLayout {
  size_t records, spikes, spike_counts, bytes;  // offsets, and the whole
};
TileLayout LayoutOf(int64_t tokens, int64_t strips) {
  size_t slots = static_cast<size_t>(strips * tokens);
  TileLayout layout;
  layout.records = slots * kStripColumns;
  layout.spikes = RoundTo64(layout.records + slots * sizeof(QuantRecord));
  layout.spike_counts = layout.spikes + slots * kSpikesMax * sizeof(QuantSpike);
  layout.bytes = RoundTo64(layout.spike_counts + static_cast<size_t>(tokens) * sizeof(int32_t));
  return layout;
}

}  // namespace

QuantTile QuantizedRows::Tile(int64_t tile) const {
  CHECK_LT(tile, tiles);
  int64_t whole = (tokens + tiles - 1) / tiles, strips = StripsOf(in_features);
  TileLayout layout = LayoutOf(whole, strips);
  std::byte* base = data + static_cast<size_t>(tile) * layout.bytes;
  QuantTile out;
  out.token_begin = tile * whole;
  out.tokens = static_cast<int32_t>(std::min(whole, tokens - out.token_begin));
  out.capacity = static_cast<int32_t>(whole);
  out.codes = reinterpret_cast<int8_t*>(base);
  out.records = reinterpret_cast<QuantRecord*>(base + layout.records);
  out.spikes = reinterpret_cast<QuantSpike*>(base + layout.spikes);
  out.spike_counts = reinterpret_cast<int32_t*>(base + layout.spike_counts);
  out.spikes_capacity = strips * kSpikesMax;
  return out;
}

size_t QuantizedRowsBytes(int64_t tokens, int64_t in_features) {
  if (tokens == 0) return 0;
  int64_t tiles = TilesOf(tokens);
  return static_cast<size_t>(tiles) * LayoutOf((tokens + tiles - 1) / tiles, StripsOf(in_features)).bytes;
}

QuantizedRows LayOutQuantizedRows(int64_t tokens, int64_t in_features, std::byte* data) {
  return {tokens, in_features, TilesOf(tokens), data};
}

QuantizedRows TakeQuantizedRows(OpContext& ctx, int64_t tokens, int64_t in_features) {
  auto bytes = static_cast<int64_t>(QuantizedRowsBytes(tokens, in_features));
  return LayOutQuantizedRows(tokens, in_features, ctx.arena->Take<std::byte>(bytes));
}

RowQuantizer::RowQuantizer(Isa isa, const QuantizedRows& rows) : rows_(rows), kernels_(LinearKernelsOf(isa)) {}

void RowQuantizer::Row(int64_t token, const float* x) {
  if (token < tile_.token_begin || token >= tile_.token_begin + tile_.tokens) {
    tile_ = rows_.Tile(token / ((rows_.tokens + rows_.tiles - 1) / rows_.tiles));
  }
  kernels_.quantize_token(x, rows_.in_features, tile_, static_cast<int32_t>(token - tile_.token_begin));
}

QuantizedRows QuantizeRows(OpContext& ctx, TensorView x) {
  CHECK_EQ(x.rank, 2);
  CHECK(x.dtype == DType::kF32);
  QuantizedRows rows = TakeQuantizedRows(ctx, x.shape[0], x.shape[1]);
  // A token of 576 takes 0.1 us: below about eight tokens a fork costs more than it saves.
  ctx.pool->ParallelFor(x.shape[0], 8, [&](int64_t begin, int64_t end, int) {
    RowQuantizer quantizer(ctx.isa, rows);
    for (int64_t t = begin; t < end; ++t) quantizer.Row(t, x.row<float>(t));
  });
  return rows;
}

}  // namespace ekiben
