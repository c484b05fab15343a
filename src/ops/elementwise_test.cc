// RMSNorm, SwiGLU, RoPE with the cache write, embedding: right against double precision, and the same bits from every
// body and thread count.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/arithmetic.h"
#include "ops/embedding.h"
#include "ops/exp2.h"
#include "ops/isa_test_support.h"
#include "ops/lane_sum.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace ekiben {
namespace {

TensorView Matrix(std::vector<float>& data, int64_t rows, int64_t columns) {
  return TensorView(data.data(), DType::kF32, {rows, columns});
}

TEST(Exp2, IsWithinTwoUlpAndExactAtIntegers) {
  for (int i = 0; i <= 79'810; ++i) {
    float x = -126.0f + 0.00317f * static_cast<float>(i);
    double exact = std::exp2(double{x});
    EXPECT_NEAR(Exp2Reference(x) / exact, 1.0, 2.4e-7) << x;
  }
  for (int n = -126; n <= 127; ++n) EXPECT_EQ(Exp2Reference(static_cast<float>(n)), std::ldexp(1.0f, n));
  EXPECT_EQ(Exp2Reference(-INFINITY), 0.0f);
  EXPECT_EQ(Exp2Reference(-126.5f), 0.0f);
  EXPECT_EQ(Exp2Reference(1000.0f), std::ldexp(1.0f, 127));
  EXPECT_EQ(Exp2Reference(NAN), 0.0f);
}

TEST(LaneSum, AddsLanesInAFixedTree) {
  LaneSum sum;
  sum.lane[0] = 0x1p24f;  // 2^24 + 1 rounds back to 2^24: only the stated order gives these two results
  sum.lane[1] = 1.0f;
  sum.lane[9] = 1.0f;
  EXPECT_EQ(sum.Total(), 0x1p24f + 2.0f);
  sum.lane[9] = 0.0f;
  sum.lane[8] = 1.0f;
  EXPECT_EQ(sum.Total(), 0x1p24f);
}

TEST(RmsNorm, AgreesWithDoublePrecisionAndBitsWithEveryBody) {
  std::mt19937 rng(1);
  for (int64_t columns : {1, 15, 16, 17, 96, 120, 576, 2048}) {
    for (int64_t tokens : {1, 3, 70}) {
      const auto x = RandomFloats(rng, tokens * columns, 3.0f), delta = RandomFloats(rng, tokens * columns);
      const auto weight = RandomFloats(rng, columns);
      std::vector<float> first_y, first_x;
      for (Isa isa : IsasHere()) {
        for (int threads : {1, 2}) {
          ThreadPool pool(threads);
          OpContext ctx{&pool, nullptr, isa};
          std::vector<float> y(x.size()), sum = x, addend = delta;
          AddRmsNorm(ctx, Matrix(y, tokens, columns), Matrix(sum, tokens, columns), Matrix(addend, tokens, columns),
                     weight.data(), 1e-5f);
          std::vector<float> plain(x.size()), input = sum;
          RmsNorm(ctx, Matrix(plain, tokens, columns), Matrix(input, tokens, columns), weight.data(), 1e-5f);
          EXPECT_TRUE(SameBits(plain, y)) << "the fused form is the two steps";
          if (first_y.empty()) {
            first_y = y;
            first_x = sum;
          }
          EXPECT_TRUE(SameBits(first_y, y)) << Name(isa) << " columns " << columns;
          EXPECT_TRUE(SameBits(first_x, sum));
        }
      }
      for (int64_t t = 0; t < tokens; ++t) {
        double squares = 0;
        auto at = [&](int64_t i) { return static_cast<size_t>(t * columns + i); };
        for (int64_t i = 0; i < columns; ++i) squares += std::pow(double{x[at(i)]} + delta[at(i)], 2);
        double scale = 1 / std::sqrt(squares / static_cast<double>(columns) + 1e-5);
        for (int64_t i = 0; i < columns; ++i) {
          double exact = (double{x[at(i)]} + delta[at(i)]) * scale * weight[static_cast<size_t>(i)];
          ASSERT_NEAR(first_y[at(i)], exact, 1e-6 * std::max(1.0, std::fabs(exact)));
        }
      }
    }
  }
}

TEST(SwiGlu, AgreesWithDoublePrecisionAndBitsWithEveryBody) {
  std::mt19937 rng(2);
  for (int64_t columns : {1, 16, 31, 136, 1536}) {
    for (int64_t tokens : {1, 9}) {
      auto input = RandomFloats(rng, tokens * columns * 2, 6.0f);
      input[0] = 300.0f;
      input[static_cast<size_t>(columns - 1)] = -300.0f;
      std::vector<float> first;
      for (Isa isa : IsasHere()) {
        ThreadPool pool(2);
        OpContext ctx{&pool, nullptr, isa};
        std::vector<float> y(static_cast<size_t>(tokens * columns)), in = input;
        SwiGlu(ctx, Matrix(y, tokens, columns), Matrix(in, tokens, 2 * columns));
        if (first.empty()) first = y;
        EXPECT_TRUE(SameBits(first, y)) << Name(isa) << " columns " << columns;
      }
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t i = 0; i < columns; ++i) {
          double g = input[static_cast<size_t>(t * 2 * columns + i)];
          double u = input[static_cast<size_t>(t * 2 * columns + columns + i)];
          double exact = g / (1 + std::exp(-g)) * u;
          ASSERT_NEAR(first[static_cast<size_t>(t * columns + i)], exact, 3e-6 * std::max(1.0, std::fabs(exact)));
        }
      }
    }
  }
}

