// Byte-level vocabularies without Hugging Face's json: tiktoken ranks (Llama 3 and 4, Qwen, o200k), Mistral's tekken,
// and GPT-2's vocab.json + merges.txt.
#include <fmt/format.h>
#include <openssl/evp.h>

#include <boost/json.hpp>
#include <charconv>
#include <unordered_map>

#include "base/json.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_alphabet.h"
#include "text/tokenizer_files.h"

namespace ekiben::text {

namespace {

constexpr size_t kIdMax = static_cast<size_t>(TokenizerFileLimits().id_max);
constexpr size_t kTokenBytesMax = TokenizerFileLimits().token_bytes_max;

Error Bad(std::string_view source, std::string_view what) {
  return Error(Code::kInvalid, fmt::format("{}: {}", source, what));
}

// nullopt: not canonical base64.
std::optional<std::string> FromBase64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0 || text.size() > kTokenBytesMax) return std::nullopt;
  std::string out(text.size() / 4 * 3, '\0');
  int size = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                             reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
  if (size < 0) return std::nullopt;
  size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  out.resize(static_cast<size_t>(size) - padding);
  return out;
}

void AddSpecial(TokenizerSpec& spec, size_t id, std::string content) {
  if (id >= spec.tokens.size()) spec.tokens.resize(id + 1);
  spec.tokens[id] = content;
  AddedToken& token = spec.added.emplace_back();
  token.id = static_cast<int32_t>(id);
  token.content = std::move(content);
  token.special = true;
}

// One past the last id.
size_t AddReserved(TokenizerSpec& spec, size_t id, std::string_view format, int from, int to) {
  for (int i = from; i < to; ++i) AddSpecial(spec, id++, fmt::format(fmt::runtime(format), i));
  return id;
}

void AddLlama3(TokenizerSpec& spec) {
  spec.pre_tokenizer = PreTokenizer::kLlama3;
  size_t id = spec.tokens.size();
  spec.bos = static_cast<int32_t>(id);
  spec.eos = static_cast<int32_t>(id + 1);
  spec.pad = static_cast<int32_t>(id + 4);
  spec.add_bos = true;
  for (const char* name :
       {"<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
        "<|eot_id|>", "<|python_tag|>", "<|image|>"}) {
    AddSpecial(spec, id++, name);
  }
  AddReserved(spec, id, "<|reserved_special_token_{}|>", 2, 246);
}

void AddLlama4(TokenizerSpec& spec) {
  spec.pre_tokenizer = PreTokenizer::kGpt4o;
  size_t first = spec.tokens.size();
  size_t id = first;
  auto names = [&](std::initializer_list<const char*> list) {
    for (const char* name : list) AddSpecial(spec, id++, name);
  };
  auto reserved = [&](std::string_view format, int from, int to) { id = AddReserved(spec, id, format, from, to); };
  spec.bos = static_cast<int32_t>(id);
  spec.eos = static_cast<int32_t>(id + 1);
  spec.add_bos = true;
  names({"<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
         "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"});
  reserved("<|text_post_train_reserved_special_token_{}|>", 0, 6);
  names({"<|python_start|>", "<|python_end|>"});
  spec.pad = static_cast<int32_t>(id);
  names({"<|finetune_right_pad|>"});
  reserved("<|text_post_train_reserved_special_token_{}|>", 8, 69);
  names({"<|image_start|>", "<|image_end|>"});
  reserved("<|vision_reserved_special_token_{}|>", 0, 2);
  names({"<|tile_x_separator|>", "<|tile_y_separator|>"});
  reserved("<|vision_reserved_special_token_{}|>", 2, 6);
  names({"<|image|>"});
  reserved("<|vision_reserved_special_token_{}|>", 6, 7);
  names({"<|patch|>"});
  reserved("<|vision_reserved_special_token_{}|>", 7, 1048);
  reserved("<|reasoning_reserved_special_token_{}|>", 0, 8);
  names({"<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"});
  reserved("<|reserved_special_token_{}|>", 0, static_cast<int>(2048 - (id - first)));
}

void AddQwen(TokenizerSpec& spec) {
  spec.pre_tokenizer = PreTokenizer::kQwen2;
  spec.nfc = true;
  size_t id = spec.tokens.size();
  spec.pad = static_cast<int32_t>(id);
  spec.eos = static_cast<int32_t>(id + 2);
  for (const char* name : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) AddSpecial(spec, id++, name);
  AddReserved(spec, id, "<|extra_{}|>", 0, 205);
}

void AddO200k(TokenizerSpec& spec) {
  spec.pre_tokenizer = PreTokenizer::kGpt4o;
  spec.eos = 199999;
  AddSpecial(spec, 199999, "<|endoftext|>");
  AddSpecial(spec, 200018, "<|endofprompt|>");
}

}  // namespace

