// Every body of every packing against the plain reference, bit for bit, and the packings against the values they hold.
#include "ops/linear.h"

#include <gtest/gtest.h>

#include <cmath>

#include "ops/isa_test_support.h"
#include "ops/linear_tuning.h"
#include "ops/packing.h"
#include "ops/swiglu.h"
#include "weights/checkpoint.h"
#include "weights/quant_block.h"

namespace ekiben {
namespace {

constexpr float kPoison = 12345.0f;

// A checkpoint tensor of random content in any dtype that weights come in.
std::vector<std::byte> RandomWeight(std::mt19937& rng, DType dtype, int64_t rows, int64_t columns) {
  std::vector<float> values = RandomFloats(rng, rows * columns, 0.1f);
  const DTypeInfo& info = InfoOf(dtype);
  size_t bytes = static_cast<size_t>(rows * columns / info.block_elements * info.block_bytes);
  std::vector<std::byte> out(bytes);
  auto put16 = [&](size_t at, uint16_t v) { std::memcpy(&out[at], &v, 2); };
  if (dtype == DType::kF32) {
    std::memcpy(out.data(), values.data(), bytes);
  } else if (dtype == DType::kF16 || dtype == DType::kBF16) {
    for (size_t i = 0; i < values.size(); ++i) {
      put16(2 * i, dtype == DType::kF16 ? F32ToF16(values[i]) : F32ToBF16(values[i]));
    }
  } else {
    for (std::byte& b : out) b = static_cast<std::byte>(rng());
    for (size_t at = 0; at < bytes; at += static_cast<size_t>(info.block_bytes)) {
      put16(at, F32ToF16(0.02f * std::fabs(values[at % values.size()])));
      if (dtype == DType::kQ4_1) put16(at + 2, F32ToF16(-values[(at + 1) % values.size()]));
    }
  }
  return out;
}

struct Packed {
  LinearWeight weight;
  Buffer data;
};
Packed Pack(Packing packing, DType dtype, int64_t rows, int64_t columns, const std::byte* source) {
  Packed packed;
  packed.data = Buffer(PackedBytes(packing, rows, columns));
  LinearSource pieces[] = {{dtype, source, rows}};
  auto result = PackLinear(packing, columns, pieces, {packed.data.data(), packed.data.size()});
  CHECK(result.ok(), "{}", result.error().message());
  packed.weight = {packing, rows, columns, packed.data.data(), packed.data.size(), nullptr};
  return packed;
}

// Activations like a model's: a few channels far out, some tokens all zero.
std::vector<float> Activations(std::mt19937& rng, int64_t tokens, int64_t columns) {
  std::vector<float> x = RandomFloats(rng, tokens * columns);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int i = 0; i < 3; ++i)
      x[static_cast<size_t>(t * columns + RandomInt(rng, 0, static_cast<int>(columns) - 1))] *= 40;
    if (RandomInt(rng, 0, 9) == 0) std::fill_n(x.begin() + t * columns, columns, 0.0f);
  }
  return x;
}

std::vector<float> Multiply(Isa isa, int threads, const std::vector<float>& x, int64_t tokens, const LinearWeight& w,
                            int64_t pad = 0) {
  ThreadPool pool(threads);
  Arena arena(LinearScratchBytes(tokens, w.in_features, w.out_features));
  OpContext ctx{&pool, &arena, isa};
  int64_t stride = w.out_features + pad;
  std::vector<float> y(static_cast<size_t>(tokens * stride), kPoison), in = x;
  TensorView view(y.data(), DType::kF32, {tokens, w.out_features});
  view.stride[0] = stride;
  Linear(ctx, view, TensorView(in.data(), DType::kF32, {tokens, w.in_features}), w);
  EXPECT_EQ(arena.Mark(), 0u);
  return y;
}

const Packing kPackings[] = {Packing::kF32, Packing::kBF16, Packing::kInt8, Packing::kInt4Block32};

