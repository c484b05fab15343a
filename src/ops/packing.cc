// PackLinear: a checkpoint's rows into the layouts of ops/packing.h. Runs at build time, once a weight.
#include "ops/packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "device/thread_pool.h"
#include "ops/bf16_round.h"
#include "ops/linear.h"
#include "weights/checkpoint.h"
#include "weights/quant_block.h"

namespace ekiben {
namespace {

constexpr int64_t kBlock = 32;
constexpr int64_t kGroupsATime = 4;

// A row as 4-bit blocks: value = scale * code + minimum.
struct Int4Row {
  std::vector<float> scale, minimum;  // [blocks]
  std::vector<uint8_t> codes;         // [columns]
};

void UnpackNibbles(const uint8_t* qs, uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = qs[j] & 15;
    codes[16 + j] = qs[j] >> 4;
  }
}

// The blocks as they are in a file of 4-bit blocks.
void ReadBlocks(DType dtype, const std::byte* data, Int4Row& row) {
  for (size_t b = 0; b < row.scale.size(); ++b) {
    if (dtype == DType::kQ4_1) {
      BlockQ4_1 block;
      std::memcpy(&block, data + b * sizeof(block), sizeof(block));
      row.scale[b] = F16ToF32(block.d);
      row.minimum[b] = F16ToF32(block.m);
      UnpackNibbles(block.qs, &row.codes[b * kBlock]);
    } else {
      BlockQ4_0 block;
      std::memcpy(&block, data + b * sizeof(block), sizeof(block));
      row.scale[b] = F16ToF32(block.d);
      row.minimum[b] = -8.0f * row.scale[b];
      UnpackNibbles(block.qs, &row.codes[b * kBlock]);
    }
  }
}

// Blocks made here, from any other source: the range of each block in 15 steps.
void MakeBlocks(const std::vector<float>& values, Int4Row& row) {
  for (size_t b = 0; b < row.scale.size(); ++b) {
    const float* v = &values[b * kBlock];
    auto [low, high] = std::minmax_element(v, v + kBlock);
    row.minimum[b] = *low;
    row.scale[b] = (*high - *low) / 15.0f;
    float inverse = row.scale[b] > 0 ? 1.0f / row.scale[b] : 0.0f;
    for (int64_t k = 0; k < kBlock; ++k) {
      float code = std::nearbyint((v[k] - *low) * inverse);
      row.codes[b * kBlock + static_cast<size_t>(k)] = static_cast<uint8_t>(std::clamp(code, 0.0f, 15.0f));
    }
  }
}

// The row's unit: the smallest with which every block's scale and offset fit their integers.
float UnitOf(const Int4Row& row) {
  float unit = 0.0f;
  for (size_t b = 0; b < row.scale.size(); ++b) {
    unit = std::max(unit, std::fabs(row.scale[b]) / kInt4ScaleMax);
    unit = std::max(unit, std::fabs(row.minimum[b] + 8.0f * row.scale[b]) / (4.0f * kInt4OffsetMax));
  }
  return unit;
}

int16_t ToUnits(float value, float unit, int32_t limit) {
  if (!(unit > 0)) return 0;
  return static_cast<int16_t>(std::clamp(std::lrint(value / unit), long{-limit}, long{limit}));
}

void StoreInt4(const Int4Row& row, int64_t lane, int64_t strips, std::byte* group) {
  float unit = UnitOf(row);
  std::memcpy(group + static_cast<size_t>(strips) * sizeof(Int4Strip) + lane * 4, &unit, 4);
  for (size_t b = 0; b < row.scale.size(); ++b) {
    Int4Strip& strip = reinterpret_cast<Int4Strip*>(group)[b / 2];
    size_t half = b % 2;
    strip.pairs[half][lane].scale = ToUnits(row.scale[b], unit, kInt4ScaleMax);
    strip.pairs[half][lane].offset = ToUnits(row.minimum[b] + 8.0f * row.scale[b], 4.0f * unit, kInt4OffsetMax);
    const uint8_t* codes = &row.codes[b * kBlock];
    for (int k = 0; k < 16; ++k) {
      strip.codes[half][k / 4][lane][k % 4] = static_cast<uint8_t>(codes[k] | (codes[16 + k] << 4));
    }
  }
}

// A scale no smaller than needed, so that no code passes 127.
uint16_t RoundUpToBF16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0xffffu) >> 16);
}

