// The bodies of ops/linear.h and ops/quantize.h for sixteen lanes. Included by linear_avx2.cc and linear_avx512.cc
// only. May be long: kernels read in order.
//
// Integer packings. A block of up to 8 tokens against a group of 16 rows: their sums stay in registers over all strips
// of 64 columns, so that at least 4 chains of vpdpbusd (latency 4, one a cycle) keep the unit busy, while weights are
// unpacked on the way. A block is ended (spikes, one column each; the SwiGLU; the stores of its rows) before the next
// one, whose multiplications are waiting by then and hide it.
//
// 4 bits, a block of 32 columns, S = the sum of its codes x:
//   acc = S * (4 * 65536 - 8), then 8 vpdpbusd add sum(code * x). As two 16-bit words: lower = sum((code - 8) x), which
//   |15 - 8| * 127 * 32 bounds below 2^15; upper = 4 S, less 1 where the lower word is negative (an error of 1/4 in S,
//   below the rounding of x itself, and the same in every body).
//   One vpdpwssd by the pair {scale, offset} then gives scale * lower + offset * upper, the whole block, exactly.
// Two blocks make a strip: 19 multiply slots of which 16 multiply codes, so at most 84 % of the vpdpbusd peak.
//
// Order of summation, the same in every body and batch: the token's records, strips ascending, then its spikes, columns
// ascending; y = acc * unit[row] (+ bias).
#pragma once
#include <algorithm>
#include <type_traits>

#include "ops/lanes.h"
#include "ops/lanes_bf16.h"
#include "ops/linear_kernels.h"
#include "ops/packing.h"
#include "ops/swiglu_body.h"

namespace ekiben {
namespace {

#define BODY_INLINE [[gnu::always_inline]] static inline
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__AVX512F__)

// Tokens of a block: their sums fit the registers, and their 64-byte codes the one-byte displacement of vpdpbusd's
// broadcasts (longer ones cost the decoder).
constexpr int kInt4Tokens = 8, kInt8Tokens = 8;

struct Ints {
  __m512i v;
};
BODY_INLINE Ints LoadInts(const void* p) {
  return {_mm512_load_si512(p)};
}
BODY_INLINE Ints BroadcastInt(int32_t x) {
  return {_mm512_set1_epi32(x)};
}
BODY_INLINE Ints ZeroInts() {
  return {_mm512_setzero_si512()};
}
BODY_INLINE Ints AddInts(Ints a, Ints b) {
  return {_mm512_add_epi32(a.v, b.v)};
}
BODY_INLINE Ints AddWords(Ints a, Ints b) {
  return {_mm512_add_epi16(a.v, b.v)};
}
BODY_INLINE Ints LowNibbles(Ints a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))};
}
BODY_INLINE Ints HighNibbles(Ints a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
BODY_INLINE Ints HighNibblesInPlace(Ints a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(-16))};
}
BODY_INLINE Ints Sixteenth(Ints a) {
  return {_mm512_srai_epi32(a.v, 4)};
}
// acc += four products of unsigned weight bytes and the four signed bytes at x, the same four for every lane.
// As an embedded broadcast: the load then costs no slot of its own. (g++ 12 hoists the broadcast out of intrinsics.)
BODY_INLINE Ints DotBytes(Ints acc, Ints weights, const int8_t* x) {
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(weights.v), "m"(*reinterpret_cast<const int32_t*>(x)));
  return acc;
}
BODY_INLINE Ints DotSmallBytes(Ints acc, Ints weights, const int8_t* x) {
  return DotBytes(acc, weights, x);
}
BODY_INLINE Ints DotWords(Ints acc, Ints a, Ints b) {
  return {_mm512_dpwssd_epi32(acc.v, a.v, b.v)};
}
BODY_INLINE Ints MultiplyWords(Ints a, Ints b) {
  return {_mm512_madd_epi16(a.v, b.v)};
}
BODY_INLINE Lanes ToFloat(Ints a) {
  return {_mm512_cvtepi32_ps(a.v)};
}
BODY_INLINE Lanes LoadBF16(const uint16_t* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// 64 values to codes, round to nearest even; sums: of each half. The packs leave dword k of a 128-bit lane to values of
// register k, which the permutation undoes.
BODY_INLINE void StoreCodes(int8_t* out, const Lanes (&scaled)[4], int32_t (&sums)[2]) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i low = _mm512_packs_epi32(_mm512_cvtps_epi32(scaled[0].v), _mm512_cvtps_epi32(scaled[1].v));
  __m512i high = _mm512_packs_epi32(_mm512_cvtps_epi32(scaled[2].v), _mm512_cvtps_epi32(scaled[3].v));
  __m512i codes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
  _mm512_store_si512(out, codes);
  __m512i eighths = _mm512_sad_epu8(_mm512_xor_si512(codes, _mm512_set1_epi8(-128)), _mm512_setzero_si512());
  eighths = _mm512_add_epi64(eighths, _mm512_shuffle_i64x2(eighths, eighths, 0xB1));
  eighths = _mm512_add_epi64(eighths, _mm512_shuffle_epi32(eighths, _MM_PERM_BADC));
  sums[0] = _mm_cvtsi128_si32(_mm512_castsi512_si128(eighths)) - 32 * 128;
  sums[1] = _mm_cvtsi128_si32(_mm512_extracti32x4_epi32(eighths, 2)) - 32 * 128;
}
BODY_INLINE Lanes Magnitude(Lanes a) {
  return {_mm512_abs_ps(a.v)};
}
BODY_INLINE uint64_t LanesAbove(Lanes a, Lanes limit) {
  return _mm512_cmp_ps_mask(a.v, limit.v, _CMP_GT_OQ);
}
BODY_INLINE Lanes ClearLanes(Lanes a, uint64_t lanes) {
  return {_mm512_maskz_mov_ps(static_cast<__mmask16>(~lanes), a.v)};
}
// (a >> bits) & mask
BODY_INLINE Ints BitsFrom(Ints a, int bits, int32_t mask) {
  return {_mm512_and_si512(_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(bits)), _mm512_set1_epi32(mask))};
}

