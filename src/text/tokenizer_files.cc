#include "text/tokenizer_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <functional>
#include <unordered_map>

#include "base/json.h"
#include "base/mapped_file.h"

namespace ekiben::text {

namespace {

namespace fs = std::filesystem;

constexpr size_t kConfigBytesMax = size_t{16} << 20;

std::string_view Content(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

bool Exists(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

// Whether `key` is a member whose value opens with `open`: enough to tell the JSON kinds apart without parsing twice.
bool HasMember(std::string_view text, std::string_view key, char open) {
  std::string quoted = fmt::format("\"{}\"", key);
  for (size_t at = text.find(quoted); at != std::string_view::npos; at = text.find(quoted, at + 1)) {
    size_t colon = text.find_first_not_of(" \t\r\n", at + quoted.size());
    if (colon == std::string_view::npos || text[colon] != ':') continue;
    size_t value = text.find_first_not_of(" \t\r\n", colon + 1);
    if (value != std::string_view::npos && text[value] == open) return true;
  }
  return false;
}

Result<TokenizerSpec> LoadJson(const fs::path& path, std::string_view text) {
  if (HasMember(text, "model", '{')) return ParseTokenizerJson(text, path.string());
  if (HasMember(text.substr(0, size_t{1} << 16), "token_bytes", '"')) return ParseTekken(text, path.string());
  for (const char* name : {"merges.txt", "vocab.bpe"}) {
    fs::path beside = path.parent_path() / name;
    if (!Exists(beside)) continue;
    ASSIGN_OR_RETURN(MappedFile merges, MappedFile::Open(beside));
    return ParseGpt2(text, Content(merges), path.string());
  }
  return Error(Code::kInvalid, fmt::format("{}: neither a tokenizer.json nor tekken, and no merges.txt or vocab.bpe "
                                           "beside it",
                                           path.string()));
}

// A name of a special token, written plainly or as {"content": ...}.
std::string NameOf(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (value != nullptr && value->is_object()) value = value->get_object().if_contains("content");
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
}

int32_t IdOf(const TokenizerSpec& spec, std::string_view name) {
  if (name.empty()) return -1;
  for (const AddedToken& token : spec.added) {
    if (token.content == name) return token.id;
  }
  auto at = std::find(spec.tokens.begin(), spec.tokens.end(), name);
  return at == spec.tokens.end() ? -1 : static_cast<int32_t>(at - spec.tokens.begin());
}

// {"32000": {"content": "<|user|>", "special": true}, ...}: tokens that a .model file does not have.
void AddConfigTokens(const json::object& config, TokenizerSpec& spec) {
  auto tokens = GetObject(config, "added_tokens_decoder");
  if (!tokens.ok() || *tokens == nullptr) return;
  for (const auto& [key, value] : **tokens) {
    int32_t id = -1;
    std::from_chars(key.data(), key.data() + key.size(), id);
    if (id < 0 || id > TokenizerFileLimits().id_max || !value.is_object()) continue;
    if (static_cast<size_t>(id) > spec.tokens.size() + (*tokens)->size()) continue;
    AddedToken token;
    token.id = id;
    token.content = NameOf(value.get_object(), "content");
    auto same = [&](const AddedToken& other) { return other.id == id; };
    if (token.content.empty() || std::any_of(spec.added.begin(), spec.added.end(), same)) continue;
    auto flag = [&object = value.get_object()](const char* name) {
      auto found = GetBool(object, name);
      return found.ok() && (*found).value_or(false);
    };
    token.special = flag("special");
    token.lstrip = flag("lstrip");
    token.rstrip = flag("rstrip");
    token.single_word = flag("single_word");
    if (static_cast<size_t>(id) >= spec.tokens.size()) {
      spec.tokens.resize(static_cast<size_t>(id) + 1);
      if (!spec.scores.empty()) spec.scores.resize(spec.tokens.size());
      if (!spec.is_byte_token.empty()) spec.is_byte_token.resize(spec.tokens.size());
    }
    spec.tokens[static_cast<size_t>(id)] = token.content;
    spec.added.push_back(std::move(token));
  }
}

// "chat_template": a string, or [{"name": "default", "template": "..."}, ...].
std::string TemplateOf(const json::object& config) {
  const json::value* value = config.if_contains("chat_template");
  if (value == nullptr) return "";
  if (value->is_string()) return std::string(value->get_string());
  if (!value->is_array()) return "";
  for (const json::value& item : value->get_array()) {
    if (item.is_object() && NameOf(item.get_object(), "name") == "default") {
      return NameOf(item.get_object(), "template");
    }
  }
  return "";
}

void AddEndIds(const json::object& config, TokenizerSpec& spec) {
  const json::value* value = config.if_contains("eos_token_id");
  if (value == nullptr) return;
  auto add = [&](const json::value& id) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= static_cast<int64_t>(spec.tokens.size())) return;
    spec.end_ids.push_back(static_cast<int32_t>(id.get_int64()));
  };
  if (value->is_array()) {
    for (const json::value& id : value->get_array()) add(id);
  } else {
    add(*value);
  }
}

// A damaged side file is an error: running with a wrong end token is worse than not starting.
Result<void> WithConfig(const fs::path& path, const std::function<void(const json::object&)>& use) {
  if (!Exists(path)) return {};
  ASSIGN_OR_RETURN(std::string text, ReadFile(path, kConfigBytesMax));
  auto root = ParseJson(text);
  if (!root.ok()) return std::move(root).error().Within(path.string());
  if (!root->is_object()) return Error(Code::kInvalid, fmt::format("{}: not a JSON object", path.string()));
  use(root->get_object());
  return {};
}

Result<void> ReadSideFiles(const fs::path& folder, TokenizerSpec& spec) {
  auto names = [&](const json::object& config) {
    for (auto [key, id] : {std::pair("bos_token", &spec.bos),
                           {"eos_token", &spec.eos},
                           {"unk_token", &spec.unk},
                           {"pad_token", &spec.pad}}) {
      if (int32_t found = IdOf(spec, NameOf(config, key)); found >= 0) *id = found;
    }
  };
  RETURN_IF_ERROR(WithConfig(folder / "special_tokens_map.json", names));
  RETURN_IF_ERROR(WithConfig(folder / "tokenizer_config.json", [&](const json::object& config) {
    AddConfigTokens(config, spec);
    names(config);
    for (auto [key, flag, id] :
         {std::tuple("add_bos_token", &spec.add_bos, spec.bos), {"add_eos_token", &spec.add_eos, spec.eos}}) {
      auto value = GetBool(config, key);
      if (value.ok() && (*value).has_value()) *flag = **value && id >= 0;
    }
    spec.chat_template = TemplateOf(config);
  }));
  RETURN_IF_ERROR(WithConfig(folder / "chat_template.json", [&](const json::object& config) {
    if (std::string found = TemplateOf(config); !found.empty()) spec.chat_template = found;
  }));
  if (Exists(folder / "chat_template.jinja")) {
    ASSIGN_OR_RETURN(spec.chat_template, ReadFile(folder / "chat_template.jinja", kConfigBytesMax));
  }
  RETURN_IF_ERROR(WithConfig(folder / "config.json", [&](const json::object& config) { AddEndIds(config, spec); }));
  return WithConfig(folder / "generation_config.json", [&](const json::object& config) { AddEndIds(config, spec); });
}

}  // namespace

void FindEndIds(TokenizerSpec& spec) {
  constexpr std::string_view kEnds[] = {"<|eot_id|>",
                                        "<|eom_id|>",
                                        "<|im_end|>",
                                        "<|end|>",
                                        "<end_of_turn>",
                                        "<|endoftext|>",
                                        "<|end_of_text|>",
                                        "<|eot|>",
                                        "<|eom|>",
                                        "<EOT>",
                                        "<|END_OF_TURN_TOKEN|>",
                                        "<|end_of_turn|>",
                                        "<\uff5cend\u2581of\u2581sentence\uff5c>",
                                        "<|return|>",
                                        "<|user_end|>",
                                        "<turn|>"};
  if (spec.eos >= 0) spec.end_ids.push_back(spec.eos);
  for (const AddedToken& token : spec.added) {
    if (std::find(std::begin(kEnds), std::end(kEnds), token.content) != std::end(kEnds)) {
      spec.end_ids.push_back(token.id);
    }
  }
  std::sort(spec.end_ids.begin(), spec.end_ids.end());
  spec.end_ids.erase(std::unique(spec.end_ids.begin(), spec.end_ids.end()), spec.end_ids.end());
}

Result<TokenizerSpec> LoadTokenizerFile(const fs::path& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  std::string_view text = Content(file);
  if (text.size() > TokenizerFileLimits().file_bytes_max) {
    return Error(Code::kInvalid, fmt::format("{}: {} bytes; a tokenizer file has at most {}", path.string(),
                                             text.size(), TokenizerFileLimits().file_bytes_max));
  }
  size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return Error(Code::kInvalid, fmt::format("{}: empty", path.string()));
  if (text[first] == '{') return LoadJson(path, text);
  // A SentencePiece model begins with field 1, counted: 0x0A, which in a text file would be an empty line.
  if (text[0] == '\n') return ParseSentencePiece(text, path.string());
  return ParseTiktoken(text, path.string());
}

Result<TokenizerSpec> LoadTokenizerFolder(const fs::path& folder) {
  fs::path found;
  for (const char* name :
       {"tokenizer.json", "tokenizer.model", "tekken.json", "qwen.tiktoken", "vocab.json", "encoder.json"}) {
    if (Exists(folder / name)) {
      found = folder / name;
      break;
    }
  }
  if (found.empty()) {
    return Error(Code::kNotFound, fmt::format("{}: no tokenizer.json, tokenizer.model, tekken.json, qwen.tiktoken or "
                                              "vocab.json",
                                              folder.string()));
  }
  ASSIGN_OR_RETURN(TokenizerSpec spec, LoadTokenizerFile(found));
  RETURN_IF_ERROR(ReadSideFiles(folder, spec));
  FindEndIds(spec);
  return spec;
}

}  // namespace ekiben::text
