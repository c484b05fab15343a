#include "weights/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "weights/gguf_builder.h"

namespace ekiben {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CheckpointTest : public ::testing::Test {
 public:
  ~CheckpointTest() override { fs::remove_all(folder_); }

 protected:
  CheckpointTest() {
    folder_ = fs::temp_directory_path() / fmt::format("ekiben_checkpoint_{}_{}", ::getpid(),
                                                      ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }

  fs::path Write(std::string_view name, std::string_view content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }
  fs::path Write(std::string_view name, const std::vector<std::byte>& bytes) const {
    return Write(name, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  // A safetensors file of U8-free tensors: name -> [rows, columns] of F32, counting up.
  fs::path WriteSafetensors(std::string_view name, const std::vector<std::string>& tensors, float first = 0) const {
    std::string header = "{", data;
    for (const std::string& tensor : tensors) {
      size_t begin = data.size();
      for (int i = 0; i < 6; ++i) {
        size_t number = data.size() / sizeof(float);
        float value = first + static_cast<float>(number);
        data.append(reinterpret_cast<const char*>(&value), 4);
      }
      header += fmt::format(R"({}"{}":{{"dtype":"F32","shape":[2,3],"data_offsets":[{},{}]}})",
                            header.size() > 1 ? "," : "", tensor, begin, data.size());
    }
    header += "}";
    uint64_t size = header.size();
    return Write(name, std::string(reinterpret_cast<const char*>(&size), 8) + header + data);
  }
  void WriteConfig(std::string_view more = "") const {
    Write("config.json",
          fmt::format(R"({{"architectures":["LlamaForCausalLM"],"vocab_size":8,"hidden_size":8,"intermediate_size":8,)"
                      R"("num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1{}}})",
                      more));
  }

  fs::path folder_;
};

TEST_F(CheckpointTest, OpensAGgufByFileAndByFolder) {
  fs::path file = Write("tiny.gguf", TinyGguf().Build());
  Result<Checkpoint> checkpoint = OpenCheckpoint(file);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  EXPECT_TRUE(checkpoint->has_tokenizer) << checkpoint->tokenizer_error;
  EXPECT_EQ(checkpoint->fingerprint.size(), 64u);
  float row[32];
  const CheckpointTensor* norm = *checkpoint->Tensor("model.norm.weight");
  Dequantize(norm->dtype, norm->data, 32, row);
  EXPECT_EQ(OpenCheckpoint(folder_)->fingerprint, checkpoint->fingerprint);
  Write("other.gguf", "x");
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(), HasSubstr("several .gguf files"));
}

TEST_F(CheckpointTest, TheFingerprintFollowsContent) {
  std::vector<std::byte> bytes = TinyGguf().Build();
  std::string original = OpenCheckpoint(Write("a.gguf", bytes))->fingerprint;
  EXPECT_EQ(OpenCheckpoint(Write("b.gguf", bytes))->fingerprint, original) << "the name is not part of it";
  std::vector<std::byte> changed = bytes;
  changed.back() ^= std::byte{1};
  EXPECT_NE(OpenCheckpoint(Write("c.gguf", changed))->fingerprint, original);
  EXPECT_NE(OpenCheckpoint(Write("d.gguf", TinyGguf().With<uint32_t>("value:llama.context_length", 256)))->fingerprint,
            original);
}

TEST_F(CheckpointTest, OpensAFolderOfOneFile) {
  WriteConfig();
  WriteSafetensors("model.safetensors", {"model.embed_tokens.weight", "model.norm.weight"});
  Write("generation_config.json", R"({"eos_token_id": [2, 7, 7, 99]})");
  Result<Checkpoint> checkpoint = OpenCheckpoint(folder_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->format, "safetensors");
  EXPECT_EQ(checkpoint->config.architecture, "llama");
  EXPECT_EQ(checkpoint->config.name, folder_.filename());
  EXPECT_TRUE(checkpoint->config.tie_word_embeddings) << "no head in the file and no word about it";
  EXPECT_FALSE(checkpoint->has_tokenizer);
  EXPECT_FALSE(checkpoint->tokenizer_error.empty());
  EXPECT_THAT(checkpoint->tokenizer.end_ids, ElementsAre(2, 7)) << "99 is outside the vocabulary";
  const CheckpointTensor* norm = *checkpoint->Tensor("model.norm.weight");
  EXPECT_THAT(norm->shape, ElementsAre(2, 3));
  float values[6];
  Dequantize(norm->dtype, norm->data, 6, values);
  EXPECT_THAT(values, ElementsAre(6, 7, 8, 9, 10, 11));
  std::string before = checkpoint->fingerprint;
  EXPECT_EQ(OpenCheckpoint(folder_ / "model.safetensors")->fingerprint, before);
  Write("tokenizer_config.json", "{}");
  EXPECT_NE(OpenCheckpoint(folder_)->fingerprint, before);
}

