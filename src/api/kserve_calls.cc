#include "api/kserve_calls.h"

#include <atomic>
#include <mutex>

namespace ekiben::api {
namespace {

constexpr const char* kNotOneResponse =
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses";

// Sink of its inference, and what the client's leaving finds. The inference is known only after Infer returned, which
// may be after its last response.
class Call final : public kserve::InferSink, public RunningCall {
 public:
  Call(CallRegistry& calls, KserveAnswer kind, InferBody asked, std::optional<std::string> load,
       std::shared_ptr<http::ResponseWriter> writer)
      : calls_(calls), kind_(kind), asked_(std::move(asked)), load_(std::move(load)), writer_(std::move(writer)) {}

  void OnResponse(kserve::InferResponse response) override;
  void OnError(const Error& error) override;
  void SetInference(std::shared_ptr<kserve::Inference> inference);
  void Cancel();
  void Fail(const Error& error) override;

 private:
  http::Headers HeadersOf(const char* content_type) const;
  void End();
  void Refuse(const Error& error);
  void AnswerInfer(const kserve::InferResponse& response);
  void AnswerGenerate(kserve::InferResponse response);
  void AnswerStream(const kserve::InferResponse& response);

  CallRegistry& calls_;
  const KserveAnswer kind_;
  const InferBody asked_;
  const std::optional<std::string> load_;
  const std::shared_ptr<http::ResponseWriter> writer_;
  // Of the sink, which is called one at a time.
  std::optional<kserve::InferResponse> only_;
  bool started_ = false, done_ = false;

  std::mutex mutex_;
  std::shared_ptr<kserve::Inference> inference_;
  bool cancelled_ = false;
  std::optional<Error> failure_;  // what the cancelled inference ended of
};

http::Headers Call::HeadersOf(const char* content_type) const {
  http::Headers out = {{"content-type", content_type}};
  if (load_) out.emplace_back("endpoint-load-metrics", *load_);
  return out;
}

void Call::SetInference(std::shared_ptr<kserve::Inference> inference) {
  std::lock_guard lock(mutex_);
  if (cancelled_)
    inference->Cancel();
  else
    inference_ = std::move(inference);
}

void Call::Cancel() {
  std::shared_ptr<kserve::Inference> inference;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    inference = std::move(inference_);
  }
  if (inference != nullptr) inference->Cancel();
}

// The inference's own end brings the words out: the sink is called one at a time.
void Call::Fail(const Error& error) {
  {
    std::lock_guard lock(mutex_);
    failure_ = error;
  }
  Cancel();
}

void Call::End() {
  done_ = true;
  calls_.Remove(this);
}

void Call::Refuse(const Error& error) {
  End();
  Answer answer = ErrorAnswer(PathFamily::kKserve, error);
  writer_->Send(answer.status, answer.headers, answer.body);
}

void Call::OnResponse(kserve::InferResponse response) {
  if (done_) return;
  switch (kind_) {
    case KserveAnswer::kInfer: return AnswerInfer(response);
    case KserveAnswer::kGenerate: return AnswerGenerate(std::move(response));
    case KserveAnswer::kGenerateStream: return AnswerStream(response);
  }
}

void Call::OnError(const Error& said) {
  if (done_) return;
  Error error = [&] {
    std::lock_guard lock(mutex_);
    return failure_.value_or(said);
  }();
  if (!started_) return Refuse(error);
  End();
  std::string body = ErrorAnswer(PathFamily::kKserve, error).body;
  writer_->Write("data: " + body + "\n\n");
  writer_->Finish();
}

void Call::AnswerInfer(const kserve::InferResponse& response) {
  auto answer = WriteInferAnswer(response, asked_);
  if (!answer.ok()) return Refuse(answer.error());
  End();
  http::Headers headers = HeadersOf(answer->binary ? "application/octet-stream" : "application/json");
  if (answer->binary) headers.emplace_back("inference-header-content-length", std::to_string(answer->json_bytes));
  writer_->Send(200, headers, answer->body);
}

// Held until the end: a second response makes all of it an error.
void Call::AnswerGenerate(kserve::InferResponse response) {
  bool final = response.final;
  if (!response.outputs.empty()) {
    if (only_) {
      Refuse(Error(Code::kInternal, kNotOneResponse));
      return Cancel();
    }
    only_ = std::move(response);
  }
  if (!final) return;
  if (!only_) return Refuse(Error(Code::kInternal, kNotOneResponse));
  End();
  std::string body;
  AppendGenerateAnswer(body, *only_);
  writer_->Send(200, HeadersOf("application/json"), body);
}

void Call::AnswerStream(const kserve::InferResponse& response) {
  if (!std::exchange(started_, true)) writer_->Start(200, HeadersOf("text/event-stream; charset=utf-8"));
  if (!response.outputs.empty()) {
    std::string chunk = "data: ";
    AppendGenerateAnswer(chunk, response);
    chunk.append("\n\n");
    writer_->Write(chunk);
  }
  if (!response.final) return;
  End();
  writer_->Finish();
}

}  // namespace

void RunInference(kserve::InferenceServer& server, CallRegistry& calls, KserveAnswer kind, kserve::InferRequest request,
                  InferBody asked, std::optional<std::string> load,
                  const std::shared_ptr<http::ResponseWriter>& writer) {
  auto call = std::make_shared<Call>(calls, kind, std::move(asked), std::move(load), writer);
  calls.Add(call);
  request.may_stream = kind != KserveAnswer::kInfer;
  auto inference = server.Infer(std::move(request), call);
  if (!inference.ok()) return call->OnError(inference.error());
  call->SetInference(*std::move(inference));
  std::weak_ptr<Call> weak = call;
  writer->OnClosed([weak] {
    if (auto left = weak.lock()) left->Cancel();
  });
}

}  // namespace ekiben::api
