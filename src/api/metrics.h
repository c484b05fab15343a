// What /metrics shows: histograms and counters that the edge records, and gauges read from the stages when scraped.
// Own names are ekiben_*; where a value means the same as one of vLLM's, it is also there under vllm:*, so that
// dashboards written for that work.
// Every series of a model carries its name as model_name.
// Thread: any.
#pragma once
#include <memory>
#include <string>

#include "base/clock.h"
#include "http/server.h"
#include "request/request.h"
#include "serve/model_registry.h"

namespace prometheus {
class Registry;
}

namespace ekiben::api {

// What happens to the calls of one model.
class ModelMetrics {
 public:
  virtual ~ModelMetrics() = default;
  virtual void RequestBegins() = 0;
  virtual void FirstToken(Nanos since_arrival) = 0;
  virtual void NextToken(Nanos since_last) = 0;
  virtual void SequenceEnds(FinishReason reason) = 0;
  // Once a request that got as far as its prompt.
  virtual void RequestEnds(Nanos since_arrival, int64_t prompt_tokens, int64_t output_tokens) = 0;
  virtual void RequestFails(Code code) = 0;
  // Over, however it went.
  virtual void RequestLeaves() = 0;
};

class Metrics {
 public:
  // Both outlive this, but for calls of ModelMetrics.
  Metrics(const serve::ModelRegistry& models, const http::Server& server);
  ~Metrics();

  // Of a model, by its own name (no alias); made at the first call, and kept: counters never go back.
  ModelMetrics& Of(const std::string& model);
  // Failed before a model was found: counted for the default one.
  void RequestRefused(Code code);

  // Where further families are added; Text() shows them, too.
  prometheus::Registry& registry();

  // Prometheus text format 0.0.4.
  std::string Text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ekiben::api
