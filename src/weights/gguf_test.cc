#include "weights/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <random>

#include "weights/gguf_builder.h"

namespace ekiben {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Everything that opening a file does, over bytes in memory. The message, or "" when it worked.
std::string Read(const std::vector<std::byte>& bytes) {
  Result<GgufFile> file = ParseGguf(bytes, "test.gguf");
  if (!file.ok()) return file.error().message();
  Result<Checkpoint> checkpoint = GgufCheckpoint(*file, "test.gguf");
  if (!checkpoint.ok()) return checkpoint.error().message();
  return checkpoint->tokenizer_error;
}

TEST(Gguf, ReadsAWholeModel) {
  std::vector<std::byte> bytes = TinyGguf().Build();
  Result<GgufFile> file = ParseGguf(bytes, "test.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message();
  Result<Checkpoint> checkpoint = GgufCheckpoint(*file, "test.gguf");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->format, "gguf v3");
  const ModelConfig& config = checkpoint->config;
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.name, "Tiny");
  EXPECT_EQ(config.vocab_size, 12);
  EXPECT_EQ(config.hidden_size, 32);
  EXPECT_EQ(config.intermediate_size, 64);
  EXPECT_EQ(config.num_hidden_layers, 1);
  EXPECT_EQ(config.num_attention_heads, 4);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.max_position_embeddings, 128);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_FLOAT_EQ(config.rope_theta, 50000.0f);
  EXPECT_TRUE(config.rope_interleaved);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.attention_bias);

  ASSERT_EQ(checkpoint->tensors.size(), 11u);
  Result<const CheckpointTensor*> gate = checkpoint->Tensor("model.layers.0.mlp.gate_proj.weight");
  ASSERT_TRUE(gate.ok());
  EXPECT_EQ((*gate)->dtype, DType::kQ5_0);
  EXPECT_THAT((*gate)->shape, ElementsAre(64, 32));
  EXPECT_EQ((*gate)->bytes, 64u * 22);
  EXPECT_EQ((*gate)->data[1], std::byte{8});  // the builder's pattern
  EXPECT_THAT(checkpoint->Tensor("model.layers.1.mlp.gate_proj.weight").error().message(), HasSubstr("absent"));
}

TEST(Gguf, ReadsVersion2AndAnotherAlignment) {
  GgufBuilder b = TinyGguf();
  b.version = 2;
  EXPECT_EQ(Read(b.Build()), "");
  GgufBuilder wide;
  wide.alignment = 128;
  wide.U32("general.alignment", 128);
  wide.Tensor("a", {3}, 0, 12);
  wide.Tensor("b", {3}, 0, 12);
  std::vector<std::byte> bytes = wide.Build();
  Result<GgufFile> file = ParseGguf(bytes, "test.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_EQ(file->data_offset % 128, 0u);
  EXPECT_EQ(file->FindTensor("b")->offset, file->data_offset + 128);
}

TEST(Gguf, Qwen2KeepsHalvesAndHasBiases) {
  GgufBuilder b = TinyGguf("qwen2");
  b.Tensor("blk.0.attn_q.bias", {32}, 0, 128);
  b.Tensor("output.weight", {12, 32}, 0, 12 * 128);
  std::vector<std::byte> bytes = b.Build();
  GgufFile file = *ParseGguf(bytes, "test.gguf");
  Result<Checkpoint> checkpoint = GgufCheckpoint(file, "test.gguf");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->config.architecture, "qwen2");
  EXPECT_FALSE(checkpoint->config.rope_interleaved);
  EXPECT_FALSE(checkpoint->config.tie_word_embeddings);
  EXPECT_TRUE(checkpoint->config.attention_bias);
  EXPECT_FALSE(checkpoint->config.attention_out_bias);
  EXPECT_TRUE(checkpoint->Tensor("lm_head.weight").ok());
  EXPECT_TRUE(checkpoint->Tensor("model.layers.0.self_attn.q_proj.bias").ok());
}