#else

constexpr int kInt4Tokens = 4, kInt8Tokens = 4;

struct Ints {
  __m256i lo, hi;
};
BODY_INLINE Ints LoadInts(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_load_si256(q), _mm256_load_si256(q + 1)};
}
BODY_INLINE Ints BroadcastInt(int32_t x) {
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
BODY_INLINE Ints ZeroInts() {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
BODY_INLINE Ints AddInts(Ints a, Ints b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
BODY_INLINE Ints AddWords(Ints a, Ints b) {
  return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)};
}
BODY_INLINE Ints LowNibbles(Ints a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
BODY_INLINE Ints HighNibbles(Ints a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(a.lo, 4), mask), _mm256_and_si256(_mm256_srli_epi16(a.hi, 4), mask)};
}
BODY_INLINE Ints HighNibblesInPlace(Ints a) {
  const __m256i mask = _mm256_set1_epi8(-16);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
BODY_INLINE Ints Sixteenth(Ints a) {
  return {_mm256_srai_epi32(a.lo, 4), _mm256_srai_epi32(a.hi, 4)};
}
// vpmaddubsw saturates at 2^15, so weights above 128 go through 16-bit products: even and odd bytes apart.
BODY_INLINE __m256i DotEight(__m256i acc, __m256i weights, __m256i x) {
  const __m256i low = _mm256_set1_epi16(255);
  __m256i even = _mm256_madd_epi16(_mm256_and_si256(weights, low), _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
  __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(weights, 8), _mm256_srai_epi16(x, 8));
  return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
BODY_INLINE int32_t LoadQuad(const int8_t* x) {
  int32_t quad;
  __builtin_memcpy(&quad, x, 4);
  return quad;
}
BODY_INLINE Ints DotBytes(Ints acc, Ints weights, const int8_t* x) {
  __m256i quad = _mm256_set1_epi32(LoadQuad(x));
  return {DotEight(acc.lo, weights.lo, quad), DotEight(acc.hi, weights.hi, quad)};
}
// Weights up to 15: two products of 15 * 127 fit 16 bits.
BODY_INLINE Ints DotSmallBytes(Ints acc, Ints weights, const int8_t* x) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i quad = _mm256_set1_epi32(LoadQuad(x));
  __m256i lo = _mm256_madd_epi16(_mm256_maddubs_epi16(weights.lo, quad), ones);
  __m256i hi = _mm256_madd_epi16(_mm256_maddubs_epi16(weights.hi, quad), ones);
  return {_mm256_add_epi32(acc.lo, lo), _mm256_add_epi32(acc.hi, hi)};
}
BODY_INLINE Ints DotWords(Ints acc, Ints a, Ints b) {
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, b.lo)),
          _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, b.hi))};
}
BODY_INLINE Ints MultiplyWords(Ints a, Ints b) {
  return {_mm256_madd_epi16(a.lo, b.lo), _mm256_madd_epi16(a.hi, b.hi)};
}
BODY_INLINE Lanes ToFloat(Ints a) {
  return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
BODY_INLINE Lanes LoadBF16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  __m256i lo = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16);
  __m256i hi = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16);
  return {_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)};
}
BODY_INLINE int32_t StoreHalf(int8_t* out, const Lanes& first, const Lanes& second) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i low = _mm256_packs_epi32(_mm256_cvtps_epi32(first.lo), _mm256_cvtps_epi32(first.hi));
  __m256i high = _mm256_packs_epi32(_mm256_cvtps_epi32(second.lo), _mm256_cvtps_epi32(second.hi));
  __m256i codes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
  _mm256_store_si256(reinterpret_cast<__m256i*>(out), codes);
  __m256i quarters = _mm256_sad_epu8(_mm256_xor_si256(codes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
  __m128i half = _mm_add_epi64(_mm256_castsi256_si128(quarters), _mm256_extracti128_si256(quarters, 1));
  return _mm_cvtsi128_si32(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half))) - 32 * 128;
}
BODY_INLINE void StoreCodes(int8_t* out, const Lanes (&scaled)[4], int32_t (&sums)[2]) {
  sums[0] = StoreHalf(out, scaled[0], scaled[1]);
  sums[1] = StoreHalf(out + 32, scaled[2], scaled[3]);
}
BODY_INLINE Lanes Magnitude(Lanes a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
BODY_INLINE uint64_t LanesAbove(Lanes a, Lanes limit) {
  int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, limit.lo, _CMP_GT_OQ));
  int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, limit.hi, _CMP_GT_OQ));
  return static_cast<uint64_t>(lo | hi << 8);
}
BODY_INLINE Lanes ClearLanes(Lanes a, uint64_t lanes) {
  alignas(64) float values[kLanes];
  Store(values, a);
  for (int i = 0; i < kLanes; ++i) values[i] = lanes >> i & 1 ? 0.0f : values[i];
  return Load(values);
}
BODY_INLINE Ints BitsFrom(Ints a, int bits, int32_t mask) {
  __m128i count = _mm_cvtsi32_si128(bits);
  __m256i keep = _mm256_set1_epi32(mask);
  return {_mm256_and_si256(_mm256_srl_epi32(a.lo, count), keep), _mm256_and_si256(_mm256_srl_epi32(a.hi, count), keep)};
}