TEST_F(CheckpointTest, ReadsTheFoldersTokenizer) {
  WriteConfig(R"(,"eos_token_id":3)");
  WriteSafetensors("model.safetensors", {"model.embed_tokens.weight"});
  Write("tokenizer.json", R"({"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"<|end|>":3},"merges":["a b"]},
      "added_tokens":[{"id":3,"content":"<|end|>","special":true}],
      "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"decoder":{"type":"ByteLevel"}})");
  Write("generation_config.json", R"({"eos_token_id": 1})");
  Result<Checkpoint> checkpoint = OpenCheckpoint(folder_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  ASSERT_TRUE(checkpoint->has_tokenizer) << checkpoint->tokenizer_error;
  EXPECT_EQ(checkpoint->tokenizer.tokens.size(), 4u);
  EXPECT_EQ(checkpoint->tokenizer.merges.size(), 1u);
  EXPECT_THAT(checkpoint->tokenizer.end_ids, ElementsAre(1, 3));
  EXPECT_EQ(InspectFile(folder_)->at("tokenizer").at("tokens"), 4u);
}

// Files by the formats' own writers (tests/fuzz/seeds/make_weights_seeds.py), not by ours.
TEST_F(CheckpointTest, ReadsWhatTheReferenceWritersWrote) {
  fs::path seeds = fs::path(EKIBEN_SOURCE_DIR) / "tests/fuzz/seeds";
  Result<Checkpoint> llama = OpenCheckpoint(seeds / "gguf/llama.gguf");
  ASSERT_TRUE(llama.ok()) << llama.error().message();
  EXPECT_EQ(llama->config.rope_scaling.type, RopeScaling::Type::kLinear);
  EXPECT_THAT((*llama->Tensor("model.layers.0.self_attn.k_proj.weight"))->shape, ElementsAre(16, 32));
  EXPECT_EQ((*llama->Tensor("model.layers.0.self_attn.v_proj.weight"))->dtype, DType::kQ5_0);
  EXPECT_THAT(llama->tokenizer.tokens, ElementsAre("<|im_end|>", "a", "b", "ab", " ", "\n"));
  Result<Checkpoint> qwen = OpenCheckpoint(seeds / "gguf/qwen2.gguf");
  ASSERT_TRUE(qwen.ok()) << qwen.error().message();
  EXPECT_EQ(qwen->config.rope_scaling.type, RopeScaling::Type::kYarn);
  EXPECT_EQ(qwen->tokenizer.model, text::Model::kSentencePieceBpe);
  EXPECT_FALSE(OpenCheckpoint(seeds / "gguf/vocabulary.gguf").ok());
  EXPECT_EQ(InspectFile(seeds / "gguf/vocabulary.gguf")->at("tokenizer").at("tokens"), 6u);
}

TEST_F(CheckpointTest, OpensShards) {
  WriteConfig(R"(,"tie_word_embeddings":false)");
  WriteSafetensors("model-00001-of-00002.safetensors", {"a", "unused"});
  WriteSafetensors("model-00002-of-00002.safetensors", {"b"}, 100);
  Write("model.safetensors.index.json", R"({"metadata":{"total_size":72},"weight_map":{
      "a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}})");
  Result<Checkpoint> checkpoint = OpenCheckpoint(folder_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->tensors.size(), 2u) << "what the index does not name is not part of the model";
  EXPECT_EQ(checkpoint->files.size(), 2u);
  float value = 0;
  const CheckpointTensor* b = *checkpoint->Tensor("b");
  Dequantize(b->dtype, b->data, 1, &value);
  EXPECT_EQ(value, 100.0f);

  Write("model.safetensors.index.json", R"({"weight_map":{"c":"model-00001-of-00002.safetensors"}})");
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(),
              HasSubstr("weight_map.c: model-00001-of-00002.safetensors holds"));
  Write("model.safetensors.index.json", R"({"weight_map":{"c":"model-00003-of-00002.safetensors"}})");
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(), HasSubstr("model-00003-of-00002.safetensors: cannot open"));
  Write("model.safetensors.index.json", R"({"weight_map":{"c":"../model.safetensors"}})");
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(), HasSubstr("is not the plain name"));
}