TEST(Gguf, MapsNames) {
  EXPECT_EQ(HuggingFaceName("token_embd.weight"), "model.embed_tokens.weight");
  EXPECT_EQ(HuggingFaceName("output_norm.weight"), "model.norm.weight");
  EXPECT_EQ(HuggingFaceName("output.weight"), "lm_head.weight");
  EXPECT_EQ(HuggingFaceName("blk.31.attn_output.bias"), "model.layers.31.self_attn.o_proj.bias");
  EXPECT_EQ(HuggingFaceName("blk.7.ffn_norm.weight"), "model.layers.7.post_attention_layernorm.weight");
  for (std::string_view wrong :
       {"", ".", "blk", "blk..weight", "blk.1.weight", "blk.x.attn_q.weight", "blk.-1.attn_q.weight",
        "blk.99999999999.attn_q.weight", "blk.0.attn_q.scale", "blk.0.attn_q_norm.weight", "blk.0attn_q.weight"})
    EXPECT_EQ(HuggingFaceName(wrong), "") << wrong;
}

TEST(Gguf, ReadsRopeScaling) {
  GgufBuilder linear = TinyGguf();
  linear.Text("llama.rope.scaling.type", "linear");
  linear.F32("llama.rope.scaling.factor", 4.0f);
  std::vector<std::byte> bytes = linear.Build();
  ModelConfig config = *GgufModelConfig(*ParseGguf(bytes, "x"));
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLinear);
  EXPECT_EQ(config.rope_scaling.factor, 4.0f);

  GgufBuilder yarn = TinyGguf("qwen2");
  yarn.Text("qwen2.rope.scaling.type", "yarn");
  yarn.F32("qwen2.rope.scaling.factor", 4.0f);
  yarn.U32("qwen2.rope.scaling.original_context_length", 32);
  yarn.F32("qwen2.rope.scaling.attn_factor", 0.5f);
  bytes = yarn.Build();
  config = *GgufModelConfig(*ParseGguf(bytes, "x"));
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kYarn);
  EXPECT_EQ(config.rope_scaling.original_max_position_embeddings, 32);
  EXPECT_EQ(config.rope_scaling.beta_fast, 32.0f);
  EXPECT_FLOAT_EQ(config.rope_scaling.attention_factor, 0.5f * (0.1f * std::log(4.0f) + 1.0f));

  GgufBuilder other = TinyGguf();
  other.Text("llama.rope.scaling.type", "longrope");
  EXPECT_THAT(Read(other.Build()), HasSubstr("llama.rope.scaling.type: 'longrope' is not supported"));
}

// A file with a table of divisors for head size 64, as converters write it.
std::vector<std::byte> WithDivisors(const std::vector<float>& divisors) {
  GgufBuilder b;
  b.Text("general.architecture", "llama");
  for (auto [key, value] : std::initializer_list<std::pair<const char*, uint32_t>>{{"embedding_length", 256},
                                                                                   {"feed_forward_length", 64},
                                                                                   {"block_count", 1},
                                                                                   {"context_length", 131072},
                                                                                   {"attention.head_count", 4}})
    b.U32(std::string("llama.") + key, value);
  b.F32("llama.rope.freq_base", 500000.0f);
  b.Tensor("token_embd.weight", {4, 256}, 0, 4096);
  b.Tensor("rope_freqs.weight", {divisors.size()}, 0, divisors.size() * 4);
  std::vector<std::byte> bytes = b.Build();
  std::memcpy(bytes.data() + bytes.size() - divisors.size() * 4, divisors.data(), divisors.size() * 4);
  return bytes;
}