// The same records and spikes.
void ExpectSameRows(const QuantizedRows& a, const QuantizedRows& b) {
  ASSERT_EQ(a.tiles, b.tiles);
  for (int64_t i = 0; i < a.tiles; ++i) {
    QuantTile x = a.Tile(i), y = b.Tile(i);
    ASSERT_EQ(x.tokens, y.tokens);
    for (int64_t s = 0; s < (a.in_features + 63) / 64; ++s) {
      auto tokens = static_cast<size_t>(x.tokens);
      EXPECT_EQ(std::memcmp(x.codes + s * x.capacity * 64, y.codes + s * y.capacity * 64, tokens * 64), 0);
      EXPECT_EQ(std::memcmp(x.records + s * x.capacity, y.records + s * y.capacity, tokens * sizeof(QuantRecord)), 0);
    }
    for (int32_t t = 0; t < x.tokens; ++t) {
      ASSERT_EQ(x.spike_counts[t], y.spike_counts[t]);
      auto bytes = static_cast<size_t>(x.spike_counts[t]) * sizeof(QuantSpike);
      EXPECT_EQ(std::memcmp(x.spikes_of(t), y.spikes_of(t), bytes), 0);
    }
  }
}

TEST(RmsNorm, QuantisesWhatItWouldWrite) {
  std::mt19937 rng(3);
  for (int64_t columns : {64, 96, 576}) {
    for (int64_t tokens : {1, 3, 150}) {
      auto x = RandomFloats(rng, tokens * columns), delta = RandomFloats(rng, tokens * columns);
      const auto weight = RandomFloats(rng, columns);
      for (int64_t t = 0; t < tokens; t += 2) x[static_cast<size_t>(t * columns + 7)] = 100.0f;  // spikes
      for (Isa isa : IsasHere()) {
        for (int threads : {1, 2}) {
          ThreadPool pool(threads);
          Arena arena(6 * (QuantizedRowsBytes(tokens, columns) + 64));
          OpContext ctx{&pool, &arena, isa};
          std::vector<float> y(x.size()), scratch(x.size()), sum = x, again = x;
          auto matrix = [&](std::vector<float>& data) { return Matrix(data, tokens, columns); };
          RmsNorm(ctx, matrix(y), matrix(sum), weight.data(), 1e-5f);
          ExpectSameRows(RmsNormQuantized(ctx, matrix(scratch), matrix(again), weight.data(), 1e-5f),
                         QuantizeRows(ctx, matrix(y)));
          AddRmsNorm(ctx, matrix(y), matrix(sum), matrix(delta), weight.data(), 1e-5f);
          ExpectSameRows(AddRmsNormQuantized(ctx, matrix(scratch), matrix(again), matrix(delta), weight.data(), 1e-5f),
                         QuantizeRows(ctx, matrix(y)));
          EXPECT_TRUE(SameBits(sum, again));
        }
      }
    }
  }
}

