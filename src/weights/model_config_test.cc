#include "weights/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>

namespace ekiben {
namespace {

using ::testing::HasSubstr;

// The fields that every config.json has, and `more` over them.
json::object Object(std::string_view architecture, std::string_view more = "{}") {
  json::object out = {{"architectures", {architecture}}, {"vocab_size", 100},          {"hidden_size", 64},
                      {"intermediate_size", 96},         {"num_hidden_layers", 3},     {"num_attention_heads", 4},
                      {"num_key_value_heads", 2},        {"rms_norm_eps", 1e-6},       {"hidden_act", "silu"},
                      {"max_position_embeddings", 512},  {"tie_word_embeddings", true}};
  json::value changes = json::parse(more);
  for (const auto& [key, value] : changes.as_object()) out[key] = value;
  return out;
}

ModelConfig Read(std::string_view architecture, std::string_view more = "{}") {
  Result<ModelConfig> config = ModelConfigFromHuggingFace(Object(architecture, more));
  EXPECT_TRUE(config.ok()) << config.error().message();
  return config.ok() ? *config : ModelConfig();
}

std::string Refusal(std::string_view architecture, std::string_view more) {
  Result<ModelConfig> config = ModelConfigFromHuggingFace(Object(architecture, more));
  return config.ok() ? "" : config.error().message();
}

TEST(HuggingFaceConfig, ReadsLlama) {
  ModelConfig config = Read("LlamaForCausalLM", R"({"rope_theta": 500000, "torch_dtype": "bfloat16"})");
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.vocab_size, 100);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.rope_theta, 500000.0f);
  EXPECT_FALSE(config.rope_interleaved);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.attention_bias || config.attention_out_bias || config.mlp_bias);
  EXPECT_EQ(config.sliding_window, 0);

  config = Read("LlamaForCausalLM", R"({"head_dim": 24, "attention_bias": true, "mlp_bias": true})");
  EXPECT_EQ(config.head_dim, 24);
  EXPECT_TRUE(config.attention_bias && config.attention_out_bias && config.mlp_bias);
  EXPECT_EQ(Read("LlamaForCausalLM", R"({"num_key_value_heads": null})").num_key_value_heads, 4);
}

TEST(HuggingFaceConfig, ReadsQwen2AndMistral) {
  ModelConfig qwen = Read("Qwen2ForCausalLM", R"({"sliding_window": 128, "use_sliding_window": false})");
  EXPECT_EQ(qwen.architecture, "qwen2");
  EXPECT_TRUE(qwen.attention_bias);
  EXPECT_FALSE(qwen.attention_out_bias);
  EXPECT_EQ(qwen.sliding_window, 0);
  EXPECT_EQ(Read("Qwen2ForCausalLM", R"({"sliding_window": 128, "use_sliding_window": true, "max_window_layers": 0})")
                .sliding_window,
            128);
  EXPECT_EQ(Read("Qwen2ForCausalLM", R"({"sliding_window": 128, "use_sliding_window": true, "max_window_layers": 3})")
                .sliding_window,
            0);
  EXPECT_THAT(
      Refusal("Qwen2ForCausalLM", R"({"sliding_window": 128, "use_sliding_window": true, "max_window_layers": 1})"),
      HasSubstr("max_window_layers: 1"));

  EXPECT_EQ(Read("MistralForCausalLM", R"({"sliding_window": 32})").sliding_window, 32);
  EXPECT_EQ(Read("MistralForCausalLM", R"({"sliding_window": null})").sliding_window, 0);
  EXPECT_EQ(Read("MistralForCausalLM").sliding_window, 4096);
  EXPECT_EQ(Read("MistralForCausalLM").architecture, "mistral");
}

TEST(HuggingFaceConfig, ReadsRopeScalingOldAndNew) {
  ModelConfig config = Read("LlamaForCausalLM", R"({"rope_scaling": {"type": "linear", "factor": 2}})");
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLinear);
  EXPECT_EQ(config.rope_scaling.factor, 2.0f);

  std::string_view llama3 = R"("rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 8192)";
  for (const std::string& more : {fmt::format(R"({{"rope_theta": 5e5, "rope_scaling": {{{}}}}})", llama3),
                                  fmt::format(R"({{"rope_parameters": {{"rope_theta": 5e5, {}}}}})", llama3)}) {
    config = Read("LlamaForCausalLM", more);
    EXPECT_EQ(config.rope_theta, 5e5f);
    EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLlama3);
    EXPECT_EQ(config.rope_scaling.factor, 8.0f);
    EXPECT_EQ(config.rope_scaling.high_freq_factor, 4.0f);
    EXPECT_EQ(config.rope_scaling.original_max_position_embeddings, 8192);
  }

  config = Read("Qwen2ForCausalLM", R"({"rope_scaling": {"type": "yarn", "factor": 4.0}})");
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kYarn);
  EXPECT_EQ(config.rope_scaling.original_max_position_embeddings, 512);
  EXPECT_EQ(config.rope_scaling.attention_factor, 0.0f);
  config = Read("Qwen2ForCausalLM", R"({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0,
      "original_max_position_embeddings": 128, "beta_fast": 16, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.0}})");
  EXPECT_EQ(config.rope_theta, 1e6f);
  EXPECT_EQ(config.rope_scaling.original_max_position_embeddings, 128);
  EXPECT_EQ(config.rope_scaling.beta_fast, 16.0f);
  EXPECT_FLOAT_EQ(config.rope_scaling.attention_factor,
                  (0.07f * std::log(4.0f) + 1.0f) / (0.1f * std::log(4.0f) + 1.0f));
  EXPECT_EQ(Read("LlamaForCausalLM", R"({"rope_scaling": null})").rope_scaling.type, RopeScaling::Type::kNone);
  EXPECT_EQ(Read("LlamaForCausalLM", R"({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}})").rope_theta,
            1e4f);
}

