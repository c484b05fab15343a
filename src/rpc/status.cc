#include "rpc/status.h"

namespace ekiben::rpc {

grpc::StatusCode StatusCodeOf(Code code) {
  switch (code) {
    case Code::kInvalid: return grpc::StatusCode::INVALID_ARGUMENT;
    case Code::kNotFound: return grpc::StatusCode::NOT_FOUND;
    case Code::kUnsupported: return grpc::StatusCode::UNIMPLEMENTED;
    case Code::kOverloaded: return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case Code::kCancelled: return grpc::StatusCode::CANCELLED;
    case Code::kDeadline: return grpc::StatusCode::DEADLINE_EXCEEDED;
    case Code::kUnavailable: return grpc::StatusCode::UNAVAILABLE;
    case Code::kInternal: return grpc::StatusCode::INTERNAL;
  }
  return grpc::StatusCode::UNKNOWN;
}

grpc::Status StatusOf(const Error& error) {
  constexpr size_t kMessageBytesMax = 4000;
  return {StatusCodeOf(error.code()), error.message().substr(0, kMessageBytesMax)};
}

}  // namespace ekiben::rpc