TEST(Linear, EveryBodyGivesTheSameBits) {
  std::mt19937 rng(1);
  for (int round = 0; round < 60; ++round) {
    Packing packing = kPackings[round % 4];
    int64_t rows = RandomInt(rng, 1, 70), columns = 32 * RandomInt(rng, 1, 9), tokens = RandomInt(rng, 1, 70);
    if (round % 5 == 0) tokens = RandomInt(rng, 129, 300);  // several tiles
    if (packing == Packing::kF32 || packing == Packing::kBF16) columns += RandomInt(rng, 0, 31);
    auto source = RandomWeight(rng, DType::kF32, rows, columns);
    Packed packed = Pack(packing, DType::kF32, rows, columns, source.data());
    std::vector<float> bias = RandomFloats(rng, rows), x = Activations(rng, tokens, columns);
    if (round % 2 == 0) packed.weight.bias = bias.data();
    std::vector<float> expected = Multiply(Isa::kReference, 1, x, tokens, packed.weight, round % 3);
    for (Isa isa : IsasHere()) {
      for (int threads : {1, 2, 3}) {
        EXPECT_TRUE(SameBits(Multiply(isa, threads, x, tokens, packed.weight, round % 3), expected))
            << Name(packing) << " " << Name(isa) << " " << tokens << "x" << columns << " to " << rows;
      }
    }
  }
}

TEST(LinearSwiGlu, IsTheLinearThenSwiGlu) {
  std::mt19937 rng(11);
  for (Packing packing : {Packing::kInt8, Packing::kInt4Block32}) {
    for (int64_t half : {8, 16, 80}) {  // 8: not whole groups
      for (int64_t tokens : {1, 6, 50, 140}) {
        int64_t columns = 96;
        auto source = RandomWeight(rng, DType::kF32, 2 * half, columns);
        Packed packed = Pack(packing, DType::kF32, 2 * half, columns, source.data());
        std::vector<float> bias = RandomFloats(rng, 2 * half), x = Activations(rng, tokens, columns), expected;
        if (tokens != 6) packed.weight.bias = bias.data();
        for (Isa isa : IsasHere()) {
          for (int threads : {1, 2}) {
            ThreadPool pool(threads);
            Arena arena(LinearScratchBytes(tokens, columns, 2 * half));
            OpContext ctx{&pool, &arena, isa};
            auto matrix = [&](std::vector<float>& data, int64_t width) {
              return TensorView(data.data(), DType::kF32, {tokens, width});
            };
            std::vector<float> gate_up(static_cast<size_t>(2 * half * tokens)), y(static_cast<size_t>(half * tokens));
            Linear(ctx, matrix(gate_up, 2 * half), matrix(x, columns), packed.weight);
            SwiGlu(ctx, matrix(y, half), matrix(gate_up, 2 * half));
            if (expected.empty()) expected = y;
            EXPECT_TRUE(SameBits(y, expected));
            std::fill(y.begin(), y.end(), kPoison);
            LinearSwiGlu(ctx, matrix(y, half), matrix(gate_up, 2 * half), QuantizeRows(ctx, matrix(x, columns)),
                         packed.weight);
            EXPECT_TRUE(SameBits(y, expected)) << Name(packing) << " " << Name(isa) << " " << half << " " << tokens;
          }
        }
      }
    }
  }
}

TEST(Linear, ATokenDoesNotDependOnItsNeighbours) {
  std::mt19937 rng(2);
  int64_t rows = 48, columns = 192, tokens = 140;
  for (Packing packing : kPackings) {
    auto source = RandomWeight(rng, DType::kF32, rows, columns);
    Packed packed = Pack(packing, DType::kF32, rows, columns, source.data());
    std::vector<float> x = Activations(rng, tokens, columns);
    for (Isa isa : IsasHere()) {
      std::vector<float> together = Multiply(isa, 2, x, tokens, packed.weight);
      for (int64_t t = 0; t < tokens; ++t) {
        std::vector<float> one(x.begin() + t * columns, x.begin() + (t + 1) * columns);
        std::vector<float> row(together.begin() + t * rows, together.begin() + (t + 1) * rows);
        ASSERT_TRUE(SameBits(Multiply(isa, 1, one, 1, packed.weight), row)) << Name(packing) << " token " << t;
      }
    }
  }
}