TEST_F(CheckpointTest, SaysWhatIsMissing) {
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(), HasSubstr("no config.json and no .gguf file"));
  EXPECT_THAT(OpenCheckpoint(folder_ / "none").error().message(), HasSubstr("cannot open: No such file"));
  EXPECT_THAT(OpenCheckpoint(Write("x.txt", "hello")).error().message(), HasSubstr("neither a GGUF file"));
  EXPECT_THAT(OpenCheckpoint(Write("empty.gguf", "")).error().message(), HasSubstr("neither a GGUF file"));
  WriteConfig();
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(), HasSubstr("no .safetensors file"));
  Write("config.json", "{");
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(), HasSubstr("config.json: JSON: "));
  Write("config.json", "[]");
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(), HasSubstr("config.json: an object is wanted, got an array"));
  Write("config.json", R"({"architectures":["GPTNeoXForCausalLM"]})");
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(),
              HasSubstr("config.json: architectures: 'GPTNeoXForCausalLM' is not supported"));
}

TEST_F(CheckpointTest, RefusesWeightsThatItCannotCompute) {
  WriteConfig();
  std::string header = R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})";
  uint64_t size = header.size();
  Write("model.safetensors", std::string(reinterpret_cast<const char*>(&size), 8) + header + "abcd");
  EXPECT_THAT(OpenCheckpoint(folder_).error().message(), HasSubstr("tensor a: dtype F8_E4M3 is not supported"));
  EXPECT_TRUE(InspectFile(folder_).ok()) << "it can still be listed";
}