#endif

// ---- Quantising a token ---------------------------------------------------------------------------------------------

struct Strip64 {
  Lanes part[4];
};
BODY_INLINE Strip64 LoadStrip(const float* x, int64_t columns) {
  if (columns >= kStripColumns) return {Load(x), Load(x + 16), Load(x + 32), Load(x + 48)};
  Strip64 strip;
  for (int64_t i = 0; i < 4; ++i) {
    int64_t left = columns - 16 * i;
    strip.part[i] = left >= 16 ? Load(x + 16 * i) : left > 0 ? LoadFirst(x + 16 * i, left) : Zero();
  }
  return strip;
}
BODY_INLINE Lanes MaxMagnitudes(const Strip64& s) {
  return Max(Max(Magnitude(s.part[0]), Magnitude(s.part[1])), Max(Magnitude(s.part[2]), Magnitude(s.part[3])));
}
BODY_INLINE void StoreRecord(const Strip64& strip, float maximum, int8_t* codes, QuantRecord* record) {
  bool tiny = maximum < kTinyMaximum;
  Lanes inverse = Broadcast(tiny ? 0.0f : 127.0f / maximum);
  Lanes scaled[4];
  UNROLL for (int i = 0; i < 4; ++i) scaled[i] = Multiply(strip.part[i], inverse);
  int32_t sums[2];
  StoreCodes(codes, scaled, sums);
  *record = {{sums[0] * kInt4Start, sums[1] * kInt4Start}, -128 * (sums[0] + sums[1]), tiny ? 0.0f : maximum / 127.0f};
}
// Moves the values in `above` (a bit a column) out of the strip that begins at `column`, the first kSpikesMax of them.
static QuantSpike* TakeSpikes(Strip64& strip, uint64_t above, const float* x, int64_t column, QuantSpike* spike) {
  uint64_t taken = 0;
  for (int32_t i = 0; i < kSpikesMax && above != 0; ++i, ++spike) {
    int k = __builtin_ctzll(above);
    above &= above - 1;
    taken |= uint64_t{1} << k;
    *spike = {x[column + k], static_cast<uint32_t>(column + k)};
  }
  UNROLL for (int i = 0; i < 4; ++i) strip.part[i] = ClearLanes(strip.part[i], taken >> (16 * i) & 0xffff);
  return spike;
}

