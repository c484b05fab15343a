#include "api/openai_calls.h"

#include <algorithm>

#include "api/error_response.h"
#include "api/json_text.h"
#include "api/openai_format.h"
#include "text/tokenizer.h"

namespace ekiben::api {
namespace {

using serve::TextEvent;

// What both shapes need of the request.
struct Shape {
  bool chat = false, echo = false, include_usage = false, continuous_usage_stats = false, return_token_ids = false;
  bool logprobs = false;
  std::vector<std::string> prompt_texts;  // with echo
  std::vector<TokenId> stop_token_ids;
};

Shape ShapeOf(const CompletionRequest& request, const text::Tokenizer& tokenizer) {
  Shape shape{request.chat, request.echo, request.include_usage, request.continuous_usage_stats,
              request.return_token_ids};
  for (const auto& prompt : request.prompts) {
    shape.logprobs = prompt.sampling.logprobs >= 0;
    const auto* ids = std::get_if<std::vector<TokenId>>(&prompt.input);
    if (request.echo)  // as it was sent, or the ids as text
      shape.prompt_texts.push_back(ids != nullptr ? tokenizer.Decode(*ids, {.skip_special = false})
                                                  : std::get<std::string>(prompt.input));
    shape.stop_token_ids = prompt.stop_token_ids;
  }
  return shape;
}

class OpenAiCall : public CompletionCall {
 public:
  OpenAiCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer, const CompletionRequest& request,
             OpenAiCallInfo info)
      : CompletionCall(context, std::move(writer)),
        shape_(ShapeOf(request, context.service.tokenizer())),
        info_(std::move(info)) {}

 protected:
  const text::Tokenizer& tokenizer() const { return context_.service.tokenizer(); }
  size_t PromptIndex(const Prompt& prompt) const { return static_cast<size_t>(&prompt - prompts_.data()); }

  const std::string& PromptText(const Prompt& prompt) const { return shape_.prompt_texts[PromptIndex(prompt)]; }

  static std::vector<ScoredToken> ScoredPrompt(const Prompt& prompt) {
    std::vector<ScoredToken> out;
    const auto& info = prompt.info;
    for (size_t i = 0; i < info.prompt.size(); ++i) {
      bool scored = i > 0 && i - 1 < info.prompt_logprobs.size();
      out.push_back({info.prompt[i], scored ? &info.prompt_logprobs[i - 1] : nullptr});
    }
    return out;
  }

  void AppendFinish(std::string& out, FinishReason reason, const std::string& stop_text, TokenId stop_token) const {
    out.append(",\"finish_reason\":");
    if (reason == FinishReason::kNone) {
      out.append("null");
      return;
    }
    AppendJsonString(out, FinishReasonName(reason));
    out.append(",\"stop_reason\":");
    bool asked = std::find(shape_.stop_token_ids.begin(), shape_.stop_token_ids.end(), stop_token) !=
                 shape_.stop_token_ids.end();
    if (reason == FinishReason::kStopText)
      AppendJsonString(out, stop_text);
    else if (reason == FinishReason::kEndToken && asked)
      AppendJsonInt(out, stop_token);
    else
      out.append("null");
  }

  void AppendHead(std::string& out, const char* object) const {
    out.append("{\"id\":");
    AppendJsonString(out, info_.id);
    out.append(",\"object\":\"").append(object).append("\",\"created\":");
    AppendJsonInt(out, info_.created);
    out.append(",\"model\":");
    AppendJsonString(out, info_.model);
    out.append(",\"choices\":[");
  }

  http::Headers HeadersWith(const char* content_type) const {
    http::Headers headers = {{"content-type", content_type}, {"x-request-id", info_.request_id}};
    headers.insert(headers.end(), info_.headers.begin(), info_.headers.end());
    return headers;
  }

  void SendError(const Error& error) {
    Answer answer = ErrorAnswer(PathFamily::kOpenAi, error);
    answer.headers.emplace_back("x-request-id", info_.request_id);
    writer_->Send(answer.status, answer.headers, answer.body);
  }

  const Shape shape_;
  const OpenAiCallInfo info_;
};

// ---- one document

class WholeCall final : public OpenAiCall {
 public:
  using OpenAiCall::OpenAiCall;

 private:
  struct Choice {
    std::string text, stop_text;
    std::vector<TokenId> tokens, logprob_tokens;
    std::vector<PositionLogProbs> logprobs;
    TokenId stop_token = -1;
  };