TEST(HuggingFaceConfig, RefusesWhatItDoesNotCompute) {
  EXPECT_THAT(Refusal("MixtralForCausalLM", "{}"),
              HasSubstr("'MixtralForCausalLM' is not supported (known: LlamaForCausalLM, Qwen2ForCausalLM,"));
  EXPECT_THAT(Refusal("LlamaForCausalLM", R"({"hidden_act": "gelu"})"), HasSubstr("hidden_act: 'gelu'"));
  EXPECT_THAT(Refusal("LlamaForCausalLM", R"({"quantization_config": {"quant_method": "gptq"}})"), HasSubstr("'gptq'"));
  EXPECT_THAT(Refusal("LlamaForCausalLM", R"({"partial_rotary_factor": 0.5})"),
              HasSubstr("partial_rotary_factor: 0.5"));
  EXPECT_THAT(Refusal("LlamaForCausalLM", R"({"rope_scaling": {"type": "dynamic", "factor": 2}})"),
              HasSubstr("rope_scaling: rope_type: 'dynamic' is not supported"));
  EXPECT_THAT(Refusal("LlamaForCausalLM", R"({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": false}})"),
              HasSubstr("truncate: false"));
  EXPECT_THAT(Refusal("LlamaForCausalLM", R"({"rope_parameters": {"full_attention": {"rope_theta": 1}}})"),
              HasSubstr("a set for each type of layer"));
}

TEST(HuggingFaceConfig, RefusesNonsense) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {R"({"vocab_size": 0})", "vocab_size: 0 is outside [1, "},
      {R"({"vocab_size": -1})", "vocab_size: -1"},
      {R"({"vocab_size": "100"})", "vocab_size: an integer is wanted, got a string"},
      {R"({"vocab_size": null})", "vocab_size: absent; it is required"},
      {R"({"hidden_size": 4000000000})", "hidden_size: 4000000000"},
      {R"({"hidden_size": 65})", "num_attention_heads: 4 does not divide hidden_size 65"},
      {R"({"num_attention_heads": 0})", "num_attention_heads: 0"},
      {R"({"num_key_value_heads": 3})", "num_key_value_heads: 3 does not divide num_attention_heads 4"},
      {R"({"head_dim": 15})", "head_dim: 15 is odd"},
      {R"({"rms_norm_eps": -1})", "rms_norm_eps: -1"},
      {R"({"rope_theta": 0})", "rope_theta: 0 is outside"},
      {R"({"rope_scaling": {"type": "linear"}})", "rope_scaling.factor: 0 is outside"},
      {R"({"rope_scaling": {"type": "llama3", "factor": 8, "high_freq_factor": 1}})", "is not above low_freq_factor 1"},
      {R"({"rope_scaling": []})", "rope_scaling: an object is wanted, got an array"},
  };
  for (const auto& [more, message] : cases) EXPECT_THAT(Refusal("LlamaForCausalLM", more), HasSubstr(message)) << more;
  EXPECT_FALSE(ModelConfigFromHuggingFace(json::object()).ok());
}

TEST(ModelConfig, SurvivesJson) {
  ModelConfig config = Read("Qwen2ForCausalLM", R"({"rope_parameters": {"rope_theta": 123456.7, "rope_type": "yarn",
      "factor": 4.1, "original_max_position_embeddings": 128, "attention_factor": 1.3}, "_name_or_path": "some/model"})");
  config.rope_interleaved = true;
  Result<json::value> text = ParseJson(json::serialize(ToJson(config)));
  ASSERT_TRUE(text.ok());
  Result<ModelConfig> back = ModelConfigFromJson(text->as_object());
  ASSERT_TRUE(back.ok()) << back.error().message();
  EXPECT_EQ(ToJson(*back), ToJson(config));
  EXPECT_EQ(back->name, "some/model");
  EXPECT_EQ(back->rope_theta, config.rope_theta);
  EXPECT_EQ(back->rope_scaling.type, RopeScaling::Type::kYarn);
  EXPECT_EQ(back->rope_scaling.attention_factor, 1.3f);
  EXPECT_TRUE(back->rope_interleaved);

  json::object broken = ToJson(config);
  broken["rope_scaling"].as_object()["type"] = "ntk";
  EXPECT_THAT(ModelConfigFromJson(broken).error().message(), HasSubstr("rope_scaling: type: 'ntk'"));
  broken = ToJson(config);
  broken.erase("head_dim");
  EXPECT_THAT(ModelConfigFromJson(broken).error().message(), HasSubstr("head_dim: absent"));
  broken = ToJson(config);
  broken["num_hidden_layers"] = 1e9;
  EXPECT_THAT(ModelConfigFromJson(broken).error().message(), HasSubstr("num_hidden_layers: 1000000000 is outside"));
}

}  // namespace
}  // namespace ekiben