TEST(Gguf, FindsLlama3ScalingInItsDivisors) {
  std::vector<float> divisors;  // factor 32, bounds 1 and 4, original length 8192: Llama 3.2
  for (int i = 0; i < 32; ++i) {
    double wave = 2.0 * std::numbers::pi * std::pow(500000.0, i / 32.0);
    double smooth = (8192.0 / wave - 1.0) / 3.0;
    double divisor = wave < 2048 ? 1.0 : wave > 8192 ? 32.0 : 1.0 / ((1.0 - smooth) / 32.0 + smooth);
    divisors.push_back(static_cast<float>(divisor));
  }
  std::vector<std::byte> bytes = WithDivisors(divisors);
  Result<ModelConfig> config = GgufModelConfig(*ParseGguf(bytes, "x"));
  ASSERT_TRUE(config.ok()) << config.error().message();
  EXPECT_EQ(config->rope_scaling.type, RopeScaling::Type::kLlama3);
  EXPECT_EQ(config->rope_scaling.factor, 32.0f);
  EXPECT_EQ(config->rope_scaling.original_max_position_embeddings, 8192);

  divisors[20] *= 1.01f;
  EXPECT_THAT(Read(WithDivisors(divisors)), HasSubstr("rope_freqs.weight: its frequency divisors are not Llama 3's"));
  bytes = WithDivisors(std::vector<float>(32, 1.0f));
  EXPECT_EQ(GgufModelConfig(*ParseGguf(bytes, "x"))->rope_scaling.type, RopeScaling::Type::kNone);
  EXPECT_THAT(Read(WithDivisors(std::vector<float>(31, 1.0f))), HasSubstr("f32 [32] is wanted"));
}

TEST(Gguf, ReadsAByteLevelTokenizer) {
  std::vector<std::byte> bytes = TinyGguf().Build();
  Result<text::TokenizerSpec> spec = GgufTokenizer(*ParseGguf(bytes, "x"));
  ASSERT_TRUE(spec.ok()) << spec.error().message();
  EXPECT_EQ(spec->model, text::Model::kByteLevelBpe);
  EXPECT_EQ(spec->pre_tokenizer, text::PreTokenizer::kQwen2);
  EXPECT_TRUE(spec->nfc);
  EXPECT_FALSE(spec->ignore_merges);
  EXPECT_THAT(spec->tokens,
              ElementsAre("<|endoftext|>", "<|im_end|>", "a", "b", " ", "ab", " ab", "<tool>", "", "\n", "c", ""));
  ASSERT_EQ(spec->merges.size(), 2u);
  EXPECT_EQ(spec->merges[0].left, 2);
  EXPECT_EQ(spec->merges[0].right, 3);
  EXPECT_EQ(spec->merges[0].result, 5);
  EXPECT_EQ(spec->merges[1].left, 4);
  EXPECT_EQ(spec->merges[1].right, 5);
  EXPECT_EQ(spec->merges[1].result, 6);
  ASSERT_EQ(spec->added.size(), 3u);
  EXPECT_TRUE(spec->added[0].special);
  EXPECT_EQ(spec->added[2].content, "<tool>");
  EXPECT_FALSE(spec->added[2].special);
  EXPECT_EQ(spec->bos, 0);
  EXPECT_EQ(spec->eos, 1);
  EXPECT_EQ(spec->unk, -1);
  EXPECT_EQ(spec->pad, -1);  // 2^32 - 1 means none
  EXPECT_FALSE(spec->add_bos);
  EXPECT_THAT(spec->end_ids, ElementsAre(0, 1));
  EXPECT_EQ(spec->chat_template, "{{ messages }}");
}

