// Attention: right against double precision for both caches; the same bits from every body; and the same bits for a
// query whatever the chunks, the batch, the blocks and the threads.
#include "ops/paged_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/arithmetic.h"
#include "ops/isa_test_support.h"
#include "ops/rope.h"

namespace ekiben {
namespace {

struct Shape {
  int32_t query_heads, kv_heads, head_dim, window;
  DType dtype;
  int64_t columns() const { return int64_t{query_heads + 2 * kv_heads} * head_dim; }
  int64_t out_columns() const { return int64_t{query_heads} * head_dim; }
};

// One sequence's qkv rows, as a projection would give them.
struct Sequence {
  int32_t tokens;
  std::vector<float> qkv;
  std::vector<float> out;  // filled chunk by chunk
  int32_t done = 0;
  std::vector<BlockId> blocks;
};

// A table that rotates nothing.
std::vector<float> NoRotation(int32_t positions, int32_t head_dim) {
  std::vector<float> table(static_cast<size_t>(positions * 2 * head_dim), 0.0f);
  for (int32_t p = 0; p < positions; ++p) std::fill_n(table.begin() + p * 2 * head_dim, head_dim, 1.0f);
  return table;
}

constexpr int32_t kPositions = 512;

// Feeds all sequences in steps of random chunks of random subsets, blocks handed out in random order.
void RunInRandomChunks(const Shape& shape, std::vector<Sequence>& sequences, Isa isa, int threads,
                       int32_t tokens_per_block, int32_t chunk_max, std::mt19937& rng) {
  const auto table = NoRotation(kPositions, shape.head_dim);
  RopeView rope{table.data(), kPositions, shape.head_dim, false};
  int32_t blocks_needed = 0;
  for (const Sequence& s : sequences) blocks_needed += CeilDiv(s.tokens, tokens_per_block);
  PagedKv kv({2, shape.kv_heads, shape.head_dim, tokens_per_block, blocks_needed + 3, shape.dtype});
  // What a former owner may have left behind.
  std::memset(kv.Block(0, BlockId{0}), 0xff, kv.bytes_per_block() * static_cast<size_t>(blocks_needed + 3));
  std::vector<int32_t> order(static_cast<size_t>(blocks_needed + 3));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  ThreadPool pool(threads);
  Arena arena(1 << 16);
  OpContext ctx{&pool, &arena, isa};
  for (Sequence& s : sequences) {
    s.done = 0;
    s.blocks.clear();
    s.out.assign(static_cast<size_t>(s.tokens * shape.out_columns()), 0.0f);
  }
  auto left = [&] {
    return std::any_of(sequences.begin(), sequences.end(), [](auto& s) { return s.done < s.tokens; });
  };
  while (left()) {
    std::vector<AttentionRow> rows;
    std::vector<Sequence*> fed;
    std::vector<float> qkv;
    for (Sequence& s : sequences) {
      if (s.done == s.tokens || RandomInt(rng, 0, 2) == 0) continue;
      int32_t chunk = std::min(RandomInt(rng, 1, chunk_max), s.tokens - s.done);
      while (std::ssize(s.blocks) * tokens_per_block < s.done + chunk) {
        s.blocks.push_back(BlockId{order.back()});
        order.pop_back();
      }
      rows.push_back({static_cast<int32_t>(std::ssize(qkv) / shape.columns()), chunk, s.done, s.blocks.data()});
      qkv.insert(qkv.end(), s.qkv.begin() + s.done * shape.columns(),
                 s.qkv.begin() + (s.done + chunk) * shape.columns());
      fed.push_back(&s);
    }
    if (rows.empty()) continue;
    int64_t tokens = std::ssize(qkv) / shape.columns();
    std::vector<float> out(static_cast<size_t>(tokens * shape.out_columns()));
    TensorView qkv_view(qkv.data(), DType::kF32, {tokens, shape.columns()});
    RopeAndStoreKv(ctx, qkv_view, rope, shape.query_heads, rows, kv, 1);
    PagedAttention(ctx, TensorView(out.data(), DType::kF32, {tokens, shape.out_columns()}), qkv_view, shape.query_heads,
                   rows, kv, 1, shape.window);
    EXPECT_EQ(arena.Mark(), 0u);
    for (size_t r = 0; r < rows.size(); ++r) {
      std::copy_n(out.begin() + rows[r].token_begin * shape.out_columns(), rows[r].token_count * shape.out_columns(),
                  fed[r]->out.begin() + fed[r]->done * shape.out_columns());
      fed[r]->done += rows[r].token_count;
    }
  }
}

std::vector<float> Exact(const Shape& shape, const Sequence& s) {
  std::vector<float> out(s.out.size());
  int32_t d = shape.head_dim, group = shape.query_heads / shape.kv_heads;
  auto row = [&](int32_t t, int32_t column) { return s.qkv.data() + t * shape.columns() + column * d; };
  for (int32_t t = 0; t < s.tokens; ++t) {
    int32_t first = shape.window > 0 ? std::max(0, t - shape.window + 1) : 0;
    for (int32_t h = 0; h < shape.query_heads; ++h) {
      const float* q = row(t, h);
      std::vector<double> p(static_cast<size_t>(t + 1), 0.0);
      double peak = -1e300, sum = 0;
      for (int32_t k = first; k <= t; ++k) {
        const float* key = row(k, shape.query_heads + h / group);
        double dot = 0;
        for (int32_t i = 0; i < d; ++i) dot += double{q[i]} * key[i];
        p[static_cast<size_t>(k)] = dot / std::sqrt(double{1} * d);
        peak = std::max(peak, p[static_cast<size_t>(k)]);
      }
      for (int32_t k = first; k <= t; ++k)
        sum += p[static_cast<size_t>(k)] = std::exp(p[static_cast<size_t>(k)] - peak);
      for (int32_t i = 0; i < d; ++i) {
        double o = 0;
        for (int32_t k = first; k <= t; ++k) {
          o += p[static_cast<size_t>(k)] / sum * row(k, shape.query_heads + shape.kv_heads + h / group)[i];
        }
        out[static_cast<size_t>(t * shape.out_columns() + h * d + i)] = static_cast<float>(o);
      }
    }
  }
  return out;
}

std::vector<Sequence> RandomSequences(const Shape& shape, const std::vector<int32_t>& lengths, std::mt19937& rng) {
  std::vector<Sequence> out;
  for (int32_t n : lengths) out.push_back({.tokens = n, .qkv = RandomFloats(rng, n * shape.columns(), 1.5f)});
  return out;
}

class AttentionTest : public ::testing::TestWithParam<Shape> {};

TEST_P(AttentionTest, AgreesWithDoublePrecision) {
  const Shape& shape = GetParam();
  std::mt19937 rng(11);
  auto sequences = RandomSequences(shape, {1, 2, 63, 64, 65, 200}, rng);
  for (Isa isa : IsasHere()) {
    RunInRandomChunks(shape, sequences, isa, 2, 32, 100, rng);
    for (const Sequence& s : sequences) {
      auto exact = Exact(shape, s);
      double worst = 0;
      for (size_t i = 0; i < exact.size(); ++i) worst = std::max(worst, std::fabs(double{s.out[i]} - exact[i]));
      // bf16 has 8 bits: a score of size 20 is off by up to 0.04, which moves a probability by 4 %.
      EXPECT_LT(worst, shape.dtype == DType::kF32 ? 2e-5 : 0.15) << Name(isa) << " tokens " << s.tokens;
    }
  }
}

TEST_P(AttentionTest, GivesTheSameBitsInAnyCompany) {
  const Shape& shape = GetParam();
  std::mt19937 rng(12);
  auto sequences = RandomSequences(shape, {1, 17, 64, 130, 260}, rng);
  std::vector<std::vector<float>> first;
  for (int round = 0; round < 4; ++round) {
    for (Isa isa : IsasHere()) {
      if (isa == Isa::kReference && round > 0) continue;
      int32_t tokens_per_block = 16 << RandomInt(rng, 0, 3);
      RunInRandomChunks(shape, sequences, isa, RandomInt(rng, 1, 3), tokens_per_block, round == 1 ? 1 : 90, rng);
      for (size_t i = 0; i < sequences.size(); ++i) {
        if (first.size() == i) first.push_back(sequences[i].out);
        EXPECT_TRUE(SameBits(first[i], sequences[i].out))
            << Name(isa) << " round " << round << " sequence " << i << " block " << tokens_per_block;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         ::testing::Values(Shape{9, 3, 64, 0, DType::kBF16},    // SmolLM2
                                           Shape{9, 3, 64, 0, DType::kF32},     //
                                           Shape{5, 1, 32, 20, DType::kBF16},   // a window, smaller than a tile
                                           Shape{5, 1, 32, 100, DType::kF32},   // and larger
                                           Shape{3, 3, 40, 0, DType::kBF16},    // padded heads, no groups
                                           Shape{4, 2, 24, 70, DType::kBF16},   //
                                           Shape{32, 1, 16, 0, DType::kBF16},   // more heads in a group than an item
                                           Shape{8, 2, 128, 0, DType::kBF16},   // Llama 3's head
                                           Shape{2, 1, 256, 0, DType::kF32}));  // the largest

}  // namespace
}  // namespace ekiben
