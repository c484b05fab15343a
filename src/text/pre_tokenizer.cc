#include "text/pre_tokenizer.h"

#include <algorithm>

#include "text/pre_tokenizer_patterns.h"
#include "text/unicode.h"

namespace ekiben::text {

namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt4oPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kOneNumber = R"(\p{N})";
constexpr std::string_view kThreeNumbers = R"(\p{N}{1,3})";
constexpr std::string_view kDeepSeekCjk = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+";
constexpr std::string_view kDeepSeekWords =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";

bool IsNewline(char c) {
  return c == '\n' || c == '\r';
}
bool IsAsciiLetter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// What all matchers share: a text with its end, and the runs of a class. Positions always lie on characters.
class Scanner {
 public:
  explicit Scanner(const char* end) : table_(CharTable::Get()), end_(end) {}

 protected:
  uint8_t Class(const char* p) const {
    auto c = static_cast<unsigned char>(*p);
    return c < 0x80 ? table_.Ascii(c) : table_[DecodeUtf8(p)];
  }
  static const char* After(const char* p) { return p + Utf8Length(static_cast<unsigned char>(*p)); }
  bool Is(const char* p, uint8_t mask) const { return p < end_ && (Class(p) & mask) != 0; }
  const char* SkipIn(const char* p, uint8_t mask) const {
    while (p < end_ && (Class(p) & mask) != 0) p = After(p);
    return p;
  }
  const char* SkipNotIn(const char* p, uint8_t mask) const {
    while (p < end_ && (Class(p) & mask) == 0) p = After(p);
    return p;
  }
  const char* SkipNewlines(const char* p) const {
    while (p < end_ && IsNewline(*p)) ++p;
    return p;
  }
  // \p{N}{1,most}
  const char* SkipNumbers(const char* p, int most) const {
    while (most-- > 0 && Is(p, kNumber)) p = After(p);
    return p;
  }
  // The end of a whitespace word at p, where no other alternative matches: \s+(?!\S)|\s+, a run that leaves its last
  // character to the word after it. `whole`: what follows the run is out of the pattern's sight.
  template <class Whole>
  const char* SkipSpaces(const char* p, Whole whole) const {
    const char* last = p;
    const char* e = p;
    while (Is(e, kSpace)) last = e, e = After(e);
    return e == end_ || last == p || whole(e) ? e : last;
  }
  // \s*[\r\n]+|\s+(?!\S)|\s+
  template <class Whole>
  const char* SkipSpacesOrLines(const char* p, Whole whole) const {
    const char* last = p;
    const char* line = nullptr;
    const char* e = p;
    while (Is(e, kSpace)) {
      last = e;
      e = After(e);
      if (IsNewline(*last)) line = e;
    }
    if (line != nullptr) return line;
    return e == end_ || last == p || whole(e) ? e : last;
  }
  static bool Never(const char*) { return false; }

  // '(s|t|re|ve|m|ll|d) at p; p itself when there is none.
  const char* SkipContraction(const char* p) const {
    if (end_ - p < 2 || *p != '\'') return p;
    switch (p[1]) {
      case 's':
      case 't':
      case 'm':
      case 'd': return p + 2;
      case 'r':
      case 'v': return end_ - p > 2 && p[2] == 'e' ? p + 3 : p;
      case 'l': return end_ - p > 2 && p[2] == 'l' ? p + 3 : p;
      default: return p;
    }
  }
  // The same under (?i): U+017F, the long s, folds to s.
  const char* SkipContractionAnyCase(const char* p) const {
    if (end_ - p < 2 || *p != '\'') return p;
    if (end_ - p > 2 && p[1] == '\xC5' && p[2] == '\xBF') return p + 3;
    auto lower = [p](int i) { return IsAsciiLetter(p[i]) ? static_cast<char>(p[i] | 0x20) : '\0'; };
    switch (lower(1)) {
      case 's':
      case 't':
      case 'm':
      case 'd': return p + 2;
      case 'r':
      case 'v': return end_ - p > 2 && lower(2) == 'e' ? p + 3 : p;
      case 'l': return end_ - p > 2 && lower(2) == 'l' ? p + 3 : p;
      default: return p;
    }
  }

