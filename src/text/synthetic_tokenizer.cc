#include "text/synthetic_tokenizer.h"

#include <algorithm>
#include <boost/json.hpp>
#include <set>

#include "base/json.h"
#include "text/english_words.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_alphabet.h"
#include "text/tokenizer_files.h"

namespace ekiben::text {
namespace {

constexpr std::string_view kConsonants = "bcdfghjklmnpqrstvwxz", kVowels = "aeiou";
constexpr int32_t kSyllables = 100, kMadeUpWords = kSyllables * kSyllables * kSyllables;
constexpr std::string_view kEndOfText = "<|endoftext|>", kTurnBegin = "<|im_start|>", kTurnEnd = "<|im_end|>";
constexpr std::string_view kChatTemplate =
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

static_assert(kConsonants.size() * kVowels.size() == kSyllables);

// Three syllables after a space; distinct for distinct numbers.
std::string MadeUpWord(int32_t number) {
  std::string out = " ";
  for (int32_t divisor : {kSyllables * kSyllables, kSyllables, 1}) {
    auto syllable = static_cast<size_t>(number / divisor % kSyllables);
    out += kConsonants[syllable / kVowels.size()];
    out += kVowels[syllable % kVowels.size()];
  }
  return out;
}

// All tokens but the special ones, in the order of their ids.
Result<std::vector<std::string>> Tokens(size_t count) {
  std::vector<std::string> out;
  for (int byte = 0; byte < 256; ++byte) out.emplace_back(1, static_cast<char>(byte));
  std::set<std::string> words;
  for (std::string_view word : EnglishWords()) {
    if (word.size() > 1) words.insert(std::string(word));
    words.insert(" " + std::string(word));
  }
  out.insert(out.end(), words.begin(), words.end());
  if (out.size() > count || count - out.size() > static_cast<size_t>(kMadeUpWords) / 2)
    return Error(Code::kUnsupported,
                 fmt::format("vocab_size: {} is outside [{}, {}] of a made-up vocabulary", count + 3, out.size() + 3,
                             out.size() + 3 + static_cast<size_t>(kMadeUpWords) / 2),
                 "vocab_size");
  for (int32_t number = 0; out.size() < count; ++number)
    if (std::string word = MadeUpWord(number); !words.contains(word)) out.push_back(std::move(word));
  return out;
}

}  // namespace

Result<std::string> SyntheticTokenizerJson(int32_t vocab_size) {
  constexpr std::string_view kSpecial[] = {kEndOfText, kTurnBegin, kTurnEnd};
  ASSIGN_OR_RETURN(std::vector<std::string> tokens,
                   Tokens(static_cast<size_t>(std::max(0, vocab_size - static_cast<int32_t>(std::size(kSpecial))))));
  json::object vocab;
  vocab.reserve(static_cast<size_t>(vocab_size));
  for (const std::string& token : tokens) vocab.emplace(AlphabetFromBytes(token), vocab.size());
  json::array added;
  for (std::string_view token : kSpecial)
    added.push_back(json::object{
        {"id", tokens.size() + added.size()}, {"content", token}, {"special", true}, {"normalized", false}});
  json::object split{{"type", "Split"},
                     {"pattern", {{"Regex", PatternsOf(PreTokenizer::kLlama3)[0]}}},
                     {"behavior", "Isolated"},
                     {"invert", false}};
  json::object bytes{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  json::object root{
      {"version", "1.0"},
      {"added_tokens", std::move(added)},
      {"pre_tokenizer", json::object{{"type", "Sequence"}, {"pretokenizers", json::array{split, bytes}}}},
      {"decoder", json::object{{"type", "ByteLevel"}}},
      {"model",
       json::object{{"type", "BPE"}, {"ignore_merges", true}, {"vocab", std::move(vocab)}, {"merges", json::array()}}}};
  return json::serialize(root);
}

std::string SyntheticTokenizerConfigJson() {
  return json::serialize(json::object{{"tokenizer_class", "PreTrainedTokenizerFast"},
                                      {"eos_token", kTurnEnd},
                                      {"pad_token", kEndOfText},
                                      {"chat_template", kChatTemplate}});
}

Result<TokenizerSpec> SyntheticTokenizer(int32_t vocab_size) {
  ASSIGN_OR_RETURN(std::string text, SyntheticTokenizerJson(vocab_size));
  ASSIGN_OR_RETURN(TokenizerSpec spec, ParseTokenizerJson(text, "the made-up tokenizer"));
  spec.pad = vocab_size - 3;
  spec.eos = vocab_size - 1;
  spec.chat_template = kChatTemplate;
  return spec;
}

}  // namespace ekiben::text