static void QuantizeToken(const float* x, int64_t in_features, const QuantTile& tile, int32_t token) {
  // Sum of squares: 64 running sums, then quarters (0 + 1) + (2 + 3), then the lanes as in ops/lanes.h.
  Lanes squares[4] = {Zero(), Zero(), Zero(), Zero()};
  for (int64_t c = 0; c < in_features; c += kStripColumns) {
    Strip64 s = LoadStrip(x + c, in_features - c);
    UNROLL for (int i = 0; i < 4; ++i) squares[i] = Fma(s.part[i], s.part[i], squares[i]);
  }
  float sum = Sum(Add(Add(squares[0], squares[1]), Add(squares[2], squares[3])));
  Lanes limit = Broadcast(kSpikeRatio * __builtin_sqrtf(sum / static_cast<float>(in_features)));
  QuantSpike *spikes = tile.spikes_of(token), *spike = spikes;
  int64_t at = token;
  for (int64_t c = 0; c < in_features; c += kStripColumns, at += tile.capacity) {
    Strip64 s = LoadStrip(x + c, in_features - c);
    Lanes maxima = MaxMagnitudes(s);
    if (LanesAbove(maxima, limit) != 0) {
      uint64_t above = 0;
      UNROLL for (int i = 0; i < 4; ++i) above |= LanesAbove(Magnitude(s.part[i]), limit) << (16 * i);
      spike = TakeSpikes(s, above, x, c, spike);
      maxima = MaxMagnitudes(s);
    }
    StoreRecord(s, MaxOf(maxima), tile.codes + at * kStripColumns, tile.records + at);
    // The next token's places: the other thread had them last.
    UNROLL for (int i = 0; i < 4; ++i) __builtin_prefetch(x + in_features + c + 16 * i, 0, 3);
    __builtin_prefetch(tile.codes + (at + 1) * kStripColumns, 1, 3);
  }
  tile.spike_counts[token] = static_cast<int32_t>(spike - spikes);
}

// ---- Blocks of tokens -----------------------------------------------------------------------------------------------

// Calls f(first token, count as a constant) over `tokens`, at most kMost at a time, in blocks of nearly equal size.
template <int kMost, int kCount = kMost, class F>
BODY_INLINE void WithCount(int32_t count, int32_t token, F&& f) {
  if constexpr (kCount == 1) {
    f(token, std::integral_constant<int, 1>());
  } else if (count == kCount) {
    f(token, std::integral_constant<int, kCount>());
  } else {
    WithCount<kMost, kCount - 1>(count, token, f);
  }
}
template <int kMost, class F>
BODY_INLINE void ForBlocks(int32_t tokens, F&& f) {
  int32_t blocks = (tokens + kMost - 1) / kMost;
  for (int32_t token = 0; blocks > 0; --blocks) {
    int32_t count = (tokens - token) / blocks;
    WithCount<kMost>(count, token, f);
    token += count;
  }
}

// Weights asked for ahead of their use, some at each strip. With one block of tokens: as far ahead as the profile says,
// at the rate of their use. With several: the next group, each block a share of it, so that memory is read at an even
// rate and not in the first block only.
struct Ahead {
  const std::byte *at, *end;
  int64_t step;  // bytes at a strip

  [[gnu::always_inline]] void Ask() {
    const std::byte* until = at + step < end ? at + step : end;
    for (; at < until; at += 64) __builtin_prefetch(at, 0, 3);
  }
};
template <int kMost>
BODY_INLINE Ahead AheadOf(const LinearTask& task, const std::byte* group, int64_t strips, int64_t strip_bytes,
                          int64_t group_bytes) {
  int64_t blocks = (task.tile.tokens + kMost - 1) / kMost;
  if (blocks > 1) return {group + group_bytes, group + 2 * group_bytes, (strip_bytes / 64 + blocks - 1) / blocks * 64};
  if (task.prefetch_bytes == 0) return {group, group, 0};
  return {group + task.prefetch_bytes, group + task.prefetch_bytes + strips * strip_bytes, strip_bytes};
}

// ---- 4 bits ---------------------------------------------------------------------------------------------------------

