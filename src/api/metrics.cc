#include "api/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <limits>
#include <map>
#include <mutex>

#include "executor/executor.h"
#include "serve/service.h"

namespace ekiben::api {
namespace {

using prometheus::Histogram;
using prometheus::MetricFamily;
using prometheus::MetricType;

const Histogram::BucketBoundaries kFirstTokenBuckets = {.001, .0025, .005, .01, .025, .05, .1, .25,
                                                        .5,   1,     2.5,  5,   10,   30,  60};
const Histogram::BucketBoundaries kBetweenTokenBuckets = {.0005, .001, .0025, .005, .01, .02, .03, .05,
                                                          .075,  .1,   .15,   .2,   .3,  .5,  1,   2.5};
const Histogram::BucketBoundaries kRequestBuckets = {.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600};
const Histogram::BucketBoundaries kTokenBuckets = {1,   2,    5,    10,   20,    50,    100,  200,
                                                   500, 1000, 2000, 5000, 10000, 20000, 50000};

// Numbers read at scrape time: one family a name, one metric a model, in the order of their first mention.
class Readings {
 public:
  // `model` empty: a series of the whole server.
  void Add(MetricType type, const std::string& name, const char* help, double value, const std::string& model) {
    prometheus::ClientMetric metric;
    if (type == MetricType::Counter)
      metric.counter.value = value;
    else
      metric.gauge.value = value;
    Add(type, name, help, std::move(metric), model);
  }
  void Add(MetricType type, const std::string& name, const char* help, prometheus::ClientMetric metric,
           const std::string& model) {
    if (!model.empty()) metric.label.push_back({"model_name", model});
    auto [at, added] = places_.emplace(name, families_.size());
    if (added) families_.push_back({name, help, type, {}});
    families_[at->second].metric.push_back(std::move(metric));
  }
  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  std::vector<MetricFamily> families_;
  std::map<std::string, size_t> places_;
};

prometheus::ClientMetric PaddingHistogram(const ExecutorStats& stats) {
  prometheus::ClientMetric metric;
  for (size_t i = 0; i < stats.steps_by_padding.size(); ++i) {
    metric.histogram.sample_count += stats.steps_by_padding[i];
    bool last = i == ExecutorStats::kPaddingShares.size();
    metric.histogram.bucket.push_back({metric.histogram.sample_count, last ? std::numeric_limits<double>::infinity()
                                                                           : ExecutorStats::kPaddingShares[i]});
  }
  return metric;
}

void AddModelReadings(Readings& out, serve::Service& service, const std::string& model) {
  auto gauge = [&](const char* name, const char* alias, const char* help, double value) {
    out.Add(MetricType::Gauge, name, help, value, model);
    if (alias != nullptr) out.Add(MetricType::Gauge, alias, help, value, model);
  };
  auto counter = [&](const char* name, const char* alias, const char* help, auto value) {
    out.Add(MetricType::Counter, name, help, static_cast<double>(value), model);
    if (alias != nullptr) out.Add(MetricType::Counter, alias, help, static_cast<double>(value), model);
  };
  ExecutorStats e = service.executor().stats();
  gauge("ekiben_requests_waiting", "vllm:num_requests_waiting", "Requests in the executor's queue.", e.waiting);
  gauge("ekiben_prompt_tokens_waiting", nullptr, "Tokens of their prompts.", static_cast<double>(e.waiting_tokens));
  gauge("ekiben_requests_running", "vllm:num_requests_running", "Sequences that hold a slot.", e.running);
  gauge("ekiben_requests_paused", nullptr, "Sequences that gave their blocks back and wait to be computed again.",
        e.paused);
  double total = e.blocks_total > 0 ? e.blocks_total : 1;
  gauge("ekiben_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc", "Share of the KV blocks that are leased.",
        e.blocks_used / total);
  gauge("ekiben_kv_cache_blocks", nullptr, "KV blocks in all.", e.blocks_total);
  gauge("ekiben_kv_cache_blocks_reusable", nullptr, "KV blocks that hold a prefix nobody leases.", e.blocks_cached);
  counter("ekiben_prefix_tokens_queried_total", "vllm:prefix_cache_queries_total",
          "Prompt tokens looked up in the prefix tree.", e.prefix_tokens_queried);
  counter("ekiben_prefix_tokens_reused_total", "vllm:prefix_cache_hits_total",
          "Prompt tokens whose keys and values were reused.", e.prefix_tokens_reused);
  counter("ekiben_preemptions_total", "vllm:num_preemptions_total", "Sequences paused for want of blocks.",
          e.preemptions);
  counter("ekiben_steps_total", nullptr, "Forward passes.", e.steps);
  counter("ekiben_context_tokens_total", nullptr, "Tokens computed in context phase.", e.context_tokens);
  counter("ekiben_generation_tokens_total", nullptr, "Tokens computed in generation phase.", e.generation_tokens);
  gauge("ekiben_last_step_device_seconds", nullptr, "What the last step took on the device.",
        Seconds(e.last_step_device_time));
  gauge("ekiben_last_step_host_seconds", nullptr, "What the last step took on the host beside it.",
        Seconds(e.last_step_host_time));
  // Rates over ekiben_steps_total are what a step costs the executor's thread.
  counter("ekiben_steps_host_seconds_total", nullptr,
          "The executor's own time in steps, without its calls into the backend.", Seconds(e.host_time));
  counter("ekiben_steps_launch_seconds_total", nullptr, "The executor's time in queueing steps on the device.",
          Seconds(e.launch_time));
  counter("ekiben_steps_kernel_by_kernel_total", nullptr, "Steps without a captured graph, on a device that has them.",
          e.steps_kernel_by_kernel);
  counter("ekiben_steps_over_budget_total", nullptr,
          "Steps that took longer than --itl_budget_ms let them be planned for.", e.steps_over_budget);
  counter("ekiben_tokens_padded_total", nullptr, "Tokens computed as padding of steps to their captured sizes.",
          e.tokens_padded);
  out.Add(MetricType::Histogram, "ekiben_step_padding_share", "Padding of a step as a share of its tokens.",
          PaddingHistogram(e), model);
  gauge("ekiben_last_step_context_tokens", nullptr, "Context tokens of the last step.", e.last_step_context_tokens);
  gauge("ekiben_last_step_generation_rows", nullptr, "Generation rows of the last step.", e.last_step_generation_rows);
  serve::ServiceStats s = service.stats();
  counter("ekiben_requests_total", nullptr, "Requests that entered the ensemble.", s.requests);
  counter("ekiben_prompt_tokens_total", "vllm:prompt_tokens_total", "Prompt tokens accepted.", s.prompt_tokens);
  counter("ekiben_output_tokens_total", "vllm:generation_tokens_total", "Tokens generated.", s.output_tokens);
  gauge("ekiben_preprocessing_queued", nullptr, "Requests before a preprocessing instance.",
        static_cast<double>(s.preprocessing_queued));
  gauge("ekiben_postprocessing_queued", nullptr, "Tokens before a postprocessing instance.",
        static_cast<double>(s.postprocessing_queued));
  counter("ekiben_postprocessing_stalls_total", nullptr, "Tokens that found that queue full.", s.postprocessing_stalls);
}

void AddServerReadings(Readings& out, const http::ServerStats& h) {
  auto gauge = [&](const char* name, const char* help, double value) {
    out.Add(MetricType::Gauge, name, help, value, "");
  };
  auto counter = [&](const char* name, const char* help, auto value) {
    out.Add(MetricType::Counter, name, help, static_cast<double>(value), "");
  };
  gauge("ekiben_http_connections", "Open connections.", static_cast<double>(h.connections));
  counter("ekiben_http_requests_total", "HTTP requests read.", h.requests);
  counter("ekiben_http_requests_malformed_total", "HTTP requests refused while being read.", h.requests_malformed);
  counter("ekiben_http_clients_left_total", "Connections closed before their answer was finished.", h.clients_left);
  counter("ekiben_http_clients_too_slow_total", "Of these, closed for not reading.", h.clients_too_slow);
  counter("ekiben_http_bytes_sent_total", "Bytes handed to sockets.", h.bytes_sent);
  counter("ekiben_http_sends_total", "System calls that did so.", h.sends);
  counter("ekiben_tls_handshakes_total", "TLS connections that were agreed on.", h.tls_handshakes);
  counter("ekiben_tls_failures_total", "TLS connections that broke, most before that.", h.tls_failures);
}

// The families of what is counted here; a series a model.
struct Families {
  Families() { aliases.emplace_back("ekiben_sequences_finished_total", "vllm:request_success_total"); }

