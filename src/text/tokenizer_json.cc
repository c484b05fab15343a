// Hugging Face's tokenizer.json to a TokenizerSpec. What we could not encode exactly is refused by name.
#include <fmt/format.h>

#include <boost/json.hpp>
#include <charconv>
#include <unordered_map>

#include "base/json.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/sentencepiece.h"
#include "text/tokenizer_alphabet.h"
#include "text/tokenizer_files.h"

namespace ekiben::text {

namespace {

constexpr int64_t kIdMax = TokenizerFileLimits().id_max;
constexpr size_t kTokenBytesMax = TokenizerFileLimits().token_bytes_max;
constexpr std::string_view kMetaspace = kSpaceMark;
// Rust's char::is_ascii_punctuation or the Unicode category.
constexpr std::string_view kPunctuation = R"([\p{P}$+<=>^`|~])";

Error Bad(std::string_view field, std::string_view what) {
  return Error(Code::kInvalid, fmt::format("{}: {}", field, what), std::string(field));
}
Error Unsupported(std::string_view field, std::string_view what) {
  return Error(Code::kUnsupported, fmt::format("{}: {} is not supported", field, what), std::string(field));
}

std::string TypeOf(const json::object& object) {
  auto type = GetString(object, "type");
  return type.ok() ? (*type).value_or("") : "";
}
Result<bool> Flag(const json::object& object, std::string_view key, bool otherwise) {
  ASSIGN_OR_RETURN(std::optional<bool> value, GetBool(object, key));
  return value.value_or(otherwise);
}

using Ids = std::unordered_map<std::string_view, int32_t>;

class TokenizerJsonReader {
 public:
  Result<TokenizerSpec> Read(const json::object& root);

 private:
  Result<void> ReadNormalizer(const json::object& normalizer);
  Result<void> ReadPreTokenizer(const json::object& pre_tokenizer, bool alone);
  Result<void> ReadSplit(const json::object& split);
  Result<void> ReadMetaspace(const json::object& metaspace);
  Result<void> ReadDecoder(const json::object& decoder);
  Result<void> ReadModel(const json::object& model);
  Result<void> ReadVocabulary(const json::object& vocab);
  Result<void> ReadMerges(const json::array& merges);
  Result<void> ReadAdded(const json::array& added);
  Result<void> ReadPostProcessor(const json::object& processor);
  Result<void> ReadTemplate(const json::object& processor);
  void Settle();

  TokenizerSpec spec_;
  Ids ids_;                      // spelled tokens, views into the parsed file
  bool has_normalizer_ = false;  // one that changes text
  bool byte_level_ = false, metaspace_ = false;
};

// Members in order: some kinds nest in a Sequence.
Result<void> ForEach(const json::object& object, std::string_view key, auto&& each) {
  if (TypeOf(object) != "Sequence") return each(object, true);
  ASSIGN_OR_RETURN(const json::array* list, GetArray(object, key));
  if (list == nullptr) return {};
  for (const json::value& item : *list) {
    if (!item.is_object()) return Bad(key, "not an object");
    RETURN_IF_ERROR(each(item.get_object(), list->size() == 1));
  }
  return {};
}

// A pattern's text: {"String": "x"} or {"Regex": "x"}, the former escaped.
Result<std::string> PatternText(const json::object& owner) {
  ASSIGN_OR_RETURN(const json::object* pattern, GetObject(owner, "pattern"));
  if (pattern == nullptr) return Bad("pattern", "missing");
  ASSIGN_OR_RETURN(std::optional<std::string> regex, GetString(*pattern, "Regex"));
  if (regex.has_value()) return *regex;
  ASSIGN_OR_RETURN(std::optional<std::string> text, GetString(*pattern, "String"));
  if (!text.has_value()) return Bad("pattern", "neither Regex nor String");
  std::string escaped;
  for (char c : *text) {
    if (std::string_view(R"(\.+*?()|[]{}^$#&-~)").find(c) != std::string_view::npos) escaped += '\\';
    escaped += c;
  }
  return escaped;
}

Result<void> TokenizerJsonReader::ReadNormalizer(const json::object& normalizer) {
  return ForEach(normalizer, "normalizers", [this](const json::object& item, bool) -> Result<void> {
    std::string type = TypeOf(item);
    has_normalizer_ = true;
    if (type == "NFC") {
      spec_.nfc = true;
      return {};
    }
    if (type == "Prepend") {
      ASSIGN_OR_RETURN(std::optional<std::string> text, GetString(item, "prepend"));
      if (text != kMetaspace) return Unsupported("normalizer", "Prepend of anything but U+2581");
      spec_.add_prefix_space = true;
      spec_.prefix_space_first_only = false;
      return {};
    }
    if (type == "Replace") {
      ASSIGN_OR_RETURN(std::string from, PatternText(item));
      ASSIGN_OR_RETURN(std::optional<std::string> to, GetString(item, "content"));
      if (from != " " || to != kMetaspace) return Unsupported("normalizer", "Replace of anything but ' ' by U+2581");
      metaspace_ = true;
      return {};
    }
    return Unsupported("normalizer", "type '" + type + "'");
  });
}

Result<void> TokenizerJsonReader::ReadSplit(const json::object& split) {
  using Behavior = SplitPattern::Behavior;
  static const std::unordered_map<std::string_view, Behavior> kBehaviors = {
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"Contiguous", Behavior::kContiguous},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext}};
  ASSIGN_OR_RETURN(std::string regex, PatternText(split));
  ASSIGN_OR_RETURN(std::optional<std::string> name, GetString(split, "behavior"));
  ASSIGN_OR_RETURN(bool invert, Flag(split, "invert", false));
  auto behavior = kBehaviors.find(name.value_or(""));
  if (behavior == kBehaviors.end()) return Bad("behavior", "unknown '" + name.value_or("") + "'");
  if (metaspace_ && regex == " ") return {};  // Gemma: the normaliser has left no space
  spec_.patterns.push_back({std::move(regex), behavior->second, invert});
  return {};
}

