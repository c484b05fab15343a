// GRPCInferenceService: every RPC of proto/grpc_service.proto. What reads a table is answered at once; what may load a
// model runs on one worker thread.
// Thread: libgrpc++'s callback threads.
#pragma once
#include <grpcpp/impl/service_type.h>

#include <memory>

#include "rpc/call_context.h"

namespace ekiben::rpc {

// Destroyed after the grpc::Server that it was registered with has shut down.
std::unique_ptr<grpc::Service> CreateInferenceService(std::shared_ptr<CallContext> shared);

}  // namespace ekiben::rpc