  prometheus::Family<Histogram>& AddHistogram(const char* name, const char* alias, const char* help) {
    aliases.emplace_back(name, alias);
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry);
  }

  prometheus::Registry registry;
  std::vector<std::pair<std::string, std::string>> aliases;  // own name -> vLLM's, the same numbers
  prometheus::Family<Histogram>& first_token =
      AddHistogram("ekiben_time_to_first_token_seconds", "vllm:time_to_first_token_seconds",
                   "From the request's arrival to its first token.");
  prometheus::Family<Histogram>& between_tokens = AddHistogram(
      "ekiben_inter_token_latency_seconds", "vllm:inter_token_latency_seconds", "Between two tokens of one sequence.");
  prometheus::Family<Histogram>& whole_request = AddHistogram(
      "ekiben_request_seconds", "vllm:e2e_request_latency_seconds", "From a request's arrival to its last token.");
  prometheus::Family<Histogram>& prompt_tokens =
      AddHistogram("ekiben_request_prompt_tokens", "vllm:request_prompt_tokens", "Prompt tokens of a request.");
  prometheus::Family<Histogram>& output_tokens =
      AddHistogram("ekiben_request_output_tokens", "vllm:request_generation_tokens", "Generated tokens of a request.");
  prometheus::Family<prometheus::Counter>& finished = prometheus::BuildCounter()
                                                          .Name("ekiben_sequences_finished_total")
                                                          .Help("Sequences by how they ended.")
                                                          .Register(registry);
  prometheus::Family<prometheus::Counter>& failed = prometheus::BuildCounter()
                                                        .Name("ekiben_requests_failed_total")
                                                        .Help("Requests that ended with an error, by its code.")
                                                        .Register(registry);
  prometheus::Family<prometheus::Gauge>& in_progress = prometheus::BuildGauge()
                                                           .Name("ekiben_requests_in_progress")
                                                           .Help("Requests whose answer is not finished.")
                                                           .Register(registry);
};

class ModelSeries final : public ModelMetrics {
 public:
  // Every series exists from the start, so that a rate over it has a zero to begin with.
  ModelSeries(Families& families, const std::string& model)
      : families_(families),
        model_(model),
        first_token_(families.first_token.Add({{"model_name", model}}, kFirstTokenBuckets)),
        between_tokens_(families.between_tokens.Add({{"model_name", model}}, kBetweenTokenBuckets)),
        whole_request_(families.whole_request.Add({{"model_name", model}}, kRequestBuckets)),
        prompt_tokens_(families.prompt_tokens.Add({{"model_name", model}}, kTokenBuckets)),
        output_tokens_(families.output_tokens.Add({{"model_name", model}}, kTokenBuckets)),
        in_progress_(families.in_progress.Add({{"model_name", model}})) {
    for (FinishReason reason : {FinishReason::kEndToken, FinishReason::kStopText, FinishReason::kLength,
                                FinishReason::kCancelled, FinishReason::kDeadline, FinishReason::kError})
      by_reason_[static_cast<size_t>(reason)] =
          &families.finished.Add({{"model_name", model}, {"finished_reason", std::string(FinishReasonName(reason))}});
  }

