#include "base/api_keys.h"

#include <fmt/format.h>
#include <openssl/crypto.h>

#include <algorithm>
#include <cmath>
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

struct ApiClient::Counts {
  std::mutex mutex;
  int32_t running = 0;
  double allowance = 0;  // requests that may begin now
  Nanos filled{};        // when allowance was last brought up to date
  bool fresh = true;
};

ApiClient::ApiClient(ApiKey key)
    : limits_(std::move(key)), digest_(DigestOf(limits_.key)), counts_(std::make_shared<Counts>()) {
  limits_.key = std::string();
}

ApiClient::Admission ApiClient::Admit(Nanos now) {
  Counts& counts = *counts_;
  std::lock_guard lock(counts.mutex);
  if (limits_.max_concurrency > 0 && counts.running >= limits_.max_concurrency)
    return {nullptr, fmt::format("max_concurrency: {} requests of this key are running already", counts.running), 1};
  if (limits_.requests_per_minute > 0) {
    double burst = std::max(1.0, limits_.requests_per_minute), rate = limits_.requests_per_minute / 60;
    double seconds = std::chrono::duration<double>(now - counts.filled).count();
    counts.allowance = counts.fresh ? burst : std::min(burst, counts.allowance + seconds * rate);
    counts.fresh = false;
    counts.filled = now;
    if (counts.allowance < 1)
      return {nullptr, fmt::format("requests_per_minute: over the {:g} of this key", limits_.requests_per_minute),
              std::max(1, static_cast<int32_t>(std::ceil((1 - counts.allowance) / rate)))};
    counts.allowance -= 1;
  }
  ++counts.running;
  std::shared_ptr<const void> turn(static_cast<const void*>(counts_.get()), [held = counts_](const void*) {
    std::lock_guard guard(held->mutex);
    --held->running;
  });
  return {std::move(turn), {}, 0};
}

int32_t ApiClient::running() const {
  std::lock_guard lock(counts_->mutex);
  return counts_->running;
}

ApiKeys::ApiKeys(std::initializer_list<std::string_view> keys) {
  for (std::string_view key : keys) clients_.push_back(std::make_shared<ApiClient>(ApiKey{std::string(key)}));
}

ApiKeys::ApiKeys(const std::vector<std::string>& keys) {
  for (const std::string& key : keys) clients_.push_back(std::make_shared<ApiClient>(ApiKey{key}));
}

ApiKeys::ApiKeys(std::vector<ApiKey> keys) {
  for (ApiKey& key : keys) clients_.push_back(std::make_shared<ApiClient>(std::move(key)));
}

ApiClient* ApiKeys::Find(std::string_view authorization) const {
  static constexpr std::string_view kScheme = "bearer ";
  if (!HasScheme(authorization, kScheme)) return nullptr;
  Digest given = DigestOf(authorization.substr(kScheme.size()));
  ApiClient* found = nullptr;
  for (const auto& client : clients_)
    if (CRYPTO_memcmp(client->digest().data(), given.data(), given.size()) == 0) found = client.get();
  return found;
}

}  // namespace ekiben
