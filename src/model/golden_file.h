// Logits that Hugging Face computed in float32, as tests/golden/make_golden.py writes them: for every position the
// highest few and the log of the sum of all exponentials, for some positions all of them.
// Thread: immutable after Open.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"

namespace ekiben {

struct GoldenFile {
  std::vector<int32_t> token_ids;  // the prompt, then what greedy decoding continued it with
  int32_t prompt_tokens = 0;
  int32_t vocab_size = 0, top = 0;
  std::vector<int32_t> full_positions;
  // Into `file`: position i predicts token i + 1.
  std::span<const float> log_sum_exp;  // [tokens]
  std::span<const int32_t> top_ids;    // [tokens, top], highest first
  std::span<const float> top_logits;   // [tokens, top]
  std::span<const float> full_logits;  // [full_positions, vocab_size]
  MappedFile file;
  std::filesystem::path path;

  std::span<const int32_t> TopIds(int64_t position) const {
    return top_ids.subspan(static_cast<size_t>(position * top), static_cast<size_t>(top));
  }
  std::span<const float> TopLogits(int64_t position) const {
    return top_logits.subspan(static_cast<size_t>(position * top), static_cast<size_t>(top));
  }
  std::span<const float> Full(int64_t index) const {
    return full_logits.subspan(static_cast<size_t>(index * vocab_size), static_cast<size_t>(vocab_size));
  }
};

// Errors: not such a file; a size that does not match its header; an id that is out of range.
Result<GoldenFile> OpenGoldenFile(const std::filesystem::path& path);
// All of a folder in the order of their names, or the one that `path` names. Errors: none there; a damaged one.
Result<std::vector<GoldenFile>> OpenGoldenFiles(const std::filesystem::path& path);

}  // namespace ekiben
