// What the users ask. Two kinds: random words with an exact length in tokens, drawn from a seed so that no two prompts
// of a run share more than the wanted prefix (a repeated prompt measures the prefix cache), or the lines of a file.
//
// Exact lengths without a tokenizer in this folder: a counting function (the caller's tokenizer, or the server's
// POST /tokenize) is asked once per word of the list; words that cost exactly one token are kept, and what the
// template or a begin token adds is measured. Sample prompts are then counted whole to prove the sum.
// Thread: immutable after Create; Fill may run on any thread.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "load/transport.h"

namespace ekiben::load {

// Tokens of a prompt as the server would count them; an Error when it cannot be asked.
using CountTokens = std::function<Result<int32_t>(std::string_view)>;

struct PromptOptions {
  int32_t prompt_tokens = 100;       // of the whole prompt, template and begin token included
  int32_t prompt_tokens_min = 0;     // above 0: each prompt's length is drawn evenly from here to prompt_tokens
  int32_t shared_prefix_tokens = 0;  // the first so many words are equal in all prompts
  int32_t output_tokens = 64;
  uint64_t seed = 1;
  std::string file;  // JSONL; empty: random words
};

class PromptSource {
 public:
  // `count` may be null or may fail: a word then counts as one token, exact() is false and description() says why.
  static Result<std::unique_ptr<PromptSource>> Create(const PromptOptions& options, const CountTokens& count);

  // The prompt of the `number`-th request of `user` in `level`. Words are written to `scratch`.
  Prompt Fill(uint32_t level, uint32_t user, uint32_t number, std::string& scratch) const;

  // Prompt lengths are known: the server's usage must repeat Prompt::tokens.
  bool exact() const { return exact_; }
  // Some lines of the file are conversations, which only a chat API can take.
  bool has_conversations() const { return has_conversations_; }
  // One line for the report: "random words, 100 tokens exactly (12 by the template), 497 words".
  const std::string& description() const { return description_; }

 private:
  struct Line {
    std::string text;  // empty: messages
    json::array messages;
    std::string messages_json;
    int32_t max_tokens = 0;  // 0: the option
  };
  explicit PromptSource(const PromptOptions& options) : options_(options) {}
  Result<void> ReadFile();
  Result<void> Calibrate(const CountTokens& count);
  // Of `tokens` in all, the template's included.
  void AppendWords(int32_t tokens, uint32_t level, uint32_t user, uint32_t number, std::string& out) const;

  PromptOptions options_;
  bool exact_ = false, has_conversations_ = false;
  int32_t base_ = 0;  // tokens around the words
  std::vector<std::string_view> words_;
  std::vector<Line> lines_;
  std::string description_;
};

}  // namespace ekiben::load
