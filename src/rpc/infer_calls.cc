#include "rpc/infer_calls.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <deque>
#include <map>
#include <optional>

#include "base/log.h"
#include "proto/grpc_service.pb.h"
#include "rpc/message_bytes.h"
#include "rpc/message_conversion.h"
#include "rpc/status.h"

namespace ekiben::rpc {
namespace {

constexpr const char* kFinalResponse = "triton_final_response";
constexpr const char* kGoingAway = "the server is going away: connect again";
constexpr const char* kEmptyFinalResponse = "triton_enable_empty_final_response";

std::string_view Metadata(const grpc::CallbackServerContext& context, const char* key) {
  auto found = context.client_metadata().find(key);
  if (found == context.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

// Null: no key, or none that is known.
ApiClient* ClientOf(const CallContext& shared, const grpc::CallbackServerContext& context) {
  return shared.config.api_keys.Find(Metadata(context, "authorization"));
}

// What counts against a key's limits as long as it is held; null for those who have none.
Result<std::shared_ptr<const void>> TakeTurn(const CallContext& shared, ApiClient* client) {
  if (client == nullptr) return std::shared_ptr<const void>();
  ApiClient::Admission admission = client->Admit(shared.config.clock->Now());
  if (admission.turn == nullptr) return Error(Code::kOverloaded, admission.refusal + "; try again later");
  return std::move(admission.turn);
}

// The bytes of `message`, or why a client could not take them.
Result<void> Serialize(const google::protobuf::Message& message, size_t bytes_max, grpc::ByteBuffer& out) {
  size_t bytes = message.ByteSizeLong();
  if (bytes > bytes_max)
    return Error(Code::kInternal,
                 fmt::format("the answer has {} bytes, a message may have {}: ask for less", bytes, bytes_max));
  grpc::Slice slice(bytes);
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));  // ours alone until it is handed over
  grpc::ByteBuffer buffer(&slice, 1);
  out.Swap(&buffer);
  return {};
}

Result<kserve::InferRequest> ParseRequest(const CallContext& shared, const grpc::ByteBuffer& bytes) {
  inference::ModelInferRequest message;
  grpc::Slice slice;  // most messages came in one piece: nothing is copied then
  if (!bytes.TrySingleSlice(&slice).ok() && !bytes.DumpToSingleSlice(&slice).ok())
    return Error(Code::kInternal, "a message without bytes");
  std::string_view view(reinterpret_cast<const char*>(slice.begin()), slice.size());
  RETURN_IF_ERROR(ParseMessage(view, shared.config.unpacked_bytes_max, message));
  return TakeInferRequest(message);
}

// ModelInfer: one request, one response.
class UnaryCall final : public grpc::ServerUnaryReactor, public kserve::InferSink {
 public:
  UnaryCall(std::shared_ptr<CallContext> shared, ApiClient* client, grpc::ByteBuffer* response)
      : shared_(std::move(shared)), client_(client), response_(response) {}

  void Start(const std::shared_ptr<UnaryCall>& self, const grpc::ByteBuffer& bytes) {
    self_ = self;
    shared_->EnterUnary();
    if (shared_->draining) return End({grpc::StatusCode::UNAVAILABLE, kGoingAway});
    auto request = ParseRequest(*shared_, bytes);
    if (!request.ok()) return End(StatusOf(request.error()));
    auto turn = TakeTurn(*shared_, client_);
    if (!turn.ok()) return End(StatusOf(turn.error()));
    turn_ = *std::move(turn);
    ++shared_->inferences;
    ++shared_->inferences_running;
    auto inference = shared_->inference.Infer(*std::move(request), self);
    if (!inference.ok()) return OnError(inference.error());
    bool cancelled;
    {
      std::lock_guard lock(mutex_);
      if (finished_ && !cancelled_) return;  // it has answered already
      inference_ = *inference;
      cancelled = cancelled_;
    }
    if (cancelled) (*inference)->Cancel();
  }