void StoreInt8(const std::vector<float>& values, int64_t lane, int64_t strips, std::byte* group) {
  Int8Strip* strip = reinterpret_cast<Int8Strip*>(group);
  uint16_t* scales = reinterpret_cast<uint16_t*>(group + static_cast<size_t>(strips) * sizeof(Int8Strip));
  int64_t columns = static_cast<int64_t>(values.size());
  for (int64_t s = 0; s < strips; ++s) {
    int64_t begin = s * kStripColumns, end = std::min(columns, begin + kStripColumns);
    float maximum = 0.0f;
    for (int64_t k = begin; k < end; ++k) maximum = std::max(maximum, std::fabs(values[static_cast<size_t>(k)]));
    uint16_t scale = maximum < 1e-30f ? uint16_t{0} : RoundUpToBF16(maximum / 127.0f);
    scales[s * kGroupRows + lane] = scale;
    float inverse = scale == 0 ? 0.0f : 1.0f / BF16ToF32(scale);
    for (int64_t k = begin; k < end; ++k) {
      float code = std::clamp(std::nearbyint(values[static_cast<size_t>(k)] * inverse), -127.0f, 127.0f);
      int64_t column = k - begin;
      strip[s].codes[column / 4][lane][column % 4] = static_cast<uint8_t>(static_cast<int>(code) + 128);
    }
  }
}

void StoreF32(const std::vector<float>& values, int64_t lane, std::byte* group) {
  float* out = reinterpret_cast<float*>(group);
  for (size_t k = 0; k < values.size(); ++k) out[k * kGroupRows + static_cast<size_t>(lane)] = values[k];
}

void StoreBF16(const std::vector<float>& values, int64_t lane, std::byte* group) {
  uint16_t* out = reinterpret_cast<uint16_t*>(group);
  for (size_t k = 0; k < values.size(); ++k) {
    out[(k / 2 * kGroupRows + static_cast<size_t>(lane)) * 2 + k % 2] = RoundToBF16(values[k]);
  }
}

size_t GroupBytes(Packing packing, int64_t in_features) {
  switch (packing) {
    case Packing::kF32: return F32GroupBytes(in_features);
    case Packing::kBF16: return BF16GroupBytes(in_features);
    case Packing::kInt8: return Int8GroupBytes(StripsOf(in_features));
    case Packing::kInt4Block32: return Int4GroupBytes(StripsOf(in_features));
  }
  CHECK(false, "packing {}", static_cast<uint32_t>(packing));
  return 0;
}

bool IsInt4Blocks(DType dtype) {
  return dtype == DType::kQ4_0 || dtype == DType::kQ4_1;
}

Result<void> CheckSource(Packing packing, int64_t in_features, const LinearSource& piece) {
  const DTypeInfo& info = InfoOf(piece.dtype);
  bool is_weight =
      IsBlocked(piece.dtype) || piece.dtype == DType::kF32 || piece.dtype == DType::kF16 || piece.dtype == DType::kBF16;
  if (!is_weight) {
    return Error(Code::kUnsupported, fmt::format("dtype {}: not a type of weights that can be packed", info.name),
                 "dtype");
  }
  int64_t block = packing == Packing::kInt4Block32 ? kBlock : int64_t{info.block_elements};
  if (in_features <= 0 || in_features % block != 0 || in_features % info.block_elements != 0) {
    return Error(Code::kUnsupported,
                 fmt::format("in_features {}: packing {} of {} needs a multiple of {}; build with --dtype int8, bf16 "
                             "or f32",
                             in_features, Name(packing), info.name, std::max(block, int64_t{info.block_elements})),
                 "in_features");
  }
  return {};
}

