// Rounding of rows to e4m3: against a dense solution, the same bits from every body, and less error on inputs like the
// samples than rounding each value to its nearest.
#include "ops/e4m3_rounding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/isa_test_support.h"
#include "ops/linear.h"

namespace ekiben {
namespace {

// Every non-negative value of the format, ascending.
std::vector<float> AllE4m3() {
  std::vector<float> out;
  for (int code = 0; code < 127; ++code) {
    const int exponent = code >> 3, fraction = code & 7;
    out.push_back(exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                : std::ldexp(1.0f + static_cast<float>(fraction) / 8.0f, exponent - 7));
  }
  return out;
}

TEST(RoundToE4m3, TakesTheNearestValueAndTheEvenCodeInBetween) {
  const std::vector<float> values = AllE4m3();
  ASSERT_EQ(values.back(), 448.0f);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(RoundToE4m3(values[i]), values[i]);
    EXPECT_EQ(RoundToE4m3(-values[i]), -values[i]);
    if (i + 1 == values.size()) continue;
    const float middle = (values[i] + values[i + 1]) / 2;
    EXPECT_EQ(RoundToE4m3(middle), values[i + i % 2]) << middle;
    EXPECT_EQ(RoundToE4m3(std::nextafter(middle, 0.0f)), values[i]);
    EXPECT_EQ(RoundToE4m3(std::nextafter(middle, 1e9f)), values[i + 1]);
  }
  EXPECT_EQ(RoundToE4m3(1e9f), 448.0f);
  EXPECT_EQ(RoundToE4m3(-1e9f), -448.0f);
}

// Inputs as a layer's are: columns of different size, most with a mean, some moving together.
struct Inputs {
  int64_t tokens, columns;
  std::vector<float> values;

  Inputs(std::mt19937& rng, int64_t tokens_in, int64_t columns_in) : tokens(tokens_in), columns(columns_in) {
    std::mt19937 fixed(7);  // the same distribution each time
    std::vector<float> mean = RandomFloats(fixed, columns), size = RandomFloats(fixed, columns),
                       along = RandomFloats(fixed, columns);
    values = RandomFloats(rng, tokens * columns, 0.3f);
    for (int64_t t = 0; t < tokens; ++t) {
      const float common = RandomFloats(rng, 1)[0];
      for (int64_t c = 0; c < columns; ++c) {
        auto at = static_cast<size_t>(c);
        float& x = values[static_cast<size_t>(t * columns + c)];
        x = (x + mean[at] + 0.7f * common * along[at]) * size[at];
      }
    }
  }
  TensorView view() { return TensorView(values.data(), DType::kF32, {tokens, columns}); }
};

// Rows packed in bf16, and read back.
struct Rows {
  int64_t rows, columns;
  std::vector<uint16_t> exact;
  Buffer packed;

  Rows(std::mt19937& rng, int64_t rows_in, int64_t columns_in) : rows(rows_in), columns(columns_in) {
    for (float x : RandomFloats(rng, rows * columns, 0.02f)) exact.push_back(F32ToBF16(x));
    packed = Buffer(PackedBytes(Packing::kBF16, rows, columns));
    LinearSource source{DType::kBF16, reinterpret_cast<const std::byte*>(exact.data()), rows};
    EXPECT_TRUE(PackLinear(Packing::kBF16, columns, {&source, 1}, bytes()).ok());
  }
  std::span<std::byte> bytes() { return {packed.data(), packed.size()}; }
  float Exact(int64_t r, int64_t c) const { return BF16ToF32(exact[static_cast<size_t>(r * columns + c)]); }
  float Rounded(int64_t r, int64_t c) const {
    return BF16ToF32(packed.as<uint16_t>()[((r / 16 * (columns / 2) + c / 2) * 16 + r % 16) * 2 + c % 2]);
  }
  float Factor(int64_t r) const {
    float top = 0;
    for (int64_t c = 0; c < columns; ++c) top = std::max(top, std::fabs(Exact(r, c)));
    return top / 448;
  }
};

TEST(RoundingPlan, KeepsFactorsAndStoresCodes) {
  std::mt19937 rng(1);
  Inputs inputs(rng, 50, 144);
  Rows rows(rng, 48, 144);
  ThreadPool pool(1);
  RoundingPlan(BestIsa(), inputs.view()).Round(pool, rows.rows, rows.bytes());
  int64_t moved = 0;
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float factor = rows.Factor(r);
    float top = 0;
    for (int64_t c = 0; c < rows.columns; ++c) {
      const float code = RoundToE4m3(rows.Rounded(r, c) / factor);
      EXPECT_EQ(rows.Rounded(r, c), BF16ToF32(F32ToBF16(code * factor)));  // the GPU finds the code again
      moved += code != RoundToE4m3(rows.Exact(r, c) / factor);
      top = std::max(top, std::fabs(rows.Rounded(r, c)));
    }
    EXPECT_EQ(top, BF16ToF32(F32ToBF16(factor * 448)));
  }
  EXPECT_GT(moved, rows.rows * rows.columns / 20);  // not the nearest codes
}