  void OnResponse(kserve::InferResponse response) override {
    bool final = response.final;
    if (!response.outputs.empty() || final) {
      std::lock_guard lock(mutex_);
      if (!finished_ && (!answer_ || !response.outputs.empty())) answer_ = std::move(response);
    }
    if (!final) return;
    --shared_->inferences_running;
    std::lock_guard lock(mutex_);
    if (finished_) return;
    inference::ModelInferResponse message;
    FillInferResponse(*std::move(answer_), message);
    auto bytes = Serialize(message, static_cast<size_t>(shared_->config.message_bytes_max), *response_);
    EndLocked(bytes.ok() ? grpc::Status::OK : StatusOf(bytes.error()));
  }

  void OnError(const Error& error) override {
    --shared_->inferences_running;
    End(StatusOf(error));
  }

  void OnCancel() override {
    std::shared_ptr<kserve::Inference> inference;
    {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
      inference = inference_;
      EndLocked(grpc::Status::CANCELLED);
    }
    if (inference) inference->Cancel();
  }

  void OnDone() override {
    shared_->LeaveUnary();
    std::shared_ptr<kserve::Inference> inference;
    std::shared_ptr<UnaryCall> self;  // dropped after the lock, since it may be the last
    std::lock_guard lock(mutex_);
    inference.swap(inference_);
    self.swap(self_);
  }

 private:
  void End(const grpc::Status& status) {
    std::lock_guard lock(mutex_);
    EndLocked(status);
  }
  void EndLocked(const grpc::Status& status) {
    if (std::exchange(finished_, true)) return;
    Finish(status);
  }

  const std::shared_ptr<CallContext> shared_;
  ApiClient* const client_;
  grpc::ByteBuffer* const response_;  // valid until Finish
  std::shared_ptr<const void> turn_;
  std::mutex mutex_;
  std::optional<kserve::InferResponse> answer_;
  std::shared_ptr<kserve::Inference> inference_;
  bool finished_ = false, cancelled_ = false;
  std::shared_ptr<UnaryCall> self_;  // gRPC's hold, until OnDone
};

// ModelStreamInfer. StartRead and Finish are called under the mutex: libgrpc++ runs reactions on its own threads, never
// inside these calls. StartWrite is called after it, by the thread that set `writing_`: a write is often done before
// StartWrite returns, and OnWriteDone on another thread would wait for the mutex, at two switches of threads a token.
// Nothing else writes or finishes until OnWriteDone.
class StreamCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>, public Drainable {
 public:
  StreamCall(std::shared_ptr<CallContext> shared, grpc::CallbackServerContext* context)
      : shared_(std::move(shared)),
        context_(context),
        errors_end_stream_(Metadata(*context, "triton_grpc_error") == "true") {}

  void Start(const std::shared_ptr<StreamCall>& self);
  void BeginDrain() override;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  class Sink;
  using Running = std::map<uint64_t, std::shared_ptr<kserve::Inference>>;
  struct Waiting {
    kserve::InferResponse response;
    std::optional<Error> error;
    size_t bytes = 0;
  };

  void StartRequest(const grpc::ByteBuffer& bytes);
  void Refuse(kserve::InferResponse about, const Error& error);
  void Answer(uint64_t key, kserve::InferResponse response, bool empty_final);
  void Fail(uint64_t key, kserve::InferResponse about, const Error& error);
  // The rest: with the mutex held.
  void Enqueue(kserve::InferResponse response, std::optional<Error> error);
  std::shared_ptr<kserve::Inference> Erase(uint64_t key);
  // No more answers; what runs is for the caller to cancel, outside the mutex.
  Running Close(grpc::Status status, bool drop_waiting);
  size_t WaitingBytesMax() const;
  // True: the caller calls StartWrite(&written_, write_options_) once it has let the mutex go.
  [[nodiscard]] bool Pump();
  void PrepareWrite();
  void EndStream(const grpc::Status& status);

  static void CancelAll(const Running& running) {
    for (const auto& [key, inference] : running)
      if (inference) inference->Cancel();
  }

  const std::shared_ptr<CallContext> shared_;
  grpc::CallbackServerContext* const context_;  // valid until OnDone
  const bool errors_end_stream_;