// What the cache holds for `position`, read through the layout that paged_kv.h draws.
float CachedElement(const PagedKv& kv, int32_t layer, const std::vector<BlockId>& blocks, int32_t position,
                    int32_t head, bool value, int32_t i) {
  const PagedKvShape& shape = kv.shape();
  int32_t in_block = position % shape.tokens_per_block, lane = position % 16, d = kv.head_dim_padded();
  const std::byte* group = kv.Block(layer, blocks[static_cast<size_t>(position / shape.tokens_per_block)]) +
                           static_cast<size_t>(head) * kv.head_bytes() + (value ? kv.values_offset() : 0) +
                           static_cast<size_t>(in_block / 16) * kv.group_bytes();
  if (shape.dtype == DType::kF32) {
    return reinterpret_cast<const float*>(group)[value ? lane * d + i : i * 16 + lane];
  }
  int32_t at = value ? (lane / 2) * 2 * d + 2 * i + lane % 2 : (i / 2) * 32 + lane * 2 + i % 2;
  return BF16ToF32(reinterpret_cast<const uint16_t*>(group)[at]);
}

struct RopeCase {
  int32_t head_dim, query_heads, kv_heads;
  bool interleaved;
  DType dtype;
};

class RopeTest : public ::testing::TestWithParam<RopeCase> {};