// Up to kInt4Tokens tokens of a tile against one group of 16 rows, all strips: acc f32 [kTokens][16]. The sums stay in
// registers from the first strip to the last (three registers a token: two blocks and the f32 sum), weights are
// unpacked on the way.
template <int kTokens>
BODY_INLINE void Int4Tokens(const Int4Strip* strip, int64_t strips, const QuantTile& tile, int32_t token, float* acc,
                            Ahead& ahead) {
  const int8_t* x = tile.codes + token * kStripColumns;
  const QuantRecord* record = tile.records + token;
  Lanes sum[kTokens];
  UNROLL for (int t = 0; t < kTokens; ++t) sum[t] = Zero();
  for (int64_t s = 0; s < strips; ++s, ++strip, x += tile.capacity * kStripColumns, record += tile.capacity) {
    ahead.Ask();
    Ints a[kTokens], b[kTokens];
    UNROLL for (int t = 0; t < kTokens; ++t) {
      a[t] = BroadcastInt(record[t].int4_start[0]);
      b[t] = BroadcastInt(record[t].int4_start[1]);
    }
    UNROLL for (int j = 0; j < 4; ++j) {
      Ints packed = LoadInts(strip->codes[0][j]), low = LowNibbles(packed), high = HighNibbles(packed);
      UNROLL for (int t = 0; t < kTokens; ++t) a[t] = DotSmallBytes(a[t], low, x + t * kStripColumns + 4 * j);
      UNROLL for (int t = 0; t < kTokens; ++t) a[t] = DotSmallBytes(a[t], high, x + t * kStripColumns + 16 + 4 * j);
      packed = LoadInts(strip->codes[1][j]), low = LowNibbles(packed), high = HighNibbles(packed);
      UNROLL for (int t = 0; t < kTokens; ++t) b[t] = DotSmallBytes(b[t], low, x + t * kStripColumns + 32 + 4 * j);
      UNROLL for (int t = 0; t < kTokens; ++t) b[t] = DotSmallBytes(b[t], high, x + t * kStripColumns + 48 + 4 * j);
    }
    Ints pair0 = LoadInts(strip->pairs[0]), pair1 = LoadInts(strip->pairs[1]);
    UNROLL for (int t = 0; t < kTokens; ++t) {
      Ints total = DotWords(MultiplyWords(a[t], pair0), b[t], pair1);
      sum[t] = Fma(ToFloat(total), Broadcast(record[t].scale), sum[t]);
    }
  }
  UNROLL for (int t = 0; t < kTokens; ++t) Store(acc + t * kGroupRows, sum[t]);
}

// One to three tokens: a step of one token runs at the speed of the loads. The high nibbles stay where they are, 16
// times too large, and their sums are shifted back at the end.
template <int kTokens>
BODY_INLINE void Int4FewTokens(const Int4Strip* strip, int64_t strips, const QuantTile& tile, int32_t token, float* acc,
                               Ahead& ahead) {
  const int8_t* x = tile.codes + token * kStripColumns;
  const QuantRecord* record = tile.records + token;
  Lanes sum[kTokens];
  UNROLL for (int t = 0; t < kTokens; ++t) sum[t] = Zero();
  for (int64_t s = 0; s < strips; ++s, ++strip, x += tile.capacity * kStripColumns, record += tile.capacity) {
    ahead.Ask();
    Ints low[2][kTokens], high[2][kTokens];
    UNROLL for (int block = 0; block < 2; ++block) {
      UNROLL for (int t = 0; t < kTokens; ++t) {
        low[block][t] = BroadcastInt(record[t].int4_start[block]);
        high[block][t] = ZeroInts();
      }
      UNROLL for (int j = 0; j < 4; ++j) {
        Ints packed = LoadInts(strip->codes[block][j]);
        Ints first = LowNibbles(packed), second = HighNibblesInPlace(packed);
        UNROLL for (int t = 0; t < kTokens; ++t) {
          const int8_t* quad = x + t * kStripColumns + 32 * block + 4 * j;
          low[block][t] = DotSmallBytes(low[block][t], first, quad);
          high[block][t] = DotBytes(high[block][t], second, quad + 16);
        }
      }
      UNROLL for (int t = 0; t < kTokens; ++t) low[block][t] = AddInts(low[block][t], Sixteenth(high[block][t]));
    }
    Ints pair0 = LoadInts(strip->pairs[0]), pair1 = LoadInts(strip->pairs[1]);
    UNROLL for (int t = 0; t < kTokens; ++t) {
      Ints total = DotWords(MultiplyWords(low[0][t], pair0), low[1][t], pair1);
      sum[t] = Fma(ToFloat(total), Broadcast(record[t].scale), sum[t]);
    }
  }
  UNROLL for (int t = 0; t < kTokens; ++t) Store(acc + t * kGroupRows, sum[t]);
}