TEST(Linear, EveryVariantGivesTheSameBits) {
  std::mt19937 rng(7);
  for (int64_t tokens : {1, 9, 150}) {
    auto source = RandomWeight(rng, DType::kQ4_1, 200, 192);
    Packed packed = Pack(Packing::kInt4Block32, DType::kQ4_1, 200, 192, source.data());
    std::vector<float> x = Activations(rng, tokens, 192);
    std::vector<float> expected = Multiply(BestIsa(), 1, x, tokens, packed.weight);
    for (size_t v = 0; v < LinearVariants().size(); ++v) {
      LinearTuning tuning;
      for (size_t b = 0; b < kLinearBuckets.size(); ++b) {
        tuning.Set(Packing::kInt4Block32, 200, 192, static_cast<int32_t>(b), static_cast<int32_t>(v));
      }
      EXPECT_EQ(&tuning.Choose(packed.weight, tokens), &LinearVariants()[v]);
      ThreadPool pool(2);
      Arena arena(LinearScratchBytes(tokens, 192, 200));
      OpContext ctx{.pool = &pool, .arena = &arena, .isa = BestIsa(), .tuning = &tuning};
      std::vector<float> y(expected.size(), kPoison);
      Linear(ctx, TensorView(y.data(), DType::kF32, {tokens, 200}), TensorView(x.data(), DType::kF32, {tokens, 192}),
             packed.weight);
      EXPECT_TRUE(SameBits(y, expected)) << LinearVariants()[v].name;
    }
  }
}

TEST(LinearTuning, BucketsAndNames) {
  EXPECT_EQ(LinearBucketOf(1), 0);
  EXPECT_EQ(LinearBucketOf(3), 1);
  EXPECT_EQ(LinearBucketOf(50), 5);
  EXPECT_EQ(LinearBucketOf(4096), 9);
  for (size_t v = 0; v < LinearVariants().size(); ++v) {
    EXPECT_EQ(*LinearVariantIndex(LinearVariants()[v].name), static_cast<int32_t>(v));
  }
  EXPECT_FALSE(LinearVariantIndex("fastest").ok());
}

// Output padding between rows stays as it was, and no packing reads outside its bytes (ASan checks that).
TEST(Linear, LeavesWhatLiesBetweenRows) {
  std::mt19937 rng(3);
  for (Packing packing : kPackings) {
    auto source = RandomWeight(rng, DType::kF32, 21, 96);
    Packed packed = Pack(packing, DType::kF32, 21, 96, source.data());
    for (Isa isa : IsasHere()) {
      std::vector<float> y = Multiply(isa, 2, Activations(rng, 5, 96), 5, packed.weight, 4);
      for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i] == kPoison, i % 25 >= 21) << Name(packing) << " " << i;
    }
  }
}

// The exact product in double, of the values that the source holds.
std::vector<double> Exact(DType dtype, const std::vector<std::byte>& source, int64_t rows, int64_t columns,
                          const std::vector<float>& x, int64_t tokens, double* norm) {
  std::vector<float> w(static_cast<size_t>(rows * columns));
  Dequantize(dtype, source.data(), rows * columns, w.data());
  std::vector<double> y(static_cast<size_t>(tokens * rows));
  *norm = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t n = 0; n < rows; ++n) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < columns; ++k) {
        double term = double{w[static_cast<size_t>(n * columns + k)]} * x[static_cast<size_t>(t * columns + k)];
        sum += term;
        size += term * term;
      }
      y[static_cast<size_t>(t * rows + n)] = sum;
      *norm += size;
    }
  }
  *norm = std::sqrt(*norm);
  return y;
}

