// What every call of one gRPC server shares. Sinks of inferences hold it too, so it may outlive the server.
// Thread: any.
#pragma once
#include <atomic>
#include <mutex>
#include <unordered_set>

#include "rpc/grpc_server.h"

namespace ekiben::rpc {

// Something that a drain must reach: an open stream.
class Drainable {
 public:
  virtual ~Drainable() = default;
  virtual void BeginDrain() = 0;
};

struct CallContext {
  CallContext(const GrpcConfig& server_config, kserve::InferenceServer& core)
      : config(server_config), inference(core) {}

  const GrpcConfig config;
  kserve::InferenceServer& inference;
  std::atomic<bool> draining{false};
  std::atomic<uint64_t> streams_opened{0}, inferences{0}, clients_too_slow{0};
  std::atomic<int64_t> inferences_running{0};

  std::mutex mutex;
  std::unordered_set<Drainable*> open;  // guarded by mutex; a call leaves it before it is destroyed
};

}  // namespace ekiben::rpc
