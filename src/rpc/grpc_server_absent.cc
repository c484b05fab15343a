// In a build without libgrpc++ (EKIBEN_GRPC off): what it says.
#include "rpc/grpc_server.h"

namespace ekiben::rpc {

bool HasGrpc() {
  return false;
}

Result<std::unique_ptr<GrpcServer>> GrpcServer::Create(const GrpcConfig&, kserve::InferenceServer&) {
  return Error(Code::kUnsupported, "this build has no gRPC: build with -DEKIBEN_GRPC=on", "grpc_port");
}

}  // namespace ekiben::rpc
