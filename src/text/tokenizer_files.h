// Tokenizer files as published, read into a TokenizerSpec: Hugging Face's tokenizer.json, tiktoken ranks, SentencePiece
// .model, Mistral's tekken.json, and GPT-2's vocab.json + merges.txt.
// All input is untrusted: every length is proven against the file, every id against the limits below, before anything
// is allocated. Errors name the file, the field and what was found; a tokenizer that we would encode differently from
// its reference (an unknown normaliser, a Unigram model) is refused, never approximated.
// Thread: pure functions.
#pragma once
#include <filesystem>
#include <string_view>

#include "base/result.h"
#include "text/tokenizer_spec.h"

namespace ekiben::text {

struct TokenizerFileLimits {
  size_t file_bytes_max = size_t{256} << 20;
  int32_t id_max = (1 << 22) - 1;  // the largest published vocabulary has 2^18 ids
  size_t token_bytes_max = size_t{1} << 16;
};

// A checkpoint folder: tokenizer.json, else tokenizer.model (tiktoken or SentencePiece, told apart by content), else
// tekken.json, else qwen.tiktoken, else vocab.json + merges.txt. tokenizer_config.json, special_tokens_map.json,
// generation_config.json and chat_template.jinja beside it fill bos, eos, end_ids, add_bos and chat_template.
Result<TokenizerSpec> LoadTokenizerFolder(const std::filesystem::path& folder);

// One file, its kind told by content: tokenizer.json, tekken.json, tiktoken ranks, SentencePiece .model, or GPT-2's
// vocab.json / encoder.json (with merges.txt / vocab.bpe beside it). Special tokens that such a file does not carry
// (tiktoken ranks) come from the family that its size names: Llama 3, Llama 4, Qwen.
Result<TokenizerSpec> LoadTokenizerFile(const std::filesystem::path& path);

// The same from bytes in memory (a GGUF's embedded tokenizer.huggingface.json, a fuzzer). `source` names them in
// errors.
Result<TokenizerSpec> ParseTokenizerJson(std::string_view json, std::string_view source);
Result<TokenizerSpec> ParseTekken(std::string_view json, std::string_view source);
Result<TokenizerSpec> ParseTiktoken(std::string_view ranks, std::string_view source);
Result<TokenizerSpec> ParseSentencePiece(std::string_view proto, std::string_view source);
Result<TokenizerSpec> ParseGpt2(std::string_view vocab_json, std::string_view merges, std::string_view source);

// Ids whose text ends a turn in some published template (<|im_end|>, <|eot_id|>, ...), added to spec.end_ids in id
// order, with eos. For loaders: call it last.
void FindEndIds(TokenizerSpec& spec);

}  // namespace ekiben::text