// The root mean square error over that of the terms: what rounding may cost each packing.
TEST(Linear, IsCloseToTheExactProduct) {
  std::mt19937 rng(4);
  struct Case {
    Packing packing;
    DType dtype;
    double bound;
  };
  const Case cases[] = {
      {Packing::kF32, DType::kF32, 1e-6},          {Packing::kF32, DType::kQ4_1, 1e-6},
      {Packing::kBF16, DType::kBF16, 4e-3},        {Packing::kInt8, DType::kQ8_0, 2e-2},
      {Packing::kInt8, DType::kF16, 2e-2},         {Packing::kInt4Block32, DType::kQ4_1, 1e-2},
      {Packing::kInt4Block32, DType::kQ4_0, 1e-2}, {Packing::kInt4Block32, DType::kF32, 1e-1},
  };
  for (const Case& c : cases) {
    int64_t rows = 40, columns = 288, tokens = 9;
    auto source = RandomWeight(rng, c.dtype, rows, columns);
    Packed packed = Pack(c.packing, c.dtype, rows, columns, source.data());
    std::vector<float> x = RandomFloats(rng, tokens * columns);
    double norm;
    std::vector<double> exact = Exact(c.dtype, source, rows, columns, x, tokens, &norm);
    std::vector<float> y = Multiply(BestIsa(), 1, x, tokens, packed.weight);
    double error = 0;
    for (size_t i = 0; i < y.size(); ++i) error += (y[i] - exact[i]) * (y[i] - exact[i]);
    error = std::sqrt(error) / norm;
    std::printf("%-12s from %-5s error %.1e\n", std::string(Name(c.packing)).c_str(),
                std::string(Name(c.dtype)).c_str(), error);
    EXPECT_LT(error, c.bound) << Name(c.packing) << " from " << Name(c.dtype);
  }
}

// Codes of a 4-bit file are kept, and its scales to 1/16383 of the row's largest.
TEST(Packing, Int4KeepsTheFilesCodes) {
  std::mt19937 rng(5);
  int64_t rows = 19, columns = 96;
  auto source = RandomWeight(rng, DType::kQ4_1, rows, columns);
  Packed packed = Pack(Packing::kInt4Block32, DType::kQ4_1, rows, columns, source.data());
  std::vector<float> w(static_cast<size_t>(rows * columns));
  Dequantize(DType::kQ4_1, source.data(), rows * columns, w.data());
  for (int64_t n = 0; n < rows; ++n) {
    const std::byte* group = packed.data.data() + static_cast<size_t>(n / 16) * Int4GroupBytes(StripsOf(columns));
    const Int4Strip* strip = reinterpret_cast<const Int4Strip*>(group);
    float unit = reinterpret_cast<const float*>(strip + StripsOf(columns))[n % 16];
    for (int64_t k = 0; k < columns; ++k) {
      int64_t block = k / 32, in = k % 32;
      const Int4Strip& s = strip[block / 2];
      uint8_t byte = s.codes[block % 2][in % 16 / 4][n % 16][in % 4];
      int code = in < 16 ? byte & 15 : byte >> 4;
      BlockQ4_1 original;
      std::memcpy(&original, &source[static_cast<size_t>((n * columns / 32 + block) * 20)], 20);
      int wanted = in < 16 ? original.qs[in] & 15 : original.qs[in - 16] >> 4;
      ASSERT_EQ(code, wanted);
      Int4Strip::Pair pair = s.pairs[block % 2][n % 16];
      EXPECT_NEAR(unit * (pair.scale * (code - 8) + 4 * pair.offset), w[static_cast<size_t>(n * columns + k)],
                  unit * 6.1f);
    }
  }
}