Result<void> TokenizerJsonReader::ReadMetaspace(const json::object& metaspace) {
  ASSIGN_OR_RETURN(std::optional<std::string> mark, GetString(metaspace, "replacement"));
  if (mark.value_or("") != kMetaspace) return Unsupported("pre_tokenizer", "a Metaspace other than U+2581");
  ASSIGN_OR_RETURN(std::optional<std::string> scheme, GetString(metaspace, "prepend_scheme"));
  ASSIGN_OR_RETURN(bool old_prefix, Flag(metaspace, "add_prefix_space", true));
  ASSIGN_OR_RETURN(bool split, Flag(metaspace, "split", true));
  std::string when = scheme.value_or(old_prefix ? "always" : "never");
  if (when != "always" && when != "first" && when != "never") return Bad("prepend_scheme", "unknown '" + when + "'");
  metaspace_ = true;
  spec_.add_prefix_space = when != "never";
  spec_.prefix_space_first_only = when == "first";
  spec_.prefix_space_if_absent = true;
  if (split) {
    spec_.patterns.push_back({std::string(kMetaspace), SplitPattern::Behavior::kMergedWithNext, false});
  }
  return {};
}

Result<void> TokenizerJsonReader::ReadPreTokenizer(const json::object& pre_tokenizer, bool alone) {
  using Behavior = SplitPattern::Behavior;
  std::string type = TypeOf(pre_tokenizer);
  if (type == "Split") return ReadSplit(pre_tokenizer);
  if (type == "Metaspace") return ReadMetaspace(pre_tokenizer);
  if (type == "Digits") {
    ASSIGN_OR_RETURN(bool each, Flag(pre_tokenizer, "individual_digits", false));
    spec_.patterns.push_back({each ? R"(\p{N})" : R"(\p{N}+)", Behavior::kIsolated, false});
    return {};
  }
  if (type == "Punctuation") {
    ASSIGN_OR_RETURN(std::optional<std::string> behavior, GetString(pre_tokenizer, "behavior"));
    bool contiguous = behavior.value_or("") == "Contiguous";
    if (!contiguous && behavior.value_or("Isolated") != "Isolated") {
      return Unsupported("pre_tokenizer", "Punctuation with behavior '" + *behavior + "'");
    }
    spec_.patterns.push_back(
        {std::string(kPunctuation), contiguous ? Behavior::kContiguous : Behavior::kIsolated, false});
    return {};
  }
  if (type == "ByteLevel") {
    byte_level_ = true;
    ASSIGN_OR_RETURN(bool prefix, Flag(pre_tokenizer, "add_prefix_space", true));
    ASSIGN_OR_RETURN(bool use_regex, Flag(pre_tokenizer, "use_regex", true));
    if (prefix && !alone) return Unsupported("pre_tokenizer", "ByteLevel.add_prefix_space after another split");
    spec_.add_prefix_space = prefix;
    spec_.prefix_space_first_only = false;
    if (use_regex) {
      spec_.patterns.push_back({std::string(PatternsOf(PreTokenizer::kGpt2)[0]), Behavior::kIsolated, false});
    }
    return {};
  }
  return Unsupported("pre_tokenizer", "type '" + type + "'");
}

