// What /metrics shows: histograms and counters that the edge records, and gauges read from the stages when scraped.
// Own names are ekiben_*; where a value means the same as one of vLLM's, it is also there under vllm:*, so that
// dashboards written for that work.
// Thread: any.
#pragma once
#include <memory>
#include <string>

#include "base/clock.h"
#include "http/server.h"
#include "request/request.h"
#include "serve/service.h"

namespace ekiben::api {

class Metrics {
 public:
  // Both outlive this.
  Metrics(serve::Service& service, const http::Server& server, const std::string& model_name);
  ~Metrics();

  void RequestBegins();
  void FirstToken(Nanos since_arrival);
  void NextToken(Nanos since_last);
  void SequenceEnds(FinishReason reason);
  // Once a request that got as far as its prompt.
  void RequestEnds(Nanos since_arrival, int64_t prompt_tokens, int64_t output_tokens);
  void RequestFails(Code code);
  // Over, however it went.
  void RequestLeaves();
  int64_t in_progress() const;

  // Prometheus text format 0.0.4.
  std::string Text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ekiben::api
