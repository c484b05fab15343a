// The byte layouts behind ops/linear.h's packings, shared by the packer, the reference and the fast bodies.
// A weight is cut into groups of 16 rows and each group into strips of 64 columns; a strip holds, for each quad of
// columns, the 16 rows side by side, so that one 64-byte load feeds one vpdpbusd for 16 outputs. A body reads a group
// from its first byte to its last: what it needs beside the codes lies beside them.
//
//   kInt4Block32  group = strips x Int4Strip (640 B), f32 unit[16]
//   kInt8         group = strips x codes[16 quads][16 rows][4] (1,024 B), bf16 scale[strips][16], padded to 64 B
//   kF32          group = f32 [columns][16]
//   kBF16         group = bf16 [column pairs][16][2]
//
// Rows are padded to whole groups and columns to whole strips with zeros.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ekiben {

constexpr int64_t kGroupRows = 16;
constexpr int64_t kStripColumns = 64;

// 16 rows x 64 columns of 4-bit codes, in two blocks of 32 columns that each have a scale and a minimum per row.
// codes[block][quad j][row] holds columns 4j..4j+3 of the block in the low nibbles and 16+4j..16+4j+3 in the high ones.
// The weight is unit[row] * (scale * (code - 8) + 4 * offset): all integers but one float for the row. |scale| <= 16383
// bounds every partial sum below 2^31 (see ops/linear_body.h).
struct Int4Strip {
  uint8_t codes[2][4][16][4];
  struct Pair {
    int16_t scale, offset;
  } pairs[2][16];
};
static_assert(sizeof(Int4Strip) == 640);
constexpr int32_t kInt4ScaleMax = 16383, kInt4OffsetMax = 32767;

// 16 rows x 64 columns of 8-bit codes; weight = scale[row] * (code - 128).
struct Int8Strip {
  uint8_t codes[16][16][4];
};
static_assert(sizeof(Int8Strip) == 1024);

inline int64_t GroupsOf(int64_t out_features) {
  return (out_features + kGroupRows - 1) / kGroupRows;
}
inline int64_t StripsOf(int64_t in_features) {
  return (in_features + kStripColumns - 1) / kStripColumns;
}
inline size_t Int4GroupBytes(int64_t strips) {
  return static_cast<size_t>(strips) * sizeof(Int4Strip) + 64;
}
inline size_t Int8ScaleBytes(int64_t strips) {
  return (static_cast<size_t>(strips) * 32 + 63) & ~size_t{63};
}
inline size_t Int8GroupBytes(int64_t strips) {
  return static_cast<size_t>(strips) * sizeof(Int8Strip) + Int8ScaleBytes(strips);
}
inline size_t F32GroupBytes(int64_t in_features) {
  return static_cast<size_t>(in_features) * 64;
}
inline size_t BF16GroupBytes(int64_t in_features) {
  return static_cast<size_t>((in_features + 1) / 2) * 64;
}

}  // namespace ekiben
