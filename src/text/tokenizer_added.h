// Finds added tokens (<|im_start|>, <think>, runs of newlines) in a text: the leftmost, and of those that start there
// the longest, as the reference does.
// Trust: a token that could forge a turn is found only where every byte of it is trusted, so that a user who writes
// <|im_end|> sends those ten characters.
// Thread: immutable after Add; Find runs on any number of threads at once.
#pragma once
#include <array>
#include <cstddef>
#include <string_view>
#include <vector>

#include "text/bpe.h"
#include "text/tokenizer_spec.h"

namespace ekiben::text {

// Which bytes of a text are trusted: runs in order, each up to `end`.
struct TrustRun {
  size_t end;
  bool trusted;
};

class TrustMap {
 public:
  // `runs` cover the text that `base` is an offset into, and outlive this.
  explicit TrustMap(const std::vector<TrustRun>& runs, size_t base = 0) : runs_(&runs), base_(base) {}
  bool Covers(size_t begin, size_t end) const;
  // The map of the text from `offset` on.
  TrustMap From(size_t offset) const { return TrustMap(*runs_, base_ + offset); }
  // The runs of [0, size) with ends relative to this map's text.
  std::vector<TrustRun> Runs(size_t size) const;

 private:
  size_t RunAt(size_t position) const;  // index of the run that holds an absolute position
  const std::vector<TrustRun>* runs_;
  size_t base_;
};

// Special tokens, and others written as markup: <|...|>, also with DeepSeek's fullwidth bars, some of whose turn marks
// are not flagged special. Never found in untrusted text.
bool NeedsTrust(const AddedToken& token);

class AddedTokenMatcher {
 public:
  // `tokens` outlives this. `content`: what is looked for, where it differs from token->content.
  void Add(const AddedToken* token, std::string_view content);
  void Finish();
  bool empty() const { return items_.empty(); }

  struct Match {
    const AddedToken* token;
    size_t begin, end;  // with the whitespace that lstrip and rstrip take
  };
  // The first match at or after `from`; false: none.
  bool Find(std::string_view text, size_t from, const TrustMap& trust, Match& match) const;

 private:
  // Longest item at `position` that may be matched there; its length, 0: none.
  size_t LongestAt(std::string_view text, size_t position, const TrustMap& trust, const AddedToken*& token) const;

  struct Item {
    const AddedToken* token;
    bool needs_trust;
  };
  std::vector<Item> items_;
  std::vector<std::string> contents_;
  std::vector<int32_t> item_at_;  // trie node -> index into items_; -1: none. Node 0 is the root
  PairTable children_;            // (node, byte) -> child
  std::array<bool, 256> starts_ = {};
  int only_start_ = -1;  // the one byte that all items start with
};

}  // namespace ekiben::text
