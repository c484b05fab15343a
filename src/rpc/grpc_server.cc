#include "rpc/grpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "rpc/call_context.h"
#include "rpc/health_service.h"
#include "rpc/inference_service.h"

namespace ekiben::rpc {
namespace {

int Milliseconds(Nanos time) {
  return static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(time).count());
}

// The library's own lines are about single connections, which strangers can make as many as they like of: never more
// than debug. What concerns the server comes back as an error of Create.
void LogLine(gpr_log_func_args* args) {
  LOG_DEBUG("gRPC: {}", args->message);
}

Result<std::shared_ptr<grpc::ServerCredentials>> Credentials(const GrpcConfig& config) {
  if (!config.tls.enabled()) return grpc::InsecureServerCredentials();
  // gRPC only logs what is wrong with files, handshake by handshake: they are read once here, for an error at the
  // start.
  RETURN_IF_ERROR(http::TlsContexts::Open(config.tls));
  const std::string& key = config.tls.keyfile.empty() ? config.tls.certfile : config.tls.keyfile;
  auto seconds = std::chrono::duration_cast<std::chrono::seconds>(config.tls_reload_period).count();
  auto provider = std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      key, config.tls.certfile, config.tls.ca_certs, static_cast<unsigned>(std::max<int64_t>(seconds, 1)));
  grpc::experimental::TlsServerCredentialsOptions options(provider);
  options.watch_identity_key_cert_pairs();
  options.set_identity_cert_name("");
  if (!config.tls.ca_certs.empty()) {
    options.watch_root_certs();
    options.set_root_cert_name("");
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

void SetLimits(const GrpcConfig& config, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(config.message_bytes_max);
  builder.SetMaxSendMessageSize(config.message_bytes_max);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);  // rpc/message_bytes.h does it, bounded
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a port in use is an error, not a share of its clients
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, config.streams_max_per_connection);
  constexpr int kMetadataBytesMax = 16 << 10;
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMetadataBytesMax);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(config.keepalive_time));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(config.keepalive_timeout));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Clients ask too (tritonclient's KeepAliveOptions): not more often than this, or they are sent away.
  constexpr int kClientPingPeriodMinMs = 5000;
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kClientPingPeriodMinMs);
  if (config.connection_age_max > Nanos(0)) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, Milliseconds(config.connection_age_max));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, Milliseconds(config.connection_age_grace));
  }
}

class Server final : public GrpcServer {
 public:
  Server(const GrpcConfig& config, kserve::InferenceServer& inference)
      : shared_(std::make_shared<CallContext>(config, inference)),
        inference_service_(CreateInferenceService(shared_)),
        health_service_(CreateHealthService(shared_)) {}
  ~Server() override { Stop(); }

  Result<void> Listen() {
    const GrpcConfig& config = shared_->config;
    ASSIGN_OR_RETURN(auto credentials, Credentials(config));
    grpc::ServerBuilder builder;
    SetLimits(config, builder);
    bool bare_v6 = config.host.find(':') != std::string::npos && !config.host.starts_with('[');
    std::string address = fmt::format("{}{}{}:{}", bare_v6 ? "[" : "", config.host, bare_v6 ? "]" : "", config.port);
    int port = 0;
    builder.AddListeningPort(address, credentials, &port);
    builder.RegisterService(inference_service_.get());
    builder.RegisterService(health_service_.get());
    server_ = builder.BuildAndStart();
    if (!server_ || port == 0)
      return Error(Code::kUnavailable, fmt::format("grpc_port: cannot listen on {}: is the port in use?", address),
                   "grpc_port");
    port_ = static_cast<uint16_t>(port);
    return {};
  }

  bool Drain(Nanos timeout) override {
    const Clock& clock = *shared_->config.clock;
    Nanos deadline = clock.Now() + timeout;
    shared_->draining = true;
    WaitForCalls(timeout);
    timeout = std::max(deadline - clock.Now(), Nanos(0));
    gpr_timespec until = gpr_time_add(gpr_now(GPR_CLOCK_REALTIME), gpr_time_from_nanos(timeout.count(), GPR_TIMESPAN));
    if (server_) server_->Shutdown(until);
    return gpr_time_cmp(gpr_now(GPR_CLOCK_REALTIME), until) < 0;
  }

  void Stop() override {
    if (!server_) return;
    shared_->draining = true;
    server_->Shutdown(gpr_inf_past(GPR_CLOCK_REALTIME));
    server_.reset();
  }

  uint16_t port() const override { return port_; }
  GrpcStats stats() const override {
    GrpcStats stats;
    stats.streams_opened = shared_->streams_opened;
    stats.inferences = shared_->inferences;
    stats.clients_too_slow = shared_->clients_too_slow;
    stats.inferences_running = static_cast<size_t>(shared_->inferences_running.load());
    std::lock_guard lock(shared_->mutex);
    stats.streams_open = shared_->open.size();
    return stats;
  }

 private:
  // Shutdown closes a connection as its last call ends, and a socket that is closed with bytes of the client's unread
  // is reset: what the client had not read of its answer yet is lost. So the calls end first, and their clients get a
  // moment for what the kernel still holds.
  void WaitForCalls(Nanos timeout) {
    constexpr std::chrono::milliseconds kReadTime(200);
    std::unique_lock lock(shared_->mutex);  // no stream is destroyed meanwhile
    auto idle = [this] { return shared_->open.empty() && shared_->unary_open == 0; };
    if (idle()) return;
    for (Drainable* call : shared_->open) call->BeginDrain();
    if (!shared_->idle.wait_for(lock, timeout, idle)) return;
    lock.unlock();
    std::this_thread::sleep_for(std::min<Nanos>(timeout, kReadTime));
  }

  const std::shared_ptr<CallContext> shared_;
  std::unique_ptr<grpc::Service> inference_service_, health_service_;  // outlive server_
  std::unique_ptr<grpc::Server> server_;
  uint16_t port_ = 0;
};

}  // namespace

bool HasGrpc() {
  return true;
}

Result<std::unique_ptr<GrpcServer>> GrpcServer::Create(const GrpcConfig& config, kserve::InferenceServer& inference) {
  static std::once_flag log_once;
  std::call_once(log_once, [] { gpr_set_log_function(LogLine); });
  auto server = std::make_unique<Server>(config, inference);
  RETURN_IF_ERROR(server->Listen());
  return std::unique_ptr<GrpcServer>(std::move(server));
}

}  // namespace ekiben::rpc