Result<void> TokenizerJsonReader::ReadDecoder(const json::object& decoder) {
  return ForEach(decoder, "decoders", [this](const json::object& item, bool) -> Result<void> {
    std::string type = TypeOf(item);
    if (type == "ByteLevel") {
      byte_level_ = true;
    } else if (type == "Strip") {
      ASSIGN_OR_RETURN(std::optional<int64_t> start, GetInt(item, "start", 0, 1));
      spec_.strip_left_space = start.value_or(0) == 1;
    } else if (type == "Metaspace") {
      metaspace_ = true;
      ASSIGN_OR_RETURN(std::optional<std::string> scheme, GetString(item, "prepend_scheme"));
      spec_.strip_left_space = scheme.value_or("always") != "never";
    } else if (type != "Replace" && type != "ByteFallback" && type != "Fuse") {
      return Unsupported("decoder", "type '" + type + "'");
    }
    return {};
  });
}

Result<void> TokenizerJsonReader::ReadVocabulary(const json::object& vocab) {
  int64_t top = -1;
  for (const auto& [token, id] : vocab) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > kIdMax) {
      return Bad("model.vocab", fmt::format("token '{}' has no id in 0..{}", std::string_view(token), kIdMax));
    }
    if (token.size() > kTokenBytesMax) {
      return Bad("model.vocab",
                 fmt::format("token {} has {} bytes; at most {}", id.get_int64(), token.size(), kTokenBytesMax));
    }
    top = std::max(top, id.get_int64());
  }
  if (top < 0) return Bad("model.vocab", "empty");
  // Ids are dense but for a few: a lone large id must not reserve millions of tokens.
  if (static_cast<size_t>(top) > vocab.size() * 4 + 65536) {
    return Bad("model.vocab", fmt::format("id {} in a vocabulary of {}", top, vocab.size()));
  }
  spec_.tokens.resize(static_cast<size_t>(top) + 1);
  ids_.reserve(vocab.size());
  for (const auto& [token, value] : vocab) {
    auto id = static_cast<int32_t>(value.get_int64());
    ids_.emplace(token, id);
    spec_.tokens[static_cast<size_t>(id)] = byte_level_ ? BytesOrLiteral(token) : std::string(token);
  }
  return {};
}

Result<void> TokenizerJsonReader::ReadMerges(const json::array& merges) {
  spec_.merges.reserve(merges.size());
  std::string joined;
  for (const json::value& merge : merges) {
    std::string_view left, right;
    if (merge.is_string()) {
      std::string_view both = merge.get_string();
      size_t space = both.find(' ');
      if (space == std::string_view::npos) return Bad("model.merges", fmt::format("'{}' has no space", both));
      left = both.substr(0, space), right = both.substr(space + 1);
    } else if (merge.is_array() && merge.get_array().size() == 2 && merge.get_array()[0].is_string() &&
               merge.get_array()[1].is_string()) {
      left = merge.get_array()[0].get_string(), right = merge.get_array()[1].get_string();
    } else {
      return Bad("model.merges", fmt::format("entry {} is no pair", spec_.merges.size()));
    }
    joined.assign(left).append(right);
    auto a = ids_.find(left), b = ids_.find(right), c = ids_.find(joined);
    if (a == ids_.end() || b == ids_.end() || c == ids_.end()) {
      return Bad("model.merges", fmt::format("entry {} ('{}' + '{}') names a token that model.vocab lacks",
                                             spec_.merges.size(), left, right));
    }
    spec_.merges.push_back({a->second, b->second, c->second});
  }
  return {};
}

