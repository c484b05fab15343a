// For tests: tiny tokenizers written in code, so that no test needs a model file.
#pragma once
#include <fmt/format.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "text/tokenizer.h"

namespace ekiben::text {

// Ids 0..255 are the bytes; then one token for each pair, in rank order.
inline TokenizerSpec ByteLevelSpec(const std::vector<std::pair<std::string, std::string>>& merges) {
  TokenizerSpec spec;
  std::map<std::string, int32_t> ids;
  for (int byte = 0; byte < 256; ++byte) {
    spec.tokens.emplace_back(1, static_cast<char>(byte));
    ids[spec.tokens.back()] = byte;
  }
  for (const auto& [left, right] : merges) {
    auto id = static_cast<int32_t>(spec.tokens.size());
    spec.tokens.push_back(left + right);
    spec.merges.push_back({ids.at(left), ids.at(right), id});
    ids.emplace(left + right, id);
  }
  return spec;
}

inline AddedToken MakeAdded(TokenizerSpec& spec, std::string content, bool special) {
  AddedToken token;
  token.id = static_cast<int32_t>(spec.tokens.size());
  token.content = std::move(content);
  token.special = special;
  spec.tokens.push_back(token.content);
  return token;
}

// <unk> <s> </s>, the 256 byte tokens, then `pieces` with falling scores.
inline TokenizerSpec SentencePieceSpec(const std::vector<std::string>& pieces) {
  TokenizerSpec spec;
  spec.model = Model::kSentencePieceBpe;
  spec.pre_tokenizer = PreTokenizer::kNone;
  spec.byte_fallback = spec.fuse_unk = spec.add_prefix_space = spec.strip_left_space = true;
  spec.prefix_space_first_only = false;
  for (const char* name : {"<unk>", "<s>", "</s>"}) spec.added.push_back(MakeAdded(spec, name, true));
  spec.unk = 0, spec.bos = 1, spec.eos = 2;
  spec.is_byte_token.assign(3, 0);
  for (int byte = 0; byte < 256; ++byte) {
    spec.tokens.push_back(fmt::format("<0x{:02X}>", byte));
    spec.is_byte_token.push_back(1);
  }
  spec.scores.assign(spec.tokens.size(), 0);
  for (const std::string& piece : pieces) {
    spec.scores.push_back(-static_cast<float>(spec.tokens.size()));
    spec.tokens.push_back(piece);
    spec.is_byte_token.push_back(0);
  }
  return spec;
}

inline std::unique_ptr<Tokenizer> MakeTokenizer(TokenizerSpec spec) {
  auto tokenizer = Tokenizer::Create(std::move(spec));
  CHECK(tokenizer.ok(), "{}", tokenizer.error().message());
  return *std::move(tokenizer);
}

}  // namespace ekiben::text
