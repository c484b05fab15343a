// API keys: compared as SHA-256 digests in constant time against every key, so that neither a match's place nor a key's
// length shows in the time taken. Keys are never logged.
// In base/, because HTTP and gRPC ask the same keys.
// Thread: immutable after construction.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"

namespace ekiben {

class ApiKeys {
 public:
  explicit ApiKeys(const std::vector<std::string>& keys);
  // Without keys everyone may pass.
  bool required() const { return !digests_.empty(); }
  // The value of an Authorization header: "Bearer KEY".
  bool Allows(std::string_view authorization) const;

 private:
  std::vector<Digest> digests_;
};

}  // namespace ekiben
