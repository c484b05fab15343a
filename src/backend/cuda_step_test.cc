#include "backend/cuda_step.h"

#include <gtest/gtest.h>

#include <map>

#include <algorithm>
#include <tuple>

#include "ops/cuda_attention_items.h"

namespace ekiben {
namespace {

TEST(CudaStepLayout, PartsFollowEachOtherWithoutOverlapAndItemsComeLast) {
  CudaStepLayout layout(7, 3, 5, 2);
  EXPECT_GE(layout.source, CudaStepLayout::kHeaderWords);
  EXPECT_GE(layout.positions, layout.source + 7);
  EXPECT_GE(layout.slots, layout.positions + 7);
  EXPECT_GE(layout.output_tokens, layout.slots + 7);
  EXPECT_GE(layout.sample_slots, layout.output_tokens + 3);
  EXPECT_GE(layout.sampled_rows, layout.sample_slots + 3);
  EXPECT_GE(layout.edits, layout.sampled_rows + 3);
  EXPECT_GE(layout.context_items, layout.edits + 5 * 2);
  EXPECT_GE(layout.generation_items, layout.context_items + 2 * 8);
  for (int32_t offset : {layout.source, layout.positions, layout.slots, layout.output_tokens, layout.sample_slots,
                         layout.edits, layout.context_items, layout.generation_items}) {
    EXPECT_EQ(offset % 4, 0) << "16-byte aligned";
  }
  EXPECT_EQ(layout.Words(3), layout.generation_items + 24);
}

TEST(CudaStep, BucketsAreExactUpTo16RowsAndAtMostAnEighthApartBeyond) {
  for (int32_t max : {1, 2, 3, 7, 100, 128, 129, 512}) {
    std::vector<int32_t> buckets = CudaGraphBuckets(max);
    EXPECT_TRUE(std::is_sorted(buckets.begin(), buckets.end()));
    EXPECT_EQ(std::adjacent_find(buckets.begin(), buckets.end()), buckets.end());
    EXPECT_EQ(buckets.front(), 1);
    EXPECT_EQ(buckets.back(), max);
    for (size_t i = 1; i < buckets.size(); ++i)
      EXPECT_LE(buckets[i], buckets[i - 1] < 16 ? buckets[i - 1] + 1 : buckets[i - 1] + buckets[i - 1] / 8);
  }
}

TEST(CudaStepShapes, EveryStepHasAShapeAndTheSparseOnesSufficeAlone) {
  for (auto [batch, tokens_max] : {std::pair{1, 64}, {8, 256}, {128, 2048}, {100, 90}, {256, 8192}}) {
    CudaStepShapes shapes(batch, tokens_max);
    std::vector<uint8_t> sparse;
    for (const CudaStepShape& shape : shapes.all()) sparse.push_back(shape.sparse);
    for (int32_t rows = 1; rows <= batch; ++rows) {
      const CudaStepShape& shape = shapes.all()[shapes.Find(rows, rows, false, sparse)];
      EXPECT_GE(shape.tokens, rows);
      EXPECT_EQ(shape.outputs, shape.tokens);
    }
    for (int32_t tokens = 1; tokens <= tokens_max; ++tokens) {
      for (int32_t outputs : {0, 1, std::min(batch, tokens)}) {
        for (std::span<const uint8_t> usable : {std::span<const uint8_t>(), std::span<const uint8_t>(sparse)}) {
          const CudaStepShape& shape = shapes.all()[shapes.Find(tokens, outputs, true, usable)];
          EXPECT_TRUE(shape.context);
          EXPECT_GE(shape.tokens, tokens);
          EXPECT_LE(shape.tokens, tokens_max);
          EXPECT_GE(shape.outputs, outputs);
          EXPECT_LE(shape.outputs, batch);
        }
      }
    }
  }
}

TEST(CudaStepShapes, AStepWithoutItsGraphTakesTheNextOneThatHasIt) {
  CudaStepShapes shapes(128, 2048);
  std::vector<uint8_t> usable(shapes.all().size(), 1);
  size_t first = shapes.Find(70, 20, true, usable);
  EXPECT_EQ(shapes.all()[first].tokens, 72);
  EXPECT_EQ(shapes.all()[first].outputs, 64);
  usable[first] = 0;
  size_t next = shapes.Find(70, 20, true, usable);
  EXPECT_EQ(shapes.all()[next].tokens, 72);
  EXPECT_EQ(shapes.all()[next].outputs, 128);
  EXPECT_EQ(shapes.all()[shapes.Find(70, 70, false, usable)].tokens, 72);
}

// Sizes drawn like those of serving: context chunks of any length beside any number of streams.
TEST(CudaStepShapes, MedianPaddingIsUnder8Percent) {
  CudaStepShapes shapes(128, 2048);
  std::vector<double> shares;
  uint32_t random = 1;
  for (int i = 0; i < 2000; ++i) {
    random = random * 1664525 + 1013904223;
    int32_t rows = 1 + static_cast<int32_t>(random >> 16) % 128;
    random = random * 1664525 + 1013904223;
    int32_t tokens = rows + (i % 4 == 0 ? static_cast<int32_t>(random >> 16) % 500 : 0);
    bool context = tokens > rows;
    shares.push_back(static_cast<double>(shapes.all()[shapes.Find(tokens, rows, context, {})].tokens - tokens) /
                     static_cast<double>(tokens));
  }
  std::nth_element(shares.begin(), shares.begin() + 1000, shares.end());
  EXPECT_LE(shares[1000], 0.08);
}

TEST(CudaStep, TokenCountsArePaddedByAtMostAnEighthFrom64OnAndNeverPastTheLimit) {
  for (int32_t tokens = 1; tokens <= 8192; ++tokens) {
    int32_t padded = CudaPaddedTokens(tokens, 8192);
    EXPECT_GE(padded, tokens);
    if (tokens >= 64) {
      EXPECT_LE((padded - tokens) * 8, padded + 7) << tokens;
    }
    EXPECT_EQ(CudaPaddedTokens(padded, 8192), padded);
  }
  EXPECT_EQ(CudaPaddedTokens(97, 100), 100);
}

TEST(CudaStep, ContextItemsCoverEveryQueryOfEveryHeadOnce) {
  cuda::AttentionItemShape shape{.kv_heads = 3, .group = 3, .split = 1024};
  std::vector<cuda::AttentionItem> items;
  cuda::AddContextItems(shape, 10, 4, 100, 50, items);  // 150 packed queries: tiles of 64, 64 and 22
  ASSERT_EQ(items.size(), 9u);
  EXPECT_EQ(items.front().first, 128) << "the longest first";
  for (int32_t head = 0; head < 3; ++head) {
    for (int32_t first : {0, 64, 128}) {
      EXPECT_EQ(std::count_if(items.begin(), items.end(),
                              [&](const auto& item) { return item.kv_head == head && item.first == first; }),
                1);
    }
  }
  for (const auto& item : items) {
    EXPECT_EQ(item.token, 10);
    EXPECT_EQ(item.slot, 4);
    EXPECT_EQ(item.position, 100);
    EXPECT_EQ(item.tokens, 50);
  }
}

TEST(CudaStep, ClusterItemsCoverEveryQueryOfEveryHeadOnce) {
  cuda::AttentionItemShape shape{.kv_heads = 3, .group = 4, .split = 1024, .clusters = 66};
  // Tokens, position, parts that the keys are cut in.
  for (auto [tokens, position, chunks] :
       {std::tuple{50, 100, 1}, {50, 1023, 1}, {50, 1024, 2}, {2, 8000, 2}, {704, 1024, 2}, {705, 1024, 1}}) {
    std::vector<cuda::AttentionItem> items;
    cuda::AddContextItems(shape, 10, 4, position, tokens, items);
    std::map<std::pair<int32_t, int32_t>, int> seen;  // of a head and a tile
    for (const auto& item : items) {
      EXPECT_EQ(std::tuple(item.token, item.slot, item.position, item.tokens, item.chunks),
                std::tuple(10, 4, position, tokens, chunks));
      for (int32_t rank = 0; rank < cuda::kContextCluster; ++rank)
        if (item.kv_head + rank / chunks < 3) ++seen[{item.kv_head + rank / chunks, item.first}];
    }
    int32_t tiles = CeilDiv(tokens * 4, cuda::kClusterQueryTile);
    EXPECT_EQ(seen.size(), static_cast<size_t>(3 * tiles));
    for (const auto& [tile, parts] : seen) EXPECT_EQ(parts, chunks);
    // No more than the backend makes room for, which counts tiles of 64.
    EXPECT_LE(items.size(), static_cast<size_t>(3 * CeilDiv(tokens * 4, cuda::kQueryTile)));
    auto before = items.size();
    std::vector<cuda::AttentionItem> scratch;
    cuda::BalanceContextItems(items, shape, scratch);
    EXPECT_EQ(items.size(), before);
  }
}

TEST(CudaStep, GenerationItemsAreCutAtTheSplitWhateverTheBatch) {
  cuda::AttentionItemShape shape{.kv_heads = 2, .group = 4, .split = 1024};
  for (auto [position, chunks] : {std::pair{0, 1}, {1023, 1}, {1535, 1}, {1536, 2}, {2559, 2}, {2560, 3}}) {
    std::vector<cuda::AttentionItem> items;
    cuda::AddGenerationItems(shape, 0, 0, position, items);
    EXPECT_EQ(items.size(), static_cast<size_t>(2 * chunks)) << position;
    for (const auto& item : items) EXPECT_EQ(item.chunks, chunks);
  }
}

TEST(CudaStep, BalancedItemsAreTheSameItemsAndEveryWorkerReadsNearlyAsMuch) {
  cuda::AttentionItemShape shape{.kv_heads = 8, .group = 4, .split = 1024};
  std::vector<cuda::AttentionItem> items, scratch;
  uint32_t random = 1;
  for (int32_t row = 0; row < 100; ++row) {
    random = random * 1664525 + 1013904223;
    cuda::AddGenerationItems(shape, row, row, 30 + static_cast<int32_t>(random >> 16) % 640, items);
  }
  auto key = [](const cuda::AttentionItem& item) { return std::tuple(item.slot, item.kv_head, item.chunk); };
  std::vector<std::tuple<int32_t, int32_t, int32_t>> before, after;
  for (const auto& item : items) before.push_back(key(item));
  auto load = [&](int32_t worker) {
    int32_t sum = 0;
    for (size_t i = static_cast<size_t>(worker); i < items.size(); i += 132) sum += cuda::ItemBlocks(items[i], 1024);
    return sum;
  };
  auto spread = [&] {
    int32_t low = load(0), high = low;
    for (int32_t w = 1; w < 132; ++w) low = std::min(low, load(w)), high = std::max(high, load(w));
    return high - low;
  };
  int32_t unordered = spread();
  cuda::BalanceItems(items, 1024, 132, scratch);
  for (const auto& item : items) after.push_back(key(item));
  std::sort(before.begin(), before.end());
  std::sort(after.begin(), after.end());
  EXPECT_EQ(before, after);
  EXPECT_LT(spread() * 3, unordered);
  std::vector<cuda::AttentionItem> none;
  cuda::BalanceItems(none, 1024, 132, scratch);
  EXPECT_TRUE(none.empty());
}

}  // namespace
}  // namespace ekiben
