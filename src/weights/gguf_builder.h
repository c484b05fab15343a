// Test support: writes GGUF bytes field by field and remembers where each field went, so that a test can break one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "weights/gguf.h"

namespace ekiben {

class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;

  void U32(std::string_view key, uint32_t value) { Number(key, GgufKind::kU32, value); }
  void U64(std::string_view key, uint64_t value) { Number(key, GgufKind::kU64, value); }
  void I32(std::string_view key, int32_t value) { Number(key, GgufKind::kI32, value); }
  void F32(std::string_view key, float value) { Number(key, GgufKind::kF32, value); }
  void Bool(std::string_view key, uint8_t value) { Number(key, GgufKind::kBool, value); }
  void Text(std::string_view key, std::string_view value) {
    Key(key, GgufKind::kString);
    Append<uint64_t>(metadata_, value.size());
    metadata_ += value;
  }
  void Texts(std::string_view key, const std::vector<std::string>& values) {
    Array(key, GgufKind::kString, values.size());
    for (const std::string& value : values) {
      Append<uint64_t>(metadata_, value.size());
      metadata_ += value;
    }
  }
  template <class T>
  void Numbers(std::string_view key, GgufKind kind, const std::vector<T>& values) {
    Array(key, kind, values.size());
    for (T value : values) Append(metadata_, value);
  }
  // `shape` outermost first, as in CheckpointTensor. Data is `bytes` bytes of a pattern.
  void Tensor(std::string_view name, const std::vector<uint64_t>& shape, uint32_t type, size_t bytes) {
    while (data_.size() % alignment != 0) data_ += '\0';
    std::string prefix = "tensor:" + std::string(name);
    Mark(prefix, tensors_);
    Append<uint64_t>(tensors_, name.size());
    tensors_ += name;
    Mark(prefix + ":dimensions", tensors_);
    Append(tensors_, static_cast<uint32_t>(shape.size()));
    Mark(prefix + ":extents", tensors_);
    for (size_t i = shape.size(); i-- > 0;) Append(tensors_, shape[i]);
    Mark(prefix + ":type", tensors_);
    Append(tensors_, type);
    Mark(prefix + ":offset", tensors_);
    Append<uint64_t>(tensors_, data_.size());
    for (size_t i = 0; i < bytes; ++i) data_ += static_cast<char>((i * 7 + 1) % 50);  // small, finite as f16 and f32
    ++tensor_count_;
  }

  // Where a field lies: "version", "tensor_count", "metadata_count", "key:K", "kind:K", "value:K", "tensor:T",
  // "tensor:T:dimensions" / ":extents" (innermost first) / ":type" / ":offset".
  size_t At(const std::string& field) const {
    if (field == "version") return 4;
    if (field == "tensor_count") return 8;
    if (field == "metadata_count") return 16;
    auto [in_tensors, offset] = marks_.at(field);
    return 24 + (in_tensors ? metadata_.size() : 0) + offset;
  }

  std::vector<std::byte> Build() const {
    std::string out = "GGUF";
    Append(out, version);
    Append<uint64_t>(out, tensor_count_);
    Append<uint64_t>(out, metadata_count_);
    out += metadata_ + tensors_;
    if (!data_.empty())
      while (out.size() % alignment != 0) out += '\0';
    out += data_;
    std::vector<std::byte> bytes(out.size());
    std::memcpy(bytes.data(), out.data(), out.size());
    return bytes;
  }

  // The file with `value` written over the bytes of `field`, `skip` bytes in.
  template <class T>
  std::vector<std::byte> With(const std::string& field, T value, size_t skip = 0) const {
    std::vector<std::byte> bytes = Build();
    std::memcpy(bytes.data() + At(field) + skip, &value, sizeof(T));
    return bytes;
  }

