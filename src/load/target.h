// What every level of a run shares: where requests go, what they look like, what they ask. Made once, after one request
// sent alone has been answered: a wrong URL, model or parameter is an error here and not a column of failed requests.
// Thread: immutable after Create.
#pragma once
#include <atomic>
#include <memory>

#include "load/bench.h"
#include "load/endpoint.h"
#include "load/prompts.h"
#include "load/transport.h"

namespace ekiben::load {

struct Target {
  // `config` outlives the target.
  static Result<std::unique_ptr<Target>> Create(const BenchConfig& config);
  // Its users share nothing with other transports; refers to this target.
  Result<std::unique_ptr<Transport>> NewTransport(int32_t users) const;
  const std::atomic<bool>& stop() const { return config.stop != nullptr ? *config.stop : never_stop; }
  // The settings as a report repeats them.
  json::object ConfigJson() const;

  const BenchConfig& config;
  const Clock& clock = SystemClock::Get();
  uint64_t seed = 0;
  Endpoint endpoint;
  RequestShape shape;
  std::unique_ptr<PromptSource> prompts;
  std::atomic<bool> never_stop{false};

 private:
  explicit Target(const BenchConfig& bench) : config(bench) {}
  Result<void> Prepare();
  Result<void> Preflight() const;
};

inline Nanos FromSeconds(double seconds) {
  return Nanos(static_cast<int64_t>(seconds * 1e9));
}
// kInvalid, naming the field, unless low <= value <= high.
Result<void> CheckRange(std::string_view field, double value, double low, double high);

}  // namespace ekiben::load
