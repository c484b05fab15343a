// The CUDA ops one by one against plain loops in double, on random inputs, with poisoned outputs. Skipped without a
// device. Attention is tested through the model (model/cuda_llama_test.cc) and here over block layouts and windows.
#include "ops/cuda_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <random>
#include <vector>

#include "base/dtype.h"
#include "device/cuda/cublaslt.h"
#include "device/cuda/cuda_device.h"
#include "ops/cuda_attention_items.h"

namespace ekiben {
namespace {

using cuda::Bf16;
using cuda::Fp8;

float Fp8ToF32(Fp8 code) {
  int exponent = code >> 3 & 15, fraction = code & 7;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                              : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
  if ((code & 0x7F) == 0x7F) value = NAN;
  return (code & 0x80) != 0 ? -value : value;
}

Fp8 NearestFp8(float x) {
  if (std::isnan(x)) return 0x7F;
  Fp8 low = 0, high = 0x7E;  // codes of positive values are in their order
  while (high - low > 1) {
    Fp8 middle = static_cast<Fp8>((low + high) / 2);
    (Fp8ToF32(middle) <= std::abs(x) ? low : high) = middle;
  }
  Fp8 best = std::abs(x) - Fp8ToF32(low) < Fp8ToF32(high) - std::abs(x) ? low : high;
  return x < 0 ? best | 0x80 : best;
}

class CudaOps : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = OpenCudaDevice();
    if (!device.ok()) GTEST_SKIP() << device.error().message();
    emulated_ = device->emulated;
    stream_ = *CudaStream::Create();
    queue_.stream = stream_.get();
  }
  template <class T>
  DeviceBuffer Upload(const std::vector<T>& values) {
    DeviceBuffer out = *DeviceBuffer::Create(std::max<size_t>(values.size(), 1) * sizeof(T));
    EXPECT_TRUE(stream_.Copy(out.data(), values.data(), values.size() * sizeof(T)).ok());
    EXPECT_TRUE(stream_.Wait().ok());
    return out;
  }
  // Every byte 0xFF: NaN as bf16 and f32.
  DeviceBuffer Poison(size_t bytes) { return Upload(std::vector<uint8_t>(bytes, 0xFF)); }
  template <class T>
  std::vector<T> Download(const DeviceBuffer& buffer) {
    std::vector<T> out(buffer.size() / sizeof(T));
    EXPECT_TRUE(stream_.Copy(out.data(), buffer.data(), buffer.size()).ok());
    auto done = stream_.Wait();
    EXPECT_TRUE(done.ok()) << done.error().message();
    EXPECT_EQ(queue_.error, 0);
    return out;
  }
  std::vector<Bf16> RandomBf16(size_t count, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<Bf16> out(count);
    for (Bf16& x : out) x = F32ToBF16(normal(random_));
    return out;
  }
  std::vector<float> RandomF32(size_t count, float deviation) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> out(count);
    for (float& x : out) x = normal(random_);
    return out;
  }

  std::vector<Fp8> RandomFp8(size_t count) {
    std::vector<Fp8> out(count);
    for (Fp8& x : out) {
      do x = static_cast<Fp8>(random_());
      while ((x & 0x7F) == 0x7F);
    }
    return out;
  }

  std::mt19937 random_{1};
  bool emulated_ = false;  // on a CPU, where a product of 8B width takes minutes
  CudaStream stream_;
  cuda::Queue queue_;
};

