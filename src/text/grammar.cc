#include "text/grammar.h"

#include <dlpack/dlpack.h>
#include <fmt/format.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <exception>
#include <optional>

#include "base/log.h"

namespace ekiben::text {
namespace {

// Between two JSON tokens. Without a bound a small model that loves spaces never comes to the next brace.
constexpr int kWhitespaceMax = 24;

class Matcher final : public TokenMatcher {
 public:
  Matcher(const xgrammar::CompiledGrammar& grammar, const Clock& clock, Nanos budget)
      : matcher_(grammar), clock_(clock), budget_(budget) {}

  Mask Allowed(std::span<int32_t> bits) override {
    // After its end a sequence may be computed once more, for nothing: steps overlap on a device.
    if (matcher_.IsTerminated()) return Mask::kAll;
    auto words = static_cast<int64_t>(bits.size());
    DLTensor tensor{.data = bits.data(),
                    .device = {kDLCPU, 0},
                    .ndim = 1,
                    .dtype = {kDLInt, 32, 1},
                    .shape = &words,
                    .strides = nullptr,
                    .byte_offset = 0};
    Nanos begin = clock_.Now();
    try {
      bool some = matcher_.FillNextTokenBitmask(&tensor);
      if (clock_.Now() - begin > budget_) {
        LOG_WARNING("a grammar's mask took {:.3f} s; its sequence ends", Seconds(clock_.Now() - begin));
        return Mask::kFailed;
      }
      return some ? Mask::kSome : Mask::kAll;
    } catch (const std::exception& e) {
      LOG_WARNING("a grammar's mask failed: {}", e.what());
      return Mask::kFailed;
    }
  }

  bool Accept(TokenId token) override {
    if (matcher_.IsTerminated()) return true;
    try {
      return matcher_.AcceptToken(token);
    } catch (const std::exception& e) {
      LOG_WARNING("a grammar failed to accept a token: {}", e.what());
      return false;
    }
  }

 private:
  xgrammar::GrammarMatcher matcher_;
  const Clock& clock_;
  const Nanos budget_;
};

class Constraint final : public TokenConstraint {
 public:
  Constraint(xgrammar::CompiledGrammar grammar, const Clock& clock, Nanos budget)
      : grammar_(std::move(grammar)), clock_(clock), budget_(budget) {}
  std::unique_ptr<TokenMatcher> NewMatcher() const override {
    return std::make_unique<Matcher>(grammar_, clock_, budget_);
  }

 private:
  const xgrammar::CompiledGrammar grammar_;
  const Clock& clock_;
  const Nanos budget_;
};

// A literal of the grammar notation.
std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out.append(1, '\\').append(1, c);
    else if (byte < 0x20 || byte == 0x7f)
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", byte);
    else
      out.push_back(c);
  }
  return out + "\"";
}

std::string AnyOf(const std::vector<std::string>& choices) {
  std::string out = "root ::= ";
  for (size_t i = 0; i < choices.size(); ++i) out.append(i > 0 ? " | " : "").append(Quoted(choices[i]));
  return out;
}

class XGrammarCompiler final : public GrammarCompiler {
 public:
  XGrammarCompiler(const Tokenizer& tokenizer, int32_t vocab_size, const Clock& clock, const GrammarLimits& limits)
      : tokenizer_(tokenizer), vocab_size_(vocab_size), clock_(clock), limits_(limits) {}

  Result<std::shared_ptr<const TokenConstraint>> Compile(const GrammarSpec& spec) override {
    RETURN_IF_ERROR(CheckGrammar(spec, limits_));
    if (tokenizer_.spec().end_ids.empty())
      return Error(Code::kUnsupported, spec.field + ": the model has no end token, so no grammar could end its text",
                   spec.field);
    try {
      if (!compiler_)
        compiler_.emplace(Vocabulary(), /*max_threads=*/1, /*cache_enabled=*/true, limits_.cache_bytes_max);
      std::shared_ptr<const TokenConstraint> constraint =
          std::make_shared<Constraint>(CompileWith(*compiler_, spec), clock_, limits_.mask_budget);
      RETURN_IF_ERROR(CheckBeginning(spec, *constraint));
      return constraint;
    } catch (const std::exception& e) {
      return Error(Code::kInvalid, fmt::format("{}: {}", spec.field, OneLine(e.what())), spec.field);
    }
  }

