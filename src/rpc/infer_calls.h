// ModelInfer and ModelStreamInfer: the life of a call. Messages come and go as bytes, because a client may have packed
// them and what they unpack to must be bounded before it is (rpc/message_bytes.h).
//
// A stream carries any number of requests, answered as they come, each response under its request's id. An error of one
// request is a message of the stream, unless the client asked for a status (metadata triton_grpc_error: true). After
// the client's half-close the stream ends when the last request has.
// Thread: gRPC's callbacks and the core's sinks; a stream has one mutex. Both objects live until gRPC is done with them
// and no inference holds them.
// Source: Triton's gRPC streaming and decoupled models.
#pragma once
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>

#include "rpc/call_context.h"

namespace ekiben::rpc {

// OK, or what a call without a key that fits is told.
grpc::Status MayPass(const CallContext& shared, const grpc::CallbackServerContext& context);
grpc::Status MayChangeServer(const CallContext& shared, const grpc::CallbackServerContext& context);

grpc::ServerUnaryReactor* StartModelInfer(std::shared_ptr<CallContext> shared, grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request, grpc::ByteBuffer* response);
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StartModelStreamInfer(
    std::shared_ptr<CallContext> shared, grpc::CallbackServerContext* context);

}  // namespace ekiben::rpc
