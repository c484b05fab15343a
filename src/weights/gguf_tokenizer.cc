// tokenizer.ggml.* as a TokenizerSpec.
// The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what an absent key means follows
// llama.cpp, which wrote most of the files.
#include <algorithm>
#include <array>
#include <unordered_map>

#include "text/sentencepiece.h"
#include "text/tokenizer_alphabet.h"
#include "text/tokenizer_files.h"
#include "weights/file_error.h"
#include "weights/gguf.h"

namespace ekiben {
namespace {

using text::PreTokenizer;
using text::TokenizerSpec;

// How a `pre` name cuts text. ignore_merges and add_bos are what the family's reference does; files state the latter.
struct Pre {
  std::string_view name;
  PreTokenizer pre_tokenizer;
  bool ignore_merges = false, add_bos = false, nfc = false;
};
constexpr std::array kPres = {
    Pre{"default", PreTokenizer::kGpt2},
    Pre{"gpt-2", PreTokenizer::kGpt2},
    Pre{"phi-2", PreTokenizer::kGpt2},
    Pre{"smollm", PreTokenizer::kSmolLm},
    Pre{"starcoder", PreTokenizer::kSmolLm},
    Pre{"refact", PreTokenizer::kSmolLm},
    Pre{"command-r", PreTokenizer::kSmolLm},
    Pre{"llama-bpe", PreTokenizer::kLlama3, true, true},
    Pre{"llama3", PreTokenizer::kLlama3, true, true},
    Pre{"llama-v3", PreTokenizer::kLlama3, true, true},
    Pre{"falcon3", PreTokenizer::kLlama3, true, true},
    Pre{"qwen2", PreTokenizer::kQwen2, false, false, true},
    Pre{"deepseek-r1-qwen", PreTokenizer::kQwen2, false, false, true},
    Pre{"tekken", PreTokenizer::kTekken, true, true},
    Pre{"deepseek-v3", PreTokenizer::kDeepSeekV3},
    Pre{"gpt-4o", PreTokenizer::kGpt4o},
    Pre{"llama4", PreTokenizer::kGpt4o},
};

// tokenizer.ggml.token_type
enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// The arrays of one file, their lengths proven equal.
struct Vocabulary {
  std::vector<std::string_view> texts;
  const GgufValue* types = nullptr;   // may be absent: all normal
  const GgufValue* scores = nullptr;  // may be absent for gpt2

