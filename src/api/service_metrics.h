// BentoML's own metrics (<namespace>_request_total, _request_duration_seconds, _request_in_progress,
// _last_request_timestamp_seconds), with its labels and buckets, counted around any answer by a writer that looks at
// what passes. A request ends with the last byte of its answer, or when its client leaves.
// Thread: any.
#pragma once
#include <memory>
#include <string>

#include "base/clock.h"
#include "http/server.h"

namespace prometheus {
class Registry;
}

namespace ekiben::api {

class ServiceMetrics {
 public:
  // The registry and the clock outlive this.
  ServiceMetrics(prometheus::Registry& registry, const std::string& name_space, const std::string& service,
                 const std::string& version, const Clock& clock);

  // Series of an API at 0 for the answers 200 and 500, as BentoML has them from the start.
  void AddEndpoint(const std::string& endpoint);
  // Counts a request that begins now; hand the result on in place of `writer`.
  std::shared_ptr<http::ResponseWriter> Watch(const std::string& endpoint,
                                              std::shared_ptr<http::ResponseWriter> writer);

 private:
  struct State;
  class Watched;
  class WatchingWriter;
  std::shared_ptr<State> state_;
};

}  // namespace ekiben::api
