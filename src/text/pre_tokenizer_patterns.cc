#include "text/pre_tokenizer_patterns.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>

namespace ekiben::text {

namespace {

constexpr size_t kPatternBytesMax = 16384;
constexpr size_t kPatternsMax = 32;
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr size_t kJitStackMax = size_t{1} << 20;
constexpr std::string_view kWhiteSpace =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct FreeStack {
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

// \s and \S to explicit sets; \S inside a set stays PCRE2's own. Sets within sets and their intersections mean
// something in the reference's engine and something else in PCRE2: refused.
Result<std::string> RewriteSpaces(std::string_view regex) {
  std::string out;
  bool in_set = false;
  for (size_t i = 0; i < regex.size(); ++i) {
    if (in_set && (regex.substr(i).starts_with("&&") || (regex[i] == '[' && !regex.substr(i).starts_with("[:")))) {
      return Error(Code::kUnsupported, fmt::format("pre_tokenizer: pattern '{}': a set within a set is not supported",
                                                   regex.substr(0, 80)));
    }
    if (in_set && regex[i] == '[') {  // [:alpha:]
      size_t end = std::min(regex.find(":]", i + 2), regex.size() - 2) + 1;
      out += regex.substr(i, end + 1 - i);
      i = end;
      continue;
    }
    if (regex[i] == '\\' && i + 1 < regex.size()) {
      char c = regex[++i];
      if (c == 's') {
        out += in_set ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace);
      } else if (c == 'S' && !in_set) {
        out += fmt::format("[^{}]", kWhiteSpace);
      } else {
        out += '\\';
        out += c;
      }
      continue;
    }
    if (regex[i] == '[' && !in_set) {
      in_set = true;
    } else if (regex[i] == ']' && in_set) {
      in_set = false;
    }
    out += regex[i];
  }
  return out;
}

// A piece cut by one rule: matched or between matches.
struct Part {
  size_t begin, end;
  bool match;
};

// The parts of one piece regrouped as Hugging Face's Split does.
void Regroup(std::vector<Part>& parts, SplitPattern::Behavior behavior, std::vector<WordSpan>& out) {
  using Behavior = SplitPattern::Behavior;
  auto emit = [&](size_t begin, size_t end) {
    if (end > begin) out.push_back({begin, end});
  };
  size_t first = out.size();
  bool previous_match = false;
  switch (behavior) {
    case Behavior::kIsolated:
      for (const Part& part : parts) emit(part.begin, part.end);
      break;
    case Behavior::kRemoved:
      for (const Part& part : parts) {
        if (!part.match) emit(part.begin, part.end);
      }
      break;
    case Behavior::kContiguous:
      for (size_t i = 0; i < parts.size(); ++i) {
        if (i > 0 && parts[i].match == parts[i - 1].match && out.size() > first) {
          out.back().end = parts[i].end;
        } else {
          emit(parts[i].begin, parts[i].end);
        }
      }
      break;
    case Behavior::kMergedWithPrevious:
      for (const Part& part : parts) {
        if (part.match && !previous_match && out.size() > first) {
          out.back().end = part.end;
        } else {
          emit(part.begin, part.end);
        }
        previous_match = part.match;
      }
      break;
    case Behavior::kMergedWithNext:
      for (size_t i = parts.size(); i-- > 0;) {
        if (parts[i].match && !previous_match && out.size() > first) {
          out.back().begin = parts[i].begin;
        } else {
          emit(parts[i].begin, parts[i].end);
        }
        previous_match = parts[i].match;
      }
      std::reverse(out.begin() + static_cast<ptrdiff_t>(first), out.end());
      break;
  }
}

}  // namespace

struct PatternSplitter::Rule {
  std::unique_ptr<pcre2_code, FreeCode> code;
  SplitPattern::Behavior behavior;
  bool invert;
};

PatternSplitter::PatternSplitter() = default;
PatternSplitter::PatternSplitter(PatternSplitter&&) noexcept = default;
PatternSplitter::~PatternSplitter() = default;

Result<PatternSplitter> PatternSplitter::Create(const std::vector<SplitPattern>& patterns) {
  if (patterns.size() > kPatternsMax) {
    return Error(Code::kUnsupported,
                 fmt::format("pre_tokenizer: {} patterns; at most {}", patterns.size(), kPatternsMax));
  }
  PatternSplitter splitter;
  for (const SplitPattern& pattern : patterns) {
    if (pattern.regex.size() > kPatternBytesMax) {
      return Error(Code::kUnsupported, fmt::format("pre_tokenizer: a pattern of {} bytes; at most {}",
                                                   pattern.regex.size(), kPatternBytesMax));
    }
    ASSIGN_OR_RETURN(std::string regex, RewriteSpaces(pattern.regex));
    int code = 0;
    PCRE2_SIZE offset = 0;
    std::unique_ptr<pcre2_code, FreeCode> compiled(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(regex.data()), regex.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &offset, nullptr));
    if (compiled == nullptr) {
      PCRE2_UCHAR text[200] = {};
      pcre2_get_error_message(code, text, sizeof(text));
      return Error(Code::kUnsupported, fmt::format("pre_tokenizer: pattern '{}' at byte {}: {}", regex.substr(0, 80),
                                                   offset, reinterpret_cast<const char*>(text)));
    }
    pcre2_jit_compile(compiled.get(), PCRE2_JIT_COMPLETE);  // without a JIT the interpreter runs: slower, equal
    splitter.rules_.push_back({std::move(compiled), pattern.behavior, pattern.invert});
  }
  return splitter;
}

std::vector<WordSpan> PatternSplitter::Split(std::string_view text) const {
  std::vector<WordSpan> pieces;
  if (!text.empty()) pieces.push_back({0, text.size()});
  if (rules_.empty()) return pieces;
  std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create(1, nullptr));
  std::unique_ptr<pcre2_match_context, FreeContext> context(pcre2_match_context_create(nullptr));
  std::unique_ptr<pcre2_jit_stack, FreeStack> stack(pcre2_jit_stack_create(32 * 1024, kJitStackMax, nullptr));
  CHECK(match != nullptr && context != nullptr);
  pcre2_set_match_limit(context.get(), kMatchLimit);
  if (stack != nullptr) pcre2_jit_stack_assign(context.get(), nullptr, stack.get());

  std::vector<WordSpan> next;
  std::vector<Part> parts;
  for (const Rule& rule : rules_) {
    next.clear();
    for (const WordSpan& piece : pieces) {
      auto subject = reinterpret_cast<PCRE2_SPTR>(text.data() + piece.begin);
      size_t size = piece.end - piece.begin;
      parts.clear();
      size_t done = 0;
      for (size_t at = 0; at < size;) {
        int found = pcre2_match(rule.code.get(), subject, size, at, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(),
                                context.get());
        if (found < 0) break;  // no match, or a limit
        const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
        if (span[0] < at || span[1] <= span[0]) break;  // \K in a lookahead can turn a match around
        if (span[0] > done) parts.push_back({piece.begin + done, piece.begin + span[0], rule.invert});
        parts.push_back({piece.begin + span[0], piece.begin + span[1], !rule.invert});
        at = done = span[1];
      }
      if (done < size) parts.push_back({piece.begin + done, piece.end, rule.invert});
      Regroup(parts, rule.behavior, next);
    }
    pieces.swap(next);
  }
  return pieces;
}

}  // namespace ekiben::text