  int32_t TypeOf(size_t id) const { return types == nullptr ? kNormal : GgufElement<int32_t>(*types, id); }
};

constexpr uint64_t kTokensMax = uint64_t{1} << 22;  // the largest published vocabulary has 2^18

Result<Vocabulary> ReadVocabulary(const GgufFile& file) {
  Vocabulary out;
  ASSIGN_OR_RETURN(const GgufValue* tokens, file.Array("tokenizer.ggml.tokens", GgufKind::kString));
  if (tokens == nullptr || tokens->count == 0)
    return file.FieldError("tokenizer.ggml.tokens", "absent or empty; it is required");
  if (tokens->count > kTokensMax)
    return file.FieldError("tokenizer.ggml.tokens",
                           fmt::format("{} tokens, the limit is {}", tokens->count, kTokensMax));
  out.texts = GgufStrings(*tokens);
  ASSIGN_OR_RETURN(out.types, file.Array("tokenizer.ggml.token_type", GgufKind::kI32));
  ASSIGN_OR_RETURN(out.scores, file.Array("tokenizer.ggml.scores", GgufKind::kF32));
  for (auto [key, array] : {std::pair("tokenizer.ggml.token_type", out.types), {"tokenizer.ggml.scores", out.scores}})
    if (array != nullptr && array->count != tokens->count)
      return file.FieldError(key, fmt::format("{} elements for {} tokens", array->count, tokens->count));
  return out;
}

// "left right" in alphabet text. A token holds no space, so the first space after its first byte is the border.
Result<void> ReadMerges(const GgufFile& file, const Vocabulary& vocabulary, TokenizerSpec& spec) {
  constexpr std::string_view kKey = "tokenizer.ggml.merges";
  ASSIGN_OR_RETURN(const GgufValue* merges, file.Array(kKey, GgufKind::kString));
  if (merges == nullptr) return file.FieldError(kKey, "absent; a gpt2 vocabulary needs it");
  std::unordered_map<std::string_view, int32_t> id_of;
  id_of.reserve(vocabulary.texts.size());
  for (size_t id = 0; id < vocabulary.texts.size(); ++id)
    id_of.emplace(vocabulary.texts[id], static_cast<int32_t>(id));  // of two equal texts the first counts
  spec.merges.reserve(merges->count);
  std::string joined;
  uint64_t rank = 0;
  for (std::string_view merge : GgufStrings(*merges)) {
    size_t space = merge.size() < 3 ? std::string_view::npos : merge.find(' ', 1);
    if (space == std::string_view::npos)
      return file.FieldError(kKey, fmt::format("element {}: '{}' is no pair", rank, PrintableName(merge)));
    std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
    joined.assign(left).append(right);
    auto left_id = id_of.find(left), right_id = id_of.find(right), result_id = id_of.find(joined);
    if (left_id == id_of.end() || right_id == id_of.end() || result_id == id_of.end())
      return file.FieldError(
          kKey, fmt::format("element {}: '{}': a part or the result is no token", rank, PrintableName(merge)));
    spec.merges.push_back({left_id->second, right_id->second, result_id->second});
    ++rank;
  }
  return {};
}

void AddToken(size_t id, std::string content, bool special, TokenizerSpec& spec) {
  spec.tokens[id] = content;
  if (!content.empty())
    spec.added.push_back({.id = static_cast<int32_t>(id), .content = std::move(content), .special = special});
}

void ReadByteLevelTokens(const Vocabulary& vocabulary, TokenizerSpec& spec) {
  spec.tokens.resize(vocabulary.texts.size());
  for (size_t id = 0; id < vocabulary.texts.size(); ++id) {
    std::string_view spelled = vocabulary.texts[id];
    switch (vocabulary.TypeOf(id)) {
      case kUnused: break;  // padding of the embedding
      case kUnknown:
      case kControl: AddToken(id, std::string(spelled), true, spec); break;
      case kUserDefined:
        // "[PAD8]" at 8: what some converters write for rows of the embedding that have no token.
        if (spelled != fmt::format("[PAD{}]", id)) AddToken(id, std::string(spelled), false, spec);
        break;
      default: spec.tokens[id] = text::BytesOrLiteral(spelled);
    }
  }
}

Result<void> ReadSentencePieceTokens(const GgufFile& file, const Vocabulary& vocabulary, TokenizerSpec& spec) {
  if (vocabulary.scores == nullptr)
    return file.FieldError("tokenizer.ggml.scores", "absent; a llama vocabulary needs it");
  size_t count = vocabulary.texts.size();
  spec.tokens.resize(count);
  spec.is_byte_token.resize(count);
  spec.scores.resize(count);
  for (size_t id = 0; id < count; ++id) {
    std::string_view spelled = vocabulary.texts[id];
    spec.scores[id] = GgufElement<float>(*vocabulary.scores, id);
    switch (vocabulary.TypeOf(id)) {
      case kUnused: break;
      case kUnknown:
      case kControl: AddToken(id, std::string(spelled), true, spec); break;
      case kUserDefined: AddToken(id, text::SpaceUnmarked(spelled), false, spec); break;
      case kByte:
        spec.is_byte_token[id] = 1;
        spec.byte_fallback = true;
        [[fallthrough]];
      default: spec.tokens[id] = std::string(spelled);
    }
  }
  return {};
}

// A special id. An id outside the vocabulary counts as absent, as in llama.cpp: files write -1 for "none" as 2^32 - 1.
Result<int32_t> ReadId(const GgufFile& file, std::string_view name, size_t tokens, int32_t otherwise) {
  ASSIGN_OR_RETURN(auto id, file.Int(fmt::format("tokenizer.ggml.{}_token_id", name), INT64_MIN, INT64_MAX));
  if (id && *id >= 0 && static_cast<uint64_t>(*id) < tokens) return static_cast<int32_t>(*id);
  return otherwise >= 0 && static_cast<size_t>(otherwise) < tokens ? otherwise : -1;
}

Result<void> ReadEnds(const GgufFile& file, const Vocabulary& vocabulary, TokenizerSpec& spec) {
  size_t count = vocabulary.texts.size();
  ASSIGN_OR_RETURN(int32_t eot, ReadId(file, "eot", count, -1));
  ASSIGN_OR_RETURN(int32_t eom, ReadId(file, "eom", count, -1));
  for (int32_t id : {eot, eom})
    if (id >= 0) spec.end_ids.push_back(id);
  text::FindEndIds(spec);
  return {};
}

Result<void> ReadByteLevel(const GgufFile& file, const Vocabulary& vocabulary, TokenizerSpec& spec) {
  ASSIGN_OR_RETURN(auto name, file.String("tokenizer.ggml.pre"));
  auto pre =
      std::find_if(kPres.begin(), kPres.end(), [&](const Pre& row) { return row.name == name.value_or("default"); });
  if (pre == kPres.end()) {
    std::string known;
    for (const Pre& row : kPres) known += fmt::format("{}{}", known.empty() ? "" : ", ", row.name);
    return Error(Code::kUnsupported,
                 file.FieldError("tokenizer.ggml.pre",
                                 fmt::format("'{}' is not supported (known: {})", PrintableName(*name), known))
                     .message(),
                 "tokenizer.ggml.pre");
  }
  spec.model = text::Model::kByteLevelBpe;
  spec.pre_tokenizer = pre->pre_tokenizer;
  spec.ignore_merges = pre->ignore_merges;
  spec.add_bos = pre->add_bos;
  spec.nfc = pre->nfc;
  ReadByteLevelTokens(vocabulary, spec);
  return ReadMerges(file, vocabulary, spec);
}

Result<void> ReadSentencePiece(const GgufFile& file, const Vocabulary& vocabulary, TokenizerSpec& spec) {
  spec.model = text::Model::kSentencePieceBpe;
  spec.pre_tokenizer = PreTokenizer::kNone;
  spec.fuse_unk = true;
  spec.add_bos = true;
  ASSIGN_OR_RETURN(auto prefix, file.Bool("tokenizer.ggml.add_space_prefix"));
  spec.add_prefix_space = prefix.value_or(true);
  spec.prefix_space_first_only = false;
  spec.strip_left_space = spec.add_prefix_space;
  return ReadSentencePieceTokens(file, vocabulary, spec);
}

}  // namespace

Result<TokenizerSpec> GgufTokenizer(const GgufFile& file) {
  TokenizerSpec spec;
  ASSIGN_OR_RETURN(auto model, file.String("tokenizer.ggml.model"));
  if (!model) return file.FieldError("tokenizer.ggml.model", "absent; the file carries no tokenizer");
  bool sentence_piece = *model == "llama";
  if (!sentence_piece && *model != "gpt2")
    return Error(Code::kUnsupported,
                 file.FieldError("tokenizer.ggml.model",
                                 fmt::format("'{}' is not supported (gpt2 and llama are)", PrintableName(*model)))
                     .message(),
                 "tokenizer.ggml.model");
  ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadVocabulary(file));
  RETURN_IF_ERROR(sentence_piece ? ReadSentencePiece(file, vocabulary, spec) : ReadByteLevel(file, vocabulary, spec));

  size_t count = vocabulary.texts.size();
  ASSIGN_OR_RETURN(spec.bos, ReadId(file, "bos", count, sentence_piece ? 1 : -1));
  ASSIGN_OR_RETURN(spec.eos, ReadId(file, "eos", count, sentence_piece ? 2 : -1));
  ASSIGN_OR_RETURN(spec.unk, ReadId(file, "unknown", count, sentence_piece ? 0 : -1));
  ASSIGN_OR_RETURN(spec.pad, ReadId(file, "padding", count, -1));
  ASSIGN_OR_RETURN(auto add_bos, file.Bool("tokenizer.ggml.add_bos_token"));
  ASSIGN_OR_RETURN(auto add_eos, file.Bool("tokenizer.ggml.add_eos_token"));
  spec.add_bos = add_bos.value_or(spec.add_bos) && spec.bos >= 0;
  spec.add_eos = add_eos.value_or(false) && spec.eos >= 0;
  ASSIGN_OR_RETURN(auto chat_template, file.String("tokenizer.chat_template"));
  spec.chat_template = std::string(chat_template.value_or(""));
  RETURN_IF_ERROR(ReadEnds(file, vocabulary, spec));
  return spec;
}

}  // namespace ekiben