  void PromptKnown(Prompt&) override {
    if (!choices_.empty()) return;
    size_t count = 0;
    for (const Prompt& prompt : prompts_) count += prompt.sequences.size();
    choices_.resize(count);
  }

  void Text(Prompt&, Sequence& sequence, const TextEvent& event) override {
    Choice& choice = choices_[static_cast<size_t>(sequence.index)];
    choice.text.append(event.text);
    choice.tokens.insert(choice.tokens.end(), event.tokens.begin(), event.tokens.end());
    choice.logprobs.insert(choice.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    choice.logprob_tokens.insert(choice.logprob_tokens.end(), event.logprob_tokens.begin(), event.logprob_tokens.end());
    if (event.reason == FinishReason::kNone) return;
    choice.stop_text = event.stop_text;
    choice.stop_token = event.stop_token;
  }

  void AllEnded() override {
    std::string out;
    AppendHead(out, shape_.chat ? "chat.completion" : "text_completion");
    for (const Prompt& prompt : prompts_)
      for (const Sequence& sequence : prompt.sequences) AppendChoice(out, prompt, sequence);
    out.append("],\"usage\":");
    AppendUsage(out, prompt_tokens(), output_tokens(), cached_tokens());
    out.push_back('}');
    writer_->Send(200, HeadersWith("application/json"), out);
  }

  void AppendChoice(std::string& out, const Prompt& prompt, const Sequence& sequence) {
    const Choice& choice = choices_[static_cast<size_t>(sequence.index)];
    out.append(sequence.index > 0 ? ",{\"index\":" : "{\"index\":");
    AppendJsonInt(out, sequence.index);
    if (shape_.chat) {
      out.append(",\"message\":{\"role\":\"assistant\",\"content\":");
      AppendJsonString(out, choice.text);
      out.append(",\"refusal\":null}");
    } else {
      out.append(",\"text\":");
      AppendJsonString(out, shape_.echo ? PromptText(prompt) + choice.text : choice.text);
    }
    out.append(",\"logprobs\":");
    AppendLogprobs(out, prompt, choice);
    AppendFinish(out, sequence.reason, choice.stop_text, choice.stop_token);
    if (shape_.return_token_ids) {
      out.append(",\"token_ids\":");
      AppendTokenIds(out, choice.tokens);
      out.append(",\"prompt_token_ids\":");
      AppendTokenIds(out, prompt.info.prompt);
    }
    out.push_back('}');
  }

  void AppendLogprobs(std::string& out, const Prompt& prompt, const Choice& choice) {
    if (!shape_.logprobs) {
      out.append("null");
    } else if (shape_.chat) {
      AppendChatLogprobs(out, tokenizer(), choice.logprob_tokens, choice.logprobs);
    } else {
      std::vector<ScoredToken> scored;
      if (shape_.echo) scored = ScoredPrompt(prompt);
      for (size_t i = 0; i < choice.logprob_tokens.size(); ++i)
        scored.push_back({choice.logprob_tokens[i], &choice.logprobs[i]});
      size_t offset = 0;
      AppendCompletionLogprobs(out, tokenizer(), scored, offset);
    }
  }

  void Broken(const Error& error) override { SendError(error); }

  std::vector<Choice> choices_;
};

// ---- a stream

class StreamCall final : public OpenAiCall {
 public:
  StreamCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer, const CompletionRequest& request,
             OpenAiCallInfo info)
      : OpenAiCall(context, std::move(writer), request, std::move(info)) {
    // All that does not change from chunk to chunk, made once.
    prefix_ = "data: ";
    AppendHead(prefix_, shape_.chat ? "chat.completion.chunk" : "text_completion");
    size_t count = 0;
    for (const auto& prompt : request.prompts) count += static_cast<size_t>(prompt.n);
    text_offsets_.resize(count);
  }

 private:
  void PromptKnown(Prompt& prompt) override {
    if (!started_) {
      started_ = true;
      http::Headers headers = HeadersWith("text/event-stream; charset=utf-8");
      headers.emplace_back("cache-control", "no-cache");
      writer_->Start(200, headers);
    }
    for (const Sequence& sequence : prompt.sequences) {
      if (shape_.chat)
        WriteRole(prompt, sequence);
      else if (shape_.echo)
        WriteEcho(prompt, sequence);
    }
  }