// Weights of single columns, for spikes. A model's spikes crowd in few columns, so the last weights of each place in a
// small table are kept.
class SpikeColumns {
 public:
  SpikeColumns() { UNROLL for (uint32_t& column : columns_) column = UINT32_MAX; }
  // sum + the spikes of `token` times their columns, which weights_of(column) unpacks.
  template <class WeightsOf>
  [[gnu::always_inline]] Lanes Add(const QuantTile& tile, int32_t token, Lanes sum, WeightsOf&& weights_of) {
    const QuantSpike* spike = tile.spikes_of(token);
    for (int32_t left = tile.spike_counts[token]; left > 0; --left, ++spike) {
      uint32_t column = spike->column;
      float* known = weights_ + column % kPlaces * kGroupRows;
      if (columns_[column % kPlaces] != column) {
        columns_[column % kPlaces] = column;
        Store(known, weights_of(column));
      }
      sum = Fma(Load(known), Broadcast(spike->value), sum);
    }
    return sum;
  }

 private:
  static constexpr uint32_t kPlaces = 32;
  alignas(64) float weights_[kPlaces * kGroupRows];
  uint32_t columns_[kPlaces];
};

// scale * (code - 8) + 4 * offset of one column: below 2^24 and so exact in f32.
BODY_INLINE Lanes Int4Column(const Int4Strip& strip, int64_t column_of_strip) {
  int column = static_cast<int>(column_of_strip), block = column / 32;
  Ints code = BitsFrom(LoadInts(strip.codes[block][column % 16 / 4]), column % 4 * 8 + column % 32 / 16 * 4, 15);
  return ToFloat(MultiplyWords(AddWords(code, BroadcastInt(4 * 65536 | (-8 & 0xffff))), LoadInts(strip.pairs[block])));
}

// Group `group` of rows of a weight.
class Int4Group {
 public:
  static constexpr int kTokensMax = kInt4Tokens;

  Int4Group(const LinearTask& task, int64_t group) : strips_((task.in_features + kStripColumns - 1) / kStripColumns) {
    int64_t bytes = strips_ * static_cast<int64_t>(sizeof(Int4Strip)) + 64;
    const std::byte* data = task.weight + group * bytes;
    strip_ = reinterpret_cast<const Int4Strip*>(data);
    ahead_ = AheadOf<kInt4Tokens>(task, data, strips_, sizeof(Int4Strip), bytes);
  }
  // acc f32 [kTokens][16]: the tokens' sums, without spikes.
  template <int kTokens>
  [[gnu::always_inline]] void Sums(const QuantTile& tile, int32_t token, float* acc) {
    if constexpr (kTokens <= 3) {
      Int4FewTokens<kTokens>(strip_, strips_, tile, token, acc, ahead_);
    } else {
      Int4Tokens<kTokens>(strip_, strips_, tile, token, acc, ahead_);
    }
  }
  [[gnu::always_inline]] Lanes Spikes(const QuantTile& tile, int32_t token, Lanes sum) {
    return columns_.Add(tile, token, sum, [&](uint32_t column) {
      return Int4Column(strip_[column / kStripColumns], column % kStripColumns);
    });
  }
  // What a row's sum is multiplied by.
  [[gnu::always_inline]] Lanes Unit() const { return Load(reinterpret_cast<const float*>(strip_ + strips_)); }

 private:
  const Int4Strip* strip_;
  int64_t strips_;
  Ahead ahead_;
  SpikeColumns columns_;
};

// ---- 8 bits ---------------------------------------------------------------------------------------------------------

// As Int4Tokens; two registers a token.
template <int kTokens>
BODY_INLINE void Int8Tokens(const std::byte* strip, const uint16_t* scales, int64_t strips, const QuantTile& tile,
                            int32_t token, float* acc, Ahead& ahead) {
  constexpr int kParts = kTokens == 1 ? 4 : kTokens <= 3 ? 2 : 1;  // chains enough for the latency of vpdpbusd
  const int8_t* x = tile.codes + token * kStripColumns;
  const QuantRecord* record = tile.records + token;
  Lanes sum[kTokens];
  UNROLL for (int t = 0; t < kTokens; ++t) sum[t] = Zero();
  for (int64_t s = 0; s < strips; ++s, strip += sizeof(Int8Strip), scales += kGroupRows) {
    ahead.Ask();
    Ints a[kTokens * kParts];
    UNROLL for (int t = 0; t < kTokens * kParts; ++t) {
      a[t] = t < kTokens ? BroadcastInt(record[t].int8_start) : ZeroInts();
    }
    UNROLL for (int j = 0; j < 16; ++j) {
      Ints weights = LoadInts(strip + 64 * j);
      UNROLL for (int t = 0; t < kTokens; ++t) {
        int part = j % kParts * kTokens + t;
        a[part] = DotBytes(a[part], weights, x + t * kStripColumns + 4 * j);
      }
    }
    UNROLL for (int t = kTokens; t < kTokens * kParts; ++t) a[t % kTokens] = AddInts(a[t % kTokens], a[t]);
    Lanes row_scale = LoadBF16(scales);
    UNROLL for (int t = 0; t < kTokens; ++t) {
      sum[t] = Fma(ToFloat(a[t]), Multiply(row_scale, Broadcast(record[t].scale)), sum[t]);
    }
    x += tile.capacity * kStripColumns, record += tile.capacity;
  }
  UNROLL for (int t = 0; t < kTokens; ++t) Store(acc + t * kGroupRows, sum[t]);
}