 private:
  static xgrammar::CompiledGrammar CompileWith(xgrammar::GrammarCompiler& compiler, const GrammarSpec& spec) {
    switch (spec.kind) {
      case GrammarSpec::Kind::kJsonObject:
        return compiler.CompileJSONSchema(R"({"type":"object"})", true, std::nullopt, std::nullopt, false,
                                          kWhitespaceMax);
      case GrammarSpec::Kind::kJsonSchema:
        return compiler.CompileJSONSchema(spec.source, true, std::nullopt, std::nullopt, true, kWhitespaceMax);
      case GrammarSpec::Kind::kRegex: return compiler.CompileRegex(spec.source);
      case GrammarSpec::Kind::kChoice: return compiler.CompileGrammar(AnyOf(spec.choices));
      case GrammarSpec::Kind::kEbnf: break;
    }
    return compiler.CompileGrammar(spec.source);
  }

  // A schema may contradict itself, or be about nothing but itself.
  Result<void> CheckBeginning(const GrammarSpec& spec, const TokenConstraint& constraint) const {
    std::vector<int32_t> bits(static_cast<size_t>(TokenMaskWords(vocab_size_)));
    auto allowed = constraint.NewMatcher()->Allowed(bits);
    if (allowed == TokenMatcher::Mask::kFailed)
      return Error(Code::kInvalid, spec.field + ": too slow to be followed token by token; simplify it", spec.field);
    if (allowed == TokenMatcher::Mask::kSome && std::ranges::all_of(bits, [](int32_t word) { return word == 0; }))
      return Error(Code::kInvalid, spec.field + ": no text can begin so", spec.field);
    return {};
  }

  // The bytes of each id. A special token has none: xgrammar never allows it inside a text.
  xgrammar::TokenizerInfo Vocabulary() const {
    std::vector<std::string> tokens(static_cast<size_t>(vocab_size_));
    for (TokenId id = 0; id < std::min(vocab_size_, tokenizer_.vocab_size()); ++id)
      if (!tokenizer_.IsSpecial(id)) tokens[static_cast<size_t>(id)] = tokenizer_.Bytes(id);
    const auto& ends = tokenizer_.spec().end_ids;
    return xgrammar::TokenizerInfo(tokens, xgrammar::VocabType::RAW, vocab_size_, std::vector<int32_t>(ends));
  }

  // xgrammar's errors begin with a time and a source line, and may quote the whole grammar.
  static std::string OneLine(std::string_view what) {
    size_t place = what.find(".cc:");
    size_t begin = place == std::string_view::npos ? place : what.find(": ", place);
    if (begin != std::string_view::npos) what.remove_prefix(begin + 2);
    std::string out(what.substr(0, std::min(what.find('\n'), size_t{300})));
    return out.empty() ? "the grammar cannot be compiled" : out;
  }

  const Tokenizer& tokenizer_;
  const int32_t vocab_size_;
  const Clock& clock_;
  const GrammarLimits limits_;
  std::optional<xgrammar::GrammarCompiler> compiler_;
};

}  // namespace

std::unique_ptr<GrammarCompiler> GrammarCompiler::Create(const Tokenizer& tokenizer, int32_t vocab_size,
                                                         const Clock& clock, const GrammarLimits& limits) {
  return std::make_unique<XGrammarCompiler>(tokenizer, vocab_size, clock, limits);
}

}  // namespace ekiben::text