  std::mutex mutex_;
  grpc::ByteBuffer read_, written_;
  grpc::WriteOptions write_options_;
  inference::ModelStreamInferResponse message_;  // kept, so that its strings keep their memory
  uint64_t next_key_ = 0;
  Running running_;  // null: Infer has not returned yet
  std::deque<Waiting> waiting_;
  size_t waiting_bytes_ = 0, largest_message_ = 0;
  bool reading_ = false, reads_ended_ = false, writing_ = false, draining_ = false, finished_ = false, done_ = false;
  std::optional<grpc::Status> closing_;
  grpc::Alarm slow_reader_;
  std::shared_ptr<StreamCall> self_;  // gRPC's hold, until OnDone
};

class StreamCall::Sink final : public kserve::InferSink {
 public:
  Sink(std::shared_ptr<StreamCall> stream, uint64_t key, std::shared_ptr<const void> turn, kserve::InferResponse about,
       bool empty_final)
      : stream_(std::move(stream)),
        key_(key),
        turn_(std::move(turn)),
        empty_final_(empty_final),
        about_(std::move(about)) {}
  void OnResponse(kserve::InferResponse response) override { stream_->Answer(key_, std::move(response), empty_final_); }
  void OnError(const Error& error) override { stream_->Fail(key_, about_, error); }

 private:
  const std::shared_ptr<StreamCall> stream_;
  const uint64_t key_;
  const std::shared_ptr<const void> turn_;
  const bool empty_final_;
  const kserve::InferResponse about_;
};

void StreamCall::Start(const std::shared_ptr<StreamCall>& self) {
  {
    std::lock_guard lock(mutex_);
    self_ = self;  // before a drain can end the call
  }
  bool full = shared_->EnterStream(this) >= static_cast<size_t>(shared_->config.streams_max);
  ++shared_->streams_opened;
  std::lock_guard lock(mutex_);
  if (finished_) return;
  draining_ = shared_->draining;  // one that began before this stream could be told
  if (grpc::Status status = MayPass(*shared_, *context_); !status.ok()) return EndStream(status);
  if (full)
    return EndStream({grpc::StatusCode::RESOURCE_EXHAUSTED,
                      fmt::format("{} streams are open, the most that this server has", shared_->config.streams_max)});
  CHECK(!Pump());  // nothing waits yet
}

void StreamCall::BeginDrain() {
  bool write;
  {
    std::lock_guard lock(mutex_);
    draining_ = true;
    write = Pump();
  }
  if (write) StartWrite(&written_, write_options_);
}

void StreamCall::OnReadDone(bool ok) {
  if (ok) StartRequest(read_);
  bool write;
  {
    std::lock_guard lock(mutex_);
    reading_ = false;
    if (!ok) reads_ended_ = true;
    write = Pump();
  }
  if (write) StartWrite(&written_, write_options_);
}

void StreamCall::StartRequest(const grpc::ByteBuffer& bytes) {
  auto request = ParseRequest(*shared_, bytes);
  if (!request.ok()) return Refuse({}, request.error());
  kserve::InferResponse about;
  about.model_name = request->model_name;
  about.model_version = request->model_version;
  about.id = request->id;
  bool empty_final = false;
  if (auto found = request->parameters.find(kEmptyFinalResponse); found != request->parameters.end()) {
    const bool* flag = std::get_if<bool>(&found->second);
    if (flag == nullptr)
      return Refuse(std::move(about),
                    Error(Code::kInvalid, fmt::format("parameters: '{}' must be a bool_param", kEmptyFinalResponse),
                          kEmptyFinalResponse));
    empty_final = *flag;
    request->parameters.erase(found);
  }
  auto turn = TakeTurn(*shared_, ClientOf(*shared_, *context_));
  if (!turn.ok()) return Refuse(std::move(about), turn.error());
  request->may_stream = true;
  std::shared_ptr<Sink> sink;
  uint64_t key;
  {
    std::lock_guard lock(mutex_);
    if (closing_ || finished_) return;
    key = next_key_++;
    running_[key] = nullptr;
    sink = std::make_shared<Sink>(self_, key, *std::move(turn), about, empty_final);
  }
  ++shared_->inferences;
  ++shared_->inferences_running;
  auto inference = shared_->inference.Infer(*std::move(request), sink);
  if (!inference.ok()) return Fail(key, std::move(about), inference.error());
  bool closed;
  {
    std::lock_guard lock(mutex_);
    closed = closing_.has_value();
    if (auto found = running_.find(key); found != running_.end()) found->second = *inference;
  }
  if (closed) (*inference)->Cancel();
}

void StreamCall::Refuse(kserve::InferResponse about, const Error& error) {
  Running cancelled;
  bool write;
  {
    std::lock_guard lock(mutex_);
    if (closing_ || finished_) return;
    if (errors_end_stream_) {
      cancelled = Close(StatusOf(error), false);
    } else {
      Enqueue(std::move(about), error);
    }
    write = Pump();
  }
  if (write) StartWrite(&written_, write_options_);
  CancelAll(cancelled);
}

void StreamCall::Answer(uint64_t key, kserve::InferResponse response, bool empty_final) {
  std::shared_ptr<kserve::Inference> ended;
  Running cancelled;
  bool write;
  if (response.final) --shared_->inferences_running;
  {
    std::lock_guard lock(mutex_);
    if (response.final) ended = Erase(key);
    if (closing_ || finished_) return;
    if (waiting_bytes_ > WaitingBytesMax()) {
      ++shared_->clients_too_slow;
      LOG_WARNING("gRPC: a stream's client reads too slowly: {} bytes wait, {} may; its {} requests are cancelled",
                  waiting_bytes_, WaitingBytesMax(), running_.size());
      cancelled = Close(
          {grpc::StatusCode::RESOURCE_EXHAUSTED, "the client reads too slowly: its requests were cancelled"}, true);
      gpr_timespec wait = gpr_time_from_nanos(shared_->config.write_timeout.count(), GPR_TIMESPAN);
      slow_reader_.Set(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), wait), [weak = std::weak_ptr(self_)](bool expired) {
        auto self = weak.lock();
        if (!expired || !self) return;
        std::lock_guard alarm_lock(self->mutex_);
        if (!self->done_) self->context_->TryCancel();
      });
    } else if (!response.outputs.empty() || !response.final || empty_final) {
      Enqueue(std::move(response), std::nullopt);
    }
    write = Pump();
  }
  if (write) StartWrite(&written_, write_options_);
  CancelAll(cancelled);
}