Result<void> TokenizerJsonReader::ReadModel(const json::object& model) {
  ASSIGN_OR_RETURN(std::optional<std::string> type, GetString(model, "type"));
  if (type.value_or("BPE") != "BPE") return Unsupported("model.type", "'" + *type + "'");
  for (std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(std::optional<std::string> affix, GetString(model, key));
    if (!affix.value_or("").empty()) return Unsupported(fmt::format("model.{}", key), "'" + *affix + "'");
  }
  ASSIGN_OR_RETURN(spec_.byte_fallback, Flag(model, "byte_fallback", false));
  ASSIGN_OR_RETURN(spec_.fuse_unk, Flag(model, "fuse_unk", false));
  ASSIGN_OR_RETURN(spec_.ignore_merges, Flag(model, "ignore_merges", false));
  ASSIGN_OR_RETURN(const json::object* vocab, GetObject(model, "vocab"));
  ASSIGN_OR_RETURN(const json::array* merges, GetArray(model, "merges"));
  if (vocab == nullptr || merges == nullptr) return Bad("model", "needs vocab and merges");
  spec_.model = byte_level_ ? Model::kByteLevelBpe : Model::kSentencePieceBpe;
  RETURN_IF_ERROR(ReadVocabulary(*vocab));
  RETURN_IF_ERROR(ReadMerges(*merges));
  ASSIGN_OR_RETURN(std::optional<std::string> unk, GetString(model, "unk_token"));
  if (unk.has_value() && ids_.contains(*unk)) spec_.unk = ids_.find(*unk)->second;
  if (spec_.byte_fallback) {
    spec_.is_byte_token.assign(spec_.tokens.size(), 0);
    for (size_t id = 0; id < spec_.tokens.size(); ++id) spec_.is_byte_token[id] = ByteTokenValue(spec_.tokens[id]) >= 0;
  }
  return {};
}

Result<void> TokenizerJsonReader::ReadAdded(const json::array& added) {
  for (const json::value& item : added) {
    if (!item.is_object()) return Bad("added_tokens", "an entry is no object");
    const json::object& object = item.get_object();
    ASSIGN_OR_RETURN(std::optional<int64_t> id, GetInt(object, "id", 0, kIdMax));
    ASSIGN_OR_RETURN(std::optional<std::string> content, GetString(object, "content"));
    if (!id.has_value() || !content.has_value()) return Bad("added_tokens", "an entry lacks id or content");
    if (content->empty() || content->size() > kTokenBytesMax) {
      return Bad("added_tokens", fmt::format("token {} has {} bytes; 1 to {}", *id, content->size(), kTokenBytesMax));
    }
    auto index = static_cast<size_t>(*id);
    if (index >= spec_.tokens.size()) {
      if (index > (spec_.tokens.size() + added.size()) * 4 + 65536) {
        return Bad("added_tokens", fmt::format("id {} in a vocabulary of {}", *id, spec_.tokens.size()));
      }
      spec_.tokens.resize(index + 1);
      if (!spec_.is_byte_token.empty()) spec_.is_byte_token.resize(index + 1);
    }
    if (spec_.tokens[index].empty()) spec_.tokens[index] = byte_level_ ? BytesOrLiteral(*content) : *content;
    AddedToken token;
    token.id = static_cast<int32_t>(*id);
    token.content = std::move(*content);
    ASSIGN_OR_RETURN(token.special, Flag(object, "special", false));
    ASSIGN_OR_RETURN(token.normalized, Flag(object, "normalized", !token.special));
    ASSIGN_OR_RETURN(token.lstrip, Flag(object, "lstrip", false));
    ASSIGN_OR_RETURN(token.rstrip, Flag(object, "rstrip", false));
    ASSIGN_OR_RETURN(token.single_word, Flag(object, "single_word", false));
    spec_.added.push_back(std::move(token));
  }
  return {};
}