TEST(Gguf, ReadsASentencePieceTokenizer) {
  GgufBuilder b;
  b.Text("tokenizer.ggml.model", "llama");
  b.Texts("tokenizer.ggml.tokens",
          {"<unk>", "<s>", "</s>", "<0x0A>", "\xe2\x96\x81the", "\xe2\x96\x81\xe2\x96\x81", "<|end|>"});
  b.Numbers<float>("tokenizer.ggml.scores", GgufKind::kF32, {0, 0, 0, 0, -1.5f, -2, 0});
  b.Numbers<int32_t>("tokenizer.ggml.token_type", GgufKind::kI32, {2, 3, 3, 6, 1, 4, 3});
  std::vector<std::byte> bytes = b.Build();
  Result<text::TokenizerSpec> spec = GgufTokenizer(*ParseGguf(bytes, "x"));
  ASSERT_TRUE(spec.ok()) << spec.error().message();
  EXPECT_EQ(spec->model, text::Model::kSentencePieceBpe);
  EXPECT_EQ(spec->tokens[4], "\xe2\x96\x81the");
  EXPECT_EQ(spec->tokens[5], "  ");
  EXPECT_THAT(spec->is_byte_token, ElementsAre(0, 0, 0, 1, 0, 0, 0));
  EXPECT_FLOAT_EQ(spec->scores[4], -1.5f);
  EXPECT_TRUE(spec->byte_fallback);
  EXPECT_TRUE(spec->add_bos);
  EXPECT_TRUE(spec->add_prefix_space);
  EXPECT_EQ(spec->bos, 1);
  EXPECT_EQ(spec->eos, 2);
  EXPECT_EQ(spec->unk, 0);
  EXPECT_THAT(spec->end_ids, ElementsAre(2, 6));
}

TEST(Gguf, AnUnknownTokenizerDoesNotHideTheModel) {
  GgufBuilder b = TinyGguf();
  std::vector<std::byte> bytes = b.With("value:tokenizer.ggml.pre", 'x', 8);  // "xwen2"
  GgufFile file = *ParseGguf(bytes, "test.gguf");
  Result<Checkpoint> checkpoint = GgufCheckpoint(file, "test.gguf");
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_FALSE(checkpoint->has_tokenizer);
  EXPECT_THAT(checkpoint->tokenizer_error, HasSubstr("tokenizer.ggml.pre: 'xwen2' is not supported (known: default,"));
  EXPECT_THAT(checkpoint->tokenizer_error, HasSubstr("tekken"));
}

TEST(Gguf, TokenizerErrorsNameTheirField) {
  auto message = [](auto&& change) {
    GgufBuilder b;
    b.Text("tokenizer.ggml.model", "gpt2");
    change(b);
    std::vector<std::byte> bytes = b.Build();
    Result<text::TokenizerSpec> spec = GgufTokenizer(*ParseGguf(bytes, "t.gguf"));
    return spec.ok() ? std::string() : spec.error().message();
  };
  EXPECT_THAT(message([](auto&) {}), HasSubstr("tokenizer.ggml.tokens: absent"));
  EXPECT_THAT(message([](auto& b) { b.U32("tokenizer.ggml.tokens", 1); }),
              HasSubstr("an array of string is wanted, got u32"));
  EXPECT_THAT(message([](auto& b) { b.Texts("tokenizer.ggml.tokens", {"a"}); }),
              HasSubstr("tokenizer.ggml.merges: absent"));
  EXPECT_THAT(message([](auto& b) {
                b.Texts("tokenizer.ggml.tokens", {"a", "b"});
                b.template Numbers<int32_t>("tokenizer.ggml.token_type", GgufKind::kI32, {1});
              }),
              HasSubstr("tokenizer.ggml.token_type: 1 elements for 2 tokens"));
  for (const char* merge : {"ab", "a c", "a b", " a", "", "a  b"})
    EXPECT_THAT(message([&](auto& b) {
                  b.Texts("tokenizer.ggml.tokens", {"a", "b"});
                  b.Texts("tokenizer.ggml.merges", {merge});
                }),
                HasSubstr("tokenizer.ggml.merges: element 0"))
        << merge;
  EXPECT_THAT(message([](auto& b) {
                b.Texts("tokenizer.ggml.tokens", {"a"});
                b.Texts("tokenizer.ggml.merges", {});
                b.Text("tokenizer.ggml.eos_token_id", "2");
              }),
              HasSubstr("tokenizer.ggml.eos_token_id: an integer is wanted, got string"));
}

