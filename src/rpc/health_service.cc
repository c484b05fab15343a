#include "rpc/health_service.h"

#include <grpcpp/alarm.h>

#include <optional>

#include "proto/health.grpc.pb.h"

namespace ekiben::rpc {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
constexpr int64_t kLookPeriodMs = 500;

bool IsKnown(const std::string& service) {
  return service.empty() || service == "inference.GRPCInferenceService";
}

HealthCheckResponse::ServingStatus StatusNow(const CallContext& shared) {
  bool serving = !shared.draining && shared.inference.Live() && shared.inference.Ready();
  return serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

class WatchCall final : public grpc::ServerWriteReactor<HealthCheckResponse>, public Drainable {
 public:
  WatchCall(std::shared_ptr<CallContext> shared, std::string service)
      : shared_(std::move(shared)), service_(std::move(service)) {}

  void Start(const std::shared_ptr<WatchCall>& self) {
    {
      std::lock_guard lock(mutex_);
      self_ = self;  // before a drain can end the call
    }
    shared_->EnterStream(this);
    std::lock_guard lock(mutex_);
    draining_ = shared_->draining;  // one that began before this call could be told
    Look();
  }
  void BeginDrain() override {
    std::lock_guard lock(mutex_);
    draining_ = true;
    Look();
  }
  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) return End(grpc::Status::CANCELLED);
    Look();
  }
  void OnCancel() override {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    if (!writing_) End(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    shared_->LeaveStream(this);
    next_look_.Cancel();
    std::shared_ptr<WatchCall> self;
    std::lock_guard lock(mutex_);
    self.swap(self_);
  }

 private:
  // With the mutex held, as End is.
  void Look() {
    if (finished_ || writing_) return;
    if (cancelled_) return End(grpc::Status::CANCELLED);
    auto now = IsKnown(service_) ? StatusNow(*shared_) : HealthCheckResponse::SERVICE_UNKNOWN;
    if (now != last_) {
      last_ = now;
      response_.set_status(now);
      writing_ = true;
      return StartWrite(&response_);
    }
    if (draining_) return End({grpc::StatusCode::UNAVAILABLE, "the server is going away"});
    gpr_timespec period = gpr_time_from_millis(kLookPeriodMs, GPR_TIMESPAN);
    next_look_.Set(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), period), [weak = std::weak_ptr(self_)](bool expired) {
      auto self = weak.lock();
      if (!expired || !self) return;
      std::lock_guard lock(self->mutex_);
      self->Look();
    });
  }
  void End(const grpc::Status& status) {
    if (std::exchange(finished_, true)) return;
    Finish(status);
  }

  const std::shared_ptr<CallContext> shared_;
  const std::string service_;
  std::mutex mutex_;
  HealthCheckResponse response_;
  std::optional<HealthCheckResponse::ServingStatus> last_;
  bool writing_ = false, cancelled_ = false, draining_ = false, finished_ = false;
  grpc::Alarm next_look_;
  std::shared_ptr<WatchCall> self_;  // gRPC's hold, until OnDone
};

class Service final : public grpc::health::v1::Health::CallbackService {
 public:
  explicit Service(std::shared_ptr<CallContext> shared) : shared_(std::move(shared)) {}

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context, const HealthCheckRequest* request,
                                  HealthCheckResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    if (!IsKnown(request->service())) {
      reactor->Finish({grpc::StatusCode::NOT_FOUND, "no service of this name"});
      return reactor;
    }
    response->set_status(StatusNow(*shared_));
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerWriteReactor<HealthCheckResponse>* Watch(grpc::CallbackServerContext*,
                                                       const HealthCheckRequest* request) override {
    auto call = std::make_shared<WatchCall>(shared_, request->service());
    call->Start(call);
    return call.get();
  }

 private:
  const std::shared_ptr<CallContext> shared_;
};

}  // namespace

std::unique_ptr<grpc::Service> CreateHealthService(std::shared_ptr<CallContext> shared) {
  return std::make_unique<Service>(std::move(shared));
}

}  // namespace ekiben::rpc
