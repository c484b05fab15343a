// GGUF metadata as a ModelConfig, and GGUF tensor names as Hugging Face's.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numbers>

#include "weights/file_error.h"
#include "weights/gguf.h"

namespace ekiben {
namespace {

// An architecture of GGUF files that we read.
struct Family {
  std::string_view name;
  bool rope_interleaved;  // its converter permutes q and k rows, so that rotary pairs lie side by side
};
constexpr std::array kFamilies = {Family{"llama", true}, Family{"qwen2", false}};

constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kGlobalNames = {{
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
}};
constexpr std::array<std::pair<std::string_view, std::string_view>, 9> kBlockNames = {{
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
}};

template <class Table>
std::string_view Find(const Table& table, std::string_view key) {
  for (const auto& [from, to] : table)
    if (from == key) return to;
  return {};
}

constexpr std::string_view kFrequencyFactors = "rope_freqs.weight";

// Reads the keys below "<architecture>." of one file.
class Keys {
 public:
  Keys(const GgufFile& file, std::string_view architecture) : file_(file), prefix_(std::string(architecture) + ".") {}

  std::string Key(std::string_view name) const { return prefix_ + std::string(name); }

  Result<std::optional<int64_t>> Int(std::string_view name) const { return file_.Int(Key(name), 0, INT32_MAX); }
  Result<int32_t> RequiredInt(std::string_view name) const {
    ASSIGN_OR_RETURN(auto value, Int(name));
    if (!value) return file_.FieldError(Key(name), "absent; it is required");
    return static_cast<int32_t>(*value);
  }
  Result<float> Number(std::string_view name, float otherwise) const {
    ASSIGN_OR_RETURN(auto value, file_.Number(Key(name)));
    return value ? static_cast<float>(*value) : otherwise;
  }
  Result<std::string> String(std::string_view name) const {
    ASSIGN_OR_RETURN(auto value, file_.String(Key(name)));
    return std::string(value.value_or(""));
  }
  Error Fail(std::string_view name, std::string_view message) const { return file_.FieldError(Key(name), message); }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

Result<void> ReadSizes(const GgufFile& file, const Keys& keys, ModelConfig& config) {
  ASSIGN_OR_RETURN(config.hidden_size, keys.RequiredInt("embedding_length"));
  ASSIGN_OR_RETURN(config.intermediate_size, keys.RequiredInt("feed_forward_length"));
  ASSIGN_OR_RETURN(config.num_hidden_layers, keys.RequiredInt("block_count"));
  ASSIGN_OR_RETURN(config.num_attention_heads, keys.RequiredInt("attention.head_count"));
  ASSIGN_OR_RETURN(config.max_position_embeddings, keys.RequiredInt("context_length"));
  ASSIGN_OR_RETURN(auto kv_heads, keys.Int("attention.head_count_kv"));
  config.num_key_value_heads = kv_heads ? static_cast<int32_t>(*kv_heads) : config.num_attention_heads;
  ASSIGN_OR_RETURN(auto window, keys.Int("attention.sliding_window"));
  config.sliding_window = static_cast<int32_t>(window.value_or(0));
  ASSIGN_OR_RETURN(config.rms_norm_eps, keys.Number("attention.layer_norm_rms_epsilon", 1e-5f));

  ASSIGN_OR_RETURN(auto key_length, keys.Int("attention.key_length"));
  if (!key_length && (config.num_attention_heads == 0 || config.hidden_size % config.num_attention_heads != 0))
    return keys.Fail("attention.head_count", fmt::format("{} heads do not divide embedding_length {}",
                                                         config.num_attention_heads, config.hidden_size));
  config.head_dim = key_length ? static_cast<int32_t>(*key_length) : config.hidden_size / config.num_attention_heads;
  for (std::string_view name : {"attention.value_length", "rope.dimension_count"}) {
    ASSIGN_OR_RETURN(auto length, keys.Int(name));
    if (length && *length != config.head_dim)
      return keys.Fail(
          name, fmt::format("{} differs from the head size {}, which is not supported", *length, config.head_dim));
  }
  ASSIGN_OR_RETURN(auto experts, keys.Int("expert_count"));
  if (experts.value_or(0) > 0)
    return keys.Fail("expert_count", fmt::format("{}: mixtures of experts are not supported", *experts));

  // The embedding's rows are the vocabulary that the model computes with, padding included.
  const GgufTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr)
    return Error(
        Code::kInvalid,
        fmt::format("{}: tensor token_embd.weight: absent; the file holds no model (a vocabulary only?)", file.label),
        "token_embd.weight");
  if (embedding->shape.size() != 2 || embedding->shape[1] != config.hidden_size || embedding->shape[0] > INT32_MAX)
    return Error(Code::kInvalid,
                 fmt::format("{}: tensor token_embd.weight: its shape is [{}], [vocabulary, {}] is wanted", file.label,
                             fmt::join(embedding->shape, ", "), config.hidden_size),
                 "token_embd.weight");
  config.vocab_size = static_cast<int32_t>(embedding->shape[0]);
  return {};
}

// Llama 3's divisor of inverse frequency i of `half`: 1 for short waves, `factor` for long ones, smooth between.
double Llama3Divisor(const ModelConfig& config, const RopeScaling& scaling, int i) {
  double frequency = std::pow(static_cast<double>(config.rope_theta), -2.0 * i / config.head_dim);
  double wave = 2.0 * std::numbers::pi / frequency;
  double original = scaling.original_max_position_embeddings;
  if (wave < original / scaling.high_freq_factor) return 1.0;
  if (wave > original / scaling.low_freq_factor) return scaling.factor;
  double smooth = (original / wave - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return 1.0 / ((1.0 - smooth) / scaling.factor + smooth);
}

// GGUF stores Llama 3's scaling as a tensor of divisors instead of its four parameters. The published models all use
// 1 and 4 for the two bounds; factor is the largest divisor and the original length is found by trying powers of two.
// Divisors that are no Llama 3 scaling are refused, not approximated.
Result<void> ReadFrequencyFactors(const GgufFile& file, ModelConfig& config) {
  const GgufTensor* tensor = file.FindTensor(kFrequencyFactors);
  if (tensor == nullptr) return {};
  auto fail = [&](std::string_view message) {
    return Error(Code::kUnsupported, fmt::format("{}: tensor {}: {}", file.label, kFrequencyFactors, message),
                 std::string(kFrequencyFactors));
  };
  int64_t half = config.head_dim / 2;
  if (tensor->dtype != DType::kF32 || tensor->shape != std::vector<int64_t>{half})
    return fail(
        fmt::format("f32 [{}] is wanted, got {} [{}]", half, tensor->type_name, fmt::join(tensor->shape, ", ")));
  std::vector<float> divisors(static_cast<size_t>(half));
  Dequantize(DType::kF32, tensor->data.data(), half, divisors.data());
  RopeScaling scaling{.type = RopeScaling::Type::kLlama3, .low_freq_factor = 1.0f, .high_freq_factor = 4.0f};
  scaling.factor = *std::max_element(divisors.begin(), divisors.end());
  if (std::all_of(divisors.begin(), divisors.end(), [](float d) { return d == 1.0f; })) return {};
  if (config.rope_scaling.type != RopeScaling::Type::kNone)
    return fail("beside rope.scaling.type, only one may be set");
  for (int32_t original = 1024; original <= 1 << 20; original *= 2) {
    scaling.original_max_position_embeddings = original;
    bool same = true;
    for (int i = 0; i < half && same; ++i) {
      double wanted = Llama3Divisor(config, scaling, i);
      same = std::abs(divisors[static_cast<size_t>(i)] - wanted) <= 1e-4 * wanted;
    }
    if (!same) continue;
    config.rope_scaling = scaling;
    return {};
  }
  return fail("its frequency divisors are not Llama 3's; no other table is supported");
}

Result<void> ReadRope(const GgufFile& file, const Keys& keys, ModelConfig& config) {
  ASSIGN_OR_RETURN(config.rope_theta, keys.Number("rope.freq_base", 10000.0f));
  RopeScaling& scaling = config.rope_scaling;
  ASSIGN_OR_RETURN(std::string type, keys.String("rope.scaling.type"));
  ASSIGN_OR_RETURN(float old_linear, keys.Number("rope.scale_linear", 1.0f));  // before rope.scaling.* existed
  ASSIGN_OR_RETURN(scaling.factor, keys.Number("rope.scaling.factor", old_linear));
  if (type.empty() && scaling.factor != 1.0f && scaling.factor != 0.0f) type = "linear";
  if (type.empty() || type == "none") {
    scaling = {};
  } else if (type == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
  } else if (type == "yarn") {
    scaling.type = RopeScaling::Type::kYarn;
    ASSIGN_OR_RETURN(auto original, keys.Int("rope.scaling.original_context_length"));
    scaling.original_max_position_embeddings =
        original ? static_cast<int32_t>(*original) : config.max_position_embeddings;
    ASSIGN_OR_RETURN(scaling.beta_fast, keys.Number("rope.scaling.yarn_beta_fast", 32.0f));
    ASSIGN_OR_RETURN(scaling.beta_slow, keys.Number("rope.scaling.yarn_beta_slow", 1.0f));
    // GGUF's attn_factor multiplies YaRN's own; ours replaces it.
    ASSIGN_OR_RETURN(float multiplier, keys.Number("rope.scaling.attn_factor", 1.0f));
    if (multiplier != 1.0f) scaling.attention_factor = multiplier * (0.1f * std::log(scaling.factor) + 1.0f);
  } else {
    return keys.Fail("rope.scaling.type",
                     fmt::format("'{}' is not supported (none, linear and yarn are)", PrintableName(type)));
  }
  return ReadFrequencyFactors(file, config);
}

}  // namespace

std::string HuggingFaceName(std::string_view gguf_name) {
  size_t dot = gguf_name.rfind('.');
  if (dot == std::string_view::npos) return {};
  std::string_view stem = gguf_name.substr(0, dot), kind = gguf_name.substr(dot + 1);
  if (kind != "weight" && kind != "bias") return {};
  if (!stem.starts_with("blk.")) {
    std::string_view name = Find(kGlobalNames, stem);
    return name.empty() ? std::string() : fmt::format("{}.{}", name, kind);
  }
  stem.remove_prefix(4);
  size_t end = stem.find('.');
  if (end == std::string_view::npos) return {};
  int32_t layer = 0;
  auto [rest, error] = std::from_chars(stem.data(), stem.data() + end, layer);
  if (error != std::errc() || rest != stem.data() + end || layer < 0) return {};
  std::string_view name = Find(kBlockNames, stem.substr(end + 1));
  return name.empty() ? std::string() : fmt::format("model.layers.{}.{}.{}", layer, name, kind);
}

Result<ModelConfig> GgufModelConfig(const GgufFile& file) {
  ASSIGN_OR_RETURN(auto architecture, file.String("general.architecture"));
  if (!architecture) return file.FieldError("general.architecture", "absent; it is required");
  auto family = std::find_if(kFamilies.begin(), kFamilies.end(), [&](auto& row) { return row.name == *architecture; });
  if (family == kFamilies.end())
    return FileError(file.label, file.metadata.at("general.architecture").offset, "general.architecture",
                     fmt::format("'{}' is not supported (llama and qwen2 are)", PrintableName(*architecture)),
                     Code::kUnsupported);
  ASSIGN_OR_RETURN(auto splits, file.Int("split.count", 0, UINT16_MAX));
  if (splits.value_or(0) > 1)
    return file.FieldError("split.count", fmt::format("one of {} files; join them with gguf-split first", *splits));

  ModelConfig config;
  config.architecture = family->name;
  config.rope_interleaved = family->rope_interleaved;
  ASSIGN_OR_RETURN(auto name, file.String("general.name"));
  config.name = std::string(name.value_or(""));
  Keys keys(file, *architecture);
  RETURN_IF_ERROR(ReadSizes(file, keys, config));
  RETURN_IF_ERROR(ReadRope(file, keys, config));
  config.tie_word_embeddings = file.FindTensor("output.weight") == nullptr;
  config.attention_bias = file.FindTensor("blk.0.attn_q.bias") != nullptr;
  config.attention_out_bias = file.FindTensor("blk.0.attn_output.bias") != nullptr;
  config.mlp_bias = file.FindTensor("blk.0.ffn_up.bias") != nullptr;
  if (auto valid = Validate(config); !valid.ok()) return Error(valid.error()).Within(file.label);
  return config;
}

Result<Checkpoint> GgufCheckpoint(const GgufFile& file, const std::filesystem::path& path) {
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.format = fmt::format("gguf v{}", file.version);
  ASSIGN_OR_RETURN(checkpoint.config, GgufModelConfig(file));
  for (const GgufTensor& tensor : file.tensors) {
    if (tensor.name == kFrequencyFactors) continue;  // already in config.rope_scaling
    std::string name = HuggingFaceName(tensor.name);
    if (name.empty())
      return Error(Code::kUnsupported,
                   fmt::format("{}: tensor {}: not part of a {} model that we know", file.label,
                               PrintableName(tensor.name), checkpoint.config.architecture),
                   std::string(tensor.name));
    if (!tensor.dtype)
      return Error(Code::kUnsupported,
                   fmt::format("{}: tensor {}: type {} is not supported (f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, "
                               "q4_k, q5_k and q6_k are)",
                               file.label, PrintableName(tensor.name), tensor.type_name),
                   std::string(tensor.name));
    bool fresh = checkpoint.tensors
                     .emplace(name, CheckpointTensor{.name = name,
                                                     .dtype = *tensor.dtype,
                                                     .shape = tensor.shape,
                                                     .data = tensor.data.data(),
                                                     .bytes = tensor.data.size()})
                     .second;
    if (!fresh)  // "blk.1." and "blk.01."
      return Error(Code::kInvalid,
                   fmt::format("{}: tensor {}: a second {}", file.label, PrintableName(tensor.name), name),
                   std::string(tensor.name));
  }
  Result<text::TokenizerSpec> tokenizer = GgufTokenizer(file);
  checkpoint.has_tokenizer = tokenizer.ok();
  if (tokenizer.ok()) {
    checkpoint.tokenizer = *std::move(tokenizer);
  } else {
    checkpoint.tokenizer_error = tokenizer.error().message();
  }
  return checkpoint;
}

}  // namespace ekiben
