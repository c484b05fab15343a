#include "text/tokenizer_added.h"

#include <algorithm>
#include <cstring>

#include "text/unicode.h"

namespace ekiben::text {

namespace {

constexpr std::string_view kBar = "\uff5c";  // fullwidth vertical line

const char* PreviousChar(const char* begin, const char* p) {
  do {
    --p;
  } while (p > begin && IsContinuation(*p));
  return p;
}

size_t SpacesBefore(std::string_view text, size_t from, size_t end) {
  const char* p = text.data() + end;
  while (p > text.data() + from) {
    const char* q = PreviousChar(text.data() + from, p);
    if (!(CharTable::Get()[DecodeUtf8(q)] & kSpace)) break;
    p = q;
  }
  return static_cast<size_t>(p - text.data());
}

size_t SpacesAfter(std::string_view text, size_t begin) {
  const char* p = text.data() + begin;
  while (p < text.data() + text.size() && (CharTable::Get()[DecodeUtf8(p)] & kSpace)) {
    p += Utf8Length(static_cast<unsigned char>(*p));
  }
  return static_cast<size_t>(p - text.data());
}

bool WordAt(std::string_view text, size_t position) {
  return position < text.size() && (CharTable::Get()[DecodeUtf8(text.data() + position)] & kWord);
}
bool WordBefore(std::string_view text, size_t position) {
  if (position == 0) return false;
  return CharTable::Get()[DecodeUtf8(PreviousChar(text.data(), text.data() + position))] & kWord;
}

}  // namespace

size_t TrustMap::RunAt(size_t position) const {
  auto after = [](size_t at, const TrustRun& run) { return at < run.end; };
  return static_cast<size_t>(std::upper_bound(runs_->begin(), runs_->end(), position, after) - runs_->begin());
}

bool TrustMap::Covers(size_t begin, size_t end) const {
  if (runs_->size() == 1) return (*runs_)[0].trusted;
  begin += base_, end += base_;
  for (size_t i = RunAt(begin); i < runs_->size(); ++i) {
    if (!(*runs_)[i].trusted) return false;
    if ((*runs_)[i].end >= end) return true;
  }
  return false;
}

std::vector<TrustRun> TrustMap::Runs(size_t size) const {
  std::vector<TrustRun> out;
  for (size_t i = RunAt(base_); i < runs_->size(); ++i) {
    size_t end = std::min((*runs_)[i].end - base_, size);
    out.push_back({end, (*runs_)[i].trusted});
    if (end == size) break;
  }
  return out;
}

bool NeedsTrust(const AddedToken& token) {
  std::string_view text = token.content;
  if (token.special) return true;
  if (!text.starts_with('<') || !text.ends_with('>') || text.size() < 4) return false;
  text = text.substr(1, text.size() - 2);
  return (text.starts_with('|') && text.ends_with('|')) || (text.starts_with(kBar) && text.ends_with(kBar));
}

void AddedTokenMatcher::Add(const AddedToken* token, std::string_view content) {
  if (content.empty()) return;
  items_.push_back({token, NeedsTrust(*token)});
  contents_.emplace_back(content);
}

void AddedTokenMatcher::Finish() {
  size_t total = 0;
  for (const std::string& content : contents_) total += content.size();
  children_.Reserve(total);
  item_at_.assign(1, -1);
  for (size_t i = 0; i < contents_.size(); ++i) {
    int32_t node = 0;
    for (char c : contents_[i]) {
      auto byte = static_cast<unsigned char>(c);
      const PairTable::Entry* child = children_.Find(node, byte);
      if (child == nullptr) {
        children_.Insert(node, byte, 0, static_cast<int32_t>(item_at_.size()));
        node = static_cast<int32_t>(item_at_.size());
        item_at_.push_back(-1);
      } else {
        node = child->result;
      }
    }
    item_at_[static_cast<size_t>(node)] = static_cast<int32_t>(i);
    starts_[static_cast<unsigned char>(contents_[i][0])] = true;
  }
  if (std::count(starts_.begin(), starts_.end(), true) == 1) {
    only_start_ = static_cast<int>(std::find(starts_.begin(), starts_.end(), true) - starts_.begin());
  }
}

size_t AddedTokenMatcher::LongestAt(std::string_view text, size_t position, const TrustMap& trust,
                                    const AddedToken*& token) const {
  size_t longest = 0;
  int32_t node = 0;
  for (size_t i = position; i < text.size(); ++i) {
    const PairTable::Entry* child = children_.Find(node, static_cast<unsigned char>(text[i]));
    if (child == nullptr) break;
    node = child->result;
    int32_t index = item_at_[static_cast<size_t>(node)];
    if (index < 0) continue;
    const Item& item = items_[static_cast<size_t>(index)];
    if (item.needs_trust && !trust.Covers(position, i + 1)) continue;
    longest = i + 1 - position;
    token = item.token;
  }
  return longest;
}

bool AddedTokenMatcher::Find(std::string_view text, size_t from, const TrustMap& trust, Match& match) const {
  if (items_.empty()) return false;
  for (size_t i = from; i < text.size(); ++i) {
    if (only_start_ >= 0) {
      const void* hit = std::memchr(text.data() + i, only_start_, text.size() - i);
      if (hit == nullptr) return false;
      i = static_cast<size_t>(static_cast<const char*>(hit) - text.data());
    } else if (!starts_[static_cast<unsigned char>(text[i])]) {
      continue;
    }
    const AddedToken* token = nullptr;
    size_t length = LongestAt(text, i, trust, token);
    if (length == 0) continue;
    if (token->single_word && (WordBefore(text, i) || WordAt(text, i + length))) {
      i += length - 1;  // the reference takes the match first and then drops it
      continue;
    }
    match = {token, token->lstrip ? SpacesBefore(text, from, i) : i,
             token->rstrip ? SpacesAfter(text, i + length) : i + length};
    return true;
  }
  return false;
}

}  // namespace ekiben::text
