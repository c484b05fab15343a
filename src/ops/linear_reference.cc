// The plain bodies of ops/linear.h: what every fast body computes, one number at a time.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/bf16_round.h"
#include "ops/lane_sum.h"
#include "ops/linear_kernels.h"
#include "ops/packing.h"

namespace ekiben {
namespace {

void StoreRow(const LinearTask& task, int64_t token, int64_t row, float y) {
  if (task.bias != nullptr) y += task.bias[row];
  task.y[token * task.y_stride + row] = y;
}

// One record of a strip against one row.
float Int4Term(const Int4Strip& strip, int64_t lane, const int8_t* x, const QuantRecord& record, float sum) {
  uint32_t total = 0;
  for (int block = 0; block < 2; ++block) {
    uint32_t acc = static_cast<uint32_t>(record.int4_start[block]);
    for (int k = 0; k < 32; ++k) {
      uint8_t byte = strip.codes[block][k % 16 / 4][lane][k % 4];
      int32_t code = k < 16 ? byte & 15 : byte >> 4;
      acc += static_cast<uint32_t>(code * x[32 * block + k]);
    }
    int32_t lower = static_cast<int16_t>(acc & 0xffff), upper = static_cast<int16_t>(acc >> 16);
    const Int4Strip::Pair& pair = strip.pairs[block][lane];
    total += static_cast<uint32_t>(pair.scale * lower + pair.offset * upper);
  }
  return std::fma(static_cast<float>(static_cast<int32_t>(total)), record.scale, sum);
}

float Int8Term(const Int8Strip& strip, float row_scale, int64_t lane, const int8_t* x, const QuantRecord& record,
               float sum) {
  int32_t acc = record.int8_start;
  for (int k = 0; k < 64; ++k) acc += strip.codes[k / 4][lane][k % 4] * x[k];
  return std::fma(static_cast<float>(acc), row_scale * record.scale, sum);
}

// A spike against one row: the weight, exact in f32, times the value.
float Int4Spike(const Int4Strip& strip, int64_t lane, const QuantSpike& spike, float sum) {
  int64_t block = spike.column % kStripColumns / 32, k = spike.column % 32;
  uint8_t byte = strip.codes[block][k % 16 / 4][lane][k % 4];
  int32_t code = k < 16 ? byte & 15 : byte >> 4;
  const Int4Strip::Pair& pair = strip.pairs[block][lane];
  return std::fma(static_cast<float>(pair.scale * (code - 8) + pair.offset * 4), spike.value, sum);
}

float Int8Spike(const Int8Strip& strip, float row_scale, int64_t lane, const QuantSpike& spike, float sum) {
  int32_t code = strip.codes[spike.column % kStripColumns / 4][lane][spike.column % 4] - 128;
  return std::fma(static_cast<float>(code) * row_scale, spike.value, sum);
}

// One token's sum: term(strip, codes, record, sum) over the strips, ascending, then spike(strip, spike, sum).
template <class Term, class Spike>
float SumStrips(const LinearTask& task, int32_t token, const Term& term, const Spike& spike) {
  const QuantTile& tile = task.tile;
  float sum = 0.0f;
  for (int64_t s = 0; s < StripsOf(task.in_features); ++s) {
    int64_t at = s * tile.capacity;
    sum = term(s, tile.codes + (at + token) * kStripColumns, tile.records[at + token], sum);
  }
  const QuantSpike* spikes = tile.spikes_of(token);
  for (int32_t i = 0; i < tile.spike_counts[token]; ++i) sum = spike(spikes[i].column / kStripColumns, spikes[i], sum);
  return sum;
}

void Int4Rows(const LinearTask& task) {
  int64_t strips = StripsOf(task.in_features);
  for (int64_t row = task.group_begin * kGroupRows; row < std::min(task.group_end * kGroupRows, task.out_features);
       ++row) {
    const std::byte* group = task.weight + static_cast<size_t>(row / kGroupRows) * Int4GroupBytes(strips);
    const Int4Strip* strip = reinterpret_cast<const Int4Strip*>(group);
    float unit = reinterpret_cast<const float*>(group + static_cast<size_t>(strips) * sizeof(Int4Strip))[row % 16];
    for (int32_t t = 0; t < task.tile.tokens; ++t) {
      int64_t lane = row % kGroupRows;
      float sum = SumStrips(
          task, t,
          [&](int64_t s, const int8_t* x, const QuantRecord& record, float acc) {
            return Int4Term(strip[s], lane, x, record, acc);
          },
          [&](int64_t s, const QuantSpike& spike, float acc) { return Int4Spike(strip[s], lane, spike, acc); });
      StoreRow(task, t, row, sum * unit);
    }
  }
}

void Int8Rows(const LinearTask& task) {
  int64_t strips = StripsOf(task.in_features);
  for (int64_t row = task.group_begin * kGroupRows; row < std::min(task.group_end * kGroupRows, task.out_features);
       ++row) {
    const std::byte* group = task.weight + static_cast<size_t>(row / kGroupRows) * Int8GroupBytes(strips);
    const Int8Strip* strip = reinterpret_cast<const Int8Strip*>(group);
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(strip + strips);
    for (int32_t t = 0; t < task.tile.tokens; ++t) {
      int64_t lane = row % kGroupRows;
      auto row_scale = [&](int64_t s) { return BF16ToF32(scales[s * kGroupRows + lane]); };
      float sum = SumStrips(
          task, t,
          [&](int64_t s, const int8_t* x, const QuantRecord& record, float acc) {
            return Int8Term(strip[s], row_scale(s), lane, x, record, acc);
          },
          [&](int64_t s, const QuantSpike& spike, float acc) {
            return Int8Spike(strip[s], row_scale(s), lane, spike, acc);
          });
      StoreRow(task, t, row, sum * 1.0f);
    }
  }
}

void F32Rows(const LinearTask& task) {
  const float* weights = reinterpret_cast<const float*>(task.weight);
  for (int64_t row = task.group_begin * kGroupRows; row < std::min(task.group_end * kGroupRows, task.out_features);
       ++row) {
    const float* w = weights + row / kGroupRows * task.in_features * kGroupRows + row % kGroupRows;
    for (int64_t t = 0; t < task.tokens; ++t) {
      const float* x = static_cast<const float*>(task.x) + t * task.x_stride;
      float sum = 0.0f;
      for (int64_t k = 0; k < task.in_features; ++k) sum = std::fma(w[k * kGroupRows], x[k], sum);
      StoreRow(task, t, row, sum);
    }
  }
}

// vpdpbf16ps: the odd product first, then the even one, each fused; denormals count as zeros of their sign.
float FlushDenormal(float value) {
  return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

void BF16Rows(const LinearTask& task) {
  int64_t pairs = (task.in_features + 1) / 2;
  const uint16_t* weights = reinterpret_cast<const uint16_t*>(task.weight);
  for (int64_t row = task.group_begin * kGroupRows; row < std::min(task.group_end * kGroupRows, task.out_features);
       ++row) {
    const uint16_t* w = weights + (row / kGroupRows * pairs * kGroupRows + row % kGroupRows) * 2;
    for (int64_t t = 0; t < task.tokens; ++t) {
      const uint16_t* x = static_cast<const uint16_t*>(task.x) + t * task.x_stride;
      float sum = 0.0f;
      for (int64_t k = 0; k < pairs; ++k) {
        const uint16_t* pair = w + k * 2 * kGroupRows;
        sum = FlushDenormal(std::fma(BF16ToF32(pair[1]), BF16ToF32(x[2 * k + 1]), sum));
        sum = FlushDenormal(std::fma(BF16ToF32(pair[0]), BF16ToF32(x[2 * k]), sum));
      }
      StoreRow(task, t, row, sum);
    }
  }
}

void ToBF16(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = RoundToBF16(x[i]);
}

// Quantises 64 values (zeros past the row's end) into one record.
void StoreRecord(const float (&values)[kStripColumns], int8_t* codes, QuantRecord& record) {
  float maximum = 0.0f;
  for (float value : values) maximum = std::max(maximum, std::fabs(value));
  bool tiny = maximum < kTinyMaximum;
  float inverse = tiny ? 0.0f : 127.0f / maximum;
  int32_t sums[2] = {0, 0};
  for (int k = 0; k < kStripColumns; ++k) {
    codes[k] = static_cast<int8_t>(std::nearbyint(values[k] * inverse));
    sums[k / 32] += codes[k];
  }
  record = {{sums[0] * kInt4Start, sums[1] * kInt4Start}, -128 * (sums[0] + sums[1]), tiny ? 0.0f : maximum / 127.0f};
}

// Moves the values beyond `limit`, the first kSpikesMax, out of the strip that begins at `column`.
void TakeSpikes(float (&values)[kStripColumns], float limit, int64_t column, QuantSpike*& spike) {
  int32_t left = kSpikesMax;
  for (int k = 0; k < kStripColumns && left > 0; ++k) {
    if (!(std::fabs(values[k]) > limit)) continue;
    *spike++ = {values[k], static_cast<uint32_t>(column + k)};
    values[k] = 0.0f;
    --left;
  }
}

}  // namespace

void QuantizeTokenReference(const float* x, int64_t in_features, const QuantTile& tile, int32_t token) {
  float squares[64] = {};
  for (int64_t k = 0; k < in_features; ++k) squares[k % 64] = std::fma(x[k], x[k], squares[k % 64]);
  LaneSum squares_sum;
  for (int i = 0; i < 16; ++i)
    squares_sum.lane[i] = (squares[i] + squares[16 + i]) + (squares[32 + i] + squares[48 + i]);
  float limit = kSpikeRatio * std::sqrt(squares_sum.Total() / static_cast<float>(in_features));
  QuantSpike* spike = tile.spikes_of(token);
  for (int64_t s = 0; s < StripsOf(in_features); ++s) {
    float values[kStripColumns] = {};
    int64_t columns = std::min(kStripColumns, in_features - s * kStripColumns);
    std::memcpy(values, x + s * kStripColumns, static_cast<size_t>(columns) * sizeof(float));
    TakeSpikes(values, limit, s * kStripColumns, spike);
    int64_t at = s * tile.capacity + token;
    StoreRecord(values, tile.codes + at * kStripColumns, tile.records[at]);
  }
  tile.spike_counts[token] = static_cast<int32_t>(spike - tile.spikes_of(token));
}

const LinearKernels kLinearReference = {
    QuantizeTokenReference, Int4Rows, Int8Rows, nullptr, nullptr, F32Rows, BF16Rows, ToBF16};

}  // namespace ekiben
