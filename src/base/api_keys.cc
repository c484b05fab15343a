#include "base/api_keys.h"

#include <openssl/crypto.h>

#include <span>

namespace ekiben {
namespace {

Digest DigestOf(std::string_view text) {
  return Sha256Of(std::as_bytes(std::span(text.data(), text.size())));
}

// A scheme's name is compared without regard to case (RFC 9110, 11.1).
bool HasScheme(std::string_view authorization, std::string_view scheme) {
  if (authorization.size() < scheme.size()) return false;
  for (size_t i = 0; i < scheme.size(); ++i) {
    char c = authorization[i];
    if ((c >= 'A' && c <= 'Z' ? c | 0x20 : c) != scheme[i]) return false;
  }
  return true;
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) digests_.push_back(DigestOf(key));
}

bool ApiKeys::Allows(std::string_view authorization) const {
  if (!required()) return true;
  static constexpr std::string_view kScheme = "bearer ";
  if (!HasScheme(authorization, kScheme)) return false;
  Digest given = DigestOf(authorization.substr(kScheme.size()));
  int matches = 0;
  for (const Digest& digest : digests_) matches += CRYPTO_memcmp(digest.data(), given.data(), given.size()) == 0;
  return matches > 0;
}

}  // namespace ekiben
