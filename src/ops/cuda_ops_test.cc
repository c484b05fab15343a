// The CUDA ops one by one against plain loops in double, on random inputs, with poisoned outputs. Skipped without a
// device. Attention is tested through the model (model/cuda_llama_test.cc) and here over block layouts and windows.
#include "ops/cuda_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "base/dtype.h"
#include "device/cuda/cuda_device.h"
#include "ops/cuda_attention_items.h"

namespace ekiben {
namespace {

using cuda::Bf16;

class CudaOps : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = OpenCudaDevice();
    if (!device.ok()) GTEST_SKIP() << device.error().message();
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

  std::mt19937 random_{1};
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
  } shapes[] = {{576, 576}, {960, 576},   {1536, 576},   {576, 1536}, {200, 120},
                {8, 8},     {6144, 4096}, {4096, 14336}, {49152, 576}};
  for (auto [n, k] : shapes) {
    auto w = RandomBf16(static_cast<size_t>(n) * static_cast<size_t>(k), 0.05f);
    auto x = RandomBf16(static_cast<size_t>(64) * static_cast<size_t>(k), 1.0f);
    DeviceBuffer dw = Upload(w), dx = Upload(x);
    cuda::SkinnyLinear linear;
    ASSERT_EQ(linear.Prepare(dw.as<Bf16>(), n, k), 0);
    std::vector<float> first;
    for (int32_t m : {1, 3, 8, 9, 16, 31, 33, 64}) {
      DeviceBuffer out = Poison(static_cast<size_t>(m) * static_cast<size_t>(n) * 4);
      linear.Run(queue_, dx.as<Bf16>(), m, out.data(), true);
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
    linear.Run(queue_, dx.as<Bf16>(), 5, out.data(), false);
    auto got = Download<Bf16>(out);
    for (int32_t i = 0; i < n; ++i) ASSERT_EQ(got[static_cast<size_t>(i)], F32ToBF16(first[static_cast<size_t>(i)]));
  }
}

TEST_F(CudaOps, AddRmsNormAndSwiGluAgreeWithDouble) {
  for (int32_t columns : {8, 64, 120, 576, 1536, 4096, 8200, 16384}) {
    constexpr int32_t kTokens = 5;
    auto count = static_cast<size_t>(kTokens) * static_cast<size_t>(columns);
    auto residual = RandomF32(count, 1), weight = RandomF32(static_cast<size_t>(columns), 1);
    auto delta = RandomBf16(count, 1), gate_up = RandomBf16(2 * count, 2);
    DeviceBuffer dr = Upload(residual), dw = Upload(weight), dd = Upload(delta), dg = Upload(gate_up);
    DeviceBuffer y = Poison(count * 2), glu = Poison(count * 2);
    cuda::AddRmsNorm(queue_, y.as<Bf16>(), dr.as<float>(), dd.as<Bf16>(), dw.as<float>(), 1e-5f, kTokens, columns);
    cuda::SwiGlu(queue_, glu.as<Bf16>(), dg.as<Bf16>(), kTokens, columns);
    auto normed = Download<Bf16>(y), mlp = Download<Bf16>(glu);
    auto sums = Download<float>(dr);
    std::vector<double> got, want, got_glu, want_glu;
    for (size_t t = 0; t < kTokens; ++t) {
      double squares = 0;
      for (size_t i = 0; i < static_cast<size_t>(columns); ++i) {
        size_t at = t * static_cast<size_t>(columns) + i;
        EXPECT_EQ(sums[at], residual[at] + BF16ToF32(delta[at]));
        squares += double{sums[at]} * sums[at];
      }
      double factor = 1 / std::sqrt(squares / columns + 1e-5);
      for (size_t i = 0; i < static_cast<size_t>(columns); ++i) {
        size_t at = t * static_cast<size_t>(columns) + i;
        want.push_back(sums[at] * factor * weight[i]);
        got.push_back(BF16ToF32(normed[at]));
        double g = BF16ToF32(gate_up[2 * t * static_cast<size_t>(columns) + i]);
        want_glu.push_back(g / (1 + std::exp(-g)) * BF16ToF32(gate_up[(2 * t + 1) * static_cast<size_t>(columns) + i]));
        got_glu.push_back(BF16ToF32(mlp[at]));
      }
    }
    EXPECT_LT(RelativeError(got, want), 4e-3) << columns;
    EXPECT_LT(RelativeError(got_glu, want_glu), 4e-3) << columns;
  }
}

TEST_F(CudaOps, ArgMaxTakesTheLowestOfEqualsAndRefusesWhatIsNotFinite) {
  constexpr int32_t kRows = 6, kVocab = 1003;
  auto logits = RandomF32(kRows * kVocab, 1);
  std::vector<int32_t> want(kRows);
  for (size_t r = 0; r < kRows; ++r) {
    size_t at = 17 + 150 * r;
    logits[r * kVocab + at] = logits[r * kVocab + at + 3] = 50;  // a tie
    want[r] = static_cast<int32_t>(at);
  }
  logits[2 * kVocab + 900] = NAN;
  logits[3 * kVocab + 0] = INFINITY;
  want[2] = want[3] = -1;
  for (size_t i = 0; i < kVocab; ++i) logits[4 * kVocab + i] = -3 - static_cast<float>(i % 7);
  want[4] = 0;
  DeviceBuffer dl = Upload(logits), slots = Upload(std::vector<int32_t>{5, 4, 3, 2, -1, 0}),
               last = Upload(std::vector<int32_t>(6, -7)), result = Poison(kRows * 4),
               best = Upload(std::vector<uint64_t>(kRows, 0));
  for (int repeat = 0; repeat < 2; ++repeat) {  // the scratch is left ready
    cuda::ArgMax(queue_, result.as<int32_t>(), last.as<int32_t>(), dl.as<float>(), slots.as<int32_t>(), kRows, kVocab,
                 best.as<unsigned long long>());
    EXPECT_EQ(Download<int32_t>(result), want);
  }
  EXPECT_EQ(Download<int32_t>(last), (std::vector<int32_t>{want[5], -7, 0, 0, want[1], want[0]}));
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

class CudaAttention : public CudaOps, public ::testing::WithParamInterface<AttentionCase> {};

TEST_P(CudaAttention, AgreesWithDouble) {
  const AttentionCase& c = GetParam();
  const int32_t pitch = CeilDiv(c.keys, c.tokens_per_block), blocks = 2 * pitch + 3, position = c.keys - c.queries;
  cuda::KvLayout kv{.layers = 2,
                    .blocks = blocks,
                    .kv_heads = c.kv_heads,
                    .tokens_per_block = c.tokens_per_block,
                    .head_dim = c.head_dim,
                    .head_stride = cuda::HeadStride(c.head_dim),
                    .table_pitch = pitch};
  std::vector<Bf16> keys(kv.layer_elements() * 2, 0x7FC0), values = keys;
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
      auto k = RandomBf16(static_cast<size_t>(c.head_dim), 1), v = RandomBf16(static_cast<size_t>(c.head_dim), 1);
      for (int32_t d = 0; d < kv.head_stride; ++d) {
        keys[at(head, key) + static_cast<size_t>(d)] = d < c.head_dim ? k[static_cast<size_t>(d)] : Bf16{0};
        values[at(head, key) + static_cast<size_t>(d)] = d < c.head_dim ? v[static_cast<size_t>(d)] : Bf16{0};
      }
    }
  }
  const int32_t width = c.query_heads * c.head_dim, stride = width + 2 * c.kv_heads * c.head_dim, before = 3;
  auto q = RandomBf16(static_cast<size_t>((before + c.queries) * stride), 1);
  DeviceBuffer dk = Upload(keys), dv = Upload(values), dt = Upload(table), dq = Upload(q);
  kv.keys = dk.as<Bf16>();
  kv.values = dv.as<Bf16>();
  kv.tables = dt.as<int32_t>();
  cuda::AttentionItemShape shape{c.kv_heads, c.query_heads / c.kv_heads, 256};
  const int32_t chunks_max = CeilDiv(c.keys, shape.split);
  auto size = cuda::AttentionScratch(2, c.query_heads, c.kv_heads, kv.head_stride, chunks_max);
  DeviceBuffer partial = Poison(size.partial_floats * 4), partial_ml = Poison(size.partial_ml_floats * 4),
               arrived = Upload(std::vector<uint32_t>(size.counters, 0));

