// grpc.health.v1.Health: Check, and Watch, which looks twice a second. Never asks for a key. The server as a whole ("")
// and "inference.GRPCInferenceService" are known; a drain says NOT_SERVING and ends what watches.
// Thread: libgrpc++'s callback threads.
#pragma once
#include <grpcpp/impl/service_type.h>

#include <memory>

#include "rpc/call_context.h"

namespace ekiben::rpc {

std::unique_ptr<grpc::Service> CreateHealthService(std::shared_ptr<CallContext> shared);

}  // namespace ekiben::rpc