TEST_F(CheckpointTest, InspectsAGguf) {
  GgufBuilder b = TinyGguf();
  b.Text("bad", "\xff\xc0\xaf ok");
  b.F32("nan", std::nanf(""));
  b.U64("big", UINT64_MAX);
  b.Numbers<int32_t>("long", GgufKind::kI32, std::vector<int32_t>(100, 5));
  b.Tensor("blk.0.extra", {256}, 20, 8 * 18);  // a type and a name that no model of ours has
  Result<json::object> out = InspectFile(Write("t.gguf", b.Build()));
  ASSERT_TRUE(out.ok()) << out.error().message();
  EXPECT_EQ(out->at("format"), "gguf v3");
  EXPECT_EQ(out->at("config").at("hidden_size"), 32);
  EXPECT_EQ(out->at("tokenizer").at("merges"), 2);
  EXPECT_EQ(out->at("metadata").at("bad"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd ok");
  EXPECT_EQ(out->at("metadata").at("nan"), "nan");
  EXPECT_EQ(out->at("metadata").at("big"), UINT64_MAX);
  EXPECT_EQ(out->at("metadata").at("long").at("count"), 100u);
  EXPECT_EQ(out->at("metadata").at("long").at("first").as_array().size(), 8u);
  EXPECT_EQ(out->at("totals").at("q4_1").at("tensors"), 2u);
  EXPECT_EQ(out->at("totals").at("q4_1").at("parameters"), 48u * 32);
  EXPECT_EQ(out->at("totals").at("q4_1").at("bytes"), 48u * 20);
  const json::value& extra = out->at("tensors").as_array().back();
  EXPECT_EQ(extra.at("name"), "blk.0.extra");
  EXPECT_EQ(extra.at("dtype"), "iq4_nl");
  EXPECT_EQ(extra.at("bytes"), 144u);
  EXPECT_EQ(out->at("tensors").at(0).at("shape"), json::array({12, 32}));

  Result<json::object> other = InspectFile(Write("u.gguf", TinyGguf("mamba").Build()));
  ASSERT_TRUE(other.ok());
  EXPECT_THAT(std::string(other->at("config_error").as_string()), HasSubstr("'mamba' is not supported"));
}

TEST_F(CheckpointTest, InspectsSafetensors) {
  fs::path file = WriteSafetensors("alone.safetensors", {"a", "b"});
  Result<json::object> alone = InspectFile(file);
  ASSERT_TRUE(alone.ok()) << alone.error().message();
  EXPECT_EQ(alone->at("format"), "safetensors");
  EXPECT_EQ(alone->at("parameters"), 12u);
  EXPECT_FALSE(alone->contains("config"));
  WriteConfig();
  Result<json::object> folder = InspectFile(folder_);
  ASSERT_TRUE(folder.ok()) << folder.error().message();
  EXPECT_EQ(folder->at("format"), "huggingface");
  EXPECT_EQ(folder->at("config").at("architecture"), "llama");
  EXPECT_TRUE(folder->contains("tokenizer_error"));
  EXPECT_EQ(folder->at("totals").at("F32").at("bytes"), 48u);
}

// The published SmolLM2-135M-Instruct, when the runner has it.
TEST(SmolLm2, IsReadAsPublished) {
  const char* path = std::getenv("EKIBEN_TEST_MODEL");
  if (path == nullptr) GTEST_SKIP() << "EKIBEN_TEST_MODEL names no file";
  auto start = std::chrono::steady_clock::now();
  Result<Checkpoint> opened = OpenCheckpoint(path);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ASSERT_TRUE(opened.ok()) << opened.error().message();
  RecordProperty("open_ms", static_cast<int>(seconds * 1000));
  const Checkpoint& checkpoint = *opened;
  EXPECT_EQ(checkpoint.format, "gguf v3");
  const ModelConfig& config = checkpoint.config;
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.num_hidden_layers, 30);
  EXPECT_EQ(config.hidden_size, 576);
  EXPECT_EQ(config.intermediate_size, 1536);
  EXPECT_EQ(config.num_attention_heads, 9);
  EXPECT_EQ(config.num_key_value_heads, 3);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.vocab_size, 49152);
  EXPECT_EQ(config.max_position_embeddings, 8192);
  EXPECT_EQ(config.rope_theta, 100000.0f);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_TRUE(config.tie_word_embeddings && config.rope_interleaved);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_EQ(checkpoint.tensors.size(), 272u);
  const CheckpointTensor* down = *checkpoint.Tensor("model.layers.29.mlp.down_proj.weight");
  EXPECT_EQ(down->dtype, DType::kQ4_1);
  EXPECT_THAT(down->shape, ElementsAre(576, 1536));

  ASSERT_TRUE(checkpoint.has_tokenizer) << checkpoint.tokenizer_error;
  const text::TokenizerSpec& spec = checkpoint.tokenizer;
  EXPECT_EQ(spec.pre_tokenizer, text::PreTokenizer::kSmolLm);
  EXPECT_EQ(spec.tokens.size(), 49152u);
  EXPECT_EQ(spec.merges.size(), 48900u);
  EXPECT_EQ(spec.tokens[504], "The");
  EXPECT_EQ(spec.tokens[3575], " capital");
  EXPECT_EQ(spec.bos, 1);
  EXPECT_EQ(spec.eos, 2);
  EXPECT_FALSE(spec.add_bos);
  EXPECT_THAT(spec.end_ids, ElementsAre(0, 2));
  EXPECT_THAT(spec.chat_template, HasSubstr("<|im_start|>"));
  // Every merge joins its parts' bytes.
  for (const auto& merge : spec.merges)
    ASSERT_EQ(spec.tokens[static_cast<size_t>(merge.left)] + spec.tokens[static_cast<size_t>(merge.right)],
              spec.tokens[static_cast<size_t>(merge.result)]);

  Result<json::object> inspected = InspectFile(path);
  ASSERT_TRUE(inspected.ok());
  EXPECT_EQ(inspected->at("parameters"), 134515008u);
  EXPECT_EQ(inspected->at("totals").at("q4_1").at("tensors"), 210u);
  EXPECT_EQ(inspected->at("totals").at("f32").at("tensors"), 61u);
}

}  // namespace
}  // namespace ekiben