Result<TokenizerSpec> ParseTiktoken(std::string_view ranks, std::string_view source) {
  TokenizerSpec spec;
  spec.model = Model::kTiktokenBpe;
  size_t line_number = 0;
  while (!ranks.empty()) {
    ++line_number;
    size_t end = ranks.find('\n');
    std::string_view line = ranks.substr(0, end);
    ranks.remove_prefix(end == std::string_view::npos ? ranks.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    auto bad = [&](std::string_view what) { return Bad(source, fmt::format("line {}: {}", line_number, what)); };
    size_t space = line.find(' ');
    if (space == std::string_view::npos) return bad("not 'base64 rank'");
    std::optional<std::string> token = FromBase64(line.substr(0, space));
    if (!token.has_value()) return bad("not base64");
    size_t rank = 0;
    auto [stop, error] = std::from_chars(line.data() + space + 1, line.data() + line.size(), rank);
    if (error != std::errc() || stop != line.data() + line.size()) return bad("no rank");
    // Published files are in rank order; the rank is the id, so a gap would be an id without a token.
    if (rank != spec.tokens.size() || rank > kIdMax) {
      return bad(fmt::format("rank {}, {} is wanted", rank, spec.tokens.size()));
    }
    spec.tokens.push_back(std::move(*token));
  }
  switch (spec.tokens.size()) {
    case 128000: AddLlama3(spec); break;
    case 200000: AddLlama4(spec); break;
    case 151643: AddQwen(spec); break;
    case 199998: AddO200k(spec); break;
    default:
      return Error(Code::kUnsupported,
                   fmt::format("{}: {} tiktoken ranks name no family that is known (128000 Llama 3, 200000 Llama 4, "
                               "151643 Qwen, 199998 o200k): its pattern and special tokens are not in the file; use "
                               "its tokenizer.json",
                               source, spec.tokens.size()));
  }
  FindEndIds(spec);
  return spec;
}

namespace {

// Before v11 a tekken file has no special tokens of its own: these, then fillers.
constexpr const char* kOldTekkenSpecials[] = {"<unk>",
                                              "<s>",
                                              "</s>",
                                              "[INST]",
                                              "[/INST]",
                                              "[AVAILABLE_TOOLS]",
                                              "[/AVAILABLE_TOOLS]",
                                              "[TOOL_RESULTS]",
                                              "[/TOOL_RESULTS]",
                                              "[TOOL_CALLS]",
                                              "[IMG]",
                                              "<pad>",
                                              "[IMG_BREAK]",
                                              "[IMG_END]",
                                              "[PREFIX]",
                                              "[MIDDLE]",
                                              "[SUFFIX]",
                                              "[SYSTEM_PROMPT]",
                                              "[/SYSTEM_PROMPT]",
                                              "[TOOL_CONTENT]"};

Result<void> ReadTekkenSpecials(const json::object& root, size_t count, TokenizerSpec& spec) {
  ASSIGN_OR_RETURN(const json::array* list, GetArray(root, "special_tokens"));
  std::vector<std::string> names(count);
  if (list == nullptr) {
    size_t known = std::size(kOldTekkenSpecials);
    if (count < known) return Error(Code::kInvalid, fmt::format("default_num_special_tokens: {} < {}", count, known));
    std::copy(std::begin(kOldTekkenSpecials), std::end(kOldTekkenSpecials), names.begin());
  } else {
    for (const json::value& item : *list) {
      if (!item.is_object()) return Error(Code::kInvalid, "special_tokens: an entry is no object");
      ASSIGN_OR_RETURN(std::optional<int64_t> rank, GetInt(item.get_object(), "rank", 0, static_cast<int64_t>(kIdMax)));
      ASSIGN_OR_RETURN(std::optional<std::string> text, GetString(item.get_object(), "token_str"));
      if (!rank.has_value() || !text.has_value() || static_cast<size_t>(*rank) >= count) {
        return Error(Code::kInvalid, fmt::format("special_tokens: an entry without a rank below {}", count));
      }
      names[static_cast<size_t>(*rank)] = *text;
    }
  }
  for (size_t id = 0; id < count; ++id) {
    if (names[id].empty()) names[id] = fmt::format("<SPECIAL_{}>", id);
    if (names[id] == "<unk>") spec.unk = static_cast<int32_t>(id);
    if (names[id] == "<s>") spec.bos = static_cast<int32_t>(id);
    if (names[id] == "</s>") spec.eos = static_cast<int32_t>(id);
    if (names[id] == "<pad>") spec.pad = static_cast<int32_t>(id);
    AddSpecial(spec, id, std::move(names[id]));
  }
  spec.add_bos = spec.bos >= 0;
  return {};
}

// Ids are special tokens first, then the vocabulary by rank, cut to default_vocab_size.
Result<TokenizerSpec> ReadTekken(const json::object& root) {
  TokenizerSpec spec;
  spec.model = Model::kTiktokenBpe;
  ASSIGN_OR_RETURN(const json::object* config, GetObject(root, "config"));
  ASSIGN_OR_RETURN(const json::array* vocab, GetArray(root, "vocab"));
  if (config == nullptr || vocab == nullptr) return Error(Code::kInvalid, "needs config and vocab");
  auto top = static_cast<int64_t>(kIdMax);
  ASSIGN_OR_RETURN(std::optional<std::string> pattern, GetString(*config, "pattern"));
  ASSIGN_OR_RETURN(std::optional<int64_t> size, GetInt(*config, "default_vocab_size", 1, top));
  ASSIGN_OR_RETURN(std::optional<int64_t> specials, GetInt(*config, "default_num_special_tokens", 0, 65536));
  if (!pattern.has_value() || !size.has_value() || !specials.has_value() || *size < *specials ||
      static_cast<uint64_t>(*size - *specials) > vocab->size()) {
    return Error(Code::kInvalid, "config: pattern, default_vocab_size and default_num_special_tokens do not fit vocab");
  }
  RETURN_IF_ERROR(ReadTekkenSpecials(root, static_cast<size_t>(*specials), spec));
  spec.tokens.resize(static_cast<size_t>(*size));
  for (int64_t rank = 0; rank < *size - *specials; ++rank) {
    const json::value& item = (*vocab)[static_cast<size_t>(rank)];
    if (!item.is_object()) return Error(Code::kInvalid, fmt::format("vocab: entry {} is no object", rank));
    ASSIGN_OR_RETURN(std::optional<int64_t> own_rank, GetInt(item.get_object(), "rank", 0, top));
    ASSIGN_OR_RETURN(std::optional<std::string> spelled, GetString(item.get_object(), "token_bytes"));
    std::optional<std::string> bytes = FromBase64(spelled.value_or(""));
    if (own_rank != rank || !bytes.has_value()) {
      return Error(Code::kInvalid, fmt::format("vocab: entry {} has no such rank or no base64 token_bytes", rank));
    }
    spec.tokens[static_cast<size_t>(rank + *specials)] = std::move(*bytes);
  }
  spec.patterns.push_back({std::move(*pattern), SplitPattern::Behavior::kIsolated, false});
  spec.pre_tokenizer = FamilyOf(spec.patterns);
  if (spec.pre_tokenizer != PreTokenizer::kPatterns) spec.patterns.clear();
  FindEndIds(spec);
  return spec;
}

}  // namespace

Result<TokenizerSpec> ParseTekken(std::string_view text, std::string_view source) {
  JsonLimits limits;
  limits.bytes_max = TokenizerFileLimits().file_bytes_max;
  auto spec = [&]() -> Result<TokenizerSpec> {
    ASSIGN_OR_RETURN(json::value root, ParseJson(text, limits));
    if (!root.is_object()) return Error(Code::kInvalid, "not a JSON object");
    return ReadTekken(root.get_object());
  }();
  if (!spec.ok()) return std::move(spec).error().Within(source);
  return spec;
}

Result<TokenizerSpec> ParseGpt2(std::string_view vocab_json, std::string_view merges, std::string_view source) {
  JsonLimits limits;
  limits.bytes_max = TokenizerFileLimits().file_bytes_max;
  auto root = ParseJson(vocab_json, limits);
  if (!root.ok()) return std::move(root).error().Within(source);
  if (!root->is_object() || root->get_object().empty()) return Bad(source, "not a JSON object of tokens");
  TokenizerSpec spec;
  const json::object& vocab = root->get_object();
  std::unordered_map<std::string_view, int32_t> ids;
  spec.tokens.resize(vocab.size());
  for (const auto& [token, id] : vocab) {
    if (!id.is_int64() || id.get_int64() < 0 || static_cast<size_t>(id.get_int64()) >= vocab.size() ||
        static_cast<size_t>(id.get_int64()) > kIdMax) {
      return Bad(source, fmt::format("token '{}' has no id in 0..{}", std::string_view(token), vocab.size() - 1));
    }
    ids.emplace(token, static_cast<int32_t>(id.get_int64()));
    spec.tokens[static_cast<size_t>(id.get_int64())] = BytesOrLiteral(token);
  }
  size_t line_number = 0;
  std::string joined;
  while (!merges.empty()) {
    ++line_number;
    size_t end = merges.find('\n');
    std::string_view line = merges.substr(0, end);
    merges.remove_prefix(end == std::string_view::npos ? merges.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (line_number == 1 && line.starts_with("#version"))) continue;
    size_t space = std::min(line.find(' '), line.size());
    joined.assign(line.substr(0, space)).append(line.substr(std::min(space + 1, line.size())));
    auto left = ids.find(line.substr(0, space)), right = ids.find(line.substr(std::min(space + 1, line.size())));
    auto result = ids.find(joined);
    if (left == ids.end() || right == ids.end() || result == ids.end()) {
      return Bad(source,
                 fmt::format("merges line {}: '{}' names a token that the vocabulary lacks", line_number, line));
    }
    spec.merges.push_back({left->second, right->second, result->second});
  }
  if (auto end = ids.find("<|endoftext|>"); end != ids.end()) {
    spec.bos = spec.eos = end->second;
    AddSpecial(spec, static_cast<size_t>(end->second), "<|endoftext|>");
  }
  FindEndIds(spec);
  return spec;
}

}  // namespace ekiben::text
