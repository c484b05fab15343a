// tokenizer.ggml.* as a TokenizerSpec.
// The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what an absent key means follows
// llama.cpp, which wrote most of the files.
#include <algorithm>
#include <array>
#include <unordered_map>

#include "base/arithmetic.h"
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

// Control tokens with these texts end a turn, whether or not the file says so elsewhere.
constexpr std::array<std::string_view, 16> kEndTexts = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eot|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<|end_of_turn|>",
    "<|return|>",
    "<|call|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
};

// GPT-2's alphabet: a byte that prints stands for itself, the other 68 for U+0100 on, in order.
constexpr uint16_t kAlphabetEnd = 256 + 68;
std::array<int16_t, kAlphabetEnd> MakeByteOfCodePoint() {
  std::array<int16_t, kAlphabetEnd> out;
  out.fill(-1);
  uint16_t next = 256;
  for (int16_t byte = 0; byte < 256; ++byte) {
    bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    out[prints ? static_cast<uint16_t>(byte) : next++] = byte;
  }
  return out;
}

// The bytes that a token of a byte-level vocabulary stands for; nullopt when a character is outside the alphabet.
std::optional<std::string> DecodeAlphabet(std::string_view text) {
  static const std::array<int16_t, kAlphabetEnd> kByteOf = MakeByteOfCodePoint();
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    auto lead = static_cast<unsigned char>(text[i]);
    uint32_t code = lead;
    if (lead >= 0x80) {  // the alphabet ends at U+0143: one or two bytes
      if ((lead & 0xe0) != 0xc0 || i + 1 >= text.size() || (static_cast<unsigned char>(text[i + 1]) & 0xc0) != 0x80)
        return std::nullopt;
      code = (lead & 0x1fu) << 6 | (static_cast<unsigned char>(text[i + 1]) & 0x3fu);
      ++i;
    }
    ++i;
    if (code >= kAlphabetEnd || kByteOf[code] < 0) return std::nullopt;
    out.push_back(static_cast<char>(kByteOf[code]));
  }
  return out;
}

std::string ReplaceSpaceMarks(std::string_view text) {
  constexpr std::string_view kMark = "\xe2\x96\x81";  // U+2581
  std::string out;
  for (size_t i = 0; i < text.size();) {
    bool mark = text.substr(i).starts_with(kMark);
    out.push_back(mark ? ' ' : text[i]);
    i += mark ? kMark.size() : 1;
  }
  return out;
}

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
    std::string_view text = vocabulary.texts[id];
    switch (vocabulary.TypeOf(id)) {
      case kUnused: break;  // padding of the embedding
      case kUnknown:
      case kControl: AddToken(id, std::string(text), true, spec); break;
      case kUserDefined:
        // "[PAD8]" at 8: what some converters write for rows of the embedding that have no token.
        if (text != fmt::format("[PAD{}]", id)) AddToken(id, std::string(text), false, spec);
        break;
      default: spec.tokens[id] = DecodeAlphabet(text).value_or(std::string(text));
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
    std::string_view text = vocabulary.texts[id];
    spec.scores[id] = GgufElement<float>(*vocabulary.scores, id);
    switch (vocabulary.TypeOf(id)) {
      case kUnused: break;
      case kUnknown:
      case kControl: AddToken(id, std::string(text), true, spec); break;
      case kUserDefined: AddToken(id, ReplaceSpaceMarks(text), false, spec); break;
      case kByte:
        spec.is_byte_token[id] = 1;
        spec.byte_fallback = true;
        [[fallthrough]];
      default: spec.tokens[id] = std::string(text);
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
  for (int32_t id : {spec.eos, eot, eom})
    if (id >= 0) spec.end_ids.push_back(id);
  for (const text::AddedToken& token : spec.added)
    if (token.special && std::find(kEndTexts.begin(), kEndTexts.end(), token.content) != kEndTexts.end())
      spec.end_ids.push_back(token.id);
  std::sort(spec.end_ids.begin(), spec.end_ids.end());
  spec.end_ids.erase(std::unique(spec.end_ids.begin(), spec.end_ids.end()), spec.end_ids.end());
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
