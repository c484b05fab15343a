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

// Calls term(strip index, codes, record, sum) for every record of one token: strips ascending, first before second.
template <class Term>
float SumRecords(const LinearTask& task, int32_t token, const Term& term) {
  float sum = 0.0f;
  for (int64_t s = 0; s < StripsOf(task.in_features); ++s) {
    for (int32_t r = 0; r < task.tile.counts[s]; ++r) {
      const QuantRecord& record = task.tile.records[s * task.tile.capacity + r];
      if (record.token != token) continue;
      sum = term(s, task.tile.codes + (s * task.tile.capacity + r) * kStripColumns, record, sum);
    }
  }
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
      float sum = SumRecords(task, t, [&](int64_t s, const int8_t* x, const QuantRecord& record, float acc) {
        return Int4Term(strip[s], row % kGroupRows, x, record, acc);
      });
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
      float sum = SumRecords(task, t, [&](int64_t s, const int8_t* x, const QuantRecord& record, float acc) {
        float row_scale = BF16ToF32(scales[s * kGroupRows + row % kGroupRows]);
        return Int8Term(strip[s], row_scale, row % kGroupRows, x, record, acc);
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
void StoreRecord(const float (&values)[kStripColumns], float maximum, int32_t token, int8_t* codes,
                 QuantRecord& record) {
  bool tiny = maximum < kTinyMaximum;
  float inverse = tiny ? 0.0f : 127.0f / maximum;
  int32_t sums[2] = {0, 0};
  for (int k = 0; k < kStripColumns; ++k) {
    codes[k] = static_cast<int8_t>(std::nearbyint(values[k] * inverse));
    sums[k / 32] += codes[k];
  }
  record = {
      {sums[0] * kInt4Start, sums[1] * kInt4Start}, -128 * (sums[0] + sums[1]), tiny ? 0.0f : maximum / 127.0f, token};
}

float MaxMagnitude(const float (&values)[kStripColumns]) {
  float maximum = 0.0f;
  for (float value : values) maximum = std::max(maximum, std::fabs(value));
  return maximum;
}

}  // namespace

void QuantizeTokenReference(const float* x, int64_t in_features, const QuantTile& tile, int32_t token) {
  float squares[64] = {};
  for (int64_t k = 0; k < in_features; ++k) squares[k % 64] = std::fma(x[k], x[k], squares[k % 64]);
  LaneSum squares_sum;
  for (int i = 0; i < 16; ++i)
    squares_sum.lane[i] = (squares[i] + squares[16 + i]) + (squares[32 + i] + squares[48 + i]);
  float limit = squares_sum.Total() * (kOutlierRatio * kOutlierRatio / static_cast<float>(in_features));
  for (int64_t s = 0; s < StripsOf(in_features); ++s) {
    float values[kStripColumns] = {};
    int64_t columns = std::min(kStripColumns, in_features - s * kStripColumns);
    std::memcpy(values, x + s * kStripColumns, static_cast<size_t>(columns) * sizeof(float));
    int8_t* codes = tile.codes + s * tile.capacity * kStripColumns;
    QuantRecord* records = tile.records + s * tile.capacity;
    float maximum = MaxMagnitude(values);
    StoreRecord(values, maximum, token, codes + token * kStripColumns, records[token]);
    if (!(maximum * maximum > limit)) continue;
    float inverse = 127.0f / maximum, scale = maximum / 127.0f;
    for (float& value : values) value = std::fma(std::nearbyint(value * inverse), -scale, value);
    maximum = MaxMagnitude(values);
    if (maximum < kTinyMaximum) continue;
    int32_t slot = __atomic_fetch_add(tile.counts + s, 1, __ATOMIC_RELAXED);
    StoreRecord(values, maximum, token, codes + slot * kStripColumns, records[slot]);
  }
}

const LinearKernels kLinearReference = {QuantizeTokenReference, Int4Rows, Int8Rows, F32Rows, BF16Rows, ToBF16};

}  // namespace ekiben
