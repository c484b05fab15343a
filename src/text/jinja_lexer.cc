#include "text/jinja_lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "text/jinja_unicode.h"

namespace ekiben::text::jinja {
namespace {

// Newlines become \n, and one at the very end is dropped.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), view_(source_) {}

  Result<std::vector<Token>> Run() {
    while (at_ < view_.size()) RETURN_IF_ERROR(Root());
    Push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  bool Starts(std::string_view prefix) const { return view_.substr(at_).starts_with(prefix); }

  Error Problem(std::string_view message) const { return TemplateProblem(line_, message); }

  // Moves on, counting lines.
  void Advance(size_t to) {
    line_ += static_cast<int>(std::count(view_.begin() + at_, view_.begin() + to, '\n'));
    at_ = to;
  }

  void Push(TokenKind kind, std::string text) {
    Token token;
    token.kind = kind;
    token.line = line_;
    token.text = std::move(text);
    tokens_.push_back(std::move(token));
  }

  size_t SkipSpace(size_t at) const {
    while (at < view_.size() && IsSpace(CodePointAt(view_, at))) at += CodePointBytes(view_, at);
    return at;
  }

  // Data up to `tag`, with what its whitespace sign removes. `sign`: '-', '+' or 0; `strips`: lstrip_blocks applies.
  void PushData(size_t tag, char sign, bool strips) {
    std::string_view text = view_.substr(at_, tag - at_);
    if (sign == '-') {
      size_t end = text.size();
      while (end > 0) {
        size_t previous = PreviousCodePoint(text, end);
        if (!IsSpace(CodePointAt(text, previous))) break;
        end = previous;
      }
      text = text.substr(0, end);
    } else if (sign != '+' && strips) {
      size_t newline = text.rfind('\n');
      size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((begin > 0 || line_starting_) && SkipSpace(at_ + begin) >= tag) text = text.substr(0, begin);
    }
    if (!text.empty()) Push(TokenKind::kData, std::string(text));
    Advance(tag);
  }

  char SignAt(size_t at) const {
    return at < view_.size() && (view_[at] == '-' || view_[at] == '+') ? view_[at] : '\0';
  }

  // The end of "{%- raw -%}" at `tag`, or npos when it is some other tag.
  size_t RawBegin(size_t tag) const {
    size_t at = SkipSpace(tag + 2 + (SignAt(tag + 2) != 0 ? 1 : 0));
    if (!view_.substr(at).starts_with("raw")) return std::string_view::npos;
    at = SkipSpace(at + 3);
    if (view_.substr(at).starts_with("-%}")) return SkipSpace(at + 3);
    return view_.substr(at).starts_with("%}") ? at + 2 : std::string_view::npos;
  }

  // Plain text up to the next tag, then the tag.
  Result<void> Root() {
    size_t tag = at_;
    while (true) {
      tag = view_.find('{', tag);
      if (tag == std::string_view::npos) {
        Push(TokenKind::kData, std::string(view_.substr(at_)));
        Advance(view_.size());
        return {};
      }
      char next = tag + 1 < view_.size() ? view_[tag + 1] : '\0';
      if (next == '%' || next == '{' || next == '#') break;
      ++tag;
    }
    char kind = view_[tag + 1], sign = SignAt(tag + 2);
    PushData(tag, sign, kind != '{');
    size_t raw = kind == '%' ? RawBegin(tag) : std::string_view::npos;
    if (raw != std::string_view::npos) {
      line_starting_ = view_[raw - 1] == '\n';
      Advance(raw);
      return Raw();
    }
    Advance(tag + 2 + (sign != 0 ? 1 : 0));
    if (kind == '#') return Comment();
    Push(kind == '%' ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, "");
    return Expression(kind == '%');
  }

  // After a tag's closing braces at `at`: where data goes on.
  size_t AfterBlock(size_t at, char sign) const {
    if (sign == '-') return SkipSpace(at);
    return sign == 0 && at < view_.size() && view_[at] == '\n' ? at + 1 : at;
  }

  void Leave(size_t to) {
    line_starting_ = view_[to - 1] == '\n';
    Advance(to);
  }

  Result<void> Comment() {
    size_t close = view_.find("#}", at_);
    if (close == std::string_view::npos) return Problem("Missing end of comment tag");
    char sign = close > at_ ? SignAt(close - 1) : '\0';
    Leave(AfterBlock(close + 2, sign));
    return {};
  }

  Result<void> Raw() {
    for (size_t tag = view_.find("{%", at_); tag != std::string_view::npos; tag = view_.find("{%", tag + 1)) {
      char open = SignAt(tag + 2);
      size_t at = SkipSpace(tag + 2 + (open != 0 ? 1 : 0));
      if (!view_.substr(at).starts_with("endraw")) continue;
      at = SkipSpace(at + 6);
      char close = SignAt(at);
      if (!view_.substr(at + (close != 0 ? 1 : 0)).starts_with("%}")) continue;
      PushData(tag, open, true);
      Leave(AfterBlock(at + (close != 0 ? 1 : 0) + 2, close));
      return {};
    }
    return Problem("Missing end of raw directive");
  }

  // True when the tag ended here.
  bool TryEnd(bool block) {
    char sign = SignAt(at_);
    if (sign == '+' && !block) return false;
    size_t close = at_ + (sign != 0 ? 1 : 0);
    if (!view_.substr(close).starts_with(block ? "%}" : "}}")) return false;
    Push(block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, "");
    if (block)
      Leave(AfterBlock(close + 2, sign));
    else
      Leave(sign == '-' ? SkipSpace(close + 2) : close + 2);
    return true;
  }

  Result<void> Expression(bool block) {
    balance_.clear();
    while (at_ < view_.size()) {
      if (balance_.empty() && TryEnd(block)) return {};
      size_t after = SkipSpace(at_);
      if (after > at_) {
        Advance(after);
        continue;
      }
      RETURN_IF_ERROR(Atom());
    }
    return {};  // the parser says what is missing
  }

  Result<void> Atom() {
    char c = view_[at_];
    if (c >= '0' && c <= '9') return Number();
    char32_t code = CodePointAt(view_, at_);
    if (IsWord(code)) return Name();
    if (c == '\'' || c == '"') return String(c);
    return Operator();
  }

  Result<void> Name() {
    size_t end = at_;
    while (end < view_.size() && IsWord(CodePointAt(view_, end))) end += CodePointBytes(view_, end);
    std::string name(view_.substr(at_, end - at_));
    if (!IsIdentifier(name)) return Problem("Invalid character in identifier");
    Push(TokenKind::kName, std::move(name));
    Advance(end);
    return {};
  }

  Result<void> Operator() {
    static constexpr std::array<std::string_view, 25> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                                    "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                                    ">",  "<",  "=",  ".",  ":",  "|",  ","};
    for (std::string_view symbol : kOperators) {
      if (!Starts(symbol)) continue;
      RETURN_IF_ERROR(Balance(symbol[0]));
      Push(TokenKind::kOperator, std::string(symbol));
      Advance(at_ + symbol.size());
      return {};
    }
    return Problem(fmt::format("unexpected char '{}'", view_.substr(at_, CodePointBytes(view_, at_))));
  }

  Result<void> Balance(char symbol) {
    if (symbol == '(') balance_ += ')';
    if (symbol == '[') balance_ += ']';
    if (symbol == '{') balance_ += '}';
    if (symbol != ')' && symbol != ']' && symbol != '}') return {};
    if (balance_.empty()) return Problem(fmt::format("unexpected '{}'", symbol));
    if (balance_.back() != symbol)
      return Problem(fmt::format("unexpected '{}', expected '{}'", symbol, balance_.back()));
    balance_.pop_back();
    return {};
  }

  // The end of digits with single underscores between them, from `at`; `at` itself when there is none.
  size_t Digits(size_t at, int base) const {
    auto digit = [&](size_t i) {
      if (i >= view_.size()) return false;
      char c = view_[i];
      if (base == 16 && ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) return true;
      return c >= '0' && c < '0' + std::min(base, 10);
    };
    if (!digit(at)) return at;
    while (digit(at) || (at < view_.size() && view_[at] == '_' && digit(at + 1))) ++at;
    return at;
  }

  Result<void> Number() {
    size_t whole = Digits(at_, 10);
    bool after_dot = at_ > 0 && view_[at_ - 1] == '.';
    size_t end = whole;
    if (end < view_.size() && view_[end] == '.' && Digits(end + 1, 10) > end + 1) end = Digits(end + 1, 10);
    if (end < view_.size() && (view_[end] == 'e' || view_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < view_.size() && (view_[exponent] == '+' || view_[exponent] == '-')) ++exponent;
      if (Digits(exponent, 10) > exponent) end = Digits(exponent, 10);
    }
    if (end > whole && !after_dot) return Float(end);
    return IntegerToken(whole);
  }

  Result<void> Float(size_t end) {
    std::string digits(view_.substr(at_, end - at_));
    std::erase(digits, '_');
    Push(TokenKind::kFloat, digits);
    tokens_.back().real = std::strtod(digits.c_str(), nullptr);
    Advance(end);
    return {};
  }

  Result<void> IntegerToken(size_t end) {
    int base = 10;
    size_t from = at_;
    if (view_[at_] == '0' && at_ + 1 < view_.size()) {
      char letter = static_cast<char>(view_[at_ + 1] | 0x20);
      int other = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
      size_t digits = at_ + 2 + (at_ + 2 < view_.size() && view_[at_ + 2] == '_' ? 1 : 0);
      if (other != 10 && Digits(digits, other) > digits) {
        base = other;
        from = digits;
        end = Digits(digits, other);
      }
    }
    // A decimal number has no leading zeros: "012" is 0 and then 12, as in jinja2.
    if (base == 10 && view_[at_] == '0')
      for (end = at_ + 1; end < view_.size() && (view_[end] == '0' || view_.substr(end).starts_with("_0")); ++end) {
      }
    Integer value = 0;
    for (size_t i = from; i < end; ++i) {
      char c = view_[i];
      if (c == '_') continue;
      int digit = c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
      if (__builtin_mul_overflow(value, Integer{base}, &value) || __builtin_add_overflow(value, Integer{digit}, &value))
        return Problem("an integer of more than 127 bits is not supported");
    }
    Push(TokenKind::kInteger, std::string(view_.substr(at_, end - at_)));
    tokens_.back().integer = value;
    Advance(end);
    return {};
  }

  Result<void> String(char quote) {
    size_t end = at_ + 1;
    while (end < view_.size() && view_[end] != quote) end += view_[end] == '\\' ? 2 : 1;
    if (end >= view_.size()) return Problem(fmt::format("unexpected char '{}': a string is not closed", quote));
    ASSIGN_OR_RETURN(std::string text, Unescape(view_.substr(at_ + 1, end - at_ - 1)));
    Push(TokenKind::kString, std::move(text));
    Advance(end + 1);
    return {};
  }

  // Python's unicode-escape codec.
  Result<std::string> Unescape(std::string_view raw) {
    static constexpr std::string_view kPlain = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    std::string out;
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] != '\\') {
        out += raw[i];
        continue;
      }
      char c = raw[++i];  // the lexer never ends a string on a lone backslash
      if (c == '\n') continue;
      size_t plain = 0;
      while (plain < kPlain.size() && kPlain[plain] != c) plain += 2;
      if (plain < kPlain.size()) {
        out += kPlain[plain + 1];
      } else if (c >= '0' && c <= '7') {
        uint32_t code = 0;
        size_t last = std::min(i + 3, raw.size());
        for (; i < last && raw[i] >= '0' && raw[i] <= '7'; ++i) code = code * 8 + static_cast<uint32_t>(raw[i] - '0');
        --i;
        AppendUtf8(code, out);
      } else if (c == 'x' || c == 'u' || c == 'U') {
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        ASSIGN_OR_RETURN(char32_t code, HexCode(raw.substr(i + 1, digits), digits));
        AppendUtf8(code, out);
        i += digits;
      } else if (c == 'N') {
        return Problem("\\N{...} in a string is not supported");
      } else {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  Result<char32_t> HexCode(std::string_view digits, size_t wanted) {
    uint32_t code = 0;
    auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (error != std::errc() || digits.size() < wanted || end != digits.data() + wanted)
      return Problem("truncated \\x, \\u or \\U escape in a string");
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return Problem("an escape in a string is no character");
    return static_cast<char32_t>(code);
  }

  std::string source_;
  std::string_view view_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the text that follows begins a line
  std::string balance_;        // brackets to be closed
  std::vector<Token> tokens_;
};

}  // namespace

Result<std::vector<Token>> Tokenize(std::string_view source) {
  if (!IsValidUtf8(source)) return Error(Code::kInvalid, "chat template: not valid UTF-8", "chat_template");
  return Lexer(NormalizeNewlines(source)).Run();
}

Error TemplateProblem(int line, std::string_view message) {
  return Error(Code::kInvalid, fmt::format("chat template line {}: {}", line, message), "chat_template");
}

}  // namespace ekiben::text::jinja
