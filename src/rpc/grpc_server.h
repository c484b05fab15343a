// KServe v2 over gRPC: a port, its transport's limits, and the services behind it. No gRPC type appears here, because
// its headers cost seconds in every file that sees them.
//
// A client that leaves, or whose deadline passes, cancels its inferences. One that does not read is held to
// stream_buffer_bytes_max a stream, then its requests are cancelled and the stream ends with RESOURCE_EXHAUSTED.
// Errors of Create name the field of GrpcConfig. Thread: Create, Drain and Stop from one thread; the rest any.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/api_keys.h"
#include "base/clock.h"
#include "base/result.h"
#include "http/tls.h"
#include "kserve/inference.h"

namespace ekiben::rpc {

// False in a build without libgrpc++: Create is then an error.
bool HasGrpc();

struct GrpcConfig {
  std::string host = "127.0.0.1";
  uint16_t port = 8001;  // 0: any free one, see GrpcServer::port
  std::string server_version = "0.1.0";
  ApiKeys api_keys;  // `authorization: Bearer KEY`; none: open. Liveness and health are always open
  bool admin_routes =
      false;  // loads, unloads and changes of settings: for all who may pass; else for admins' keys only
  const Clock* clock = &SystemClock::Get();  // of the keys' limits

  http::TlsConfig tls;  // as of the HTTP ports. The files are read again every tls_reload_period, for new connections
  Nanos tls_reload_period = std::chrono::seconds(10);

  int32_t message_bytes_max = INT32_MAX;         // of one message on the wire, either way
  size_t unpacked_bytes_max = size_t{64} << 20;  // of one message that came packed by gzip or deflate
  int32_t streams_max_per_connection = 4096;
  int32_t streams_max = 16384;                      // calls of ModelStreamInfer that are open; one more is refused
  Nanos keepalive_time = std::chrono::seconds(60);  // a silent connection is asked whether it is there
  Nanos keepalive_timeout = std::chrono::seconds(20);
  Nanos connection_age_max = Nanos(0);  // 0: for ever; else a connection is told to go, as a load balancer wants it
  Nanos connection_age_grace = std::chrono::seconds(60);

  size_t stream_buffer_bytes_max = size_t{1} << 20;  // unread by the client, of one stream
  size_t stream_buffer_messages_min = 64;            // but so many of its largest messages wait always
  int32_t stream_requests_max = 1024;                // in flight on one stream; further ones wait unread
  Nanos write_timeout = std::chrono::seconds(30);    // for a slow reader to take its last bytes, then it is cut
};

struct GrpcStats {
  uint64_t streams_opened = 0, inferences = 0;
  uint64_t clients_too_slow = 0;  // streams over their buffer
  size_t streams_open = 0, inferences_running = 0;
};

class GrpcServer {
 public:
  // Listens and serves. `inference` outlives the server.
  static Result<std::unique_ptr<GrpcServer>> Create(const GrpcConfig& config, kserve::InferenceServer& inference);
  virtual ~GrpcServer() = default;  // as Stop()

  // Refuses new calls (UNAVAILABLE), lets running inferences end, ends streams that have none, and waits up to
  // `timeout`; what is left then is cancelled. True when nothing was. The port stays open until the last call has
  // ended.
  virtual bool Drain(Nanos timeout) = 0;
  // Cancels everything. Idempotent.
  virtual void Stop() = 0;

  virtual uint16_t port() const = 0;
  virtual GrpcStats stats() const = 0;
};

}  // namespace ekiben::rpc