  void WriteRole(const Prompt& prompt, const Sequence& sequence) {
    OpenChoice(sequence);
    chunk_.append(",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}");
    CloseChunk(prompt, /*tokens_so_far=*/0);
  }

  void WriteEcho(const Prompt& prompt, const Sequence& sequence) {
    OpenChoice(sequence);
    chunk_.append(",\"text\":");
    AppendJsonString(chunk_, PromptText(prompt));
    chunk_.append(",\"logprobs\":");
    if (shape_.logprobs)
      AppendCompletionLogprobs(chunk_, tokenizer(), ScoredPrompt(prompt),
                               text_offsets_[static_cast<size_t>(sequence.index)]);
    else
      chunk_.append("null");
    chunk_.append(",\"finish_reason\":null}");
    CloseChunk(prompt, 0);
  }

  void Text(Prompt& prompt, Sequence& sequence, const TextEvent& event) override {
    bool nothing_to_say = event.text.empty() && event.reason == FinishReason::kNone && event.logprobs.empty() &&
                          event.tokens.empty() && !shape_.continuous_usage_stats;
    if (nothing_to_say) return;
    OpenChoice(sequence);
    if (shape_.chat) {
      chunk_.append(event.text.empty() ? ",\"delta\":{" : ",\"delta\":{\"content\":");
      if (!event.text.empty()) AppendJsonString(chunk_, event.text);
      chunk_.push_back('}');
    } else {
      chunk_.append(",\"text\":");
      AppendJsonString(chunk_, event.text);
    }
    chunk_.append(",\"logprobs\":");
    AppendLogprobs(sequence, event);
    AppendFinish(chunk_, event.reason, event.stop_text, event.stop_token);
    if (shape_.return_token_ids) {
      chunk_.append(",\"token_ids\":");
      AppendTokenIds(chunk_, event.tokens);
    }
    chunk_.push_back('}');
    CloseChunk(prompt, sequence.output_tokens);
  }

  void AppendLogprobs(const Sequence& sequence, const TextEvent& event) {
    if (!shape_.logprobs || event.logprobs.empty()) {
      chunk_.append("null");
    } else if (shape_.chat) {
      AppendChatLogprobs(chunk_, tokenizer(), event.logprob_tokens, event.logprobs);
    } else {
      std::vector<ScoredToken> scored;
      for (size_t i = 0; i < event.logprob_tokens.size(); ++i)
        scored.push_back({event.logprob_tokens[i], &event.logprobs[i]});
      AppendCompletionLogprobs(chunk_, tokenizer(), scored, text_offsets_[static_cast<size_t>(sequence.index)]);
    }
  }

  void OpenChoice(const Sequence& sequence) {
    chunk_.assign(prefix_).append("{\"index\":");
    AppendJsonInt(chunk_, sequence.index);
  }

  void CloseChunk(const Prompt& prompt, int32_t tokens_so_far) {
    chunk_.push_back(']');
    if (shape_.continuous_usage_stats) {
      chunk_.append(",\"usage\":");
      AppendUsage(chunk_, prompt.info.prompt_tokens, tokens_so_far, prompt.info.cached_tokens);
    } else if (shape_.include_usage) {
      chunk_.append(",\"usage\":null");
    }
    chunk_.append("}\n\n");
    writer_->Write(chunk_);
  }

  void AllEnded() override {
    if (shape_.include_usage) {
      chunk_.assign(prefix_).append("],\"usage\":");
      AppendUsage(chunk_, prompt_tokens(), output_tokens(), cached_tokens());
      chunk_.append("}\n\n");
      writer_->Write(chunk_);
    }
    writer_->Write("data: [DONE]\n\n");
    writer_->Finish();
  }

  void Broken(const Error& error) override {
    if (!started_) return SendError(error);
    writer_->Write("data: " + OpenAiErrorJson(error) + "\n\n");
    writer_->Write("data: [DONE]\n\n");
    writer_->Finish();
  }

  std::string prefix_, chunk_;
  std::vector<size_t> text_offsets_;
};

}  // namespace

std::shared_ptr<CompletionCall> MakeOpenAiCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer,
                                               const CompletionRequest& request, OpenAiCallInfo info) {
  if (request.stream) return std::make_shared<StreamCall>(context, std::move(writer), request, std::move(info));
  return std::make_shared<WholeCall>(context, std::move(writer), request, std::move(info));
}

}  // namespace ekiben::api