void StreamCall::Fail(uint64_t key, kserve::InferResponse about, const Error& error) {
  std::shared_ptr<kserve::Inference> ended;
  --shared_->inferences_running;
  {
    std::lock_guard lock(mutex_);
    ended = Erase(key);
  }
  Refuse(std::move(about), error);
}

void StreamCall::Enqueue(kserve::InferResponse response, std::optional<Error> error) {
  constexpr size_t kMessageBytes = 256;  // of names and numbers around the tensors
  size_t bytes = kMessageBytes + response.id.size() + (error ? error->message().size() : 0);
  for (const kserve::Tensor& tensor : response.outputs) bytes += tensor.name.size() + tensor.data.size();
  waiting_bytes_ += bytes;
  largest_message_ = std::max(largest_message_, bytes);
  waiting_.push_back({std::move(response), std::move(error), bytes});
}

std::shared_ptr<kserve::Inference> StreamCall::Erase(uint64_t key) {
  auto found = running_.find(key);
  if (found == running_.end()) return nullptr;
  auto inference = std::move(found->second);
  running_.erase(found);
  return inference;
}

StreamCall::Running StreamCall::Close(grpc::Status status, bool drop_waiting) {
  closing_ = std::move(status);
  if (drop_waiting) {
    waiting_.clear();
    waiting_bytes_ = 0;
  }
  return std::exchange(running_, {});
}

size_t StreamCall::WaitingBytesMax() const {
  const GrpcConfig& config = shared_->config;
  return std::max(config.stream_buffer_bytes_max, config.stream_buffer_messages_min * largest_message_);
}

