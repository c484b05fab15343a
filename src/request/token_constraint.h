// What a sequence's next token may be: a compiled grammar, seen from the sampler. `text/grammar.h` makes them.
//
// A TokenConstraint is immutable and shared by the sequences of a request (and by requests with an equal grammar). Each
// sequence walks it with a TokenMatcher of its own, which is told every token that the sequence accepted.
// Thread: TokenConstraint any; a TokenMatcher one at a time.
#pragma once
#include <cstdint>
#include <memory>
#include <span>

#include "request/ids.h"

namespace ekiben {

class TokenMatcher {
 public:
  virtual ~TokenMatcher() = default;

  enum class Mask : uint8_t {
    kAll,     // every token is allowed; `bits` mean nothing
    kSome,    // those whose bit is set: token t is bit t % 32 of word t / 32
    kFailed,  // the matcher is out of its budget, or cannot go on: the sequence ends with an error
  };
  // `bits` has TokenMaskWords(vocab_size) words.
  virtual Mask Allowed(std::span<int32_t> bits) = 0;
  // False when `token` is not allowed here.
  virtual bool Accept(TokenId token) = 0;
};

class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  virtual std::unique_ptr<TokenMatcher> NewMatcher() const = 0;
};

constexpr int32_t TokenMaskWords(int32_t vocab_size) {
  return (vocab_size + 31) / 32;
}
inline bool IsAllowed(std::span<const int32_t> bits, TokenId token) {
  return (static_cast<uint32_t>(bits[static_cast<size_t>(token) / 32]) >> (token % 32) & 1) != 0;
}

}  // namespace ekiben
