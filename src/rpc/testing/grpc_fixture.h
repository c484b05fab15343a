// The gRPC service on a port of its own, over a core whose answers the test chooses.
#pragma once
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "proto/grpc_service.grpc.pb.h"
#include "rpc/grpc_server.h"
#include "rpc/testing/scripted_inference.h"

namespace ekiben::rpc {

using namespace std::chrono_literals;
using Stub = inference::GRPCInferenceService::Stub;

template <class Condition>
bool Soon(Condition condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(10ms);
  }
  return false;
}

class GrpcTest : public ::testing::Test {
 protected:
  static GrpcConfig Open() {
    GrpcConfig config;
    config.admin_routes = true;
    return config;
  }
  void Serve(GrpcConfig config = Open()) {
    config.port = 0;
    auto server = GrpcServer::Create(config, core_);
    ASSERT_TRUE(server.ok()) << server.error().message();
    server_ = *std::move(server);
    stub_ = NewStub();
  }
  std::shared_ptr<grpc::Channel> NewChannel() {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(INT32_MAX);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    return grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", server_->port()), grpc::InsecureChannelCredentials(),
                                     arguments);
  }
  std::unique_ptr<Stub> NewStub() { return inference::GRPCInferenceService::NewStub(NewChannel()); }
  void ExpectNothingLeft() {
    EXPECT_TRUE(Soon([&] {
      auto stats = server_->stats();
      return core_.running() == 0 && stats.inferences_running == 0 && stats.streams_open == 0;
    })) << core_.running()
        << " run, " << server_->stats().streams_open << " streams";
  }

  ScriptedInference core_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<Stub> stub_;
  grpc::ClientContext context_;
};

}  // namespace ekiben::rpc