// The one place that decides what comes next: a write, a read, the end.
bool StreamCall::Pump() {
  if (finished_) return false;
  bool write = !writing_ && !waiting_.empty();
  if (write) PrepareWrite();
  if (!writing_) {
    std::optional<grpc::Status> end = closing_;
    if (!end && running_.empty() && !reading_ && reads_ended_) end = grpc::Status::OK;
    if (!end && running_.empty() && draining_) end = {grpc::StatusCode::UNAVAILABLE, kGoingAway};
    if (end) {
      EndStream(*end);
      return false;
    }
  }
  bool room = running_.size() < static_cast<size_t>(shared_->config.stream_requests_max) &&
              waiting_bytes_ <= WaitingBytesMax() / 2;
  if (!reading_ && !reads_ended_ && !closing_ && room) {
    reading_ = true;
    StartRead(&read_);
  }
  return write;
}

void StreamCall::PrepareWrite() {
  Waiting next = std::move(waiting_.front());
  waiting_.pop_front();
  waiting_bytes_ -= next.bytes;
  message_.Clear();
  inference::ModelInferResponse& response = *message_.mutable_infer_response();
  bool final = next.error.has_value() || next.response.final;
  if (next.error) message_.set_error_message(next.error->message());
  FillInferResponse(std::move(next.response), response);
  (*response.mutable_parameters())[kFinalResponse].set_bool_param(final);
  if (auto bytes = Serialize(message_, static_cast<size_t>(shared_->config.message_bytes_max), written_); !bytes.ok()) {
    message_.Clear();
    message_.set_error_message(bytes.error().message());
    (*message_.mutable_infer_response()->mutable_parameters())[kFinalResponse].set_bool_param(final);
    CHECK(Serialize(message_, INT32_MAX, written_).ok());
  }
  writing_ = true;
  write_options_ = grpc::WriteOptions();
  if (!waiting_.empty()) write_options_.set_buffer_hint();  // the next message follows at once: one send for both
}

void StreamCall::EndStream(const grpc::Status& status) {
  finished_ = true;
  Finish(status);
}

void StreamCall::OnWriteDone(bool ok) {
  bool write;
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) {  // the client has gone; OnCancel tells the inferences
      waiting_.clear();
      waiting_bytes_ = 0;
    }
    write = Pump();
  }
  if (write) StartWrite(&written_, write_options_);
}

void StreamCall::OnCancel() {
  Running cancelled;
  bool write;
  {
    std::lock_guard lock(mutex_);
    cancelled = Close(grpc::Status::CANCELLED, true);
    write = Pump();
  }
  if (write) StartWrite(&written_, write_options_);
  CancelAll(cancelled);
}

void StreamCall::OnDone() {
  shared_->LeaveStream(this);
  slow_reader_.Cancel();
  Running cancelled;
  std::shared_ptr<StreamCall> self;
  {
    std::lock_guard lock(mutex_);
    done_ = true;
    cancelled = Close(grpc::Status::CANCELLED, true);
    self.swap(self_);
  }
  CancelAll(cancelled);
}

}  // namespace

grpc::Status MayPass(const CallContext& shared, const grpc::CallbackServerContext& context) {
  if (!shared.config.api_keys.required() || ClientOf(shared, context) != nullptr) return grpc::Status::OK;
  return {grpc::StatusCode::UNAUTHENTICATED, "authorization: a valid API key is wanted as 'Bearer KEY'"};
}

grpc::Status MayChangeServer(const CallContext& shared, const grpc::CallbackServerContext& context) {
  if (grpc::Status status = MayPass(shared, context); !status.ok() || shared.config.admin_routes) return status;
  const ApiClient* client = ClientOf(shared, context);
  if (client != nullptr && client->admin()) return grpc::Status::OK;
  return {grpc::StatusCode::PERMISSION_DENIED,
          "wants the key of an admin; without one, start the server with --enable_admin_routes"};
}

grpc::ServerUnaryReactor* StartModelInfer(std::shared_ptr<CallContext> shared, grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  if (grpc::Status status = MayPass(*shared, *context); !status.ok()) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(status);
    return reactor;
  }
  ApiClient* client = ClientOf(*shared, *context);
  auto call = std::make_shared<UnaryCall>(std::move(shared), client, response);
  call->Start(call, *request);
  return call.get();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StartModelStreamInfer(
    std::shared_ptr<CallContext> shared, grpc::CallbackServerContext* context) {
  auto call = std::make_shared<StreamCall>(std::move(shared), context);
  call->Start(call);
  return call.get();
}

}  // namespace ekiben::rpc
