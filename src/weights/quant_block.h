// The bytes of GGUF's block formats, as a file holds them. A row of a tensor is a run of blocks; no block crosses a
// row. Scales are f16 bit patterns. Alignment is 2 at most, so blocks may be read in place from a mapped file (GGUF
// aligns tensors to 8 bytes or more).
//
// Value i of a block, with q(i) the unsigned code:
//   q8_0   d * qs[i]                      qs signed
//   q4_0   d * (q - 8)                    q4_1   d * q + m
//   q5_0   d * (q - 16)                   q5_1   d * q + m
//   q4_k   (d * scale) * q - (dmin * min)   with scale and min per 32 values; q5_k the same
//   q6_k   (d * scale) * (q - 32)           with scale per 16 values, signed
// Low nibbles come first: in the _0/_1 formats qs[j] holds value j (low) and j + 16 (high); in the K formats each 32
// bytes hold 64 values, 32 low nibbles and then 32 high ones.
// Source: the GGML quantisation formats, https://github.com/ggml-org/ggml (ggml-common.h), restated.
#pragma once
#include <cstdint>

namespace ekiben {

struct BlockQ8_0 {
  uint16_t d;
  int8_t qs[32];
};
struct BlockQ4_0 {
  uint16_t d;
  uint8_t qs[16];
};
struct BlockQ4_1 {
  uint16_t d, m;
  uint8_t qs[16];
};
struct BlockQ5_0 {
  uint16_t d;
  uint8_t qh[4];  // bit i: the fifth bit of value i, little-endian
  uint8_t qs[16];
};
struct BlockQ5_1 {
  uint16_t d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};
struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];  // ScaleOfK, MinOfK
  uint8_t qs[128];
};
struct BlockQ5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];  // bit k of qh[j]: the fifth bit of value 32 k + j
  uint8_t qs[128];
};
struct BlockQ6_K {
  uint8_t ql[128];    // low 4 bits; per half of 128 values: 64 low nibbles of values 0..63, high ones of 64..127
  uint8_t qh[64];     // high 2 bits; per half: bits 2k..2k+1 of qh[j] belong to value 32 k + j
  int8_t scales[16];  // one per 16 values
  uint16_t d;
};

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ4_K) == 144 && sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// The 6-bit scale and minimum of sub-block `j` (0..7), from the 12 packed bytes: bytes 0-3 hold scales 0-3 and 4-7 hold
// minima 0-3 in their low 6 bits; their top 2 bits are the top bits of scales and minima 4-7, whose low 4 bits are the
// nibbles of bytes 8-11.
inline uint8_t ScaleOfK(const uint8_t* scales, int j) {
  if (j < 4) return scales[j] & 63;
  return static_cast<uint8_t>((scales[j + 4] & 15) | ((scales[j - 4] >> 6) << 4));
}
inline uint8_t MinOfK(const uint8_t* scales, int j) {
  if (j < 4) return scales[j + 4] & 63;
  return static_cast<uint8_t>((scales[j + 4] >> 4) | ((scales[j] >> 6) << 4));
}

}  // namespace ekiben
