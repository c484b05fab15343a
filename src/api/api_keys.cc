#include "api/api_keys.h"

#include <openssl/crypto.h>

#include "http/request.h"

namespace ekiben::api {
namespace {

Digest DigestOf(std::string_view text) {
  return Sha256Of(std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) digests_.push_back(DigestOf(key));
}

bool ApiKeys::Allows(std::string_view authorization) const {
  if (!required()) return true;
  static constexpr std::string_view kScheme = "Bearer ";
  if (authorization.size() < kScheme.size() ||
      !http::EqualsIgnoreCase(authorization.substr(0, kScheme.size()), kScheme))
    return false;
  Digest given = DigestOf(authorization.substr(kScheme.size()));
  int matches = 0;
  for (const Digest& digest : digests_) matches += CRYPTO_memcmp(digest.data(), given.data(), given.size()) == 0;
  return matches > 0;
}

}  // namespace ekiben::api
