// What every call of one gRPC server shares. Sinks of inferences hold it too, so it may outlive the server.
// Thread: any.
#pragma once
#include <atomic>
#include <condition_variable>
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

  // A call is in one of both from its start until gRPC is done with it. Returns how many streams were open before.
  size_t EnterStream(Drainable* stream) {
    std::lock_guard lock(mutex);
    open.insert(stream);
    return open.size() - 1;
  }
  void LeaveStream(Drainable* stream) {
    std::lock_guard lock(mutex);
    open.erase(stream);
    if (open.empty() && unary_open == 0) idle.notify_all();
  }
  void EnterUnary() {
    std::lock_guard lock(mutex);
    ++unary_open;
  }
  void LeaveUnary() {
    std::lock_guard lock(mutex);
    if (--unary_open == 0 && open.empty()) idle.notify_all();
  }

  std::mutex mutex;
  std::condition_variable idle;
  std::unordered_set<Drainable*> open;  // guarded by mutex; a call leaves it before it is destroyed
  size_t unary_open = 0;                // as open is: inferences of one answer
};

}  // namespace ekiben::rpc
