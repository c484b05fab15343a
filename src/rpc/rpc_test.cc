// The gRPC service through real sockets and generated stubs, over a core whose answers the test chooses.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <set>
#include <thread>

#include "base/philox.h"
#include "kserve/testing/shared_object.h"
#include "proto/health.grpc.pb.h"
#include "rpc/testing/grpc_fixture.h"

namespace ekiben::rpc {
namespace {

using namespace std::chrono_literals;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using inference::ModelStreamInferResponse;
using Stream = grpc::ClientReaderWriter<ModelInferRequest, ModelStreamInferResponse>;

ModelInferRequest Request(const std::string& model, const std::string& id, int64_t count = 3, int64_t bytes = 0) {
  ModelInferRequest request;
  request.set_model_name(model);
  request.set_id(id);
  (*request.mutable_parameters())["count"].set_int64_param(count);
  (*request.mutable_parameters())["bytes"].set_int64_param(bytes);
  return request;
}

bool IsFinal(const ModelStreamInferResponse& message) {
  auto found = message.infer_response().parameters().find("triton_final_response");
  EXPECT_TRUE(found != message.infer_response().parameters().end()) << message.ShortDebugString();
  return found != message.infer_response().parameters().end() && found->second.bool_param();
}

std::string Text(const ModelStreamInferResponse& message) {
  if (message.infer_response().raw_output_contents_size() == 0) return {};
  return message.infer_response().raw_output_contents(0).substr(4);
}

TEST_F(GrpcTest, LiveReadyAndModelReady) {
  Serve();
  inference::ServerLiveResponse live;
  grpc::ClientContext first, second, third, fourth;
  ASSERT_TRUE(stub_->ServerLive(&first, {}, &live).ok());
  EXPECT_TRUE(live.live());
  inference::ServerReadyResponse ready;
  ASSERT_TRUE(stub_->ServerReady(&second, {}, &ready).ok());
  EXPECT_TRUE(ready.ready());
  inference::ModelReadyRequest request;
  inference::ModelReadyResponse model;
  request.set_name("tokens");
  ASSERT_TRUE(stub_->ModelReady(&third, request, &model).ok());
  EXPECT_TRUE(model.ready());
  request.set_name("nobody");
  ASSERT_TRUE(stub_->ModelReady(&fourth, request, &model).ok());
  EXPECT_FALSE(model.ready());
}

TEST_F(GrpcTest, MetadataConfigAndStatistics) {
  Serve();
  grpc::ClientContext first, second, third, fourth;
  inference::ServerMetadataResponse server;
  ASSERT_TRUE(stub_->ServerMetadata(&first, {}, &server).ok());
  EXPECT_EQ(server.version(), "0.1.0");
  EXPECT_EQ(server.extensions_size(), 2);

  inference::ModelMetadataRequest of_model;
  of_model.set_name("tokens");
  inference::ModelMetadataResponse metadata;
  ASSERT_TRUE(stub_->ModelMetadata(&second, of_model, &metadata).ok());
  EXPECT_EQ(metadata.inputs_size(), 2);
  EXPECT_EQ(metadata.inputs(1).datatype(), "INT32");
  EXPECT_EQ(metadata.outputs(0).shape(0), -1);

  inference::ModelConfigRequest of_config;
  of_config.set_name("tokens");
  inference::ModelConfigResponse config;
  ASSERT_TRUE(stub_->ModelConfig(&third, of_config, &config).ok());
  EXPECT_TRUE(config.config().model_transaction_policy().decoupled());
  EXPECT_EQ(config.config().max_batch_size(), 8);
  EXPECT_EQ(config.config().input(0).data_type(), inference::TYPE_STRING);
  EXPECT_EQ(config.config().input(0).dims(0), -1);
  EXPECT_EQ(config.config().parameters().at("decoupled_mode").string_value(), "true");

  inference::ModelStatisticsResponse statistics;
  ASSERT_TRUE(stub_->ModelStatistics(&fourth, {}, &statistics).ok());
  ASSERT_EQ(statistics.model_stats_size(), 1);
  EXPECT_EQ(statistics.model_stats(0).inference_stats().success().ns(), 4000u);
  EXPECT_EQ(statistics.model_stats(0).batch_stats(0).compute_output().ns(), 30u);
  EXPECT_EQ(statistics.model_stats(0).response_stats().at("0").success().count(), 5u);
}

TEST_F(GrpcTest, RepositoryLoadsAndRefusals) {
  Serve();
  grpc::ClientContext contexts[6];
  inference::RepositoryIndexRequest index_request;
  inference::RepositoryIndexResponse index;
  ASSERT_TRUE(stub_->RepositoryIndex(&contexts[0], index_request, &index).ok());
  ASSERT_EQ(index.models_size(), 2);
  EXPECT_EQ(index.models(1).state(), "UNAVAILABLE");
  EXPECT_EQ(index.models(1).reason(), "unloaded");
  index_request.set_ready(true);
  ASSERT_TRUE(stub_->RepositoryIndex(&contexts[1], index_request, &index).ok());
  EXPECT_EQ(index.models_size(), 1);

  inference::RepositoryModelLoadRequest load;
  inference::RepositoryModelLoadResponse loaded;
  load.set_model_name("echo");
  EXPECT_TRUE(stub_->RepositoryModelLoad(&contexts[2], load, &loaded).ok());
  (*load.mutable_parameters())["config"].set_string_param("{}");
  EXPECT_EQ(stub_->RepositoryModelLoad(&contexts[3], load, &loaded).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  inference::RepositoryModelUnloadRequest unload;
  inference::RepositoryModelUnloadResponse unloaded;
  unload.set_model_name("nobody");
  EXPECT_EQ(stub_->RepositoryModelUnload(&contexts[4], unload, &unloaded).error_code(), grpc::StatusCode::NOT_FOUND);
  unload.set_repository_name("other");
  EXPECT_EQ(stub_->RepositoryModelUnload(&contexts[5], unload, &unloaded).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(GrpcTest, TraceAndLogSettings) {
  Serve();
  grpc::ClientContext first, second, third;
  inference::TraceSettingRequest trace;
  inference::TraceSettingResponse traced;
  (*trace.mutable_settings())["trace_level"].add_value("TIMESTAMPS");
  ASSERT_TRUE(stub_->TraceSetting(&first, trace, &traced).ok());
  EXPECT_EQ(traced.settings().at("trace_level").value(0), "TIMESTAMPS");
  EXPECT_EQ(traced.settings().at("trace_rate").value(0), "1000");
  inference::LogSettingsRequest log;
  inference::LogSettingsResponse logged;
  (*log.mutable_settings())["log_info"].set_bool_param(false);
  ASSERT_TRUE(stub_->LogSettings(&second, log, &logged).ok());
  EXPECT_FALSE(logged.settings().at("log_info").bool_param());
  EXPECT_EQ(logged.settings().at("log_verbose_level").uint32_param(), 0u);
  (*log.mutable_settings())["log_file"];
  EXPECT_EQ(stub_->LogSettings(&third, log, &logged).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GrpcTest, SystemSharedMemoryIsRegisteredAndCudaRefusedByName) {
  Serve();
  kserve::testing::SharedObject object("rpc", 64);
  auto call = [](auto rpc) {
    grpc::ClientContext context;
    return rpc(&context);
  };
  inference::SystemSharedMemoryRegisterRequest region;
  region.set_name("r");
  region.set_key(object.key());
  region.set_offset(8);
  region.set_byte_size(32);
  inference::SystemSharedMemoryRegisterResponse registered;
  auto add = [&](grpc::ClientContext* c) { return stub_->SystemSharedMemoryRegister(c, region, &registered); };
  ASSERT_TRUE(call(add).ok());
  auto twice = call(add);
  EXPECT_EQ(twice.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(twice.error_message(), "shared memory region 'r' already in manager");
  region.set_key("/etc");
  EXPECT_EQ(call(add).error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  inference::SystemSharedMemoryStatusRequest ask;
  inference::SystemSharedMemoryStatusResponse status;
  auto look = [&](grpc::ClientContext* c) { return stub_->SystemSharedMemoryStatus(c, ask, &status); };
  ASSERT_TRUE(call(look).ok());
  EXPECT_EQ(status.regions().at("r").key(), object.key());
  EXPECT_EQ(status.regions().at("r").offset(), 8u);
  EXPECT_EQ(status.regions().at("r").byte_size(), 32u);
  ask.set_name("q");
  EXPECT_EQ(call(look).error_code(), grpc::StatusCode::NOT_FOUND);

  inference::SystemSharedMemoryUnregisterRequest remove;
  inference::SystemSharedMemoryUnregisterResponse removed;
  auto forget = [&](grpc::ClientContext* c) { return stub_->SystemSharedMemoryUnregister(c, remove, &removed); };
  remove.set_name("absent");
  EXPECT_TRUE(call(forget).ok());
  remove.set_name("r");
  EXPECT_TRUE(call(forget).ok());
  ask.clear_name();
  status.Clear();
  ASSERT_TRUE(call(look).ok());
  EXPECT_TRUE(status.regions().empty());

  inference::CudaSharedMemoryRegisterResponse cuda;
  auto refused = call([&](grpc::ClientContext* c) { return stub_->CudaSharedMemoryRegister(c, {}, &cuda); });
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_NE(refused.error_message().find("CUDA shared memory"), std::string::npos);
}

TEST_F(GrpcTest, TypedAndRawContentsComeBackRaw) {
  Serve();
  ModelInferRequest request;
  request.set_model_name("echo");
  request.set_id("17");
  (*request.mutable_parameters())["priority"].set_uint64_param(3);
  auto add = [&](const char* name, const char* type, int64_t size) {
    auto* input = request.add_inputs();
    input->set_name(name);
    input->set_datatype(type);
    input->add_shape(size);
    return input->mutable_contents();
  };
  auto* small = add("small", "INT8", 2);
  small->add_int_contents(-1);
  small->add_int_contents(127);
  add("wide", "UINT64", 1)->add_uint64_contents(1ull << 63);
  add("real", "FP32", 1)->add_fp32_contents(1.5f);
  add("flag", "BOOL", 1)->add_bool_contents(true);
  auto* text = add("text", "BYTES", 2);
  text->add_bytes_contents(std::string("a\0b", 3));
  text->add_bytes_contents("");
  ModelInferResponse response;
  auto status = stub_->ModelInfer(&context_, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.id(), "17");
  EXPECT_EQ(response.parameters().at("priority").uint64_param(), 3u);
  ASSERT_EQ(response.raw_output_contents_size(), 5);
  EXPECT_EQ(response.raw_output_contents(0), std::string("\xff\x7f", 2));
  EXPECT_EQ(response.raw_output_contents(1), std::string("\0\0\0\0\0\0\0\x80", 8));
  EXPECT_EQ(response.raw_output_contents(2), std::string("\0\0\xc0\x3f", 4));
  EXPECT_EQ(response.raw_output_contents(3), std::string("\1", 1));
  EXPECT_EQ(response.raw_output_contents(4), std::string("\3\0\0\0a\0b\0\0\0\0", 11));
  EXPECT_FALSE(response.outputs(0).has_contents());

  ModelInferRequest raw = request;
  for (auto& input : *raw.mutable_inputs()) input.clear_contents();
  for (const std::string& bytes : response.raw_output_contents()) raw.add_raw_input_contents(bytes);
  grpc::ClientContext second;
  ModelInferResponse again;
  ASSERT_TRUE(stub_->ModelInfer(&second, raw, &again).ok());
  EXPECT_EQ(again.DebugString(), response.DebugString());
}

TEST_F(GrpcTest, BadTensorsAreRefusedByName) {
  Serve();
  struct Case {
    std::function<void(ModelInferRequest&)> change;
    std::string message;
  };
  auto input = [](ModelInferRequest& request) { return request.mutable_inputs(0); };
  std::vector<Case> cases = {
      {[&](auto& r) { input(r)->set_datatype("INT7"); }, "unknown datatype 'INT7'"},
      {[&](auto& r) { r.set_raw_input_contents(0, "abc"); }, "'x'"},
      {[&](auto& r) { r.add_raw_input_contents("1234"); }, "2 entries for 1 inputs"},
      {[&](auto& r) { input(r)->mutable_contents()->add_int_contents(1); }, "has contents although"},
      {[&](auto& r) { r.clear_raw_input_contents(); }, "'x'"},
      {[&](auto& r) { r.clear_raw_input_contents(), input(r)->mutable_contents()->add_fp32_contents(1); },
       "another type"},
      {[&](auto& r) { input(r)->set_shape(0, -1); }, "'x'"},
      {[&](auto& r) { input(r)->set_shape(0, INT64_MAX); }, "'x'"},
      {[&](auto& r) { input(r)->set_datatype("BYTES"), r.set_raw_input_contents(0, std::string("\xff\0\0\0", 4)); },
       "'x'"},
      {[&](auto& r) { (*r.mutable_parameters())["none"]; }, "'none' has no value"},
      {[&](auto& r) {
         r.clear_raw_input_contents(), input(r)->set_datatype("INT8"),
             input(r)->mutable_contents()->add_int_contents(300);
       },
       "does not fit INT8"},
      {[&](auto& r) { r.clear_raw_input_contents(), input(r)->set_datatype("FP16"); }, "FP16 has no typed contents"},
  };
  for (const Case& one : cases) {
    ModelInferRequest request;
    request.set_model_name("echo");
    auto* tensor = request.add_inputs();
    tensor->set_name("x");
    tensor->set_datatype("INT32");
    tensor->add_shape(1);
    request.add_raw_input_contents("1234");
    one.change(request);
    grpc::ClientContext context;
    ModelInferResponse response;
    auto status = stub_->ModelInfer(&context, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << request.ShortDebugString();
    EXPECT_NE(status.error_message().find(one.message), std::string::npos) << status.error_message();
  }
}

// An input by reference has no entry among the raw contents; an output by reference has an empty one.
TEST_F(GrpcTest, TensorsByReferenceKeepTheOthersInTheirPlaces) {
  Serve();
  ModelInferRequest request;
  request.set_model_name("echo");
  auto add = [&](const char* name) {
    auto* tensor = request.add_inputs();
    tensor->set_name(name);
    tensor->set_datatype("INT32");
    tensor->add_shape(1);
    return tensor;
  };
  add("first");
  auto& parameters = *add("second")->mutable_parameters();
  parameters["shared_memory_region"].set_string_param("r");
  parameters["shared_memory_byte_size"].set_int64_param(4);
  parameters["shared_memory_offset"].set_int64_param(12);
  add("third");
  request.add_raw_input_contents("1111");
  request.add_raw_input_contents("3333");
  grpc::ClientContext context;
  ModelInferResponse response;
  auto status = stub_->ModelInfer(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.raw_output_contents_size(), 3);
  EXPECT_EQ(response.raw_output_contents(0), "1111");
  EXPECT_EQ(response.raw_output_contents(1), "");
  EXPECT_EQ(response.raw_output_contents(2), "3333");
  const auto& back = response.outputs(1).parameters();
  EXPECT_EQ(back.at("shared_memory_region").string_param(), "r");
  EXPECT_EQ(back.at("shared_memory_offset").int64_param(), 12);
  EXPECT_EQ(back.at("shared_memory_byte_size").int64_param(), 4);

  request.mutable_inputs(1)->mutable_parameters()->erase("shared_memory_byte_size");
  grpc::ClientContext second;
  EXPECT_EQ(stub_->ModelInfer(&second, request, &response).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GrpcTest, UnaryErrorsAreStatuses) {
  Serve();
  std::vector<std::pair<std::string, grpc::StatusCode>> cases = {
      {"nobody", grpc::StatusCode::NOT_FOUND},
      {"refuse", grpc::StatusCode::RESOURCE_EXHAUSTED},
      {"tokens", grpc::StatusCode::UNIMPLEMENTED},  // decoupled
  };
  for (const auto& [model, code] : cases) {
    grpc::ClientContext context;
    ModelInferResponse response;
    EXPECT_EQ(stub_->ModelInfer(&context, Request(model, "1"), &response).error_code(), code) << model;
  }
  ExpectNothingLeft();
}

TEST_F(GrpcTest, TwoRequestsOfAStreamKeepTheirIdsAndEndOnce) {
  Serve();
  auto stream = stub_->ModelStreamInfer(&context_);
  stream->Write(Request("tokens", "a", 50));
  stream->Write(Request("tokens", "b", 30));
  std::map<std::string, std::string> text;
  std::map<std::string, int> finals;
  stream->WritesDone();
  ModelStreamInferResponse message;
  while (stream->Read(&message)) {
    EXPECT_EQ(message.error_message(), "");
    text[message.infer_response().id()] += Text(message);
    finals[message.infer_response().id()] += IsFinal(message);
  }
  EXPECT_TRUE(stream->Finish().ok());  // the half-close drained both
  EXPECT_EQ(finals, (std::map<std::string, int>{{"a", 1}, {"b", 1}}));
  std::string wanted;
  for (int i = 0; i < 50; ++i) wanted += fmt::format("t{} ", i);
  EXPECT_EQ(text["a"], wanted);
  ExpectNothingLeft();
}

TEST_F(GrpcTest, AnErrorIsAMessageAndTheStreamGoesOn) {
  Serve();
  auto stream = stub_->ModelStreamInfer(&context_);
  ModelStreamInferResponse message;
  for (const char* model : {"nobody", "refuse", "fail"}) {
    stream->Write(Request(model, model, 1));
    if (std::string(model) == "fail") {
      ASSERT_TRUE(stream->Read(&message));
      EXPECT_FALSE(IsFinal(message));
      EXPECT_EQ(Text(message), "t0 ");
    }
    ASSERT_TRUE(stream->Read(&message));
    EXPECT_NE(message.error_message(), "");
    EXPECT_EQ(message.infer_response().id(), model);
    EXPECT_EQ(message.infer_response().model_name(), model);
    EXPECT_TRUE(IsFinal(message));
  }
  stream->Write(Request("tokens", "good", 1));
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_EQ(message.error_message(), "");
  EXPECT_TRUE(IsFinal(message));
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&message));
  EXPECT_TRUE(stream->Finish().ok());
  ExpectNothingLeft();
}

TEST_F(GrpcTest, TritonGrpcErrorEndsTheStreamWithItsStatus) {
  Serve();
  context_.AddMetadata("triton_grpc_error", "true");
  auto stream = stub_->ModelStreamInfer(&context_);
  stream->Write(Request("held", "1"));
  stream->Write(Request("refuse", "2"));
  ModelStreamInferResponse message;
  EXPECT_FALSE(stream->Read(&message));
  auto status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "64 requests wait already");
  ExpectNothingLeft();
  EXPECT_EQ(core_.cancelled(), 1);
}

TEST_F(GrpcTest, AnEmptyFinalResponseIsSentOnlyToWhomAskedForIt) {
  Serve();
  auto stream = stub_->ModelStreamInfer(&context_);
  ModelStreamInferResponse message;
  auto asks = [](ModelInferRequest request) {
    (*request.mutable_parameters())["triton_enable_empty_final_response"].set_bool_param(true);
    return request;
  };
  stream->Write(asks(Request("empty_final", "asked", 2)));
  stream->Write(Request("empty_final", "silent", 2));
  auto wrong = Request("empty_final", "wrong", 2);
  (*wrong.mutable_parameters())["triton_enable_empty_final_response"].set_string_param("true");
  stream->Write(wrong);
  stream->WritesDone();
  std::map<std::string, int> messages, finals, errors;
  while (stream->Read(&message)) {
    const std::string& id = message.infer_response().id();
    ++messages[id];
    finals[id] += IsFinal(message);
    errors[id] += !message.error_message().empty();
    if (IsFinal(message) && id == "asked") {
      EXPECT_EQ(message.infer_response().outputs_size(), 0);
    }
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(messages, (std::map<std::string, int>{{"asked", 3}, {"silent", 2}, {"wrong", 1}}));
  EXPECT_EQ(finals, (std::map<std::string, int>{{"asked", 1}, {"silent", 0}, {"wrong", 1}}));
  EXPECT_EQ(errors["wrong"], 1);

  grpc::ClientContext strict;
  strict.AddMetadata("triton_grpc_error", "true");
  auto second = stub_->ModelStreamInfer(&strict);
  second->Write(wrong);
  EXPECT_FALSE(second->Read(&message));
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GrpcTest, CancelOfTheCallCancelsAllItsRequests) {
  Serve();
  auto stream = stub_->ModelStreamInfer(&context_);
  for (int i = 0; i < 20; ++i) stream->Write(Request("held", std::to_string(i)));
  ASSERT_TRUE(Soon([&] { return core_.running() == 20; }));
  context_.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ExpectNothingLeft();
  EXPECT_EQ(core_.cancelled(), 20);
}

TEST_F(GrpcTest, ADeadlineCancels) {
  Serve();
  context_.set_deadline(std::chrono::system_clock::now() + 100ms);
  auto stream = stub_->ModelStreamInfer(&context_);
  stream->Write(Request("held", "1"));
  ModelStreamInferResponse message;
  EXPECT_FALSE(stream->Read(&message));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectNothingLeft();
}

TEST_F(GrpcTest, AThousandCancelsLeaveNothing) {
  Serve();
  constexpr int kThreads = 4, kEach = 250;
  std::vector<std::thread> clients;
  for (int thread = 0; thread < kThreads; ++thread)
    clients.emplace_back([&, thread] {
      auto stub = NewStub();
      for (int i = 0; i < kEach; ++i) {
        auto chance = Philox4x32({static_cast<uint32_t>(thread), static_cast<uint32_t>(i), 0, 0}, {7, 7});
        grpc::ClientContext context;
        auto stream = stub->ModelStreamInfer(&context);
        stream->Write(Request(chance[0] % 3 == 0 ? "held" : "tokens", "1", 200));
        ModelStreamInferResponse message;
        for (uint32_t reads = chance[1] % 20; reads > 0 && chance[0] % 3 != 0; --reads) stream->Read(&message);
        std::this_thread::sleep_for(std::chrono::microseconds(chance[2] % 500));
        context.TryCancel();
        EXPECT_FALSE(stream->Finish().ok());
      }
    });
  for (std::thread& client : clients) client.join();
  ExpectNothingLeft();
}

TEST_F(GrpcTest, ASlowReaderIsBoundedAndItsRequestsAreCancelled) {
  GrpcConfig config;
  config.stream_buffer_bytes_max = size_t{256} << 10;
  Serve(config);
  auto stream = stub_->ModelStreamInfer(&context_);
  stream->Write(Request("tokens", "flood", 100'000, 4096));
  stream->Write(Request("held", "beside"));
  ASSERT_TRUE(Soon([&] { return server_->stats().clients_too_slow == 1; }));
  ASSERT_TRUE(Soon([&] { return core_.running() == 0; }));  // without a byte read by the client

  grpc::ClientContext other;  // and the others go on
  ModelInferResponse response;
  EXPECT_TRUE(stub_->ModelInfer(&other, Request("echo", "1"), &response).ok());

  ModelStreamInferResponse message;
  while (stream->Read(&message)) EXPECT_FALSE(IsFinal(message));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectNothingLeft();
}

TEST_F(GrpcTest, AReaderThatNeverReadsIsCutAfterTheWriteTimeout) {
  GrpcConfig config;
  config.stream_buffer_bytes_max = size_t{64} << 10;
  config.write_timeout = 200ms;
  Serve(config);
  auto stream = stub_->ModelStreamInfer(&context_);
  stream->Write(Request("tokens", "flood", 100'000, 4096));
  ASSERT_TRUE(Soon([&] { return server_->stats().clients_too_slow == 1; }));
  ExpectNothingLeft();
  context_.TryCancel();
  stream->Finish();
}

TEST_F(GrpcTest, MoreRequestsThanAStreamMayHaveWaitUnread) {
  GrpcConfig config;
  config.stream_requests_max = 4;
  Serve(config);
  auto stream = stub_->ModelStreamInfer(&context_);
  for (int i = 0; i < 40; ++i) stream->Write(Request("tokens", std::to_string(i), 5));
  stream->WritesDone();
  std::set<std::string> ended;
  ModelStreamInferResponse message;
  while (stream->Read(&message))
    if (IsFinal(message)) ended.insert(message.infer_response().id());
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(ended.size(), 40u);
}

TEST_F(GrpcTest, LargeMessagesPassAndTheLimitHolds) {
  GrpcConfig config;
  config.message_bytes_max = 32 << 20;
  Serve(config);
  for (auto [bytes, code] :
       {std::pair(20 << 20, grpc::StatusCode::OK), std::pair(40 << 20, grpc::StatusCode::RESOURCE_EXHAUSTED)}) {
    ModelInferRequest request;
    request.set_model_name("echo");
    auto* input = request.add_inputs();
    input->set_name("x");
    input->set_datatype("UINT8");
    input->add_shape(bytes);
    request.add_raw_input_contents(std::string(static_cast<size_t>(bytes), 'x'));
    grpc::ClientContext context;
    ModelInferResponse response;
    auto status = stub_->ModelInfer(&context, request, &response);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    if (status.ok()) {
      EXPECT_EQ(response.raw_output_contents(0).size(), static_cast<size_t>(bytes));
    }
  }
}

TEST_F(GrpcTest, PackedMessagesUnpackUpToABound) {
  GrpcConfig config;
  config.unpacked_bytes_max = size_t{1} << 20;
  Serve(config);
  for (auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    for (auto [bytes, code] :
         {std::pair(100'000, grpc::StatusCode::OK), std::pair(8 << 20, grpc::StatusCode::INVALID_ARGUMENT)}) {
      ModelInferRequest request;
      request.set_model_name("echo");
      auto* input = request.add_inputs();
      input->set_name("x");
      input->set_datatype("UINT8");
      input->add_shape(bytes);
      request.add_raw_input_contents(std::string(static_cast<size_t>(bytes), 'x'));
      grpc::ClientContext context;
      context.set_compression_algorithm(algorithm);
      ModelInferResponse response;
      auto status = stub_->ModelInfer(&context, request, &response);
      EXPECT_EQ(status.error_code(), code) << status.error_message();
    }
  }
}

TEST_F(GrpcTest, KeysGuardAllButLiveness) {
  GrpcConfig config;
  config.api_keys = ApiKeys({"secret", "other"});
  Serve(config);
  for (auto [value, allowed] : {std::pair<const char*, bool>{nullptr, false},
                                {"Bearer wrong", false},
                                {"Bearer secret", true},
                                {"bearer other", true}}) {
    grpc::ClientContext contexts[4];
    if (value != nullptr)
      for (auto& context : contexts) context.AddMetadata("authorization", value);
    auto wanted = allowed ? grpc::StatusCode::OK : grpc::StatusCode::UNAUTHENTICATED;
    inference::ServerMetadataResponse metadata;
    EXPECT_EQ(stub_->ServerMetadata(&contexts[0], {}, &metadata).error_code(), wanted);
    ModelInferResponse response;
    EXPECT_EQ(stub_->ModelInfer(&contexts[1], Request("echo", "1"), &response).error_code(), wanted);
    auto stream = stub_->ModelStreamInfer(&contexts[2]);
    stream->Write(Request("tokens", "1"));
    stream->WritesDone();
    ModelStreamInferResponse message;
    while (stream->Read(&message)) EXPECT_TRUE(allowed);
    EXPECT_EQ(stream->Finish().error_code(), wanted);
    inference::ServerLiveResponse live;
    EXPECT_TRUE(stub_->ServerLive(&contexts[3], {}, &live).ok());
  }
}

TEST_F(GrpcTest, AKeysLimitsAndAdminRights) {
  GrpcConfig config;
  config.api_keys = ApiKeys(std::vector<ApiKey>{{.key = "one", .name = "one at once", .max_concurrency = 1},
                                                {.key = "root", .name = "operations", .admin = true}});
  Serve(config);
  context_.AddMetadata("authorization", "Bearer one");
  auto stream = stub_->ModelStreamInfer(&context_);
  stream->Write(Request("held", "1"));
  ASSERT_TRUE(Soon([&] { return core_.running() == 1; }));
  stream->Write(Request("tokens", "2"));
  ModelStreamInferResponse message;
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_EQ(message.infer_response().id(), "2");
  EXPECT_NE(message.error_message().find("try again later"), std::string::npos);
  grpc::ClientContext second, fourth, fifth;
  ModelInferResponse response;
  second.AddMetadata("authorization", "Bearer one");
  EXPECT_EQ(stub_->ModelInfer(&second, Request("echo", "3"), &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  context_.TryCancel();
  stream->Finish();
  ExpectNothingLeft();
  EXPECT_TRUE(Soon([&] {  // its turn comes back
    grpc::ClientContext again;
    again.AddMetadata("authorization", "Bearer one");
    return stub_->ModelInfer(&again, Request("echo", "4"), &response).ok();
  }));

  inference::RepositoryModelLoadRequest load;
  inference::RepositoryModelLoadResponse loaded;
  load.set_model_name("echo");
  fourth.AddMetadata("authorization", "Bearer one");
  EXPECT_EQ(stub_->RepositoryModelLoad(&fourth, load, &loaded).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  fifth.AddMetadata("authorization", "Bearer root");
  EXPECT_TRUE(stub_->RepositoryModelLoad(&fifth, load, &loaded).ok());
  grpc::ClientContext sixth, seventh;
  inference::RepositoryModelUnloadRequest unload;
  inference::RepositoryModelUnloadResponse unloaded;
  unload.set_model_name("echo");
  sixth.AddMetadata("authorization", "Bearer one");
  EXPECT_EQ(stub_->RepositoryModelUnload(&sixth, unload, &unloaded).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  seventh.AddMetadata("authorization", "Bearer root");
  EXPECT_TRUE(stub_->RepositoryModelUnload(&seventh, unload, &unloaded).ok());
}

TEST_F(GrpcTest, AKeysRequestsOfAMinute) {
  GrpcConfig config;
  config.api_keys = ApiKeys(
      std::vector<ApiKey>{{.key = "two", .name = "bob", .requests_per_minute = 2}, {.key = "free", .name = "alice"}});
  Serve(config);
  auto infer = [&](const char* key) {
    grpc::ClientContext context;
    ModelInferResponse response;
    context.AddMetadata("authorization", std::string("Bearer ") + key);
    return stub_->ModelInfer(&context, Request("echo", "1"), &response);
  };
  EXPECT_TRUE(infer("two").ok());
  EXPECT_TRUE(infer("two").ok());
  grpc::Status refused = infer("two");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(refused.error_message().find("requests_per_minute"), std::string::npos) << refused.error_message();
  EXPECT_TRUE(infer("free").ok());
}

TEST_F(GrpcTest, SettingsAreReadByAllAndChangedByAdmins) {
  Serve(GrpcConfig());
  grpc::ClientContext first, second, third;
  inference::LogSettingsRequest log;
  inference::LogSettingsResponse logged;
  EXPECT_TRUE(stub_->LogSettings(&first, log, &logged).ok());
  (*log.mutable_settings())["log_info"].set_bool_param(false);
  EXPECT_EQ(stub_->LogSettings(&second, log, &logged).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  inference::TraceSettingRequest trace;
  inference::TraceSettingResponse traced;
  (*trace.mutable_settings())["trace_level"].add_value("TIMESTAMPS");
  EXPECT_EQ(stub_->TraceSetting(&third, trace, &traced).error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(GrpcTest, HealthChecksAndWatches) {
  Serve();
  auto health = grpc::health::v1::Health::NewStub(NewChannel());
  grpc::health::v1::HealthCheckRequest request;
  grpc::health::v1::HealthCheckResponse response;
  grpc::ClientContext first, second, third;
  request.set_service("inference.GRPCInferenceService");
  ASSERT_TRUE(health->Check(&first, request, &response).ok());
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::SERVING);
  request.set_service("other");
  EXPECT_EQ(health->Check(&second, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);

  request.clear_service();
  auto watch = health->Watch(&third, request);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::SERVING);
  core_.BeginDrain();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  EXPECT_TRUE(server_->Drain(20s));
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GrpcTest, ADrainEndsIdleStreamsAndWaitsForRunningOnes) {
  Serve();
  grpc::ClientContext idle_context;
  auto idle = stub_->ModelStreamInfer(&idle_context);
  auto busy = stub_->ModelStreamInfer(&context_);
  busy->Write(Request("tokens", "1", 2000));
  ModelStreamInferResponse message;
  ASSERT_TRUE(busy->Read(&message));
  bool clean = false;
  std::thread drain([&] { clean = server_->Drain(20s); });
  int finals = 0;
  while (busy->Read(&message)) finals += IsFinal(message);
  EXPECT_EQ(finals, 1);
  grpc::Status ended = busy->Finish();
  EXPECT_EQ(ended.error_code(), grpc::StatusCode::UNAVAILABLE);  // ended, but not by us
  EXPECT_EQ(ended.error_message(), "the server is going away: connect again");
  EXPECT_FALSE(idle->Read(&message));
  EXPECT_EQ(idle->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  drain.join();
  EXPECT_TRUE(clean);
}

TEST_F(GrpcTest, WhileADrainWaitsCallsAreRefused) {
  Serve();
  auto held = stub_->ModelStreamInfer(&context_);
  held->Write(Request("held", "1"));
  ASSERT_TRUE(Soon([&] { return core_.running() == 1; }));
  bool clean = true;
  std::thread drain([&] { clean = server_->Drain(1s); });
  ASSERT_TRUE(Soon([&] {
    grpc::ClientContext context;
    inference::ServerReadyResponse ready;
    return !stub_->ServerReady(&context, {}, &ready).ok() || !ready.ready();
  }));

  grpc::ClientContext one, two, three;
  ModelInferResponse response;
  grpc::Status status = stub_->ModelInfer(&one, Request("echo", "2"), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the server is going away: connect again");
  auto stream = stub_->ModelStreamInfer(&two);
  ModelStreamInferResponse message;
  EXPECT_FALSE(stream->Read(&message));
  EXPECT_EQ(stream->Finish().error_message(), "the server is going away: connect again");
  auto health = grpc::health::v1::Health::NewStub(NewChannel());
  auto watch = health->Watch(&three, grpc::health::v1::HealthCheckRequest());
  grpc::health::v1::HealthCheckResponse serving;
  EXPECT_TRUE(watch->Read(&serving));
  EXPECT_EQ(serving.status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(watch->Read(&serving));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);

  drain.join();
  EXPECT_FALSE(clean);
  ExpectNothingLeft();
}

TEST_F(GrpcTest, ADrainCutsWhatDoesNotEnd) {
  Serve();
  auto stream = stub_->ModelStreamInfer(&context_);
  stream->Write(Request("held", "1"));
  ASSERT_TRUE(Soon([&] { return core_.running() == 1; }));
  EXPECT_FALSE(server_->Drain(200ms));
  EXPECT_FALSE(stream->Finish().ok());
  ExpectNothingLeft();
}

TEST_F(GrpcTest, APortInUseIsAnError) {
  Serve();
  GrpcConfig config;
  config.port = server_->port();
  auto second = GrpcServer::Create(config, core_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().field(), "grpc_port");
}

}  // namespace
}  // namespace ekiben::rpc
