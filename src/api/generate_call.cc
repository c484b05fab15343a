#include "api/generate_call.h"

#include "api/error_response.h"
#include "api/json_text.h"

namespace ekiben::api {
namespace {

class GenerateCall final : public CompletionCall {
 public:
  GenerateCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer, http::Headers headers,
               bool stream)
      : CompletionCall(context, std::move(writer)), headers_(std::move(headers)), stream_(stream) {}

 private:
  void PromptKnown(Prompt&) override {}

  void Text(Prompt&, Sequence&, const serve::TextEvent& event) override {
    if (event.text.empty()) return;
    if (!stream_) {
      text_.append(event.text);
      return;
    }
    StartOnce();
    writer_->Write(event.text);
  }

  void AllEnded() override {
    if (!stream_) {
      Answer answer = TextAnswer(std::move(text_));
      answer.headers.insert(answer.headers.end(), headers_.begin(), headers_.end());
      return writer_->Send(answer.status, answer.headers, answer.body);
    }
    StartOnce();
    writer_->Finish();
  }

  void Broken(const Error& error) override {
    if (!started_) {
      Answer answer = ErrorAnswer(PathFamily::kBento, error);
      // Overload and timeout come from outside the API in BentoML: without its headers.
      if (answer.status != 429 && answer.status != 504)
        answer.headers.insert(answer.headers.end(), headers_.begin(), headers_.end());
      writer_->Send(answer.status, answer.headers, answer.body);
      return;
    }
    std::string line = "{\"status\":\"error\",\"message\":";
    AppendJsonString(line, ReplaceInvalidUtf8(error.message()));
    writer_->Write(line + "}");
    writer_->Finish();
  }

  void StartOnce() {
    if (std::exchange(started_, true)) return;
    http::Headers headers = {{"content-type", "text/event-stream; charset=utf-8"}, {"cache-control", "no-cache"}};
    headers.insert(headers.end(), headers_.begin(), headers_.end());
    writer_->Start(200, headers);
  }

  const http::Headers headers_;
  const bool stream_;
  std::string text_;  // without a stream
};

}  // namespace

std::shared_ptr<CompletionCall> MakeGenerateCall(const CallContext& context,
                                                 std::shared_ptr<http::ResponseWriter> writer, http::Headers headers,
                                                 bool stream) {
  return std::make_shared<GenerateCall>(context, std::move(writer), std::move(headers), stream);
}

}  // namespace ekiben::api