// {"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, ...], "special_tokens": {"<s>": {"ids":
// [1]}}}
Result<void> TokenizerJsonReader::ReadTemplate(const json::object& processor) {
  ASSIGN_OR_RETURN(const json::array* single, GetArray(processor, "single"));
  ASSIGN_OR_RETURN(const json::object* specials, GetObject(processor, "special_tokens"));
  if (single == nullptr) return Bad("post_processor.single", "missing");
  bool seen_text = false;
  for (const json::value& item : *single) {
    if (!item.is_object()) return Bad("post_processor.single", "an entry is no object");
    if (item.get_object().contains("Sequence")) {
      seen_text = true;
      continue;
    }
    ASSIGN_OR_RETURN(const json::object* special, GetObject(item.get_object(), "SpecialToken"));
    if (special == nullptr) return Bad("post_processor.single", "neither Sequence nor SpecialToken");
    ASSIGN_OR_RETURN(std::optional<std::string> name, GetString(*special, "id"));
    const json::value* entry = specials != nullptr ? specials->if_contains(name.value_or("")) : nullptr;
    if (entry == nullptr || !entry->is_object()) return Bad("post_processor.special_tokens", "a name is missing");
    ASSIGN_OR_RETURN(const json::array* ids, GetArray(entry->get_object(), "ids"));
    if (ids == nullptr || ids->size() != 1 || !(*ids)[0].is_int64() || (*ids)[0].get_int64() < 0 ||
        (*ids)[0].get_int64() > kIdMax) {
      return Unsupported("post_processor.special_tokens", "a special token of other than one id");
    }
    bool& adds = seen_text ? spec_.add_eos : spec_.add_bos;
    if (adds) return Unsupported("post_processor.single", "more than one special token on a side");
    adds = true;
    (seen_text ? spec_.eos : spec_.bos) = static_cast<int32_t>((*ids)[0].get_int64());
  }
  return {};
}

Result<void> TokenizerJsonReader::ReadPostProcessor(const json::object& processor) {
  return ForEach(processor, "processors", [this](const json::object& item, bool) -> Result<void> {
    std::string type = TypeOf(item);
    if (type == "ByteLevel") return {};  // offsets only
    if (type == "TemplateProcessing") return ReadTemplate(item);
    return Unsupported("post_processor", "type '" + type + "'");
  });
}

void TokenizerJsonReader::Settle() {
  spec_.pre_tokenizer = FamilyOf(spec_.patterns);
  if (spec_.pre_tokenizer != PreTokenizer::kPatterns) spec_.patterns.clear();
  // Without a normaliser the text is the same before and after, and Metaspace's mark must not hide a token.
  if (metaspace_ && !has_normalizer_) {
    for (AddedToken& token : spec_.added) token.normalized = false;
  }
}

Result<TokenizerSpec> TokenizerJsonReader::Read(const json::object& root) {
  ASSIGN_OR_RETURN(const json::object* normalizer, GetObject(root, "normalizer"));
  if (normalizer != nullptr) RETURN_IF_ERROR(ReadNormalizer(*normalizer));
  ASSIGN_OR_RETURN(const json::object* pre_tokenizer, GetObject(root, "pre_tokenizer"));
  if (pre_tokenizer != nullptr) {
    auto each = [this](const json::object& item, bool alone) { return ReadPreTokenizer(item, alone); };
    RETURN_IF_ERROR(ForEach(*pre_tokenizer, "pretokenizers", each));
  }
  ASSIGN_OR_RETURN(const json::object* decoder, GetObject(root, "decoder"));
  if (decoder != nullptr) RETURN_IF_ERROR(ReadDecoder(*decoder));
  ASSIGN_OR_RETURN(const json::object* model, GetObject(root, "model"));
  if (model == nullptr) return Bad("model", "missing");
  if (byte_level_ && metaspace_) return Unsupported("pre_tokenizer", "ByteLevel together with U+2581");
  RETURN_IF_ERROR(ReadModel(*model));
  ASSIGN_OR_RETURN(const json::array* added, GetArray(root, "added_tokens"));
  if (added != nullptr) RETURN_IF_ERROR(ReadAdded(*added));
  ASSIGN_OR_RETURN(const json::object* processor, GetObject(root, "post_processor"));
  if (processor != nullptr) RETURN_IF_ERROR(ReadPostProcessor(*processor));
  Settle();
  FindEndIds(spec_);
  return std::move(spec_);
}

}  // namespace

Result<TokenizerSpec> ParseTokenizerJson(std::string_view text, std::string_view source) {
  JsonLimits limits;
  limits.bytes_max = TokenizerFileLimits().file_bytes_max;
  auto spec = [&]() -> Result<TokenizerSpec> {
    ASSIGN_OR_RETURN(json::value root, ParseJson(text, limits));
    if (!root.is_object()) return Bad("tokenizer.json", "not an object");
    return TokenizerJsonReader().Read(root.get_object());
  }();
  if (!spec.ok()) return std::move(spec).error().Within(source);
  return spec;
}

}  // namespace ekiben::text
