// API keys and what each may use. Keys are compared as SHA-256 digests in constant time against every key, so that
// neither a match's place nor a key's length shows in the time taken. Keys are never logged; names are.
// In base/, because HTTP and gRPC ask the same keys: copies of one ApiKeys share their clients' counts.
// Thread: any.
#pragma once
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/sha256.h"

namespace ekiben {

struct ApiKey {
  std::string key;
  std::string name;                // of whom it belongs to
  int32_t max_concurrency = 0;     // requests at once; 0: no limit
  double requests_per_minute = 0;  // on average, with a burst of at most a minute's; 0: no limit
  bool admin = false;              // may load and unload models, change tracing
};

// Whom a key belongs to, with what they use now.
class ApiClient {
 public:
  explicit ApiClient(ApiKey key);
  const std::string& name() const { return limits_.name; }
  bool admin() const { return limits_.admin; }
  const Digest& digest() const { return digest_; }

  struct Admission {
    std::shared_ptr<const void> turn;  // null: refused; else the request counts until the last copy is dropped
    std::string refusal;               // one line
    int32_t retry_after_s = 0;
  };
  Admission Admit(Nanos now);
  int32_t running() const;

 private:
  struct Counts;
  ApiKey limits_;  // without the key itself
  const Digest digest_;
  const std::shared_ptr<Counts> counts_;  // turns hold it: they may outlive the client
};

class ApiKeys {
 public:
  ApiKeys() = default;
  ApiKeys(std::initializer_list<std::string_view> keys);  // NOLINT: a list of keys is keys
  ApiKeys(const std::vector<std::string>& keys);          // NOLINT
  explicit ApiKeys(std::vector<ApiKey> keys);

  // Without keys everyone may pass.
  bool required() const { return !clients_.empty(); }
  // By the value of an Authorization header, "Bearer KEY"; null when it is no key.
  ApiClient* Find(std::string_view authorization) const;
  bool Allows(std::string_view authorization) const { return !required() || Find(authorization) != nullptr; }

 private:
  std::vector<std::shared_ptr<ApiClient>> clients_;
};

}  // namespace ekiben