BODY_INLINE Lanes Int8Column(const std::byte* strip, Lanes row_scale, int64_t column_of_strip) {
  int column = static_cast<int>(column_of_strip);
  Ints code = BitsFrom(LoadInts(strip + column / 4 * 64), column % 4 * 8, 255);
  return Multiply(ToFloat(AddInts(code, BroadcastInt(-128))), row_scale);
}

class Int8Group {
 public:
  static constexpr int kTokensMax = kInt8Tokens;

  Int8Group(const LinearTask& task, int64_t group) : strips_((task.in_features + kStripColumns - 1) / kStripColumns) {
    int64_t code_bytes = strips_ * static_cast<int64_t>(sizeof(Int8Strip));
    int64_t bytes = code_bytes + ((strips_ * 32 + 63) & ~int64_t{63});
    data_ = task.weight + group * bytes;
    scales_ = reinterpret_cast<const uint16_t*>(data_ + code_bytes);
    ahead_ = AheadOf<kInt8Tokens>(task, data_, strips_, sizeof(Int8Strip), bytes);
  }
  template <int kTokens>
  [[gnu::always_inline]] void Sums(const QuantTile& tile, int32_t token, float* acc) {
    Int8Tokens<kTokens>(data_, scales_, strips_, tile, token, acc, ahead_);
  }
  [[gnu::always_inline]] Lanes Spikes(const QuantTile& tile, int32_t token, Lanes sum) {
    return columns_.Add(tile, token, sum, [&](uint32_t column) {
      int64_t s = column / kStripColumns;
      return Int8Column(data_ + s * static_cast<int64_t>(sizeof(Int8Strip)), LoadBF16(scales_ + s * kGroupRows),
                        column % kStripColumns);
    });
  }
  [[gnu::always_inline]] Lanes Unit() const { return Broadcast(1.0f); }

 private:
  const std::byte* data_;
  const uint16_t* scales_;
  int64_t strips_;
  Ahead ahead_;
  SpikeColumns columns_;
};

// ---- Groups to rows of y, with a SwiGLU or without ------------------------------------------------------------------

template <class Group>
static void Rows(const LinearTask& task) {
  alignas(64) float acc[Group::kTokensMax * kGroupRows];
  for (int64_t index = task.group_begin; index < task.group_end; ++index) {
    Group group(task, index);
    int64_t row = index * kGroupRows, left = task.out_features - row;
    bool whole = left >= kGroupRows;
    Lanes unit = group.Unit(), bias = Zero();
    if (task.bias != nullptr) bias = whole ? Load(task.bias + row) : LoadFirst(task.bias + row, left);
    ForBlocks<Group::kTokensMax>(task.tile.tokens, [&](int32_t token, auto count) {
      group.template Sums<count>(task.tile, token, acc);
      for (int32_t t = 0; t < count; ++t) {
        Lanes y = Multiply(group.Spikes(task.tile, token + t, Load(acc + t * kGroupRows)), unit);
        if (task.bias != nullptr) y = Add(y, bias);
        float* out = task.y + (token + t) * task.y_stride + row;
        whole ? Store(out, y) : StoreFirst(out, y, left);
      }
    });
  }
}

template <class Group>
static void SwiGluRows(const LinearTask& task) {
  alignas(64) float acc[2][Group::kTokensMax * kGroupRows];
  int64_t half = task.out_features / 2;
  for (int64_t index = task.group_begin; index < task.group_end; ++index) {
    Group gate(task, index), up(task, index + half / kGroupRows);
    int64_t row = index * kGroupRows;
    Lanes gate_unit = gate.Unit(), up_unit = up.Unit(), gate_bias = Zero(), up_bias = Zero();
    if (task.bias != nullptr) gate_bias = Load(task.bias + row), up_bias = Load(task.bias + half + row);
    ForBlocks<Group::kTokensMax>(task.tile.tokens, [&](int32_t token, auto count) {
      gate.template Sums<count>(task.tile, token, acc[0]);
      up.template Sums<count>(task.tile, token, acc[1]);
      for (int32_t t = 0; t < count; ++t) {
        Lanes g = Multiply(gate.Spikes(task.tile, token + t, Load(acc[0] + t * kGroupRows)), gate_unit);
        Lanes u = Multiply(up.Spikes(task.tile, token + t, Load(acc[1] + t * kGroupRows)), up_unit);
        if (task.bias != nullptr) g = Add(g, gate_bias), u = Add(u, up_bias);
        Store(task.y + (token + t) * task.y_stride + row, SwiGluOfLanes(g, u));
      }
    });
  }
}

