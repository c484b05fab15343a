// The one table from errors to gRPC's status codes.
// Thread: pure functions.
#pragma once
#include <grpcpp/support/status.h>

#include "base/result.h"

namespace ekiben::rpc {

grpc::StatusCode StatusCodeOf(Code code);
// The message is cut at 4,000 bytes: it travels in a header, and clients refuse large ones.
grpc::Status StatusOf(const Error& error);

}  // namespace ekiben::rpc