TEST(Packing, PiecesStackByRows) {
  std::mt19937 rng(6);
  auto a = RandomWeight(rng, DType::kQ4_1, 13, 64), b = RandomWeight(rng, DType::kQ8_0, 7, 64);
  for (Packing packing : kPackings) {
    Buffer out(PackedBytes(packing, 20, 64));
    LinearSource pieces[] = {{DType::kQ4_1, a.data(), 13}, {DType::kQ8_0, b.data(), 7}};
    ASSERT_TRUE(PackLinear(packing, 64, pieces, {out.data(), out.size()}).ok());
    LinearWeight both{packing, 20, 64, out.data(), out.size(), nullptr};
    std::vector<float> x = RandomFloats(rng, 2 * 64), y = Multiply(BestIsa(), 1, x, 2, both);
    Packed first = Pack(packing, DType::kQ4_1, 13, 64, a.data()), second = Pack(packing, DType::kQ8_0, 7, 64, b.data());
    std::vector<float> y_first = Multiply(BestIsa(), 1, x, 2, first.weight);
    std::vector<float> y_second = Multiply(BestIsa(), 1, x, 2, second.weight);
    for (int t = 0; t < 2; ++t) {
      for (int n = 0; n < 20; ++n) {
        EXPECT_EQ(y[static_cast<size_t>(t * 20 + n)],
                  n < 13 ? y_first[static_cast<size_t>(t * 13 + n)] : y_second[static_cast<size_t>(t * 7 + n - 13)]);
      }
    }
  }
}

TEST(Packing, ErrorsNameTheValue) {
  std::vector<std::byte> source(4096);
  std::vector<std::byte> out(PackedBytes(Packing::kInt4Block32, 16, 48));
  LinearSource plain[] = {{DType::kF32, source.data(), 16}};
  auto result = PackLinear(Packing::kInt4Block32, 48, plain, out);
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message().find("in_features 48"), std::string::npos) << result.error().message();
  LinearSource integers[] = {{DType::kI64, source.data(), 16}};
  result = PackLinear(Packing::kF32, 48, integers, out);
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message().find("i64"), std::string::npos) << result.error().message();
}

TEST(Packing, ExtremeRowsStayFinite) {
  int64_t columns = 64;
  for (float value : {0.0f, 1e-38f, 1e-25f, -1e30f, 65504.0f}) {
    std::vector<float> w(static_cast<size_t>(columns), value);
    w[1] = -value;
    for (Packing packing : kPackings) {
      Packed packed = Pack(packing, DType::kF32, 1, columns, reinterpret_cast<std::byte*>(w.data()));
      std::vector<float> x(static_cast<size_t>(columns), 1.0f);
      std::vector<float> y = Multiply(BestIsa(), 1, x, 1, packed.weight);
      EXPECT_TRUE(std::isfinite(y[0]));
      // Below the smallest scale a row is zeros.
      EXPECT_NEAR(y[0], 62 * value, std::fabs(value) * 0.6f + 1e-30f) << Name(packing);
      EXPECT_TRUE(SameBits(Multiply(Isa::kReference, 1, x, 1, packed.weight), y));
    }
  }
}

// The largest sums that 4-bit blocks can reach stay below 2^31: extreme codes, scales and activations together.
TEST(Packing, Int4SumsCannotOverflow) {
  int64_t columns = 64;
  for (float sign : {1.0f, -1.0f}) {
    std::vector<float> x(static_cast<size_t>(columns), sign);
    for (uint8_t nibbles : {0x00, 0xff}) {
      for (float minimum : {-1024.0f, 0.0f, 1024.0f}) {
        std::vector<BlockQ4_1> blocks(2);
        for (BlockQ4_1& b : blocks) {
          b.d = F32ToF16(64.0f);
          b.m = F32ToF16(minimum);
          std::memset(b.qs, nibbles, 16);
        }
        Packed packed =
            Pack(Packing::kInt4Block32, DType::kQ4_1, 1, columns, reinterpret_cast<std::byte*>(blocks.data()));
        double exact = sign * 64 * (64.0 * (nibbles & 15) + minimum);
        for (Isa isa : IsasHere()) {
          EXPECT_NEAR(Multiply(isa, 1, x, 1, packed.weight)[0], exact, 64 * 64 * 0.01) << Name(isa);
        }
      }
    }
  }
}

