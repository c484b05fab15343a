#include "api/service_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <atomic>

namespace ekiben::api {
namespace {

const prometheus::Histogram::BucketBoundaries kBuckets = {.005, .01, .025, .05, .1, .25, .5, 1,
                                                          2.5,  5,   10,   30,  60, 120, 180};
constexpr int kClientLeft = 499;

}  // namespace

struct ServiceMetrics::State {
  State(prometheus::Registry& registry, const std::string& name_space, const Clock& c)
      : clock(c),
        total(prometheus::BuildCounter()
                  .Name(name_space + "_request_total")
                  .Help("Total number of HTTP requests")
                  .Register(registry)),
        duration(prometheus::BuildHistogram()
                     .Name(name_space + "_request_duration_seconds")
                     .Help("API HTTP request duration in seconds")
                     .Register(registry)),
        in_progress(prometheus::BuildGauge()
                        .Name(name_space + "_request_in_progress")
                        .Help("Total number of HTTP requests in progress now")
                        .Register(registry)),
        last(prometheus::BuildGauge()
                 .Name(name_space + "_last_request_timestamp_seconds")
                 .Help("Timestamp of the last HTTP request")
                 .Register(registry)) {}

  prometheus::Labels Labels(const std::string& endpoint) const {
    return {{"endpoint", endpoint}, {"service_name", service}, {"service_version", version}, {"runner_name", service}};
  }
  prometheus::Labels Labels(const std::string& endpoint, int status) const {
    prometheus::Labels out = Labels(endpoint);
    out["http_response_code"] = std::to_string(status);
    return out;
  }

  const Clock& clock;
  std::string service, version;
  prometheus::Family<prometheus::Counter>& total;
  prometheus::Family<prometheus::Histogram>& duration;
  prometheus::Family<prometheus::Gauge>&in_progress, &last;
};

// Ends once, however the answer ends.
class ServiceMetrics::Watched {
 public:
  Watched(std::shared_ptr<State> state, std::string endpoint)
      : state_(std::move(state)), endpoint_(std::move(endpoint)), begin_(state_->clock.Now()) {
    state_->in_progress.Add(state_->Labels(endpoint_)).Increment();
    state_->last.Add(state_->Labels(endpoint_)).Set(Seconds(state_->clock.WallNow()));
  }
  void Status(int status) { status_ = status; }
  void End() {
    if (ended_.exchange(true)) return;
    int status = status_;
    state_->in_progress.Add(state_->Labels(endpoint_)).Decrement();
    state_->total.Add(state_->Labels(endpoint_, status)).Increment();
    state_->duration.Add(state_->Labels(endpoint_, status), kBuckets).Observe(Seconds(state_->clock.Now() - begin_));
  }

 private:
  const std::shared_ptr<State> state_;
  const std::string endpoint_;
  const Nanos begin_;
  std::atomic<int> status_{kClientLeft};
  std::atomic<bool> ended_{false};
};

class ServiceMetrics::WatchingWriter final : public http::ResponseWriter {
 public:
  WatchingWriter(std::shared_ptr<http::ResponseWriter> writer, std::shared_ptr<Watched> watched)
      : writer_(std::move(writer)), watched_(std::move(watched)) {
    writer_->OnClosed([watched = watched_] { watched->End(); });
  }
  ~WatchingWriter() override { watched_->End(); }

  void Send(int status, const http::Headers& headers, std::string_view body) override {
    watched_->Status(status);
    watched_->End();  // before the bytes: who reads them finds the count
    writer_->Send(status, headers, body);
  }
  void Start(int status, const http::Headers& headers) override {
    watched_->Status(status);
    writer_->Start(status, headers);
  }
  void Write(std::string_view chunk) override { writer_->Write(chunk); }
  void Finish() override {
    watched_->End();
    writer_->Finish();
  }
  void OnClosed(std::function<void()> callback) override {
    writer_->OnClosed([watched = watched_, callback = std::move(callback)] {
      watched->End();
      callback();
    });
  }
  void OnStartTimeout(Nanos timeout, std::function<void()> callback) override {
    writer_->OnStartTimeout(timeout, std::move(callback));
  }
  bool closed() const override { return writer_->closed(); }

 private:
  const std::shared_ptr<http::ResponseWriter> writer_;
  const std::shared_ptr<Watched> watched_;
};

ServiceMetrics::ServiceMetrics(prometheus::Registry& registry, const std::string& name_space,
                               const std::string& service, const std::string& version, const Clock& clock)
    : state_(std::make_shared<State>(registry, name_space, clock)) {
  state_->service = service;
  state_->version = version;
}

void ServiceMetrics::AddEndpoint(const std::string& endpoint) {
  state_->in_progress.Add(state_->Labels(endpoint));
  for (int status : {200, 500}) {
    state_->total.Add(state_->Labels(endpoint, status));
    state_->duration.Add(state_->Labels(endpoint, status), kBuckets);
  }
}

std::shared_ptr<http::ResponseWriter> ServiceMetrics::Watch(const std::string& endpoint,
                                                            std::shared_ptr<http::ResponseWriter> writer) {
  auto watched = std::make_shared<Watched>(state_, endpoint);
  return std::make_shared<WatchingWriter>(std::move(writer), std::move(watched));
}

}  // namespace ekiben::api