  void RequestBegins() override { in_progress_.Increment(); }
  void FirstToken(Nanos since_arrival) override { first_token_.Observe(Seconds(since_arrival)); }
  void NextToken(Nanos since_last) override { between_tokens_.Observe(Seconds(since_last)); }
  void SequenceEnds(FinishReason reason) override {
    auto* counter = by_reason_[static_cast<size_t>(reason)];
    if (counter != nullptr) counter->Increment();
  }
  void RequestEnds(Nanos since_arrival, int64_t prompt_tokens, int64_t output_tokens) override {
    whole_request_.Observe(Seconds(since_arrival));
    prompt_tokens_.Observe(static_cast<double>(prompt_tokens));
    output_tokens_.Observe(static_cast<double>(output_tokens));
  }
  void RequestFails(Code code) override {
    families_.failed.Add({{"model_name", model_}, {"code", std::string(CodeName(code))}}).Increment();
  }
  void RequestLeaves() override { in_progress_.Decrement(); }

 private:
  Families& families_;
  const std::string model_;
  Histogram &first_token_, &between_tokens_, &whole_request_, &prompt_tokens_, &output_tokens_;
  prometheus::Gauge& in_progress_;
  std::array<prometheus::Counter*, 7> by_reason_{};
};

}  // namespace

struct Metrics::State {
  State(const serve::ModelRegistry& m, const http::Server& h) : models(m), server(h) {}

  const serve::ModelRegistry& models;
  const http::Server& server;
  Families families;
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<ModelSeries>> series;
};

Metrics::Metrics(const serve::ModelRegistry& models, const http::Server& server)
    : state_(std::make_unique<State>(models, server)) {
  for (const auto& model : models.Models()) Of(model->name());
}

Metrics::~Metrics() = default;

ModelMetrics& Metrics::Of(const std::string& model) {
  std::lock_guard lock(state_->mutex);
  auto& series = state_->series[model];
  if (series == nullptr) series = std::make_unique<ModelSeries>(state_->families, model);
  return *series;
}

void Metrics::RequestRefused(Code code) {
  auto model = state_->models.Find("");
  Of(model != nullptr ? model->name() : "").RequestFails(code);
}

prometheus::Registry& Metrics::registry() {
  return state_->families.registry;
}

std::string Metrics::Text() const {
  std::vector<MetricFamily> families = state_->families.registry.Collect();
  size_t own = families.size();
  for (size_t i = 0; i < own; ++i) {
    for (const auto& [name, alias] : state_->families.aliases) {
      if (families[i].name != name) continue;
      MetricFamily copy = families[i];
      copy.name = alias;
      families.push_back(std::move(copy));
    }
  }
  Readings readings;
  for (const auto& model : state_->models.Models()) AddModelReadings(readings, model->service(), model->name());
  AddServerReadings(readings, state_->server.stats());
  for (MetricFamily& family : readings.Take()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace ekiben::api