  auto check = [&](bool generation, bool bulk) {
    std::vector<cuda::AttentionItem> items;
    if (generation) {
      AddGenerationItems(shape, before, 1, position, items);
    } else {
      AddContextItems(shape, before, 1, position, c.queries, items);
    }
    DeviceBuffer di = Upload(items), count = Upload(std::vector<int32_t>{static_cast<int32_t>(items.size())});
    cuda::AttentionArguments a;
    DeviceBuffer out = Poison(static_cast<size_t>((before + c.queries) * width) * 2);
    a.q = dq.as<Bf16>();
    a.out = out.as<Bf16>();
    a.q_stride = stride;
    a.query_heads = c.query_heads;
    a.window = c.window;
    a.items = di.as<cuda::AttentionItem>();
    a.item_count = count.as<int32_t>();
    a.items_max = static_cast<int32_t>(items.size()) + (generation ? 5 : 0);
    a.split = shape.split;
    a.partial = partial.as<float>();
    a.partial_ml = partial_ml.as<float>();
    a.arrived = arrived.as<uint32_t>();
    a.chunks_max = chunks_max;
    cuda::DecodeAttention decode;
    if (bulk) {
      ASSERT_TRUE(cuda::DecodeAttention::Serves(kv, c.query_heads, c.window));
      ASSERT_EQ(decode.Prepare(kv), 0);
    }
    std::vector<Bf16> first;
    for (int repeat = 0; repeat < 3; ++repeat) {
      if (bulk) {
        decode.Run(queue_, a, kv, 1);
      } else if (generation) {
        cuda::GenerationAttention(queue_, a, kv, 1);
      } else {
        cuda::ContextAttention(queue_, a, kv, 1);
      }
      auto got = Download<Bf16>(out);
      if (repeat == 0) first = got;
      ASSERT_EQ(got, first) << "the same bits every time";
    }
    std::vector<double> got, want;
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
                   BF16ToF32(keys[at(kv_head, key) + static_cast<size_t>(d)]);
          scores.push_back(sum / std::sqrt(c.head_dim));
          top = std::max(top, scores.back());
        }
        for (double& s : scores) total += s = std::exp(s - top);
        for (int32_t d = 0; d < c.head_dim; ++d) {
          double sum = 0;
          for (int32_t key = low; key <= here; ++key)
            sum +=
                scores[static_cast<size_t>(key - low)] * BF16ToF32(values[at(kv_head, key) + static_cast<size_t>(d)]);
          want.push_back(sum / total);
          got.push_back(BF16ToF32(first[static_cast<size_t>((before + t) * width + h * c.head_dim + d)]));
        }
      }
    }
    EXPECT_LT(RelativeError(got, want), 6e-3) << (bulk ? "bulk" : generation ? "generation" : "context");
    for (int32_t i = 0; i < before * width; ++i)
      ASSERT_EQ(first[static_cast<size_t>(i)], 0xFFFF) << "wrote before its rows";
  };
  check(false, false);
  if (c.queries == 1) {
    check(true, false);
    if (cuda::DecodeAttention::Serves(kv, c.query_heads, c.window)) check(true, true);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaAttention,
    ::testing::Values(AttentionCase{9, 3, 64, 16, 0, 100, 37}, AttentionCase{9, 3, 64, 64, 0, 700, 1},
                      AttentionCase{32, 8, 128, 64, 0, 130, 130}, AttentionCase{32, 8, 128, 64, 0, 1337, 1},
                      AttentionCase{8, 2, 128, 64, 0, 64, 1}, AttentionCase{8, 2, 128, 64, 0, 1, 1},
                      AttentionCase{8, 2, 128, 64, 0, 257, 1}, AttentionCase{28, 4, 128, 32, 0, 300, 33},
                      AttentionCase{28, 4, 128, 32, 0, 300, 1}, AttentionCase{5, 1, 32, 16, 20, 90, 50},
                      AttentionCase{5, 1, 32, 16, 20, 600, 1}, AttentionCase{3, 1, 40, 32, 0, 77, 20},
                      AttentionCase{3, 1, 40, 32, 0, 77, 1}, AttentionCase{4, 4, 96, 32, 0, 200, 64},
                      AttentionCase{4, 4, 96, 32, 0, 200, 1}, AttentionCase{16, 1, 256, 64, 0, 150, 9},
                      AttentionCase{16, 1, 256, 64, 0, 150, 1}, AttentionCase{4, 4, 16, 16, 0, 33, 33}));

}  // namespace
}  // namespace ekiben