TEST(RoundingPlan, AllBodiesAndThreadCountsGiveTheSameBits) {
  for (int64_t tokens : {3, 64, 100}) {
    std::vector<uint16_t> first;
    for (Isa isa : IsasHere())
      for (int threads : {1, 3}) {
        std::mt19937 rng(2);
        Inputs inputs(rng, tokens, 80);
        Rows rows(rng, 64, 80);
        ThreadPool pool(threads);
        RoundingPlan(isa, inputs.view()).Round(pool, rows.rows, rows.bytes());
        std::vector<uint16_t> bits(rows.packed.as<uint16_t>(), rows.packed.as<uint16_t>() + 64 * 80);
        if (first.empty()) first = bits;
        EXPECT_EQ(bits, first) << Name(isa) << ", " << threads << " threads, " << tokens << " tokens";
      }
  }
}

// The rule of the header in double precision, each column by a dense solution of its own.
std::vector<float> Dense(const Inputs& inputs, const Rows& rows, int64_t row) {
  const int64_t n = rows.columns, tokens = inputs.tokens;
  auto x = [&](int64_t t, int64_t c) { return static_cast<double>(inputs.values[static_cast<size_t>(t * n + c)]); };
  std::vector<double> energy(static_cast<size_t>(n));
  for (int64_t c = 0; c < n; ++c)
    for (int64_t t = 0; t < tokens; ++t)
      energy[static_cast<size_t>(c)] += x(t, c) * x(t, c) / static_cast<double>(tokens);
  const double mean = std::accumulate(energy.begin(), energy.end(), 0.0) / static_cast<double>(n);
  auto moment = [&](int64_t a, int64_t b) {  // shrunk half way to the diagonal
    double sum = 0;
    for (int64_t t = 0; t < tokens; ++t) sum += 0.5 * x(t, a) * x(t, b) / static_cast<double>(tokens);
    return a == b ? sum + 0.5 * energy[static_cast<size_t>(a)] + 0.02 * mean : sum;
  };
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return energy[static_cast<size_t>(a)] > energy[static_cast<size_t>(b)];
  });
  const float factor = rows.Factor(row);
  std::vector<float> out(static_cast<size_t>(n));
  std::vector<double> difference(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) {
    // (moments of the columns to do) answer = -(their moments with those done) difference
    const int64_t left = n - j;
    std::vector<std::vector<double>> system(static_cast<size_t>(left));
    for (int64_t a = 0; a < left; ++a) {
      auto& line = system[static_cast<size_t>(a)];
      for (int64_t b = 0; b < left; ++b)
        line.push_back(moment(order[static_cast<size_t>(j + a)], order[static_cast<size_t>(j + b)]));
      double right = 0;
      for (int64_t d = 0; d < j; ++d)
        right -= moment(order[static_cast<size_t>(j + a)], order[static_cast<size_t>(d)]) *
                 difference[static_cast<size_t>(d)];
      line.push_back(right);
    }
    for (size_t a = system.size(); a-- > 0;)  // towards the first unknown
      for (size_t b = 0; b < a; ++b) {
        const double part = system[b][a] / system[a][a];
        for (size_t c = 0; c < system[a].size(); ++c) system[b][c] -= part * system[a][c];
      }
    const int64_t column = order[static_cast<size_t>(j)];
    const float value = rows.Exact(row, column);
    const auto wanted = static_cast<float>(value + system[0].back() / system[0][0]);
    float rounded = std::fabs(value) == factor * 448 ? value : RoundToE4m3(wanted / factor) * factor;
    difference[static_cast<size_t>(j)] = rounded - value;
    out[static_cast<size_t>(column)] = BF16ToF32(F32ToBF16(rounded));
  }
  return out;
}

TEST(RoundingPlan, IsTheDenseSolution) {
  std::mt19937 rng(3);
  Inputs inputs(rng, 9, 32);
  Rows rows(rng, 16, 32);
  std::vector<std::vector<float>> wanted;
  for (int64_t r = 0; r < rows.rows; ++r) wanted.push_back(Dense(inputs, rows, r));
  ThreadPool pool(1);
  RoundingPlan(BestIsa(), inputs.view()).Round(pool, rows.rows, rows.bytes());
  int64_t apart = 0;
  for (int64_t r = 0; r < rows.rows; ++r)
    for (int64_t c = 0; c < rows.columns; ++c)
      apart += rows.Rounded(r, c) != wanted[static_cast<size_t>(r)][static_cast<size_t>(c)];
  EXPECT_LE(apart, rows.rows * rows.columns / 100);  // f32 may fall to the other side of a tie
}

TEST(RoundingPlan, ErrsLessOnOtherInputsThanNearestValues) {
  std::mt19937 rng(4);
  Inputs samples(rng, 128, 256), others(rng, 200, 256);
  Rows rows(rng, 64, 256);
  ThreadPool pool(2);
  RoundingPlan(BestIsa(), samples.view()).Round(pool, rows.rows, rows.bytes());
  double here = 0, nearest = 0;
  for (int64_t r = 0; r < rows.rows; ++r) {
    const float factor = rows.Factor(r);
    for (int64_t t = 0; t < others.tokens; ++t) {
      double a = 0, b = 0;
      for (int64_t c = 0; c < rows.columns; ++c) {
        const double x = others.values[static_cast<size_t>(t * rows.columns + c)];
        a += x * (rows.Rounded(r, c) - rows.Exact(r, c));
        b += x * (RoundToE4m3(rows.Exact(r, c) / factor) * factor - rows.Exact(r, c));
      }
      here += a * a;
      nearest += b * b;
    }
  }
  EXPECT_LT(here, 0.25 * nearest) << here / nearest;
}

}  // namespace
}  // namespace ekiben
