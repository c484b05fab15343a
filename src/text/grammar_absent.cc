// GrammarCompiler where xgrammar's source was not there at build time.
#include "text/grammar.h"

namespace ekiben::text {
namespace {

class NoCompiler final : public GrammarCompiler {
 public:
  Result<std::shared_ptr<const TokenConstraint>> Compile(const GrammarSpec& spec) override {
    return Error(
        Code::kUnsupported,
        spec.field + ": this server was built without structured outputs (xgrammar); build it with ./dev build",
        spec.field);
  }
};

}  // namespace

std::unique_ptr<GrammarCompiler> GrammarCompiler::Create(const Tokenizer&, int32_t, const Clock&,
                                                         const GrammarLimits&) {
  return std::make_unique<NoCompiler>();
}

}  // namespace ekiben::text
