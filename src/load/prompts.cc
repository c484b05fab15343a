#include "load/prompts.h"

#include <algorithm>
#include <boost/json/serialize.hpp>

#include "base/arithmetic.h"
#include "base/check.h"
#include "base/mapped_file.h"
#include "base/philox.h"
#include "text/english_words.h"

namespace ekiben::load {
namespace {

constexpr int32_t kRepeats = 9;   // of a word, to tell its own cost from what surrounds a prompt
constexpr size_t kWordsMin = 64;  // fewer one-token words than this would make prompts alike
constexpr int32_t kProofs = 4;    // whole prompts counted after calibration
constexpr size_t kLineMax = 1 << 20;

std::string Repeat(std::string_view word, int32_t times) {
  std::string out;
  for (int32_t i = 0; i < times; ++i) {
    if (i > 0) out += ' ';
    out += word;
  }
  return out;
}

std::string LengthOf(const PromptOptions& options) {
  if (options.prompt_tokens_min == 0) return fmt::format("{}", options.prompt_tokens);
  return fmt::format("{} to {}", options.prompt_tokens_min, options.prompt_tokens);
}

}  // namespace

Result<std::unique_ptr<PromptSource>> PromptSource::Create(const PromptOptions& options, const CountTokens& count) {
  if (options.output_tokens < 1) {
    return Error(Code::kInvalid, fmt::format("output_tokens: {} is not at least 1", options.output_tokens),
                 "output_tokens");
  }
  if (options.prompt_tokens < 1 || options.prompt_tokens > 10'000'000) {
    return Error(Code::kInvalid, fmt::format("prompt_tokens: {} is not in 1..10,000,000", options.prompt_tokens),
                 "prompt_tokens");
  }
  if (options.prompt_tokens_min < 0 || options.prompt_tokens_min > options.prompt_tokens) {
    return Error(Code::kInvalid,
                 fmt::format("prompt_tokens_min: {} is not in 0..prompt_tokens ({})", options.prompt_tokens_min,
                             options.prompt_tokens),
                 "prompt_tokens_min");
  }
  std::unique_ptr<PromptSource> out(new PromptSource(options));
  if (!options.file.empty()) {
    RETURN_IF_ERROR(out->ReadFile());
    return out;
  }
  std::string why = "no tokenizer";
  if (count) {
    auto calibrated = out->Calibrate(count);
    if (calibrated.ok()) return out;
    // A server that cannot count can still be loaded; a prompt length that cannot be is the caller's mistake.
    if (calibrated.error().code() == Code::kInvalid) return calibrated.error();
    why = calibrated.error().message();
  }
  out->words_ = text::EnglishWords();
  out->description_ = fmt::format("random words, {} words, lengths not exact: {}", LengthOf(options), why);
  return out;
}

Result<void> PromptSource::Calibrate(const CountTokens& count) {
  std::vector<std::string_view> kept;
  std::vector<int32_t> bases;  // what a prompt costs beyond its words, by word
  for (std::string_view word : text::EnglishWords()) {
    ASSIGN_OR_RETURN(int32_t one, count(word));
    ASSIGN_OR_RETURN(int32_t many, count(Repeat(word, kRepeats)));
    if (many - one != kRepeats - 1) continue;
    kept.push_back(word);
    bases.push_back(one - 1);
  }
  if (kept.empty()) {
    return Error(Code::kUnsupported,
                 "prompt_tokens: no word of the built-in list is one token here; use --prompts_file FILE",
                 "prompt_tokens");
  }
  // A word that is one token only after a space cannot open a prompt: keep those with the usual base.
  std::vector<int32_t> sorted = bases;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(sorted.size() / 2), sorted.end());
  int32_t base = sorted[sorted.size() / 2];
  words_.clear();
  for (size_t i = 0; i < kept.size(); ++i) {
    if (bases[i] == base) words_.push_back(kept[i]);
  }
  if (words_.size() < kWordsMin) {
    return Error(Code::kUnsupported,
                 fmt::format("prompt_tokens: only {} words of the built-in list are one token here, {} are needed; "
                             "use --prompts_file FILE",
                             words_.size(), kWordsMin),
                 "prompt_tokens");
  }
  base_ = base;
  const bool drawn = options_.prompt_tokens_min > 0;
  const int32_t shortest = drawn ? options_.prompt_tokens_min : options_.prompt_tokens;
  if (shortest <= base) {
    const char* field = drawn ? "prompt_tokens_min" : "prompt_tokens";
    return Error(Code::kInvalid,
                 fmt::format("{}: {} leaves no room: the template alone is {} tokens", field, shortest, base), field);
  }
  exact_ = true;
  for (uint32_t i = 0; i < kProofs; ++i) {
    std::string text;
    AppendWords(options_.prompt_tokens, UINT32_MAX, i, 0, text);
    ASSIGN_OR_RETURN(int32_t tokens, count(text));
    if (tokens != options_.prompt_tokens) exact_ = false;
  }
  description_ = fmt::format("random words, {} tokens{} ({} of them around the words), from {} words of one token",
                             LengthOf(options_), exact_ ? " exactly" : " about", base, words_.size());
  return {};
}