 private:
  template <class T>
  static void Append(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void Mark(const std::string& field, const std::string& part) { marks_[field] = {&part == &tensors_, part.size()}; }
  void Key(std::string_view key, GgufKind kind) {
    Mark("key:" + std::string(key), metadata_);
    Append<uint64_t>(metadata_, key.size());
    metadata_ += key;
    Mark("kind:" + std::string(key), metadata_);
    Append(metadata_, static_cast<uint32_t>(kind));
    Mark("value:" + std::string(key), metadata_);
    ++metadata_count_;
  }
  void Array(std::string_view key, GgufKind element, uint64_t count) {
    Key(key, GgufKind::kArray);
    Append(metadata_, static_cast<uint32_t>(element));
    Append(metadata_, count);
  }
  template <class T>
  void Number(std::string_view key, GgufKind kind, T value) {
    Key(key, kind);
    Append(metadata_, value);
  }

  std::map<std::string, std::pair<bool, size_t>> marks_;
  std::string metadata_, tensors_, data_;
  uint64_t metadata_count_ = 0, tensor_count_ = 0;
};

// A whole one-layer model: vocabulary 12, hidden 32, feed-forward 64, 4 heads and 2 key-value heads of 8.
inline GgufBuilder TinyGguf(const std::string& architecture = "llama") {
  GgufBuilder b;
  b.Text("general.architecture", architecture);
  b.Text("general.name", "Tiny");
  b.U32(architecture + ".embedding_length", 32);
  b.U32(architecture + ".feed_forward_length", 64);
  b.U32(architecture + ".block_count", 1);
  b.U32(architecture + ".context_length", 128);
  b.U32(architecture + ".attention.head_count", 4);
  b.U32(architecture + ".attention.head_count_kv", 2);
  b.F32(architecture + ".attention.layer_norm_rms_epsilon", 1e-6f);
  b.F32(architecture + ".rope.freq_base", 50000.0f);
  b.Text("tokenizer.ggml.model", "gpt2");
  b.Text("tokenizer.ggml.pre", "qwen2");
  b.Texts("tokenizer.ggml.tokens", {"<|endoftext|>", "<|im_end|>", "a", "b", "\xc4\xa0", "ab", "\u0120ab", "<tool>",
                                    "[PAD8]", "\xc4\x8a", "c", "[unused]"});
  b.Numbers<int32_t>("tokenizer.ggml.token_type", GgufKind::kI32, {3, 3, 1, 1, 1, 1, 1, 4, 4, 1, 1, 5});
  b.Texts("tokenizer.ggml.merges", {"a b", "\xc4\xa0 ab"});
  b.U32("tokenizer.ggml.bos_token_id", 0);
  b.U32("tokenizer.ggml.eos_token_id", 1);
  b.U32("tokenizer.ggml.padding_token_id", 0xffffffffu);
  b.Text("tokenizer.chat_template", "{{ messages }}");
  b.Tensor("token_embd.weight", {12, 32}, 8, 12 * 34);
  b.Tensor("blk.0.attn_norm.weight", {32}, 0, 32 * 4);
  b.Tensor("blk.0.attn_q.weight", {32, 32}, 3, 32 * 20);
  b.Tensor("blk.0.attn_k.weight", {16, 32}, 3, 16 * 20);
  b.Tensor("blk.0.attn_v.weight", {16, 32}, 1, 16 * 32 * 2);
  b.Tensor("blk.0.attn_output.weight", {32, 32}, 2, 32 * 18);
  b.Tensor("blk.0.ffn_norm.weight", {32}, 0, 32 * 4);
  b.Tensor("blk.0.ffn_gate.weight", {64, 32}, 6, 64 * 22);
  b.Tensor("blk.0.ffn_up.weight", {64, 32}, 7, 64 * 24);
  b.Tensor("blk.0.ffn_down.weight", {32, 64}, 30, 32 * 64 * 2);
  b.Tensor("output_norm.weight", {32}, 0, 32 * 4);
  return b;
}

}  // namespace ekiben
