#include "api/generate_call.h"

#include "api/error_response.h"
#include "api/json_text.h"

namespace ekiben::api {
namespace {

class GenerateCall final : public CompletionCall {
 public:
  GenerateCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer, http::Headers headers)
      : CompletionCall(context, std::move(writer)), headers_(std::move(headers)) {}

 private:
  void PromptKnown(Prompt&) override {}

  void Text(Prompt&, Sequence&, const serve::TextEvent& event) override {
    if (event.text.empty()) return;
    StartOnce();
    writer_->Write(event.text);
  }

  void AllEnded() override {
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
};

}  // namespace

std::shared_ptr<CompletionCall> MakeGenerateCall(const CallContext& context,
                                                 std::shared_ptr<http::ResponseWriter> writer, http::Headers headers) {
  return std::make_shared<GenerateCall>(context, std::move(writer), std::move(headers));
}

}  // namespace ekiben::api