TEST(Quantize, ZerosAndOutliers) {
  for (Isa isa : IsasHere()) {
    ThreadPool pool(1);
    Arena arena(QuantizedRowsBytes(2, 128) + 64);
    OpContext ctx{&pool, &arena, isa};
    std::vector<float> x(256, 0.0f);
    for (int i = 0; i < 128; ++i) x[static_cast<size_t>(128 + i)] = i % 2 == 0 ? 1.0f : -0.3f;
    x[128 + 70] = 200.0f;
    QuantizedRows rows = QuantizeRows(ctx, TensorView(x.data(), DType::kF32, {2, 128}));
    QuantTile tile = rows.Tile(0);
    EXPECT_EQ(tile.spike_counts[0], 0);
    ASSERT_EQ(tile.spike_counts[1], 1);
    EXPECT_EQ(tile.spikes_of(1)->value, 200.0f);
    EXPECT_EQ(tile.spikes_of(1)->column, 70u);
    EXPECT_EQ(tile.records[0].scale, 0.0f);
    const QuantRecord& record = tile.records[tile.capacity + 1];
    const int8_t* codes = tile.codes + (tile.capacity + 1) * kStripColumns;
    for (int k = 0; k < 64; ++k) {
      float value = k == 6 ? 0.0f : x[static_cast<size_t>(192 + k)];
      EXPECT_NEAR(record.scale * codes[k], value, 1.0f / 127 / 2 + 1e-6f);
    }
    int sum = 0;
    for (int k = 0; k < 32; ++k) sum += codes[k];
    EXPECT_EQ(record.int4_start[0], sum * 262136);
  }
}

// A strip gives up its first values only; what is over stays in its codes, and no list overflows.
TEST(Quantize, AStripGivesUpAFewValues) {
  for (Isa isa : IsasHere()) {
    ThreadPool pool(2);
    constexpr int64_t kTokens = 140, kColumns = 2048;
    Arena arena(QuantizedRowsBytes(kTokens, kColumns) + 64);
    OpContext ctx{&pool, &arena, isa};
    std::vector<float> x(kTokens * kColumns, 0.01f);
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t i = 0; i < 12; ++i) x[static_cast<size_t>(t * kColumns + 64 + 5 * i)] = 100.0f;
    }
    QuantizedRows rows = QuantizeRows(ctx, TensorView(x.data(), DType::kF32, {kTokens, kColumns}));
    for (int64_t i = 0; i < rows.tiles; ++i) {
      QuantTile tile = rows.Tile(i);
      for (int32_t t = 0; t < tile.tokens; ++t) {
        ASSERT_EQ(tile.spike_counts[t], kSpikesMax);
        for (int32_t k = 0; k < kSpikesMax; ++k) EXPECT_EQ(tile.spikes_of(t)[k].column / kStripColumns, 1);
      }
      const int8_t* codes = tile.codes + tile.capacity * kStripColumns;
      for (int k = 0; k < 12; ++k) EXPECT_EQ(codes[5 * k], k < kSpikesMax ? 0 : 127) << Name(isa) << " " << k;
    }
  }
}

TEST(Quantize, NonFiniteInputsStayInBounds) {
  for (Isa isa : IsasHere()) {
    std::vector<float> x(64 * 3, 1.0f);
    x[5] = NAN;
    x[70] = INFINITY;
    x[150] = 1e-42f;
    ThreadPool pool(2);
    Arena arena(QuantizedRowsBytes(3, 64) + 64);
    OpContext ctx{&pool, &arena, isa};
    QuantizedRows rows = QuantizeRows(ctx, TensorView(x.data(), DType::kF32, {3, 64}));
    for (int32_t t = 0; t < 3; ++t) EXPECT_LE(rows.Tile(0).spike_counts[t], kSpikesMax);
  }
}

}  // namespace
}  // namespace ekiben
