// Structured outputs: a JSON schema, a regular expression, a list of choices or an EBNF grammar becomes a
// TokenConstraint over a tokenizer's vocabulary, by xgrammar's C++ core (cmake/XGrammar.cmake). In a build without it
// Compile answers kUnsupported.
//
// Grammars come from strangers. Before xgrammar sees one, its bytes, its nesting and the repetitions it asks for are
// bounded (GrammarLimits); a matcher whose mask takes longer than `mask_budget` ends its sequence. Compiling takes
// milliseconds to seconds: never on an I/O thread or the executor's. Equal grammars are compiled once (a cache bounded
// in bytes).
// Thread: Compile from any, one at a time.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "request/token_constraint.h"
#include "text/tokenizer.h"

namespace ekiben::text {

struct GrammarSpec {
  enum class Kind : uint8_t { kJsonObject, kJsonSchema, kRegex, kChoice, kEbnf };
  Kind kind = Kind::kJsonObject;
  std::string source;                // schema as JSON text, regular expression, or EBNF whose first rule is `root`
  std::vector<std::string> choices;  // kChoice
  std::string field;                 // the request's, for errors
  bool operator==(const GrammarSpec&) const = default;
};

struct GrammarLimits {
  size_t source_bytes_max = size_t{64} << 10;
  int depth_max = 32;                   // of brackets
  int64_t repetitions_max = 4096;       // product of the counts in nested {m,n}; largest count in a schema
  int64_t repetitions_sum_max = 16384;  // of all of a schema's counts and patterns
  size_t choices_max = 1024;
  int64_t cache_bytes_max = int64_t{256} << 20;
  Nanos mask_budget = std::chrono::milliseconds(250);
};

// What of `spec` breaks a limit, before anything is built from it. Pure.
Result<void> CheckGrammar(const GrammarSpec& spec, const GrammarLimits& limits);

class GrammarCompiler {
 public:
  // `tokenizer` and `clock` outlive the compiler and everything compiled. `vocab_size`: of the logits. Builds its
  // tables with the first grammar, so that a server that meets none pays nothing.
  static std::unique_ptr<GrammarCompiler> Create(const Tokenizer& tokenizer, int32_t vocab_size, const Clock& clock,
                                                 const GrammarLimits& limits = {});
  virtual ~GrammarCompiler() = default;
  virtual Result<std::shared_ptr<const TokenConstraint>> Compile(const GrammarSpec& spec) = 0;
};

}  // namespace ekiben::text