  const CharTable& table_;
  const char* end_;
};

template <bool kNumbersApart>
class Gpt2Matcher : public Scanner {
 public:
  using Scanner::Scanner;
  const char* Match(const char* p) const {
    if (const char* e = SkipContraction(p); e != p) return e;
    if (kNumbersApart && Is(p, kNumber)) return After(p);
    const char* q = p + (*p == ' ');
    if (q < end_) {
      uint8_t c = Class(q);
      if (c & kLetter) return SkipIn(After(q), kLetter);
      if (!kNumbersApart && (c & kNumber)) return SkipIn(After(q), kNumber);
      if (!(c & (kSpace | kNumber))) return SkipNotIn(After(q), kSpace | kLetter | kNumber);
    }
    // Numbers that an earlier rule has cut out end the text for the lookahead.
    return SkipSpaces(p, [this](const char* e) { return kNumbersApart && Is(e, kNumber); });
  }
};

template <int kNumbersMax>
class Llama3Matcher : public Scanner {
 public:
  using Scanner::Scanner;
  const char* Match(const char* p) const {
    uint8_t c = Class(p);
    if (c & kLetter) return SkipIn(After(p), kLetter);
    if (c & kNumber) return SkipNumbers(p, kNumbersMax);
    if (const char* e = SkipContractionAnyCase(p); e != p) return e;
    if (!IsNewline(*p) && Is(After(p), kLetter)) return SkipIn(After(p), kLetter);
    const char* q = p + (*p == ' ');
    if (q < end_ && !Is(q, kSpace | kLetter | kNumber)) {
      return SkipNewlines(SkipNotIn(After(q), kSpace | kLetter | kNumber));
    }
    return SkipSpacesOrLines(p, Never);
  }
};

// Words by case: [Lu Lt Lm Lo M]*[Ll Lm Lo M]+ before [Lu Lt Lm Lo M]+[Ll Lm Lo M]*. The two sets overlap, so the first
// alternative gives characters back; both are answered in one or two scans of the leading run.
template <int kNumbersMax, bool kContractions>
class CaseMatcher : public Scanner {
 public:
  using Scanner::Scanner;
  const char* Match(const char* p) const {
    uint8_t c = Class(p);
    if (const char* e = MatchWord(p, c); e != nullptr) return kContractions ? SkipContractionAnyCase(e) : e;
    if (c & kNumber) return SkipNumbers(p, kNumbersMax);
    const char* q = p + (*p == ' ');
    if (q < end_ && !Is(q, kSpace | kLetter | kNumber)) {
      const char* e = SkipNotIn(After(q), kSpace | kLetter | kNumber);
      while (e < end_ && (IsNewline(*e) || *e == '/')) ++e;
      return e;
    }
    return SkipSpacesOrLines(p, Never);
  }

 private:
  static bool Opens(uint8_t c) { return (c & kMark) || ((c & kLetter) && !(c & kLower)); }
  static bool Closes(uint8_t c) { return (c & kMark) || ((c & kLetter) && !(c & kUpper)); }

  const char* MatchWord(const char* p, uint8_t c) const {
    const char* after = nullptr;  // behind the optional first character
    if (!(c & (kLetter | kNumber)) && !IsNewline(*p)) after = After(p);
    const char* e = nullptr;
    if (after != nullptr) e = MatchClosed(after);
    if (e == nullptr && (Opens(c) || Closes(c))) e = MatchClosed(p);
    if (e == nullptr && after != nullptr) e = MatchOpen(after);
    if (e == nullptr && Opens(c)) e = MatchOpen(p);
    return e;
  }
  // opens*closes+
  const char* MatchClosed(const char* p) const {
    const char* given_back = nullptr;  // the end of the last character of the run that can close it
    uint8_t c = 0;
    for (; p < end_; p = After(p)) {
      c = Class(p);
      if (!Opens(c)) break;
      if (Closes(c)) given_back = After(p);
    }
    if (p == end_ || !Closes(c)) return given_back;
    while (p < end_ && Closes(Class(p))) p = After(p);
    return p;
  }
  // opens+closes*, where opens*closes+ failed: nothing that closes can follow.
  const char* MatchOpen(const char* p) const {
    const char* begin = p;
    while (p < end_ && Opens(Class(p))) p = After(p);
    return p == begin ? nullptr : p;
  }
};

// Three splits in sequence: numbers by three, runs of kana and han, then words. A later split sees only the piece that
// the earlier ones left, so a run stops where the kind of piece changes.
class DeepSeekMatcher : public Scanner {
 public:
  using Scanner::Scanner;
  const char* Match(const char* p) const {
    uint8_t c = Class(p);
    if (c & kNumber) return SkipNumbers(p, 3);
    bool cjk = IsCjk(p);
    if (!cjk && IsAsciiSymbol(*p) && p + 1 < end_ && IsAsciiLetter(p[1])) {
      const char* e = p + 1;
      while (e < end_ && IsAsciiLetter(*e)) ++e;
      return e;
    }
    const char* after = After(p);
    if ((c & (kLetter | kMark)) || (!(c & kSymbol) && !IsNewline(*p) && InPiece(after, kLetter | kMark, cjk))) {
      return SkipInPiece(after, kLetter | kMark, cjk);
    }
    const char* q = p + (*p == ' ');
    if (InPiece(q, kSymbol, cjk)) {
      const char* e = SkipInPiece(q, kSymbol, cjk);
      return cjk ? e : SkipNewlines(e);
    }
    if (c & kSpace) return SkipSpacesOrLines(p, [this](const char* e) { return IsCjk(e) || Is(e, kNumber); });
    return SkipUnmatched(p, cjk);
  }

 private:
  static constexpr uint8_t kAny = kLetter | kNumber | kSpace | kMark | kSymbol;

