#include "rpc/inference_service.h"

#include <functional>
#include <thread>

#include "base/bounded_queue.h"
#include "proto/grpc_service.grpc.pb.h"
#include "rpc/infer_calls.h"
#include "rpc/message_conversion.h"
#include "rpc/status.h"

namespace ekiben::rpc {
namespace {

using Reactor = grpc::ServerUnaryReactor;
using Context = grpc::CallbackServerContext;
using InferenceProtocol = inference::GRPCInferenceService;

grpc::Status StatusOfResult(const Result<void>& result) {
  return result.ok() ? grpc::Status::OK : StatusOf(result.error());
}

// The generated layers of the callback API, one for each RPC; the two that carry tensors get their messages as bytes.
template <template <class> class First, template <class> class... Rest>
struct Layers {
  using Type = First<typename Layers<Rest...>::Type>;
};
template <template <class> class Last>
struct Layers<Last> {
  using Type = Last<InferenceProtocol::Service>;
};
using CallbackLayers =
    Layers<InferenceProtocol::WithCallbackMethod_ServerLive, InferenceProtocol::WithCallbackMethod_ServerReady,
           InferenceProtocol::WithCallbackMethod_ModelReady, InferenceProtocol::WithCallbackMethod_ServerMetadata,
           InferenceProtocol::WithCallbackMethod_ModelMetadata, InferenceProtocol::WithRawCallbackMethod_ModelInfer,
           InferenceProtocol::WithRawCallbackMethod_ModelStreamInfer, InferenceProtocol::WithCallbackMethod_ModelConfig,
           InferenceProtocol::WithCallbackMethod_ModelStatistics, InferenceProtocol::WithCallbackMethod_RepositoryIndex,
           InferenceProtocol::WithCallbackMethod_RepositoryModelLoad,
           InferenceProtocol::WithCallbackMethod_RepositoryModelUnload,
           InferenceProtocol::WithCallbackMethod_SystemSharedMemoryStatus,
           InferenceProtocol::WithCallbackMethod_SystemSharedMemoryRegister,
           InferenceProtocol::WithCallbackMethod_SystemSharedMemoryUnregister,
           InferenceProtocol::WithCallbackMethod_CudaSharedMemoryStatus,
           InferenceProtocol::WithCallbackMethod_CudaSharedMemoryRegister,
           InferenceProtocol::WithCallbackMethod_CudaSharedMemoryUnregister,
           InferenceProtocol::WithCallbackMethod_TraceSetting, InferenceProtocol::WithCallbackMethod_LogSettings>::Type;

class Service final : public CallbackLayers {
 public:
  explicit Service(std::shared_ptr<CallContext> shared) : shared_(std::move(shared)), core_(shared_->inference) {
    worker_ = std::thread([this] {
      while (auto job = jobs_.Pop()) (*job)();
    });
  }
  ~Service() override {
    jobs_.Close();
    worker_.join();
  }

  Reactor* ServerLive(Context* context, const inference::ServerLiveRequest*,
                      inference::ServerLiveResponse* response) override {
    response->set_live(core_.Live());
    return Finished(context, grpc::Status::OK);
  }
  Reactor* ServerReady(Context* context, const inference::ServerReadyRequest*,
                       inference::ServerReadyResponse* response) override {
    response->set_ready(core_.Ready() && !shared_->draining);
    return Finished(context, grpc::Status::OK);
  }
  Reactor* ModelReady(Context* context, const inference::ModelReadyRequest* request,
                      inference::ModelReadyResponse* response) override {
    auto ready = core_.ModelReady(request->name(), request->version());
    // Triton's own answer about a model that nobody knows: clients poll this until a model is there.
    if (!ready.ok() && ready.error().code() != Code::kNotFound) return Finished(context, StatusOf(ready.error()));
    response->set_ready(ready.ok() && *ready);
    return Finished(context, grpc::Status::OK);
  }