// ---- Floats: one running sum an output, columns ascending -----------------------------------------------------------

BODY_INLINE void StoreFloats(const LinearTask& task, int64_t group, int64_t token, Lanes y) {
  int64_t row = group * kGroupRows, left = task.out_features - row;
  bool whole = left >= kGroupRows;
  if (task.bias != nullptr) y = Add(y, whole ? Load(task.bias + row) : LoadFirst(task.bias + row, left));
  float* out = task.y + token * task.y_stride + row;
  whole ? Store(out, y) : StoreFirst(out, y, left);
}

template <int kTokens>
BODY_INLINE void F32Tokens(const LinearTask& task, int64_t group, const float* weights, int64_t token) {
  const float* x = static_cast<const float*>(task.x) + token * task.x_stride;
  Lanes acc[kTokens];
  UNROLL for (int t = 0; t < kTokens; ++t) acc[t] = Zero();
  for (int64_t k = 0; k < task.in_features; ++k) {
    Lanes w = Load(weights + k * kGroupRows);
    UNROLL for (int t = 0; t < kTokens; ++t) acc[t] = Fma(w, Broadcast(x[t * task.x_stride + k]), acc[t]);
  }
  UNROLL for (int t = 0; t < kTokens; ++t) StoreFloats(task, group, token + t, acc[t]);
}

static void F32Rows(const LinearTask& task) {
  for (int64_t group = task.group_begin; group < task.group_end; ++group) {
    const float* weights = reinterpret_cast<const float*>(task.weight) + group * task.in_features * kGroupRows;
    int64_t t = 0;
    for (; t + 8 <= task.tokens; t += 8) F32Tokens<8>(task, group, weights, t);
    for (; t + 4 <= task.tokens; t += 4) F32Tokens<4>(task, group, weights, t);
    for (; t < task.tokens; ++t) F32Tokens<1>(task, group, weights, t);
  }
}

template <int kTokens>
BODY_INLINE void BF16Tokens(const LinearTask& task, int64_t group, const uint16_t* weights, int64_t token) {
  const uint16_t* x = static_cast<const uint16_t*>(task.x) + token * task.x_stride;
  int64_t pairs = (task.in_features + 1) / 2;
  Lanes acc[kTokens];
  UNROLL for (int t = 0; t < kTokens; ++t) acc[t] = Zero();
  for (int64_t k = 0; k < pairs; ++k) {
    Pairs w = LoadPairs(weights + k * 2 * kGroupRows);
    UNROLL for (int t = 0; t < kTokens; ++t) {
      acc[t] = AccumulatePair(acc[t], w, BroadcastPair(x + t * task.x_stride + 2 * k));
    }
  }
  UNROLL for (int t = 0; t < kTokens; ++t) StoreFloats(task, group, token + t, acc[t]);
}

static void BF16Rows(const LinearTask& task) {
  int64_t group_values = (task.in_features + 1) / 2 * 2 * kGroupRows;
  for (int64_t group = task.group_begin; group < task.group_end; ++group) {
    const uint16_t* weights = reinterpret_cast<const uint16_t*>(task.weight) + group * group_values;
    int64_t t = 0;
    for (; t + 8 <= task.tokens; t += 8) BF16Tokens<8>(task, group, weights, t);
    for (; t + 4 <= task.tokens; t += 4) BF16Tokens<4>(task, group, weights, t);
    for (; t < task.tokens; ++t) BF16Tokens<1>(task, group, weights, t);
  }
}

static void ToBF16(const float* x, int64_t count, uint16_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) StoreBF16(out + i, Load(x + i));
  if (i < count) {
    alignas(64) uint16_t tail[kLanes];
    StoreBF16(tail, LoadFirst(x + i, count - i));
    for (int64_t j = 0; i + j < count; ++j) out[i + j] = tail[j];
  }
}

#undef BODY_INLINE
#undef UNROLL

}  // namespace
}  // namespace ekiben
