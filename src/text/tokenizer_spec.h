// Everything a tokenizer is, as plain data: what a checkpoint carries (tokenizer.json, GGUF metadata, a tiktoken or
// SentencePiece file) and what an engine stores. Loaders fill it; Tokenizer (text/tokenizer.h) is built from it.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace ekiben::text {

// How the text is cut before merging.
enum class PreTokenizer : uint8_t {
  kNone,        // the whole piece is one word (SentencePiece-style)
  kGpt2,        // the GPT-2 pattern
  kSmolLm,      // each \p{N} alone, then the GPT-2 pattern
  kLlama3,      // \p{N}{1,3}, case-insensitive contractions
  kQwen2,       // as Llama 3 with single digits
  kTekken,      // case-aware words, single digits
  kDeepSeekV3,  // three splits in sequence
  kGpt4o,       // o200k: case-aware words with contractions suffix, \p{N}{1,3}
  kPatterns,    // `patterns`, applied in sequence (any other tokenizer.json)
};

enum class Model : uint8_t {
  kByteLevelBpe,      // merges by rank over GPT-2's byte alphabet
  kTiktokenBpe,       // merges by the rank of the joined bytes (tiktoken, tekken)
  kSentencePieceBpe,  // merges by the score (or rank) of the joined piece; byte fallback
};

// From GGUF or a SentencePiece .model: control and unknown tokens are special and not normalized, user-defined ones are
// normalized and not special.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;     // skipped when decoding with skip_special; never matched in user text unless asked
  bool normalized = false;  // matched after normalisation instead of before
  bool lstrip = false, rstrip = false, single_word = false;
};

struct SplitPattern {
  std::string regex;
  // Hugging Face's Split behaviours that occur in practice.
  enum class Behavior : uint8_t { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous } behavior;
  bool invert = false;
};

struct TokenizerSpec {
  Model model = Model::kByteLevelBpe;
  PreTokenizer pre_tokenizer = PreTokenizer::kGpt2;
  std::vector<SplitPattern> patterns;  // with kPatterns
  bool nfc = false;                    // normalise to NFC first (Qwen)

  // tokens[id] as raw bytes; byte-level models are stored decoded from GPT-2's alphabet. Ids without a token are "".
  std::vector<std::string> tokens;
  std::vector<uint8_t> is_byte_token;  // kSentencePieceBpe: 1 for <0xXX>; same length as tokens, or empty
  std::vector<float> scores;           // kSentencePieceBpe from GGUF or .model; else empty
  // kByteLevelBpe, or kSentencePieceBpe from tokenizer.json: (left id, right id) in rank order, with the result's id.
  struct Merge {
    int32_t left, right, result;
  };
  std::vector<Merge> merges;
  bool ignore_merges = false;  // a whole pre-token that is in the vocabulary is taken as it is (Llama 3)
  bool byte_fallback = false;  // unknown characters become byte tokens (SentencePiece)
  bool fuse_unk = false;
  bool add_prefix_space = false;        // SentencePiece: a "▁" before the text ...
  bool prefix_space_first_only = true;  // ... only before the first piece (false: after every special token too)
  bool prefix_space_if_absent = false;  // ... unless a space stands there already (Hugging Face's Metaspace)
  bool strip_left_space = false;        // decode drops one leading space (Llama 2)

  std::vector<AddedToken> added;
  int32_t bos = -1, eos = -1, unk = -1, pad = -1;
  bool add_bos = false, add_eos = false;
  std::vector<int32_t> end_ids;  // every id that ends a turn: eos, eot, eom, <|im_end|>, ...
  std::string chat_template;     // Jinja source; empty: none
};

// The engine's file: one binary file with a version, lengths checked on reading.
Result<void> WriteTokenizerSpec(const TokenizerSpec& spec, const std::string& path);
Result<TokenizerSpec> ReadTokenizerSpec(const std::string& path);

}  // namespace ekiben::text