  Reactor* ServerMetadata(Context* context, const inference::ServerMetadataRequest*,
                          inference::ServerMetadataResponse* response) override {
    return Guarded(context, [&]() -> Result<void> {
      response->set_name("ekiben");
      response->set_version(shared_->config.server_version);
      for (const std::string& extension : core_.extensions()) response->add_extensions(extension);
      return {};
    });
  }
  Reactor* ModelMetadata(Context* context, const inference::ModelMetadataRequest* request,
                         inference::ModelMetadataResponse* response) override {
    return Guarded(context, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(auto metadata, core_.Metadata(request->name(), request->version()));
      FillMetadata(metadata, *response);
      return {};
    });
  }
  Reactor* ModelConfig(Context* context, const inference::ModelConfigRequest* request,
                       inference::ModelConfigResponse* response) override {
    return Guarded(context, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(auto config, core_.ModelConfig(request->name(), request->version()));
      return FillModelConfig(config, *response->mutable_config());
    });
  }
  Reactor* ModelStatistics(Context* context, const inference::ModelStatisticsRequest* request,
                           inference::ModelStatisticsResponse* response) override {
    return Guarded(context, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(auto statistics, core_.Statistics(request->name(), request->version()));
      FillStatistics(statistics, *response);
      return {};
    });
  }

  Reactor* RepositoryIndex(Context* context, const inference::RepositoryIndexRequest* request,
                           inference::RepositoryIndexResponse* response) override {
    return Guarded(context, [&]() -> Result<void> {
      RETURN_IF_ERROR(CheckRepository(request->repository_name()));
      ASSIGN_OR_RETURN(auto index, core_.Index(request->ready()));
      FillIndex(index, *response);
      return {};
    });
  }
  Reactor* RepositoryModelLoad(Context* context, const inference::RepositoryModelLoadRequest* request,
                               inference::RepositoryModelLoadResponse*) override {
    return OnWorker(context, [this, request]() -> Result<void> {
      RETURN_IF_ERROR(CheckRepository(request->repository_name()));
      return core_.Load(request->model_name(), TakeParameters(*request));
    });
  }
  Reactor* RepositoryModelUnload(Context* context, const inference::RepositoryModelUnloadRequest* request,
                                 inference::RepositoryModelUnloadResponse*) override {
    return OnWorker(context, [this, request]() -> Result<void> {
      RETURN_IF_ERROR(CheckRepository(request->repository_name()));
      return core_.Unload(request->model_name(), TakeParameters(*request));
    });
  }

  Reactor* SystemSharedMemoryStatus(Context* context, const inference::SystemSharedMemoryStatusRequest* request,
                                    inference::SystemSharedMemoryStatusResponse* response) override {
    return Guarded(context, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(auto regions, core_.shared_memory().Status(request->name()));
      FillRegions(regions, *response);
      return {};
    });
  }
  Reactor* SystemSharedMemoryRegister(Context* context, const inference::SystemSharedMemoryRegisterRequest* request,
                                      inference::SystemSharedMemoryRegisterResponse*) override {
    return Guarded(context, [&] {
      return core_.shared_memory().Register({request->name(), request->key(), request->offset(), request->byte_size()});
    });
  }
  Reactor* SystemSharedMemoryUnregister(Context* context, const inference::SystemSharedMemoryUnregisterRequest* request,
                                        inference::SystemSharedMemoryUnregisterResponse*) override {
    return Guarded(context, [&]() -> Result<void> {
      core_.shared_memory().Unregister(request->name());
      return {};
    });
  }
  Reactor* CudaSharedMemoryStatus(Context* context, const inference::CudaSharedMemoryStatusRequest* request,
                                  inference::CudaSharedMemoryStatusResponse*) override {
    return Guarded(context, [&]() -> Result<void> {
      if (request->name().empty()) return {};
      return Error(Code::kNotFound, fmt::format("Unable to find cuda shared memory region: '{}'", request->name()));
    });
  }
  Reactor* CudaSharedMemoryRegister(Context* context, const inference::CudaSharedMemoryRegisterRequest*,
                                    inference::CudaSharedMemoryRegisterResponse*) override {
    return Guarded(context, []() -> Result<void> {
      return Error(Code::kUnsupported, "CUDA shared memory is not offered; send tensors in their messages");
    });
  }
  Reactor* CudaSharedMemoryUnregister(Context* context, const inference::CudaSharedMemoryUnregisterRequest*,
                                      inference::CudaSharedMemoryUnregisterResponse*) override {
    return Guarded(context, []() -> Result<void> { return {}; });  // there is none, which is fine
  }

  Reactor* TraceSetting(Context* context, const inference::TraceSettingRequest* request,
                        inference::TraceSettingResponse* response) override {
    if (grpc::Status status = MayChangeServer(*shared_, *context); request->settings_size() != 0 && !status.ok())
      return Finished(context, status);
    return Guarded(context, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(auto settings, core_.TraceSettings(request->model_name(), TakeTraceSettings(*request)));
      FillTraceSettings(settings, *response);
      return {};
    });
  }
  Reactor* LogSettings(Context* context, const inference::LogSettingsRequest* request,
                       inference::LogSettingsResponse* response) override {
    if (grpc::Status status = MayChangeServer(*shared_, *context); request->settings_size() != 0 && !status.ok())
      return Finished(context, status);
    return Guarded(context, [&]() -> Result<void> {
      ASSIGN_OR_RETURN(auto changes, TakeLogSettings(*request));
      ASSIGN_OR_RETURN(auto settings, core_.LogSettings(changes));
      FillLogSettings(settings, *response);
      return {};
    });
  }

  Reactor* ModelInfer(Context* context, const grpc::ByteBuffer* request, grpc::ByteBuffer* response) override {
    return StartModelInfer(shared_, context, request, response);
  }
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ModelStreamInfer(Context* context) override {
    return StartModelStreamInfer(shared_, context);
  }

 private:
  static Reactor* Finished(Context* context, const grpc::Status& status) {
    Reactor* reactor = context->DefaultReactor();
    reactor->Finish(status);
    return reactor;
  }
  template <class Function>
  Reactor* Guarded(Context* context, const Function& function) {
    grpc::Status status = MayPass(*shared_, *context);
    return Finished(context, status.ok() ? StatusOfResult(function()) : status);
  }
  // `function` may take seconds; messages and reactor live until Finish.
  Reactor* OnWorker(Context* context, std::function<Result<void>()> function) {
    if (grpc::Status status = MayChangeServer(*shared_, *context); !status.ok()) return Finished(context, status);
    Reactor* reactor = context->DefaultReactor();
    if (!jobs_.TryPush([reactor, run = std::move(function)] { reactor->Finish(StatusOfResult(run())); }))
      reactor->Finish(
          {grpc::StatusCode::RESOURCE_EXHAUSTED, fmt::format("{} loads and unloads wait already", jobs_.capacity())});
    return reactor;
  }
  static Result<void> CheckRepository(const std::string& name) {
    if (name.empty()) return {};
    return Error(Code::kUnsupported, fmt::format("repository_name '{}': there is one repository, leave it empty", name),
                 "repository_name");
  }

  const std::shared_ptr<CallContext> shared_;
  kserve::InferenceServer& core_;
  BoundedQueue<std::function<void()>> jobs_{64};
  std::thread worker_;
};

}  // namespace

std::unique_ptr<grpc::Service> CreateInferenceService(std::shared_ptr<CallContext> shared) {
  return std::make_unique<Service>(std::move(shared));
}

}  // namespace ekiben::rpc
