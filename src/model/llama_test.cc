// The forward of the Llama family on tiny random checkpoints: what an engine must hold, and batched equals alone.
#include "model/llama.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>
#include <random>

#include "model/packed_model_for_test.h"
#include "model/registry.h"

namespace {
std::atomic<int64_t> g_allocations{0};
}

// Counts what the test program takes from the heap; Forward takes nothing. Not inlined: g++ would compare a `new` that
// it knows with the `free` inside a delete that it inlined, and warn.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++g_allocations;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept {
  std::free(p);
}

namespace ekiben {
namespace {

using ::testing::HasSubstr;

std::filesystem::path Golden(const std::string& name) {
  return std::filesystem::path(EKIBEN_SOURCE_DIR) / "tests" / "golden" / name;
}

ModelConfig SmallConfig() {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 32;
  config.hidden_size = 16;
  config.intermediate_size = 24;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 8;
  config.max_position_embeddings = 64;
  return config;
}

TEST(PackRules, NameEveryTensorOnceWithItsSourcesAndShape) {
  ModelConfig config = SmallConfig();
  config.attention_bias = true;
  config.tie_word_embeddings = true;
  auto rules = PackRules(config);
  ASSERT_TRUE(rules.ok());
  EXPECT_EQ(rules->size(), 1u + 2 * 7 + 2);
  std::map<std::string, PackRule> by_name;
  for (const PackRule& rule : *rules) EXPECT_TRUE(by_name.emplace(rule.name, rule).second) << rule.name;
  EXPECT_EQ(by_name.at("layers.1.qkv").rows, 32);
  EXPECT_EQ(by_name.at("layers.1.qkv").columns, 16);
  EXPECT_EQ(by_name.at("layers.1.qkv").sources[2], "model.layers.1.self_attn.v_proj.weight");
  EXPECT_EQ(by_name.at("layers.1.qkv.bias").sources[0], "model.layers.1.self_attn.q_proj.bias");
  EXPECT_EQ(by_name.at("layers.0.gate_up").rows, 48);
  EXPECT_EQ(by_name.at("lm_head").sources[0], "model.embed_tokens.weight");
  EXPECT_TRUE(by_name.at("lm_head").keep_precision);
  config.tie_word_embeddings = false;
  rules = PackRules(config);
  EXPECT_EQ(rules->back().sources[0], "lm_head.weight");
}

TEST(PackRules, RefuseAnUnknownArchitectureAndListTheKnown) {
  ModelConfig config = SmallConfig();
  config.architecture = "mamba";
  auto rules = PackRules(config);
  ASSERT_FALSE(rules.ok());
  EXPECT_EQ(rules.error().code(), Code::kUnsupported);
  EXPECT_THAT(rules.error().message(), HasSubstr("'mamba'"));
  for (const std::string& name : KnownArchitectures()) EXPECT_THAT(rules.error().message(), HasSubstr(name));
  EXPECT_FALSE(Model::Load(config, {}, 64).ok());
}

TEST(PackRules, RefuseAHeadThatAttentionHasNoRoomFor) {
  ModelConfig config = SmallConfig();
  config.head_dim = 512;
  EXPECT_THAT(PackRules(config).error().message(), HasSubstr("head_dim 512"));
}

TEST(Load, NamesTheTensorThatIsMissingOrOfAnotherShape) {
  auto checkpoint = OpenCheckpoint(Golden("tiny_qwen2"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  auto packed = PackModel(*checkpoint, Packing::kF32, Packing::kF32, 64);
  ASSERT_TRUE(packed.ok()) << packed.error().message();
  auto load = [&](auto&& change) {
    EngineTensors tensors = packed->tensors;
    change(tensors);
    auto model = Model::Load(checkpoint->config, tensors, 64);
    return model.ok() ? std::string() : model.error().message();
  };
  EXPECT_EQ(load([](EngineTensors&) {}), "");
  EXPECT_THAT(load([](EngineTensors& t) { t.erase("layers.1.qkv.bias"); }), HasSubstr("no tensor 'layers.1.qkv.bias'"));
  EXPECT_THAT(load([](EngineTensors& t) { t["layers.0.o"].rows += 1; }), HasSubstr("'layers.0.o': rows 97"));
  EXPECT_THAT(load([](EngineTensors& t) { t["layers.0.down"].bytes -= 1; }), HasSubstr("'layers.0.down': bytes"));
  EXPECT_THAT(load([](EngineTensors& t) { t["final_norm"].dtype = DType::kF16; }), HasSubstr("final_norm"));
  EXPECT_THAT(load([](EngineTensors& t) { t["embedding"].bytes = 4; }), HasSubstr("embedding"));
}

struct Case {
  const char* checkpoint;
  Packing packing;
  DType kv_dtype;
};

class BatchedEqualsAlone : public ::testing::TestWithParam<Case> {};

// Alone: one sequence, its prompt in one step, then token by token. Together: all sequences, random subsets a step,
// random chunks, blocks handed out at random, other block sizes and thread counts.
TEST_P(BatchedEqualsAlone, BitByBit) {
  auto checkpoint = OpenCheckpoint(Golden(GetParam().checkpoint));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  auto packed = PackModel(*checkpoint, GetParam().packing, GetParam().packing, 256);
  ASSERT_TRUE(packed.ok()) << packed.error().message();
  std::mt19937 rng(5);
  auto random = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); };
  std::vector<std::vector<int32_t>> prompts;
  for (int length : {1, 5, 16, 31, 64, 90, 150}) {
    auto& ids = prompts.emplace_back();
    for (int i = 0; i < length; ++i) ids.push_back(random(0, checkpoint->config.vocab_size - 1));
  }
  std::vector<std::vector<float>> alone;
  for (const auto& ids : prompts) {
    ForwardRunner runner(*packed->model, BestIsa(), 1, GetParam().kv_dtype, 32, 8, 256);
    ForwardRunner::Sequence sequence{.token_ids = ids};
    int32_t prompt = static_cast<int32_t>(ids.size() + 1) / 2;
    runner.Step({{&sequence, prompt}});
    while (sequence.done < std::ssize(ids)) runner.Step({{&sequence, 1}});
    alone.push_back(sequence.logits);
    for (float x : sequence.logits) ASSERT_TRUE(std::isfinite(x));
  }
  for (int round = 0; round < 6; ++round) {
    int32_t tokens_per_block = 16 << (round % 3);
    ForwardRunner runner(*packed->model, BestIsa(), 1 + round % 2, GetParam().kv_dtype, tokens_per_block, 64, 600);
    // A former owner left NaN everywhere.
    std::memset(runner.kv().Block(0, BlockId{0}), 0xff, runner.kv().bytes_per_block() * 64);
    std::shuffle(runner.blocks_free().begin(), runner.blocks_free().end(), rng);
    std::vector<ForwardRunner::Sequence> sequences;
    for (const auto& ids : prompts) sequences.push_back({.token_ids = ids});
    for (;;) {
      std::vector<ForwardRunner::Feed> feeds;
      bool left = false;
      for (auto& s : sequences) {
        int32_t rest = static_cast<int32_t>(std::ssize(s.token_ids)) - s.done;
        left = left || rest > 0;
        if (rest > 0 && random(0, 2) > 0) feeds.push_back({&s, random(0, 1) == 0 ? 1 : random(1, rest)});
      }
      if (!left) break;
      if (!feeds.empty()) runner.Step(feeds);
    }
    for (size_t i = 0; i < prompts.size(); ++i) {
      ASSERT_EQ(sequences[i].logits.size(), alone[i].size());
      ASSERT_EQ(std::memcmp(sequences[i].logits.data(), alone[i].data(), alone[i].size() * sizeof(float)), 0)
          << "round " << round << " sequence " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, BatchedEqualsAlone,
                         ::testing::Values(Case{"tiny_qwen2", Packing::kF32, DType::kF32},
                                           Case{"tiny_qwen2", Packing::kInt8, DType::kBF16},
                                           Case{"tiny_mistral", Packing::kF32, DType::kF32},
                                           Case{"tiny_mistral", Packing::kBF16, DType::kBF16},
                                           Case{"tiny_llama3", Packing::kInt4Block32, DType::kBF16}));

TEST(Forward, ReturnsOnlyTheRowsAskedForAndTheirHiddenStates) {
  auto checkpoint = OpenCheckpoint(Golden("tiny_llama3"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  auto packed = PackModel(*checkpoint, Packing::kF32, Packing::kF32, 64);
  ASSERT_TRUE(packed.ok()) << packed.error().message();
  Model& model = *packed->model;
  int64_t vocab = checkpoint->config.vocab_size, hidden_size = checkpoint->config.hidden_size;
  std::vector<int32_t> ids = {3, 1, 4, 1, 5, 9, 2, 6}, positions = {0, 1, 2, 3, 4, 5, 6, 7};
  ThreadPool pool(2);
  auto run = [&](std::vector<int32_t> outputs, bool with_logits, bool with_hidden) {
    Arena arena(model.ScratchBytes(8, std::ssize(outputs), pool.size()));
    OpContext ctx{&pool, &arena, BestIsa()};
    PagedKv kv({2, 2, 32, 16, 1, DType::kF32});
    BlockId block{0};
    std::vector<AttentionRow> rows = {{0, 8, 0, &block}};
    std::vector<float> logits(outputs.size() * static_cast<size_t>(vocab));
    std::vector<float> hidden(outputs.size() * static_cast<size_t>(hidden_size));
    int64_t n = std::ssize(outputs);
    int64_t allocations = g_allocations;
    model.Forward(ctx, {ids, positions, rows, outputs}, kv,
                  with_logits ? TensorView(logits.data(), DType::kF32, {n, vocab}) : TensorView(),
                  with_hidden ? TensorView(hidden.data(), DType::kF32, {n, hidden_size}) : TensorView());
    EXPECT_EQ(g_allocations, allocations) << "Forward took memory from the heap";
    EXPECT_LE(arena.peak(), arena.capacity());
    EXPECT_GE(arena.peak() + 65536, arena.capacity()) << "ScratchBytes asks for much more than a step takes";
    return std::pair(logits, hidden);
  };
  auto all = run({0, 1, 2, 3, 4, 5, 6, 7}, true, true);
  auto some = run({2, 7}, true, true);
  EXPECT_EQ(std::memcmp(some.first.data(), &all.first[static_cast<size_t>(2 * vocab)], static_cast<size_t>(vocab) * 4),
            0);
  EXPECT_EQ(std::memcmp(&some.first[static_cast<size_t>(vocab)], &all.first[static_cast<size_t>(7 * vocab)],
                        static_cast<size_t>(vocab) * 4),
            0);
  EXPECT_EQ(some.second[0], all.second[static_cast<size_t>(2 * hidden_size)]);
  EXPECT_EQ(run({2, 7}, true, false).first, some.first);
  EXPECT_EQ(run({2, 7}, false, true).second, some.second);
  run({}, true, false);
}

}  // namespace
}  // namespace ekiben