TEST(Gguf, RefusesALyingHeader) {
  GgufBuilder b = TinyGguf();
  EXPECT_THAT(Read({}), HasSubstr("test.gguf: byte 0: magic: 4 bytes are wanted, 0 are left"));
  std::vector<std::byte> bytes = b.Build();
  bytes[0] = std::byte{'X'};
  EXPECT_THAT(Read(bytes), HasSubstr("not a GGUF file"));
  EXPECT_THAT(Read(b.With<uint32_t>("version", 1)), HasSubstr("version: 1 is not supported"));
  EXPECT_THAT(Read(b.With<uint32_t>("version", 4)), HasSubstr("version: 4 is not supported"));
  EXPECT_THAT(Read(b.With<uint32_t>("version", 0x03000000)), HasSubstr("big-endian"));
  for (uint64_t count : {uint64_t{1} << 32, UINT64_MAX, uint64_t{1} << 63}) {
    EXPECT_THAT(Read(b.With("tensor_count", count)), HasSubstr("test.gguf: byte 8: tensor_count"));
    EXPECT_THAT(Read(b.With("metadata_count", count)), HasSubstr("test.gguf: byte 16: metadata_kv_count"));
  }
}

TEST(Gguf, RefusesLyingMetadata) {
  GgufBuilder b = TinyGguf();
  for (uint64_t length : {uint64_t{65536}, UINT64_MAX, UINT64_MAX - 7, uint64_t{1} << 63})
    EXPECT_THAT(Read(b.With("key:general.name", length)), HasSubstr("metadata key 1")) << length;
  EXPECT_THAT(Read(b.With("key:general.name", uint64_t{0})), HasSubstr("metadata key 1: empty"));
  for (uint64_t length : {uint64_t{1} << 20, UINT64_MAX, UINT64_MAX - 7})
    EXPECT_THAT(Read(b.With("value:general.name", length)), HasSubstr("general.name")) << length;
  EXPECT_THAT(Read(b.With("kind:general.name", uint32_t{13})), HasSubstr("general.name: value type 13 does not exist"));
  // An array: its element kind, then its count.
  EXPECT_THAT(Read(b.With("value:tokenizer.ggml.token_type", uint32_t{9})), HasSubstr("an array of arrays"));
  EXPECT_THAT(Read(b.With("value:tokenizer.ggml.token_type", uint32_t{77})), HasSubstr("value type 77"));
  for (uint64_t count : {uint64_t{1} << 40, UINT64_MAX, UINT64_MAX / 4 + 2, uint64_t{1} << 62}) {
    EXPECT_THAT(Read(b.With("value:tokenizer.ggml.token_type", count, 4)), HasSubstr("tokenizer.ggml.token_type"));
    EXPECT_THAT(Read(b.With("value:tokenizer.ggml.tokens", count, 4)), HasSubstr("tokenizer.ggml.tokens"));
  }
  EXPECT_THAT(Read(b.With("value:tokenizer.ggml.tokens", UINT64_MAX, 12)), HasSubstr("tokenizer.ggml.tokens"));
  GgufBuilder twice = TinyGguf();
  twice.U32("general.name", 1);
  EXPECT_THAT(Read(twice.Build()), HasSubstr("general.name: the key occurs twice"));
  GgufBuilder flag = TinyGguf();
  flag.Bool("flag", 2);
  EXPECT_THAT(Read(flag.Build()), HasSubstr("flag: 2 is no bool"));
  for (uint32_t alignment : {0u, 1u, 4u, 12u, 33u, 1u << 21, 1u << 31}) {
    GgufBuilder crooked = TinyGguf();
    crooked.U32("general.alignment", alignment);
    EXPECT_THAT(Read(crooked.Build()), HasSubstr("general.alignment")) << alignment;
  }
  GgufBuilder text = TinyGguf();
  text.Text("general.alignment", "32");
  EXPECT_THAT(Read(text.Build()), HasSubstr("general.alignment: an integer is wanted, got string"));
}