void PromptSource::AppendWords(int32_t tokens, uint32_t level, uint32_t user, uint32_t number, std::string& out) const {
  PhiloxKey key{static_cast<uint32_t>(options_.seed), static_cast<uint32_t>(options_.seed >> 32)};
  PhiloxCounter draw{};
  for (int32_t i = 0; i < tokens - base_; ++i) {
    auto position = static_cast<uint32_t>(i);
    bool shared = i < options_.shared_prefix_tokens;
    if (i % 4 == 0 || i == options_.shared_prefix_tokens) {
      // The shared words have a counter that no request has.
      draw = shared ? Philox4x32({position / 4, UINT32_MAX, UINT32_MAX, UINT32_MAX}, key)
                    : Philox4x32({position / 4, number, user, level}, key);
    }
    if (i > 0) out += ' ';
    out += words_[(uint64_t{draw[position % 4]} * words_.size()) >> 32];
  }
}

Prompt PromptSource::Fill(uint32_t level, uint32_t user, uint32_t number, std::string& scratch) const {
  Prompt prompt;
  prompt.max_tokens = options_.output_tokens;
  const PhiloxKey key{static_cast<uint32_t>(options_.seed), static_cast<uint32_t>(options_.seed >> 32)};
  if (lines_.empty()) {
    prompt.tokens = options_.prompt_tokens;
    if (options_.prompt_tokens_min > 0) {
      // The words have other counters.
      uint64_t draw = Philox4x32({UINT32_MAX, number, user, level}, key)[0];
      auto lengths = static_cast<uint64_t>(options_.prompt_tokens - options_.prompt_tokens_min + 1);
      prompt.tokens = options_.prompt_tokens_min + static_cast<int32_t>((draw * lengths) >> 32);
    }
    if (options_.steady_start && number == 0) {
      uint64_t draw = Philox4x32({UINT32_MAX, number, user, level}, key)[1];
      auto generated = static_cast<int32_t>((draw * static_cast<uint64_t>(options_.output_tokens)) >> 32);
      prompt.tokens += generated;
      prompt.max_tokens -= generated;
    }
    scratch.clear();
    AppendWords(prompt.tokens, level, user, number, scratch);
    prompt.text = scratch;
    return prompt;
  }
  uint32_t draw = Philox4x32({0, number, user, level}, key)[0];
  const Line& line = lines_[(uint64_t{draw} * lines_.size()) >> 32];
  prompt.text = line.text;
  if (line.text.empty()) {
    prompt.messages = &line.messages;
    prompt.messages_json = line.messages_json;
  }
  if (line.max_tokens > 0) prompt.max_tokens = line.max_tokens;
  return prompt;
}

// One JSON value a line: a string, or an object with `prompt` or `messages`, and perhaps `max_tokens`.
Result<void> PromptSource::ReadFile() {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(options_.file));
  std::string_view rest(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  for (int64_t row = 1; !rest.empty(); ++row) {
    size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view text = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    std::string where = fmt::format("{}:{}", options_.file, row);
    auto value = ParseJson(text, {.bytes_max = kLineMax});
    if (!value.ok()) return std::move(value).error().Within(where);
    Line line;
    if (value->is_string()) {
      line.text = value->as_string().c_str();
    } else if (value->is_object()) {
      const json::object& object = value->as_object();
      ASSIGN_OR_RETURN(auto prompt, GetString(object, "prompt"));
      ASSIGN_OR_RETURN(auto messages, GetArray(object, "messages"));
      ASSIGN_OR_RETURN(auto max_tokens, GetInt(object, "max_tokens", 1, INT32_MAX));
      if (prompt) line.text = *prompt;
      if (messages != nullptr) line.messages = *messages;
      line.messages_json = json::serialize(line.messages);
      line.max_tokens = static_cast<int32_t>(max_tokens.value_or(0));
    }
    if (line.text.empty() && line.messages.empty()) {
      return Error(Code::kInvalid, where + ": neither a string nor an object with prompt or messages", "prompts");
    }
    has_conversations_ |= line.text.empty();
    lines_.push_back(std::move(line));
  }
  if (lines_.empty()) return Error(Code::kInvalid, options_.file + ": no prompts", "prompts");
  description_ = fmt::format("{} prompts of {}", lines_.size(), options_.file);
  return {};
}

}  // namespace ekiben::load