// ||out - want|| / ||want||; NaN never passes a bound.
double RelativeError(const std::vector<double>& out, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (out[i] - want[i]) * (out[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

TEST_F(CudaOps, SkinnyLinearIsRightOnOddShapesAndATokenDoesNotDependOnTheBatch) {
  struct {
    int32_t n, k;
  } shapes[] = {{576, 576}, {960, 576},  {1536, 576},  {576, 1536},   {200, 120},
                {8, 8},     {25600, 64}, {6144, 4096}, {4096, 14336}, {49152, 576}};
  for (auto [n, k] : shapes) {
    if (emulated_ && int64_t{n} * k > 2'000'000) continue;
    auto w = RandomBf16(static_cast<size_t>(n) * static_cast<size_t>(k), 0.05f);
    auto x = RandomBf16(static_cast<size_t>(64) * static_cast<size_t>(k), 1.0f);
    DeviceBuffer dw = Upload(w), dx = Upload(x);
    cuda::SkinnyLinear linear;
    ASSERT_EQ(linear.Prepare({.bf16 = dw.as<Bf16>()}, n, k), 0);
    std::vector<float> first;
    for (int32_t m : {1, 3, 8, 9, 16, 31, 33, 64}) {
      DeviceBuffer out = Poison(static_cast<size_t>(m) * static_cast<size_t>(n) * 4);
      linear.Run(queue_, {.bf16 = dx.as<Bf16>()}, m, out.data(), true);
      auto got = Download<float>(out);
      if (first.empty()) first.assign(got.begin(), got.begin() + n);
      for (int32_t i = 0; i < n; ++i)
        ASSERT_EQ(got[static_cast<size_t>(i)], first[static_cast<size_t>(i)]) << n << "x" << k << " m " << m;
      std::vector<double> sample, want;
      for (int s = 0; s < 200; ++s) {
        auto token = static_cast<size_t>(random_()) % static_cast<size_t>(m),
             row = static_cast<size_t>(random_()) % static_cast<size_t>(n);
        double sum = 0;
        for (size_t i = 0; i < static_cast<size_t>(k); ++i)
          sum +=
              double{BF16ToF32(w[row * static_cast<size_t>(k) + i])} * BF16ToF32(x[token * static_cast<size_t>(k) + i]);
        want.push_back(sum);
        sample.push_back(got[token * static_cast<size_t>(n) + row]);
      }
      EXPECT_LT(RelativeError(sample, want), 1e-5) << n << "x" << k << " m " << m;
      for (float value : got) ASSERT_FALSE(std::isnan(value)) << "an output was never written";
    }
    DeviceBuffer out = Poison(static_cast<size_t>(5) * static_cast<size_t>(n) * 2);
    linear.Run(queue_, {.bf16 = dx.as<Bf16>()}, 5, out.data(), false);
    auto got = Download<Bf16>(out);
    for (int32_t i = 0; i < n; ++i) ASSERT_EQ(got[static_cast<size_t>(i)], F32ToBF16(first[static_cast<size_t>(i)]));
  }
}

// Of e4m3 operands, without factors; also cuBLASLt's product.
TEST_F(CudaOps, LinearsOfE4m3AreRightOnOddShapesAndATokenDoesNotDependOnTheBatch) {
  struct {
    int32_t n, k;
  } shapes[] = {{576, 576}, {960, 576},  {1536, 576},  {576, 1536},   {208, 112},
                {16, 16},   {25600, 64}, {6144, 4096}, {4096, 14336}, {49152, 576}};
  auto cublaslt = CublasLt::Create();
  ASSERT_TRUE(cublaslt.ok()) << cublaslt.error().message();
  for (auto [n, k] : shapes) {
    if (emulated_ && int64_t{n} * k > 2'000'000) continue;
    constexpr int32_t kTokens = 72;
    auto un = static_cast<size_t>(n), uk = static_cast<size_t>(k);
    auto w = RandomFp8(un * uk), x = RandomFp8(kTokens * uk);
    DeviceBuffer dw = Upload(w), dx = Upload(x);
    cuda::Rows w_rows{.fp8 = dw.as<Fp8>()}, x_rows{.fp8 = dx.as<Fp8>()};
    cuda::SkinnyLinear linear;
    ASSERT_EQ(linear.Prepare(w_rows, n, k), 0);
    // Of 200 outputs, ||got - want|| / ||want||.
    auto error = [&](const std::vector<float>& got, int32_t m) {
      std::vector<double> sample, want;
      for (int s = 0; s < 200; ++s) {
        auto token = static_cast<size_t>(random_()) % static_cast<size_t>(m), row = static_cast<size_t>(random_()) % un;
        double sum = 0;
        for (size_t i = 0; i < uk; ++i) sum += double{Fp8ToF32(w[row * uk + i])} * Fp8ToF32(x[token * uk + i]);
        want.push_back(sum);
        sample.push_back(got[token * un + row]);
      }
      for (float value : got) EXPECT_FALSE(std::isnan(value)) << "an output was never written";
      return RelativeError(sample, want);
    };
    std::vector<float> first;
    for (int32_t m : {1, 3, 8, 9, 16, 31, 33, 64}) {
      DeviceBuffer out = Poison(static_cast<size_t>(m) * un * 4);
      linear.Run(queue_, x_rows, m, out.data(), true);
      auto got = Download<float>(out);
      if (first.empty()) first.assign(got.begin(), got.begin() + n);
      for (size_t i = 0; i < un; ++i) ASSERT_EQ(got[i], first[i]) << n << "x" << k << " m " << m;
      // The tensor cores drop low bits within 128 columns.
      EXPECT_LT(error(got, m), 1e-3) << n << "x" << k << " m " << m;
    }
    auto widen = [](const std::vector<Bf16>& values) {
      std::vector<float> out;
      for (Bf16 v : values) out.push_back(BF16ToF32(v));
      return out;
    };
    DeviceBuffer out = Poison(5 * un * 2);
    linear.Run(queue_, x_rows, 5, out.data(), false);
    EXPECT_LT(error(widen(Download<Bf16>(out)), 5), 4e-3) << n << "x" << k;
    DeviceBuffer codes = Poison(kTokens * un * 2);
    auto done = (*cublaslt)->Multiply(stream_.get(), {kTokens, n, k, true, false},
                                      {.w = dw.data(), .x = dx.data(), .out = codes.data()});
    ASSERT_TRUE(done.ok()) << done.error().message();
    double fast = error(widen(Download<Bf16>(codes)), kTokens);
    std::cout << n << "x" << k << ": cuBLASLt with fast accumulation, relative error " << fast << "\n";
    EXPECT_LT(fast, 1e-2);
  }
}

TEST_F(CudaOps, AddRmsNormSwiGluAndBiasAgreeWithDouble) {
  for (int32_t columns : {8, 64, 120, 576, 1536, 4096, 8200, 14336, 16384}) {
    for (bool fp8 : {false, true}) {
      for (int32_t tokens : {5, 70}) {
        auto un = static_cast<size_t>(columns), count = static_cast<size_t>(tokens) * un;
        auto residual = RandomF32(count, 1), weight = RandomF32(un, 1), bias = RandomF32(un, 1);
        auto delta = RandomBf16(count, 1), gate_up = RandomBf16(2 * count, 2);
        auto of_columns = RandomF32(2 * un, 0.7f), of_tokens = RandomF32(static_cast<size_t>(tokens), 0.7f);
        DeviceBuffer dr = Upload(residual), dw = Upload(weight), dd = Upload(delta), dg = Upload(gate_up),
                     dc = Upload(of_columns), dt = Upload(of_tokens), db = Upload(bias), biased = Upload(delta);
        DeviceBuffer y = Poison(count * 2), glu = Poison(count * 2), ys = Poison(static_cast<size_t>(tokens) * 4),
                     gs = Poison(static_cast<size_t>(tokens) * 4);
        cuda::Factors factors;
        if (fp8) factors = {dc.as<float>(), dt.as<float>()};
        auto factor = [&](size_t token, size_t column) { return fp8 ? of_columns[column] * of_tokens[token] : 1.0f; };
        auto rows = [&](const DeviceBuffer& to, const DeviceBuffer& scales) {
          return fp8 ? cuda::Rows{.fp8 = to.as<Fp8>(), .scales = scales.as<float>()}
                     : cuda::Rows{.bf16 = to.as<Bf16>()};
        };
        cuda::AddRmsNorm(queue_, rows(y, ys), dr.as<float>(), dd.as<Bf16>(), factors, dw.as<float>(), 1e-5f, tokens,
                         columns);
        cuda::SwiGlu(queue_, rows(glu, gs), dg.as<Bf16>(), factors, tokens, columns);
        cuda::AddBias(queue_, biased.as<Bf16>(), factors, db.as<float>(), tokens, columns);
        auto read = [&](const DeviceBuffer& from, const DeviceBuffer& scales) {
          std::vector<double> out;
          if (fp8) {
            auto codes = Download<Fp8>(from);
            auto scale = Download<float>(scales);
            for (size_t i = 0; i < count; ++i) out.push_back(double{Fp8ToF32(codes[i])} * scale[i / un]);
          } else {
            for (Bf16 v : Download<Bf16>(from)) out.push_back(BF16ToF32(v));
          }
          return out;
        };
        auto sums = Download<float>(dr);
        std::vector<double> want, want_glu, want_bias, got_bias;
        for (Bf16 v : Download<Bf16>(biased)) got_bias.push_back(BF16ToF32(v));
        for (size_t t = 0; t < static_cast<size_t>(tokens); ++t) {
          double squares = 0;
          for (size_t i = 0; i < un; ++i) {
            size_t at = t * un + i;
            EXPECT_NEAR(sums[at], residual[at] + BF16ToF32(delta[at]) * factor(t, i), fp8 ? 1e-5 : 0);
            squares += double{sums[at]} * sums[at];
          }
          double norm = 1 / std::sqrt(squares / columns + 1e-5);
          for (size_t i = 0; i < un; ++i) {
            size_t at = t * un + i;
            want.push_back(sums[at] * norm * weight[i]);
            want_bias.push_back(BF16ToF32(delta[at]) * factor(t, i) + bias[i]);
            double g = BF16ToF32(gate_up[2 * t * un + i]) * factor(t, i),
                   up = BF16ToF32(gate_up[(2 * t + 1) * un + i]) * factor(t, un + i);
            want_glu.push_back(g / (1 + std::exp(-g)) * up);
          }
        }
        // e4m3 keeps three bits of fraction.
        const double bound = fp8 ? 3.5e-2 : 4e-3;
        EXPECT_LT(RelativeError(read(y, ys), want), bound) << columns;
        EXPECT_LT(RelativeError(read(glu, gs), want_glu), bound) << columns;
        EXPECT_LT(RelativeError(got_bias, want_bias), 4e-3) << columns;
      }
    }
  }
}

TEST_F(CudaOps, QuantizedRowsComeBackWithinARoundingAndZerosStayZero) {
  for (int32_t columns : {8, 576, 4096, 8200, 28672}) {
    constexpr size_t kRows = 7;
    auto un = static_cast<size_t>(columns);
    auto x = RandomBf16(kRows * un, 3);
    std::fill_n(x.begin() + static_cast<std::ptrdiff_t>(2 * un), un, Bf16{0});
    DeviceBuffer dx = Upload(x), codes = Poison(kRows * un), scales = Poison(kRows * 4);
    cuda::Quantize(queue_, {.fp8 = codes.as<Fp8>(), .scales = scales.as<float>()}, dx.as<Bf16>(), kRows, columns);
    auto got = Download<Fp8>(codes);
    auto scale = Download<float>(scales);
    for (size_t r = 0; r < kRows; ++r) {
      float top = 0;
      for (size_t i = 0; i < un; ++i) {
        float want = BF16ToF32(x[r * un + i]), value = Fp8ToF32(got[r * un + i]) * scale[r];
        // Half a step of three fraction bits, or of the smallest codes.
        ASSERT_NEAR(value, want, std::max(std::abs(want) / 16, scale[r] * 0x1p-10f) * 1.0001f) << columns;
        top = std::max(top, std::abs(Fp8ToF32(got[r * un + i])));
      }
      EXPECT_EQ(top, r == 2 ? 0.0f : 448.0f);
    }
  }
}

TEST_F(CudaOps, ReadingReadsEveryWordOnce) {
  // Not a multiple of what a CTA reads at once.
  std::vector<uint32_t> words(400'004);
  uint32_t want = 5;
  for (uint32_t& word : words) want += word = static_cast<uint32_t>(random_());
  DeviceBuffer data = Upload(words), sum = Upload(std::vector<uint32_t>{5});
  cuda::ReadAll(queue_, sum.as<uint32_t>(), data.data(), words.size() * sizeof(uint32_t));
  EXPECT_EQ(Download<uint32_t>(sum).at(0), want);
}

TEST_F(CudaOps, ArgMaxTakesTheLowestOfEqualsAndRefusesWhatIsNotFinite) {
  constexpr int32_t kRows = 6;
  for (size_t vocab : {1003, 1004}) {  // loads of one logit and of four
    auto logits = RandomF32(kRows * vocab, 1);
    std::vector<int32_t> want(kRows);
    for (size_t r = 0; r < kRows; ++r) {
      size_t at = 17 + 150 * r;
      logits[r * vocab + at] = logits[r * vocab + at + 3] = 50;  // a tie
      want[r] = static_cast<int32_t>(at);
    }
    logits[2 * vocab + 900] = NAN;
    logits[3 * vocab + 0] = INFINITY;
    want[2] = want[3] = -1;
    for (size_t i = 0; i < vocab; ++i) logits[4 * vocab + i] = -3 - static_cast<float>(i % 7);
    logits[4 * vocab + 500] = -0.0f;
    logits[4 * vocab + 900] = 0.0f;
    want[4] = 500;
    DeviceBuffer dl = Upload(logits), slots = Upload(std::vector<int32_t>{5, 4, 3, 2, -1, 0}),
                 last = Upload(std::vector<int32_t>(6, -7)), result = Poison(kRows * 4),
                 best = Upload(std::vector<uint64_t>(kRows, 0));
    for (int repeat = 0; repeat < 2; ++repeat) {  // the scratch is left ready
      cuda::ArgMax(queue_, result.as<int32_t>(), last.as<int32_t>(), dl.as<float>(), slots.as<int32_t>(), kRows,
                   static_cast<int32_t>(vocab), best.as<unsigned long long>());
      EXPECT_EQ(Download<int32_t>(result), want);
    }
    EXPECT_EQ(Download<int32_t>(last), (std::vector<int32_t>{want[5], -7, 0, 0, want[1], want[0]}));
  }
}

TEST_F(CudaOps, LaterTableEditsOfAnEntryWin) {
  std::vector<cuda::TableEdit> edits;
  std::vector<int32_t> want(50, -1);
  for (int32_t i = 0; i < 200; ++i) {
    edits.push_back({(i * i) % 50, i});
    want[static_cast<size_t>((i * i) % 50)] = i;
  }
  DeviceBuffer tables = Upload(std::vector<int32_t>(50, -1)), de = Upload(edits),
               count = Upload(std::vector<int32_t>{200});
  cuda::ApplyTableEdits(queue_, tables.as<int32_t>(), de.as<cuda::TableEdit>(), count.as<int32_t>());
  EXPECT_EQ(Download<int32_t>(tables), want);
}

// Attention of one sequence over scattered blocks whose unused slots are NaN.
struct AttentionCase {
  int32_t query_heads, kv_heads, head_dim, tokens_per_block, window, keys, queries;
};
// Which kernel: for every shape, of context or generation; for Llama-3's shape, of generation, of context.
enum class AttentionKind { kContext, kGeneration, kDecode, kCluster };

class CudaAttention : public CudaOps, public ::testing::WithParamInterface<AttentionCase> {
 protected:
  void Check(const AttentionCase& c, bool fp8);
};

// Generation's own rotation and write of the cache against the kernels that do only that, over short and long
// sequences of one step. The own tokens' places in the cache are poisoned before.
TEST_F(CudaOps, GenerationByBulkCopiesRotatesAndStoresAsRopeDoes) {
  constexpr int32_t kKvHeads = 2, kGroup = 4, kD = 128, kPerBlock = 64, kPitch = 12, kSlots = 6, kSplit = 256;
  constexpr int32_t kHeads = kKvHeads * (kGroup + 2), kStride = kHeads * kD, kWidth = kKvHeads * kGroup * kD;
  const std::vector<int32_t> positions = {0, 1, 63, 64, 257, 700};
  for (bool fp8 : {false, true}) {
    for (bool interleaved : {false, true}) {
      cuda::KvLayout kv{.fp8 = fp8,
                        .key_scale = fp8 ? 0.5f : 1.0f,
                        .value_scale = fp8 ? 0.25f : 1.0f,
                        .layers = 2,
                        .blocks = kSlots * kPitch,
                        .kv_heads = kKvHeads,
                        .tokens_per_block = kPerBlock,
                        .head_dim = kD,
                        .head_stride = kD,
                        .table_pitch = kPitch};
      std::vector<int32_t> table(kSlots * kPitch);
      for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i * 5 % table.size());
      DeviceBuffer dt = Upload(table), slots = Upload(std::vector<int32_t>{0, 1, 2, 3, 4, 5}),
                   d_positions = Upload(positions), rope = Upload(RandomF32(701 * 2 * kD, 0.7f)),
                   of_columns = Upload(RandomF32(kStride, 0.7f)), of_tokens = Upload(RandomF32(kSlots, 0.7f));
      kv.tables = dt.as<int32_t>();
      cuda::Factors factors;
      if (fp8) factors = {of_columns.as<float>(), of_tokens.as<float>()};
      const cuda::RopeTableView rope_view{rope.as<float>(), interleaved};
      auto qkv = RandomBf16(kSlots * kStride, 1);
      // Earlier tokens are numbers; what comes from the own one on is not.
      auto make_pool = [&] {
        std::vector<uint8_t> bytes;
        const size_t count = 2 * kv.layer_elements();
        for (size_t i = 0; i < count; ++i) {
          float x = std::normal_distribution<float>(0, 1)(random_);
          size_t place = i / kD % kPerBlock, block = i % kv.layer_elements() / kD / kPerBlock / kKvHeads;
          auto entry = static_cast<size_t>(std::find(table.begin(), table.end(), block) - table.begin());
          bool known = static_cast<int32_t>(entry % kPitch * kPerBlock + place) < positions[entry / kPitch];
          Bf16 wide = known ? F32ToBF16(x) : 0xFFFF;
          bytes.push_back(fp8 ? (known ? NearestFp8(x) : 0x7F) : static_cast<uint8_t>(wide & 0xFF));
          if (!fp8) bytes.push_back(static_cast<uint8_t>(wide >> 8));
        }
        return bytes;
      };
      const auto key_pool = make_pool(), value_pool = make_pool();
      cuda::AttentionItemShape shape{kKvHeads, kGroup, kSplit};
      std::vector<cuda::AttentionItem> items;
      for (int32_t slot = 0; slot < kSlots; ++slot)
        AddGenerationItems(shape, slot, slot, positions[static_cast<size_t>(slot)], items);
      auto size = cuda::AttentionScratch(kSlots, kKvHeads * kGroup, kKvHeads, kD, 3);
      DeviceBuffer di = Upload(items), count = Upload(std::vector<int32_t>{static_cast<int32_t>(items.size())}),
                   partial = Poison(size.partial_floats * 4), partial_ml = Poison(size.partial_ml_floats * 4),
                   arrived = Upload(std::vector<uint32_t>(size.counters, 0));
      struct Result {
        std::vector<Bf16> out;
        std::vector<uint8_t> keys, values;
      };
      auto run = [&](bool bulk) {
        DeviceBuffer dq = Upload(qkv), dk = Upload(key_pool), dv = Upload(value_pool),
                     out = Poison(kSlots * kWidth * 2);
        kv.keys = dk.data();
        kv.values = dv.data();
        cuda::AttentionArguments a;
        a.q = dq.as<Bf16>();
        a.out = out.as<Bf16>();
        a.q_stride = kStride;
        a.query_heads = kKvHeads * kGroup;
        a.items = di.as<cuda::AttentionItem>();
        a.item_count = count.as<int32_t>();
        a.items_max = static_cast<int32_t>(items.size());
        a.split = kSplit;
        a.partial = partial.as<float>();
        a.partial_ml = partial_ml.as<float>();
        a.arrived = arrived.as<uint32_t>();
        a.chunks_max = 3;
        cuda::DecodeAttention decode;
        if (bulk) {
          EXPECT_EQ(decode.Prepare(kv), 0);
          decode.Run(queue_, a, factors, rope_view, kv, 1, false);
        } else {
          cuda::RopeAndStoreKv(queue_, dq.as<Bf16>(), factors, rope_view, a.query_heads, slots.as<int32_t>(),
                               d_positions.as<int32_t>(), kSlots, kv, 1);
          cuda::GenerationAttention(queue_, a, kv, 1);
        }
        return Result{Download<Bf16>(out), Download<uint8_t>(dk), Download<uint8_t>(dv)};
      };
      Result apart = run(false), together = run(true);
      EXPECT_EQ(together.keys, apart.keys);
      EXPECT_EQ(together.values, apart.values);
      EXPECT_NE(together.keys, key_pool);
      for (size_t slot = 0; slot < kSlots; ++slot) {
        std::vector<double> got, want;
        for (size_t i = slot * kWidth; i < (slot + 1) * kWidth; ++i) {
          got.push_back(BF16ToF32(together.out[i]));
          want.push_back(BF16ToF32(apart.out[i]));
        }
        EXPECT_LT(RelativeError(got, want), 6e-3) << "position " << positions[slot] << (fp8 ? " e4m3" : "");
      }
    }
  }
}

// Both element types of the cache; of e4m3 the reference takes the codes' values.
TEST_P(CudaAttention, AgreesWithDouble) {
  AttentionCase c = GetParam();
  if (emulated_ && c.kv_heads >= 4) {  // a quarter of the heads shows the same
    c.query_heads /= 4;
    c.kv_heads /= 4;
  }
  for (bool fp8 : {false, true}) Check(c, fp8);
}

void CudaAttention::Check(const AttentionCase& c, bool fp8) {
  const int32_t pitch = CeilDiv(c.keys, c.tokens_per_block), blocks = 2 * pitch + 3, position = c.keys - c.queries;
  const float key_scale = fp8 ? 0.5f : 1.0f, value_scale = fp8 ? 0.25f : 1.0f;
  cuda::KvLayout kv{.fp8 = fp8,
                    .key_scale = key_scale,
                    .value_scale = value_scale,
                    .layers = 2,
                    .blocks = blocks,
                    .kv_heads = c.kv_heads,
                    .tokens_per_block = c.tokens_per_block,
                    .head_dim = c.head_dim,
                    .head_stride = cuda::HeadStride(c.head_dim),
                    .table_pitch = pitch};
  std::vector<float> keys(kv.layer_elements() * 2, NAN), values = keys;
  std::vector<int32_t> table(static_cast<size_t>(2 * pitch));
  for (int32_t i = 0; i < pitch; ++i) table[static_cast<size_t>(pitch + i)] = (i * 5 + 2) % blocks;
  std::vector<bool> used(static_cast<size_t>(blocks));
  for (int32_t i = 0; i < pitch; ++i) {  // distinct blocks
    int32_t& block = table[static_cast<size_t>(pitch + i)];
    while (used[static_cast<size_t>(block)]) block = (block + 1) % blocks;
    used[static_cast<size_t>(block)] = true;
  }
  auto at = [&](int32_t head, int32_t key) {
    int32_t block = table[static_cast<size_t>(pitch + key / c.tokens_per_block)];
    return kv.layer_elements() +
           static_cast<size_t>(((block * c.kv_heads + head) * c.tokens_per_block + key % c.tokens_per_block)) *
               static_cast<size_t>(kv.head_stride);
  };
  for (int32_t head = 0; head < c.kv_heads; ++head) {
    for (int32_t key = 0; key < c.keys; ++key) {
      auto k = RandomF32(static_cast<size_t>(c.head_dim), 1), v = RandomF32(static_cast<size_t>(c.head_dim), 1);
      for (int32_t d = 0; d < kv.head_stride; ++d) {
        keys[at(head, key) + static_cast<size_t>(d)] = d < c.head_dim ? k[static_cast<size_t>(d)] : 0;
        values[at(head, key) + static_cast<size_t>(d)] = d < c.head_dim ? v[static_cast<size_t>(d)] : 0;
      }
    }
  }
  const int32_t width = c.query_heads * c.head_dim, stride = width + 2 * c.kv_heads * c.head_dim, before = 3;
  auto q = RandomBf16(static_cast<size_t>((before + c.queries) * stride), 1);
  // As the cache stores them, and then the stored values in their place.
  auto store = [&](std::vector<float>& pool, float scale) {
    std::vector<Bf16> wide;
    std::vector<Fp8> codes;
    for (float& x : pool) {
      if (fp8) {
        codes.push_back(NearestFp8(x / scale));
        x = Fp8ToF32(codes.back()) * scale;
      } else {
        wide.push_back(F32ToBF16(x));
        x = BF16ToF32(wide.back());
      }
    }
    return fp8 ? Upload(codes) : Upload(wide);
  };
  DeviceBuffer dk = store(keys, key_scale), dv = store(values, value_scale), dt = Upload(table);
  // The last key and value are the row's own, unrotated.
  std::vector<float> rope(static_cast<size_t>(c.keys) * 2 * static_cast<size_t>(c.head_dim));
  for (size_t i = 0; i < rope.size(); ++i) rope[i] = i / static_cast<size_t>(c.head_dim) % 2 == 0 ? 1.0f : 0.0f;
  DeviceBuffer d_rope = Upload(rope);
  for (int32_t i = 0; i < 2 * c.kv_heads * c.head_dim; ++i) {
    int32_t head = i / c.head_dim;
    const std::vector<float>& pool = head < c.kv_heads ? keys : values;
    q[static_cast<size_t>((before + c.queries - 1) * stride + width + i)] =
        F32ToBF16(pool[at(head % c.kv_heads, c.keys - 1) + static_cast<size_t>(i % c.head_dim)]);
  }
  DeviceBuffer dq = Upload(q);
  kv.keys = dk.data();
  kv.values = dv.data();
  kv.tables = dt.as<int32_t>();
  const cuda::AttentionItemShape shape{c.kv_heads, c.query_heads / c.kv_heads, 256};
  const int32_t chunks_max = CeilDiv(c.keys, shape.split);
  auto size = cuda::AttentionScratch(2, c.query_heads, c.kv_heads, kv.head_stride, chunks_max);
  DeviceBuffer partial = Poison(size.partial_floats * 4), partial_ml = Poison(size.partial_ml_floats * 4),
               arrived = Upload(std::vector<uint32_t>(size.counters, 0));

  cuda::DecodeAttention decode;
  cuda::ClusterAttention cluster;
  auto run = [&](AttentionKind kind, std::vector<cuda::AttentionItem> items) {
    DeviceBuffer count = Upload(std::vector<int32_t>{static_cast<int32_t>(items.size())});
    if (kind != AttentionKind::kContext) items.resize(items.size() + 5);
    DeviceBuffer di = Upload(items);
    cuda::AttentionArguments a;
    DeviceBuffer out = Poison(static_cast<size_t>((before + c.queries) * width) * 2);
    a.q = dq.as<Bf16>();
    a.out = out.as<Bf16>();
    a.q_stride = stride;
    a.query_heads = c.query_heads;
    a.window = c.window;
    a.items = di.as<cuda::AttentionItem>();
    a.item_count = count.as<int32_t>();
    a.items_max = static_cast<int32_t>(items.size());
    a.split = shape.split;
    a.partial = partial.as<float>();
    a.partial_ml = partial_ml.as<float>();
    a.arrived = arrived.as<uint32_t>();
    a.chunks_max = chunks_max;
    std::vector<Bf16> first;
    for (int repeat = 0; repeat < (emulated_ && kind == AttentionKind::kCluster ? 1 : 3); ++repeat) {
      switch (kind) {
        case AttentionKind::kContext: cuda::ContextAttention(queue_, a, kv, 1); break;
        case AttentionKind::kGeneration: cuda::GenerationAttention(queue_, a, kv, 1); break;
        case AttentionKind::kDecode: decode.Run(queue_, a, {}, {.table = d_rope.as<float>()}, kv, 1, repeat > 0); break;
        case AttentionKind::kCluster: cluster.Run(queue_, a, kv, 1); break;
      }
      auto got = Download<Bf16>(out);
      if (repeat == 0) first = got;
      EXPECT_EQ(got, first) << "the same bits every time";
    }
    return first;
  };
  std::vector<double> want;  // [queries, query_heads, head_dim]
  for (int32_t t = 0; t < c.queries; ++t) {
    for (int32_t h = 0; h < c.query_heads; ++h) {
      int32_t kv_head = h / shape.group, here = position + t;
      int32_t low = c.window > 0 ? std::max(0, here - c.window + 1) : 0;
      std::vector<double> scores;
      double top = -1e300, total = 0;
      for (int32_t key = low; key <= here; ++key) {
        double sum = 0;
        for (int32_t d = 0; d < c.head_dim; ++d)
          sum += double{BF16ToF32(q[static_cast<size_t>((before + t) * stride + h * c.head_dim + d)])} *
                 keys[at(kv_head, key) + static_cast<size_t>(d)];
        scores.push_back(sum / std::sqrt(c.head_dim));
        top = std::max(top, scores.back());
      }
      for (double& s : scores) total += s = std::exp(s - top);
      for (int32_t d = 0; d < c.head_dim; ++d) {
        double sum = 0;
        for (int32_t key = low; key <= here; ++key)
          sum += scores[static_cast<size_t>(key - low)] * values[at(kv_head, key) + static_cast<size_t>(d)];
        want.push_back(sum / total);
      }
    }
  }
  auto check = [&](AttentionKind kind) {
    cuda::AttentionItemShape its_shape = shape;
    if (kind == AttentionKind::kDecode) {
      ASSERT_EQ(decode.Prepare(kv), 0);
    } else if (kind == AttentionKind::kCluster) {
      ASSERT_EQ(cluster.Prepare(kv), 0);
      its_shape.clusters = cluster.clusters();
      ASSERT_GT(its_shape.clusters, 0);
    }
    std::vector<cuda::AttentionItem> items;
    if (kind == AttentionKind::kGeneration || kind == AttentionKind::kDecode) {
      AddGenerationItems(its_shape, before, 1, position, items);
    } else {
      AddContextItems(its_shape, before, 1, position, c.queries, items);
    }
    std::vector<Bf16> first = run(kind, items);
    if (kind == AttentionKind::kCluster && c.queries > 4) {
      // The same tokens as two rows of a step: a row's bits are those that it has alone.
      std::vector<cuda::AttentionItem> two[2], both, scratch;
      int32_t cut = c.queries / 3 + 1;
      AddContextItems(its_shape, before, 1, position, cut, two[0]);
      AddContextItems(its_shape, before + cut, 1, position + cut, c.queries - cut, two[1]);
      for (const auto& row : two) both.insert(both.end(), row.begin(), row.end());
      BalanceContextItems(both, its_shape, scratch);
      first = run(kind, both);
      std::vector<Bf16> alone[2] = {run(kind, two[0]), run(kind, two[1])};
      for (size_t i = 0; i < first.size(); ++i)
        ASSERT_EQ(first[i], alone[i / static_cast<size_t>(width) >= static_cast<size_t>(before + cut)][i]) << i;
    }
    std::vector<double> got;
    for (size_t i = static_cast<size_t>(before * width); i < first.size(); ++i) got.push_back(BF16ToF32(first[i]));
    EXPECT_LT(RelativeError(got, want), 6e-3) << "kernel " << static_cast<int>(kind) << (fp8 ? " e4m3" : "");
    for (int32_t i = 0; i < before * width; ++i)
      ASSERT_EQ(first[static_cast<size_t>(i)], 0xFFFF) << "wrote before its rows";
  };
  check(AttentionKind::kContext);
  if (cuda::ClusterAttention::Serves(kv, c.window)) check(AttentionKind::kCluster);
  if (c.queries == 1) {
    check(AttentionKind::kGeneration);
    if (cuda::DecodeAttention::Serves(kv, c.query_heads, c.window)) check(AttentionKind::kDecode);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaAttention,
    ::testing::Values(AttentionCase{9, 3, 64, 16, 0, 100, 37}, AttentionCase{9, 3, 64, 64, 0, 700, 1},
                      AttentionCase{32, 8, 128, 64, 0, 130, 130}, AttentionCase{32, 8, 128, 64, 0, 1337, 1},
                      AttentionCase{16, 4, 128, 64, 0, 2113, 45}, AttentionCase{16, 4, 128, 64, 0, 1337, 150},
                      AttentionCase{16, 4, 128, 64, 0, 2113, 2}, AttentionCase{28, 4, 128, 64, 0, 300, 77},
                      AttentionCase{24, 3, 128, 64, 0, 1100, 33}, AttentionCase{4, 2, 128, 64, 0, 384, 128},
                      AttentionCase{8, 2, 128, 64, 0, 64, 1}, AttentionCase{8, 2, 128, 64, 0, 1, 1},
                      AttentionCase{8, 2, 128, 64, 0, 257, 1}, AttentionCase{28, 4, 128, 32, 0, 300, 33},
                      AttentionCase{28, 4, 128, 32, 0, 300, 1}, AttentionCase{5, 1, 32, 16, 20, 90, 50},
                      AttentionCase{5, 1, 32, 16, 20, 600, 1}, AttentionCase{3, 1, 40, 32, 0, 77, 20},
                      AttentionCase{3, 1, 40, 32, 0, 77, 1}, AttentionCase{4, 4, 96, 32, 0, 200, 64},
                      AttentionCase{4, 4, 96, 32, 0, 200, 1}, AttentionCase{16, 1, 256, 64, 0, 150, 9},
                      AttentionCase{16, 1, 256, 64, 0, 150, 1}, AttentionCase{4, 4, 16, 16, 0, 33, 33}));

}  // namespace
}  // namespace ekiben