TEST(Gguf, RefusesLyingTensors) {
  GgufBuilder b = TinyGguf();
  const std::string q = "tensor:blk.0.attn_q.weight";
  EXPECT_THAT(Read(b.With(q, uint64_t{65})), HasSubstr("tensor name 2: a length of 65, the limit is 64"));
  EXPECT_THAT(Read(b.With(q, uint64_t{0})), HasSubstr("tensor name 2: empty"));
  EXPECT_THAT(Read(b.With(q + ":dimensions", uint32_t{0})), HasSubstr("0 dimensions"));
  EXPECT_THAT(Read(b.With(q + ":dimensions", uint32_t{5})), HasSubstr("5 dimensions"));
  EXPECT_THAT(Read(b.With(q + ":extents", uint64_t{0})), HasSubstr("dimension 0 is 0"));
  EXPECT_THAT(Read(b.With(q + ":extents", int64_t{-32})), HasSubstr("dimension 0 is -32"));
  EXPECT_THAT(Read(b.With(q + ":extents", uint64_t{33})), HasSubstr("no multiple of the q4_1 block of 32"));
  EXPECT_THAT(Read(b.With(q + ":extents", uint64_t{1} << 62)), HasSubstr("overflows"));
  EXPECT_THAT(Read(b.With(q + ":extents", uint64_t{1} << 40)), HasSubstr("end past the file"));
  // 2^59 rows of 32: the element count wraps, and so would the bytes.
  EXPECT_THAT(Read(b.With(q + ":extents", uint64_t{1} << 59, 8)), HasSubstr("overflows"));
  EXPECT_THAT(Read(b.With(q + ":type", uint32_t{4})), HasSubstr("tensor type 4 is unknown"));
  EXPECT_THAT(Read(b.With(q + ":type", UINT32_MAX)), HasSubstr("tensor type 4294967295 is unknown"));
  EXPECT_THAT(Read(b.With(q + ":type", uint32_t{20})), HasSubstr("type iq4_nl is not supported (f32,"));
  EXPECT_THAT(Read(b.With(q + ":offset", uint64_t{1})), HasSubstr("not aligned to 32"));
  EXPECT_THAT(Read(b.With(q + ":offset", uint64_t{1} << 40)), HasSubstr("end past the file"));
  EXPECT_THAT(Read(b.With(q + ":offset", UINT64_MAX - 31)), HasSubstr("end past the file"));
  EXPECT_THAT(Read(b.With(q + ":offset", uint64_t{0})), HasSubstr("overlaps that of"));
  GgufBuilder twice = TinyGguf();
  twice.Tensor("blk.0.attn_q.weight", {32}, 0, 128);
  EXPECT_THAT(Read(twice.Build()), HasSubstr("tensor blk.0.attn_q.weight: the name occurs twice"));
  GgufBuilder again = TinyGguf();
  again.Tensor("blk.00.attn_q.weight", {32}, 0, 128);
  EXPECT_THAT(Read(again.Build()), HasSubstr("a second model.layers.0.self_attn.q_proj.weight"));
  GgufBuilder strange = TinyGguf();
  strange.Tensor("blk.0.attn_q_norm.weight", {32}, 0, 128);
  EXPECT_THAT(Read(strange.Build()), HasSubstr("tensor blk.0.attn_q_norm.weight: not part of a llama model"));
  GgufBuilder control = TinyGguf();
  control.Tensor("a\nb\x1b", {32}, 0, 128);
  EXPECT_THAT(Read(control.Build()), HasSubstr("tensor a?b?:"));
}