TEST_P(RopeTest, RotatesQueriesAndStoresKeysAndValues) {
  const RopeCase& c = GetParam();
  std::mt19937 rng(3);
  constexpr int32_t kPositions = 64;
  const int64_t columns = int64_t{c.query_heads + 2 * c.kv_heads} * c.head_dim;
  std::vector<float> table(static_cast<size_t>(kPositions * 2 * c.head_dim));
  std::vector<double> angles(static_cast<size_t>(kPositions * c.head_dim));
  for (int32_t p = 0; p < kPositions; ++p) {
    for (int32_t i = 0; i < c.head_dim; ++i) {
      int32_t pair = c.interleaved ? i / 2 : i % (c.head_dim / 2);
      bool second = c.interleaved ? i % 2 == 1 : i >= c.head_dim / 2;
      double angle = p * std::pow(100.0, -2.0 * pair / c.head_dim);
      angles[static_cast<size_t>(p * c.head_dim + i)] = angle;
      table[static_cast<size_t>(p * 2 * c.head_dim + i)] = static_cast<float>(std::cos(angle));
      table[static_cast<size_t>((p * 2 + 1) * c.head_dim + i)] =
          static_cast<float>(second ? std::sin(angle) : -std::sin(angle));
    }
  }
  RopeView rope{table.data(), kPositions, c.head_dim, c.interleaved};
  // Two rows: a chunk of 19 tokens from position 5 on, and one token at 33; blocks in no order.
  std::vector<BlockId> blocks_a = {{3}, {0}}, blocks_b = {{5}, {2}, {4}};
  std::vector<AttentionRow> rows = {{0, 19, 5, blocks_a.data()}, {19, 1, 33, blocks_b.data()}};
  const auto input = RandomFloats(rng, 20 * columns);
  PagedKvShape shape{2, c.kv_heads, c.head_dim, 16, 6, c.dtype};
  std::vector<float> first;
  for (Isa isa : IsasHere()) {
    ThreadPool pool(2);
    OpContext ctx{&pool, nullptr, isa};
    PagedKv kv(shape);
    auto qkv = input;
    RopeAndStoreKv(ctx, Matrix(qkv, 20, columns), rope, c.query_heads, rows, kv, 1);
    auto exact = [&](int32_t t, int32_t position, int32_t column, int32_t i) {
      int32_t d = c.head_dim, partner = c.interleaved ? i ^ 1 : (i + d / 2) % d;
      double angle = angles[static_cast<size_t>(position * d + i)];
      double sign = partner < i ? 1 : -1;
      auto x = [&](int32_t e) { return double{input[static_cast<size_t>(t * columns + column + e)]}; };
      return x(i) * std::cos(angle) + sign * x(partner) * std::sin(angle);
    };
    double tolerance = c.dtype == DType::kF32 ? 1e-6 : 1.0 / 256;
    for (int32_t t = 0; t < 20; ++t) {
      const AttentionRow& row = rows[t < 19 ? 0 : 1];
      const auto& blocks = t < 19 ? blocks_a : blocks_b;
      int32_t position = row.position + t - row.token_begin;
      for (int32_t i = 0; i < c.head_dim; ++i) {
        for (int32_t h = 0; h < c.query_heads; ++h) {
          int32_t column = h * c.head_dim;
          ASSERT_NEAR(qkv[static_cast<size_t>(t * columns + column + i)], exact(t, position, column, i), 2e-6);
        }
        for (int32_t h = 0; h < c.kv_heads; ++h) {
          int32_t column = (c.query_heads + h) * c.head_dim;
          double key = exact(t, position, column, i);
          double value = input[static_cast<size_t>(t * columns + column + c.kv_heads * c.head_dim + i)];
          ASSERT_NEAR(CachedElement(kv, 1, blocks, position, h, false, i), key, 2e-6 + tolerance * std::fabs(key));
          ASSERT_NEAR(CachedElement(kv, 1, blocks, position, h, true, i), value, tolerance * std::fabs(value));
        }
      }
    }
    std::vector<float> all = qkv;
    const auto* cache = reinterpret_cast<const uint16_t*>(kv.Block(0, BlockId{0}));
    for (size_t i = 0; i < kv.bytes_per_block() * 6 / 2; ++i) all.push_back(BF16ToF32(cache[i]));
    if (first.empty()) first = all;
    EXPECT_TRUE(SameBits(first, all)) << Name(isa);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, RopeTest,
    ::testing::Values(RopeCase{64, 9, 3, true, DType::kBF16}, RopeCase{64, 9, 3, false, DType::kF32},
                      RopeCase{40, 3, 1, false, DType::kBF16}, RopeCase{40, 2, 2, true, DType::kF32},
                      RopeCase{16, 4, 2, false, DType::kBF16}, RopeCase{2, 1, 1, true, DType::kBF16}));

TEST(RopeAndStoreKv, ClearsTheUnwrittenHalfOfAPair) {
  // A block's former owner may have left NaN beside the last token; values are read in pairs.
  std::vector<float> table(2 * 16 * 32);
  RopeView rope{table.data(), 32, 16, false};
  std::vector<BlockId> blocks = {{0}};
  std::vector<AttentionRow> rows = {{0, 1, 4, blocks.data()}};
  for (Isa isa : IsasHere()) {
    ThreadPool pool(1);
    OpContext ctx{&pool, nullptr, isa};
    PagedKv kv({1, 1, 16, 16, 1, DType::kBF16});
    auto* cache = reinterpret_cast<uint16_t*>(kv.Block(0, BlockId{0}));
    std::fill_n(cache, kv.bytes_per_block() / 2, uint16_t{0x7fc0});
    std::vector<float> qkv(48, 1.0f);
    RopeAndStoreKv(ctx, Matrix(qkv, 1, 48), rope, 1, rows, kv, 0);
    for (int32_t i = 0; i < 16; ++i) {
      EXPECT_EQ(CachedElement(kv, 0, blocks, 4, 0, true, i), 1.0f);
      EXPECT_EQ(CachedElement(kv, 0, blocks, 5, 0, true, i), 0.0f);
    }
  }
}

TEST(PagedKv, CopiesTheFirstTokensOfEveryLayerAndHead) {
  PagedKv kv({3, 2, 24, 32, 4, DType::kBF16});
  auto* words = reinterpret_cast<uint16_t*>(kv.Block(0, BlockId{0}));
  size_t total = kv.bytes_per_block() * 4 / 2;
  for (size_t i = 0; i < total; ++i) words[i] = static_cast<uint16_t>(i * 2654435761u >> 9);
  kv.CopyBlock(BlockId{1}, BlockId{3}, 9);
  std::vector<BlockId> from = {{1}}, to = {{3}};
  for (int32_t layer = 0; layer < 3; ++layer) {
    for (int32_t head = 0; head < 2; ++head) {
      for (int32_t position = 0; position < 9; ++position) {
        for (int32_t i = 0; i < 24; ++i) {
          for (bool value : {false, true}) {
            float a = CachedElement(kv, layer, from, position, head, value, i);
            float b = CachedElement(kv, layer, to, position, head, value, i);
            ASSERT_EQ(std::bit_cast<uint32_t>(a), std::bit_cast<uint32_t>(b));
          }
        }
      }
    }
  }
}

TEST(Embedding, GathersRowsOfEveryDtype) {
  constexpr int64_t kRows = 5, kColumns = 64;
  std::mt19937 rng(4);
  auto values = RandomFloats(rng, kRows * kColumns);
  ThreadPool pool(2);
  OpContext ctx{&pool, nullptr, BestIsa()};
  std::vector<int32_t> ids = {4, 0, 0, 3};
  std::vector<float> y(ids.size() * kColumns);
  std::vector<uint16_t> bf16, f16;
  for (float v : values) {
    bf16.push_back(F32ToBF16(v));
    f16.push_back(F32ToF16(v));
  }
  auto bytes = [](const auto& v) { return reinterpret_cast<const std::byte*>(v.data()); };
  auto check = [&](DType dtype, const std::byte* data, auto&& expected) {
    EmbeddingLookup(ctx, Matrix(y, 4, kColumns), {dtype, kRows, kColumns, data}, ids);
    for (size_t i = 0; i < ids.size(); ++i) {
      for (int64_t c = 0; c < kColumns; ++c) {
        ASSERT_EQ(y[i * kColumns + static_cast<size_t>(c)], expected(static_cast<size_t>(ids[i] * kColumns + c)));
      }
    }
  };
  check(DType::kF32, bytes(values), [&](size_t i) { return values[i]; });
  check(DType::kBF16, bytes(bf16), [&](size_t i) { return BF16ToF32(bf16[i]); });
  check(DType::kF16, bytes(f16), [&](size_t i) { return F16ToF32(f16[i]); });
  std::vector<uint8_t> q8(kRows * 2 * 34);  // blocks of 32: f16 scale, 32 x int8
  for (size_t block = 0; block < kRows * 2; ++block) {
    uint16_t scale = F32ToF16(0.25f * static_cast<float>(block + 1));
    std::memcpy(&q8[block * 34], &scale, 2);
    for (size_t i = 0; i < 32; ++i) q8[block * 34 + 2 + i] = static_cast<uint8_t>(i * 7 + block);
  }
  check(DType::kQ8_0, bytes(q8), [&](size_t i) {
    size_t block = i / 32;
    return 0.25f * static_cast<float>(block + 1) * static_cast<float>(static_cast<int8_t>(q8[block * 34 + 2 + i % 32]));
  });
}

TEST(GatherRows, KeepsRowsInPlace) {
  std::vector<float> x = {0, 0, 1, 1, 2, 2, 3, 3};
  ThreadPool pool(1);
  OpContext ctx{&pool, nullptr, Isa::kReference};
  std::vector<int32_t> rows = {1, 3};
  GatherRows(ctx, Matrix(x, 4, 2), Matrix(x, 4, 2), rows);
  EXPECT_EQ(x[0], 1);
  EXPECT_EQ(x[2], 3);
}

}  // namespace
}  // namespace ekiben