// Rows of a checkpoint into their groups; scratch of one thread.
class RowPacker {
 public:
  RowPacker(Packing packing, int64_t in_features)
      : packing_(packing),
        in_features_(in_features),
        strips_(StripsOf(in_features)),
        values_(static_cast<size_t>(in_features)) {
    if (packing != Packing::kInt4Block32) return;
    size_t blocks = values_.size() / kBlock;
    int4_ = {std::vector<float>(blocks), std::vector<float>(blocks), std::vector<uint8_t>(values_.size())};
  }

  // Row `row` of `piece` becomes row `lane` of `group`.
  void Pack(const LinearSource& piece, int64_t row, int64_t lane, std::byte* group) {
    const DTypeInfo& info = InfoOf(piece.dtype);
    size_t row_bytes =
        values_.size() / static_cast<size_t>(info.block_elements) * static_cast<size_t>(info.block_bytes);
    const std::byte* data = piece.data + static_cast<size_t>(row) * row_bytes;
    bool as_is = packing_ == Packing::kInt4Block32 && IsInt4Blocks(piece.dtype);
    if (!as_is) Dequantize(piece.dtype, data, in_features_, values_.data());
    switch (packing_) {
      case Packing::kF32: StoreF32(values_, lane, group); break;
      case Packing::kBF16: StoreBF16(values_, lane, group); break;
      case Packing::kInt8: StoreInt8(values_, lane, strips_, group); break;
      case Packing::kInt4Block32:
        as_is ? ReadBlocks(piece.dtype, data, int4_) : MakeBlocks(values_, int4_);
        StoreInt4(int4_, lane, strips_, group);
        break;
    }
  }

 private:
  Packing packing_;
  int64_t in_features_, strips_;
  std::vector<float> values_;
  Int4Row int4_;
};

}  // namespace

std::string_view Name(Packing packing) {
  switch (packing) {
    case Packing::kF32: return "f32";
    case Packing::kBF16: return "bf16";
    case Packing::kInt8: return "int8";
    case Packing::kInt4Block32: return "int4_block32";
  }
  return "?";
}

size_t PackedBytes(Packing packing, int64_t out_features, int64_t in_features) {
  return static_cast<size_t>(GroupsOf(out_features)) * GroupBytes(packing, in_features);
}

bool IsLossless(Packing packing, DType source) {
  switch (packing) {
    case Packing::kF32: return true;
    case Packing::kBF16: return source == DType::kBF16;
    case Packing::kInt8: return false;
    case Packing::kInt4Block32: return IsInt4Blocks(source);
  }
  return false;
}

Result<void> PackLinear(Packing packing, int64_t in_features, std::span<const LinearSource> pieces,
                        std::span<std::byte> out, ThreadPool* pool) {
  std::vector<int64_t> ends;  // rows up to and with each piece
  for (const LinearSource& piece : pieces) {
    RETURN_IF_ERROR(CheckSource(packing, in_features, piece));
    ends.push_back((ends.empty() ? 0 : ends.back()) + piece.rows);
  }
  const int64_t rows = ends.empty() ? 0 : ends.back(), groups = GroupsOf(rows);
  const size_t group_bytes = GroupBytes(packing, in_features);
  CHECK_EQ(out.size(), PackedBytes(packing, rows, in_features));
  auto pack = [&](int64_t first, int64_t last) {
    RowPacker packer(packing, in_features);
    for (int64_t n = first * kGroupRows; n < std::min(rows, last * kGroupRows); ++n) {
      auto piece = static_cast<size_t>(std::ranges::upper_bound(ends, n) - ends.begin());
      packer.Pack(pieces[piece], n - ends[piece] + pieces[piece].rows, n % kGroupRows,
                  out.data() + static_cast<size_t>(n / kGroupRows) * group_bytes);
    }
  };
  if (pool == nullptr) {
    pack(0, groups);
  } else {
    pool->ParallelFor(groups, kGroupsATime, [&](int64_t first, int64_t last, int) { pack(first, last); });
  }
  return {};
}

}  // namespace ekiben