TEST(Gguf, RefusesImpossibleConfigurations) {
  EXPECT_THAT(Read(TinyGguf("mamba").Build()),
              HasSubstr("general.architecture: 'mamba' is not supported (llama and qwen2 are)"));
  EXPECT_THAT(Read(GgufBuilder().Build()), HasSubstr("general.architecture: absent"));
  GgufBuilder b = TinyGguf();
  auto set = [&](std::string_view key, uint32_t value) {
    return Read(b.With("value:llama." + std::string(key), value));
  };
  EXPECT_THAT(set("attention.head_count", 0), HasSubstr("llama.attention.head_count: 0 heads"));
  EXPECT_THAT(set("attention.head_count", 5), HasSubstr("5 heads do not divide embedding_length 32"));
  EXPECT_THAT(set("attention.head_count_kv", 3), HasSubstr("num_key_value_heads: 3 does not divide"));
  EXPECT_THAT(set("attention.head_count_kv", 0), HasSubstr("num_key_value_heads: 0"));
  EXPECT_THAT(set("block_count", 0), HasSubstr("num_hidden_layers: 0 is outside"));
  EXPECT_THAT(set("block_count", UINT32_MAX), HasSubstr("llama.block_count: 4294967295 is outside"));
  EXPECT_THAT(set("embedding_length", 64), HasSubstr("token_embd.weight: its shape is [12, 32]"));
  EXPECT_THAT(set("rope.freq_base", 0x7fc00000), HasSubstr("rope_theta: nan is outside"));
  EXPECT_THAT(set("attention.layer_norm_rms_epsilon", 0xbf800000), HasSubstr("rms_norm_eps: -1 is outside"));
  for (const char* key : {"expert_count", "attention.value_length", "rope.dimension_count"}) {
    GgufBuilder other = TinyGguf();
    other.U32(std::string("llama.") + key, 4);
    EXPECT_THAT(Read(other.Build()), HasSubstr(std::string("llama.") + key + ": 4")) << key;
  }
  GgufBuilder split = TinyGguf();
  split.U32("split.count", 3);
  EXPECT_THAT(Read(split.Build()), HasSubstr("split.count: one of 3 files"));
  GgufBuilder vocabulary;
  for (const char* key :
       {"embedding_length", "feed_forward_length", "block_count", "context_length", "attention.head_count"})
    vocabulary.U32(std::string("llama.") + key, 1);
  vocabulary.Text("general.architecture", "llama");
  EXPECT_THAT(Read(vocabulary.Build()), HasSubstr("token_embd.weight: absent"));
}

TEST(Gguf, EveryTruncationIsAnError) {
  std::vector<std::byte> whole = TinyGguf().Build();
  for (size_t size = 0; size < whole.size(); ++size) {
    std::vector<std::byte> part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    part.shrink_to_fit();  // a read past the end is seen by the address sanitizer
    std::string message = Read(part);
    ASSERT_THAT(message, HasSubstr("test.gguf: byte ")) << size;
  }
  EXPECT_EQ(Read(whole), "");
}

// Seeded damage: flipped bits and planted numbers at random places. Nothing may crash, and what is accepted must lie
// inside the file.
TEST(Gguf, DamageNeverCrashes) {
  std::vector<std::byte> whole = TinyGguf().Build();
  size_t header = ParseGguf(whole, "x")->data_offset;
  std::mt19937_64 random(7);
  const uint64_t planted[] = {0,         1, 0xff, 0xffff, 0x7fffffff, 0xffffffff, uint64_t{1} << 32, uint64_t{1} << 63,
                              UINT64_MAX};
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bytes = whole;
    for (int n = 1 + static_cast<int>(random() % 4); n > 0; --n) {
      size_t at = random() % (header - 8);
      if (random() % 2 == 0) {
        bytes[at] ^= static_cast<std::byte>(1u << (random() % 8));
      } else {
        std::memcpy(bytes.data() + at, &planted[random() % std::size(planted)], random() % 2 == 0 ? 4 : 8);
      }
    }
    Result<GgufFile> file = ParseGguf(bytes, "test.gguf");
    if (!file.ok()) {
      ++refused;
      ASSERT_THAT(file.error().message(), HasSubstr("test.gguf"));
      ASSERT_EQ(file.error().message().find('\n'), std::string::npos);
      continue;
    }
    ++accepted;
    for (const GgufTensor& tensor : file->tensors) {
      ASSERT_GE(tensor.data.data(), bytes.data());
      ASSERT_LE(tensor.data.data() + tensor.data.size(), bytes.data() + bytes.size());
    }
    Result<Checkpoint> checkpoint = GgufCheckpoint(*file, "test.gguf");
    if (!checkpoint.ok()) {
      ASSERT_EQ(checkpoint.error().message().find('\n'), std::string::npos);
    }
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace ekiben
