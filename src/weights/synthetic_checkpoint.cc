#include "weights/synthetic_checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <fstream>
#include <thread>
#include <vector>

#include "base/dtype.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/philox.h"
#include "device/thread_pool.h"
#include "text/synthetic_tokenizer.h"
#include "weights/published_shapes.h"

namespace ekiben {
namespace {

constexpr float kDeviation = 0.02f;
constexpr int64_t kSliceValues = int64_t{4} << 20;  // written at once
constexpr int64_t kGrainValues = int64_t{1} << 16;  // one member's part of a slice

struct Tensor {
  std::string name;
  int64_t rows = 0, columns = 0;  // columns 0: a vector
  bool ones = false;

  int64_t count() const { return rows * std::max<int64_t>(columns, 1); }
};

std::vector<Tensor> TensorsOf(const ModelConfig& c) {
  const int64_t hidden = c.hidden_size, query = int64_t{c.num_attention_heads} * c.head_dim,
                key = int64_t{c.num_key_value_heads} * c.head_dim;
  std::vector<Tensor> out;
  auto linear = [&](const std::string& name, int64_t rows, int64_t columns, bool bias) {
    out.push_back({name + ".weight", rows, columns, false});
    if (bias) out.push_back({name + ".bias", rows, 0, false});
  };
  auto norm = [&](const std::string& name) { out.push_back({name + ".weight", hidden, 0, true}); };
  linear("model.embed_tokens", c.vocab_size, hidden, false);
  for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
    std::string at = fmt::format("model.layers.{}.", i);
    norm(at + "input_layernorm");
    linear(at + "self_attn.q_proj", query, hidden, c.attention_bias);
    linear(at + "self_attn.k_proj", key, hidden, c.attention_bias);
    linear(at + "self_attn.v_proj", key, hidden, c.attention_bias);
    linear(at + "self_attn.o_proj", hidden, query, c.attention_out_bias);
    norm(at + "post_attention_layernorm");
    linear(at + "mlp.gate_proj", c.intermediate_size, hidden, c.mlp_bias);
    linear(at + "mlp.up_proj", c.intermediate_size, hidden, c.mlp_bias);
    linear(at + "mlp.down_proj", hidden, c.intermediate_size, c.mlp_bias);
  }
  norm("model.norm");
  if (!c.tie_word_embeddings) linear("lm_head", c.vocab_size, hidden, false);
  return out;
}

// The table before the data, padded to 8 bytes (https://github.com/huggingface/safetensors#format).
std::string SafetensorsHeader(const std::vector<Tensor>& tensors) {
  json::object table{{"__metadata__", json::object{{"format", "pt"}}}};
  int64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    json::array shape{tensor.rows};
    if (tensor.columns > 0) shape.push_back(tensor.columns);
    int64_t bytes = tensor.count() * int64_t{sizeof(uint16_t)};
    table[tensor.name] = {
        {"dtype", "BF16"}, {"shape", std::move(shape)}, {"data_offsets", json::array{offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = json::serialize(table);
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return out + text;
}

// Values [begin, end) of tensor `number`; four normals come of one Philox block (Box-Muller). begin % 4 == 0.
void FillNormal(uint16_t* out, int64_t begin, int64_t end, uint32_t number, uint64_t seed) {
  const PhiloxKey key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int64_t i = begin; i < end; i += 4) {
    PhiloxCounter bits =
        Philox4x32({static_cast<uint32_t>(i), static_cast<uint32_t>(static_cast<uint64_t>(i) >> 32), number, 0}, key);
    float normals[4];
    for (size_t pair = 0; pair < 2; ++pair) {
      float u = (static_cast<float>(bits[2 * pair] >> 8) + 1.0f) * 0x1p-24f;
      float angle = static_cast<float>(bits[2 * pair + 1] >> 8) * (0x1p-24f * 6.2831853f);
      float radius = kDeviation * std::sqrt(-2.0f * std::log(u));
      normals[2 * pair] = radius * std::cos(angle);
      normals[2 * pair + 1] = radius * std::sin(angle);
    }
    for (int64_t j = i; j < std::min(i + 4, end); ++j) out[j - begin] = F32ToBF16(normals[j - i]);
  }
}

Result<void> WriteWeights(const std::vector<Tensor>& tensors, uint64_t seed, const std::filesystem::path& path,
                          const std::function<void(int64_t, int64_t)>& progress) {
  std::ofstream file(path, std::ios::binary);
  std::string header = SafetensorsHeader(tensors);
  file.write(header.data(), static_cast<std::streamsize>(header.size()));
  ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  std::vector<uint16_t> slice;
  int64_t written = 0, total = 0;
  for (const Tensor& tensor : tensors) total += tensor.count() * int64_t{sizeof(uint16_t)};
  for (size_t number = 0; number < tensors.size(); ++number) {
    const Tensor& tensor = tensors[number];
    for (int64_t begin = 0; begin < tensor.count(); begin += kSliceValues) {
      int64_t count = std::min(kSliceValues, tensor.count() - begin);
      slice.assign(static_cast<size_t>(count), F32ToBF16(1.0f));
      if (!tensor.ones)
        pool.ParallelFor(count, kGrainValues, [&](int64_t from, int64_t to, int) {
          FillNormal(slice.data() + from, begin + from, begin + to, static_cast<uint32_t>(number), seed);
        });
      file.write(reinterpret_cast<const char*>(slice.data()), count * int64_t{sizeof(uint16_t)});
      if (!file) return Error(Code::kInternal, fmt::format("{}: write failed: disk full?", path.string()));
      written += count * int64_t{sizeof(uint16_t)};
      progress(written, total);
    }
  }
  file.close();
  if (!file) return Error(Code::kInternal, fmt::format("{}: write failed: disk full?", path.string()));
  return {};
}

Result<void> WriteAll(std::string_view shape, const ModelConfig& config, uint64_t seed,
                      const std::filesystem::path& folder, const std::function<void(int64_t, int64_t)>& progress) {
  ASSIGN_OR_RETURN(std::string_view config_json, PublishedConfigJson(shape));
  ASSIGN_OR_RETURN(std::string tokenizer, text::SyntheticTokenizerJson(config.vocab_size));
  RETURN_IF_ERROR(WriteFileAtomic(folder / "config.json", config_json));
  RETURN_IF_ERROR(WriteFileAtomic(folder / "tokenizer.json", tokenizer));
  RETURN_IF_ERROR(WriteFileAtomic(folder / "tokenizer_config.json", text::SyntheticTokenizerConfigJson()));
  return WriteWeights(TensorsOf(config), seed, folder / "model.safetensors", progress);
}

}  // namespace

Result<void> WriteSyntheticCheckpoint(std::string_view shape, uint64_t seed, const std::filesystem::path& folder,
                                      const std::function<void(int64_t, int64_t)>& progress) {
  ASSIGN_OR_RETURN(ModelConfig config, PublishedShape(shape));
  if (std::filesystem::exists(folder))
    return Error(Code::kInvalid, fmt::format("output: {} exists; choose another folder", folder.string()), "output");
  std::filesystem::path incoming = folder;
  incoming += fmt::format(".tmp.{}", ::getpid());
  std::error_code code;
  std::filesystem::create_directories(incoming, code);
  if (code)
    return Error(Code::kInvalid, fmt::format("output: {}: cannot create: {}", folder.string(), code.message()),
                 "output");
  Result<void> result = WriteAll(shape, config, seed, incoming, progress);
  if (result.ok()) {
    std::filesystem::rename(incoming, folder, code);
    if (code) result = Error(Code::kInternal, fmt::format("{}: cannot create: {}", folder.string(), code.message()));
  }
  std::filesystem::remove_all(incoming, code);
  return result;
}

}  // namespace ekiben