  static bool IsCjk(const char* p) {
    if (static_cast<unsigned char>(*p) < 0xE3) return false;
    char32_t code = DecodeUtf8(p);
    return (code >= 0x4E00 && code <= 0x9FA5) || (code >= 0x3040 && code <= 0x30FF);
  }
  bool IsAsciiSymbol(char c) const {
    return static_cast<unsigned char>(c) < 0x80 && (table_.Ascii(static_cast<unsigned char>(c)) & kSymbol);
  }
  bool InPiece(const char* p, uint8_t mask, bool cjk) const { return Is(p, mask) && IsCjk(p) == cjk; }
  const char* SkipInPiece(const char* p, uint8_t mask, bool cjk) const {
    while (InPiece(p, mask, cjk)) p = After(p);
    return p;
  }
  // Characters that no alternative matches (controls, unassigned) stay together; the last is the next word's first
  // where letters follow.
  const char* SkipUnmatched(const char* p, bool cjk) const {
    const char* last = p;
    const char* e = p;
    while (e < end_ && !Is(e, kAny) && IsCjk(e) == cjk) last = e, e = After(e);
    return last != p && InPiece(e, kLetter | kMark, cjk) ? last : e;
  }
};

}  // namespace

template <class Matcher>
size_t WordCutter::Next(std::string_view text, size_t begin, std::span<size_t, kBatch> ends) {
  Matcher matcher(text.data() + text.size());
  const char* p = text.data() + begin;
  const char* end = text.data() + text.size();
  size_t count = 0;
  while (p < end && count < kBatch) {
    p = matcher.Match(p);
    ends[count++] = static_cast<size_t>(p - text.data());
  }
  return count;
}

WordCutter::WordCutter() = default;
WordCutter::WordCutter(WordCutter&&) noexcept = default;
WordCutter& WordCutter::operator=(WordCutter&&) noexcept = default;
WordCutter::~WordCutter() = default;

Result<WordCutter> WordCutter::Create(PreTokenizer kind, const std::vector<SplitPattern>& patterns) {
  WordCutter cutter;
  switch (kind) {
    case PreTokenizer::kGpt2: cutter.next_ = &Next<Gpt2Matcher<false>>; break;
    case PreTokenizer::kSmolLm: cutter.next_ = &Next<Gpt2Matcher<true>>; break;
    case PreTokenizer::kLlama3: cutter.next_ = &Next<Llama3Matcher<3>>; break;
    case PreTokenizer::kQwen2: cutter.next_ = &Next<Llama3Matcher<1>>; break;
    case PreTokenizer::kTekken: cutter.next_ = &Next<CaseMatcher<1, false>>; break;
    case PreTokenizer::kGpt4o: cutter.next_ = &Next<CaseMatcher<3, true>>; break;
    case PreTokenizer::kDeepSeekV3: cutter.next_ = &Next<DeepSeekMatcher>; break;
    case PreTokenizer::kNone:
    case PreTokenizer::kPatterns: {
      // No pattern leaves the text whole.
      ASSIGN_OR_RETURN(PatternSplitter splitter,
                       PatternSplitter::Create(kind == PreTokenizer::kNone ? std::vector<SplitPattern>() : patterns));
      cutter.patterns_ = std::make_unique<PatternSplitter>(std::move(splitter));
      break;
    }
  }
  return cutter;
}

std::vector<WordSpan> WordCutter::SplitByPatterns(std::string_view text) const {
  return patterns_->Split(text);
}

std::vector<std::string_view> PatternsOf(PreTokenizer kind) {
  switch (kind) {
    case PreTokenizer::kGpt2: return {kGpt2Pattern};
    case PreTokenizer::kSmolLm: return {kOneNumber, kGpt2Pattern};
    case PreTokenizer::kLlama3: return {kLlama3Pattern};
    case PreTokenizer::kQwen2: return {kQwen2Pattern};
    case PreTokenizer::kTekken: return {kTekkenPattern};
    case PreTokenizer::kGpt4o: return {kGpt4oPattern};
    case PreTokenizer::kDeepSeekV3: return {kThreeNumbers, kDeepSeekCjk, kDeepSeekWords};
    case PreTokenizer::kNone:
    case PreTokenizer::kPatterns: return {};
  }
  return {};
}

PreTokenizer FamilyOf(const std::vector<SplitPattern>& patterns) {
  if (patterns.empty()) return PreTokenizer::kNone;
  for (const SplitPattern& pattern : patterns) {
    if (pattern.behavior != SplitPattern::Behavior::kIsolated || pattern.invert) return PreTokenizer::kPatterns;
  }
  for (PreTokenizer kind : {PreTokenizer::kGpt2, PreTokenizer::kSmolLm, PreTokenizer::kLlama3, PreTokenizer::kQwen2,
                            PreTokenizer::kTekken, PreTokenizer::kDeepSeekV3, PreTokenizer::kGpt4o}) {
    auto same = [](const SplitPattern& a, std::string_view b) { return a.regex == b; };
    std::vector<std::string_view> known = PatternsOf(kind);
    if (std::equal(patterns.begin(), patterns.end(), known.begin(), known.end(), same)) return kind;
  }
  return PreTokenizer::kPatterns;
}

}  // namespace ekiben::text
