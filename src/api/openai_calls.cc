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
  int32_t logprobs = -1, prompt_logprobs = -1;  // alternatives; -1: not asked for
  int32_t n = 1;
  ToolChoice::Kind tool_choice = ToolChoice::Kind::kNone;
  std::string tool_name;
  std::vector<std::string> prompt_texts;  // with echo
  std::vector<TokenId> stop_token_ids;
};

Shape ShapeOf(const CompletionRequest& request, const text::Tokenizer& tokenizer) {
  Shape shape{request.chat,
              request.echo,
              request.include_usage,
              request.continuous_usage_stats,
              request.return_token_ids,
              request.logprobs,
              request.prompt_logprobs,
              request.n,
              request.tools.kind,
              request.tools.name};
  for (const auto& prompt : request.prompts) {
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
        info_(std::move(info)) {
    size_t count = 0;
    for (const auto& prompt : request.prompts) count += static_cast<size_t>(prompt.n);
    ToolCallFormat format = ToolCallFormatFor(shape_.tool_choice, info_.tool_calls);
    if (format != ToolCallFormat::kText) parsers_.assign(count, ToolCallParser(format, shape_.tool_name));
  }

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

  // What of an event is text and what is calls; parsers see every event of a sequence in order.
  ToolCallParser::Output SplitCalls(const Sequence& sequence, const TextEvent& event) {
    ToolCallParser::Output out;
    ToolCallParser& parser = parsers_[static_cast<size_t>(sequence.index)];
    parser.Push(event.text, out);
    if (event.reason != FinishReason::kNone) parser.Finish(out);
    return out;
  }
  bool has_tools() const { return !parsers_.empty(); }
  int32_t CallsOf(const Sequence& sequence) const {
    return has_tools() ? parsers_[static_cast<size_t>(sequence.index)].calls() : 0;
  }
  std::string NewCallId() const { return "call_" + info_.ids->NextHex(24); }

  // Only as many alternatives as were asked for leave the server.
  PositionLogProbs Trimmed(PositionLogProbs position) const {
    position.count = std::min(position.count, shape_.logprobs);
    return position;
  }

  void AppendFinish(std::string& out, FinishReason reason, const std::string& stop_text, TokenId stop_token,
                    bool called) const {
    out.append(",\"finish_reason\":");
    if (reason == FinishReason::kNone) {
      out.append("null");
      return;
    }
    // A named tool's call ends like a text: that is OpenAI's way too.
    called = called && shape_.tool_choice != ToolChoice::Kind::kNamed;
    bool stopped = reason == FinishReason::kEndToken || reason == FinishReason::kStopText;
    AppendJsonString(out, called && stopped ? "tool_calls" : FinishReasonName(reason));
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

  const Shape shape_;
  const OpenAiCallInfo info_;

 private:
  std::vector<ToolCallParser> parsers_;  // one a sequence; none without tools
};

// ---- one document

class WholeCall final : public OpenAiCall {
 public:
  using OpenAiCall::OpenAiCall;

 private:
  struct ToolCall {
    std::string id, name, arguments;
  };
  struct Choice {
    std::string text, stop_text;
    std::vector<ToolCall> calls;
    double logprob_sum = 0;
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
    if (has_tools())
      TakeCalls(choice, SplitCalls(sequence, event));
    else
      choice.text.append(event.text);
    choice.tokens.insert(choice.tokens.end(), event.tokens.begin(), event.tokens.end());
    for (const PositionLogProbs& position : event.logprobs) {
      choice.logprob_sum += static_cast<double>(position.chosen);
      choice.logprobs.push_back(Trimmed(position));
    }
    choice.logprob_tokens.insert(choice.logprob_tokens.end(), event.logprob_tokens.begin(), event.logprob_tokens.end());
    if (event.reason == FinishReason::kNone) return;
    choice.stop_text = event.stop_text;
    choice.stop_token = event.stop_token;
  }

  void TakeCalls(Choice& choice, const ToolCallParser::Output& split) {
    choice.text.append(split.text);
    for (const ToolCallDelta& delta : split.calls) {
      if (!delta.name.empty()) choice.calls.push_back({NewCallId(), delta.name, {}});
      choice.calls.back().arguments.append(delta.arguments);
    }
  }

  // The n sequences of a prompt with the highest log-probability a token, best first: what best_of is for.
  std::vector<const Sequence*> Ranked(const Prompt& prompt) const {
    std::vector<const Sequence*> out;
    for (const Sequence& sequence : prompt.sequences) out.push_back(&sequence);
    auto mean = [&](const Sequence* sequence) {
      const Choice& choice = choices_[static_cast<size_t>(sequence->index)];
      return choice.logprobs.empty() ? 0.0 : choice.logprob_sum / static_cast<double>(choice.logprobs.size());
    };
    auto n = static_cast<size_t>(shape_.n);
    if (out.size() > n) {
      std::ranges::stable_sort(out, std::greater<>(), mean);
      out.resize(n);
    }
    return out;
  }

  void AllEnded() override {
    std::string out;
    AppendHead(out, shape_.chat ? "chat.completion" : "text_completion");
    int32_t index = 0;
    for (const Prompt& prompt : prompts_)
      for (const Sequence* sequence : Ranked(prompt)) AppendChoice(out, prompt, *sequence, index++);
    out.append("],\"usage\":");
    AppendUsage(out, prompt_tokens(), output_tokens(), cached_tokens());
    if (shape_.chat && shape_.prompt_logprobs >= 0) {
      out.append(",\"prompt_logprobs\":");
      AppendPromptLogprobs(out, tokenizer(), ScoredPrompt(prompts_[0]), shape_.prompt_logprobs);
    }
    out.push_back('}');
    writer_->Send(200, HeadersOf(info_, "application/json"), out);
  }

  static void AppendMessage(std::string& out, const Choice& choice) {
    out.append(",\"message\":{\"role\":\"assistant\",\"content\":");
    if (choice.text.empty() && !choice.calls.empty())
      out.append("null");
    else
      AppendJsonString(out, choice.text);
    out.append(",\"refusal\":null");
    for (size_t i = 0; i < choice.calls.size(); ++i) {
      out.append(i == 0 ? ",\"tool_calls\":[{\"id\":" : ",{\"id\":");
      AppendJsonString(out, choice.calls[i].id);
      out.append(",\"type\":\"function\",\"function\":{\"name\":");
      AppendJsonString(out, choice.calls[i].name);
      out.append(",\"arguments\":");
      AppendJsonString(out, choice.calls[i].arguments);
      out.append("}}");
    }
    out.append(choice.calls.empty() ? "}" : "]}");
  }

  void AppendChoice(std::string& out, const Prompt& prompt, const Sequence& sequence, int32_t index) {
    const Choice& choice = choices_[static_cast<size_t>(sequence.index)];
    out.append(index > 0 ? ",{\"index\":" : "{\"index\":");
    AppendJsonInt(out, index);
    if (shape_.chat) {
      AppendMessage(out, choice);
    } else {
      out.append(",\"text\":");
      AppendJsonString(out, shape_.echo ? PromptText(prompt) + choice.text : choice.text);
    }
    out.append(",\"logprobs\":");
    AppendLogprobs(out, prompt, choice);
    AppendFinish(out, sequence.reason, choice.stop_text, choice.stop_token, !choice.calls.empty());
    if (!shape_.chat && shape_.prompt_logprobs >= 0) {
      out.append(",\"prompt_logprobs\":");
      AppendPromptLogprobs(out, tokenizer(), ScoredPrompt(prompt), shape_.prompt_logprobs);
    }
    if (shape_.return_token_ids) {
      out.append(",\"token_ids\":");
      AppendTokenIds(out, choice.tokens);
      out.append(",\"prompt_token_ids\":");
      AppendTokenIds(out, prompt.info.prompt);
    }
    out.push_back('}');
  }

  void AppendLogprobs(std::string& out, const Prompt& prompt, const Choice& choice) {
    if (shape_.logprobs < 0) {
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

  void Broken(const Error& error) override { SendCallError(*writer_, info_, error); }

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
      http::Headers headers = HeadersOf(info_, "text/event-stream; charset=utf-8");
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
    if (shape_.logprobs >= 0)
      AppendCompletionLogprobs(chunk_, tokenizer(), ScoredPrompt(prompt),
                               text_offsets_[static_cast<size_t>(sequence.index)]);
    else
      chunk_.append("null");
    chunk_.append(",\"finish_reason\":null}");
    CloseChunk(prompt, 0);
  }

  // Calls have chunks of their own; what comes with the text's tokens goes with the last.
  void Text(Prompt& prompt, Sequence& sequence, const TextEvent& event) override {
    if (!has_tools()) return WriteText(prompt, sequence, event, event.text);
    ToolCallParser::Output split = SplitCalls(sequence, event);
    if (split.calls.empty()) return WriteText(prompt, sequence, event, split.text);
    if (!split.text.empty()) WriteContent(prompt, sequence, split.text);
    for (const ToolCallDelta& delta : split.calls) WriteCall(prompt, sequence, delta);
    WriteText(prompt, sequence, event, "");
  }

  void WriteContent(const Prompt& prompt, const Sequence& sequence, std::string_view text) {
    OpenChoice(sequence);
    chunk_.append(",\"delta\":{\"content\":");
    AppendJsonString(chunk_, text);
    chunk_.append("},\"logprobs\":null,\"finish_reason\":null}");
    CloseChunk(prompt, sequence.output_tokens);
  }

  void WriteCall(const Prompt& prompt, const Sequence& sequence, const ToolCallDelta& delta) {
    OpenChoice(sequence);
    chunk_.append(",\"delta\":{\"tool_calls\":[{\"index\":");
    AppendJsonInt(chunk_, delta.index);
    if (!delta.name.empty()) {
      chunk_.append(",\"id\":");
      AppendJsonString(chunk_, NewCallId());
      chunk_.append(",\"type\":\"function\",\"function\":{\"name\":");
      AppendJsonString(chunk_, delta.name);
      chunk_.append(",\"arguments\":");
    } else {
      chunk_.append(",\"function\":{\"arguments\":");
    }
    AppendJsonString(chunk_, delta.arguments);
    chunk_.append("}}]},\"logprobs\":null,\"finish_reason\":null}");
    CloseChunk(prompt, sequence.output_tokens);
  }

  void WriteText(const Prompt& prompt, const Sequence& sequence, const TextEvent& event, std::string_view text) {
    bool nothing_to_say = text.empty() && event.reason == FinishReason::kNone && event.logprobs.empty() &&
                          event.tokens.empty() && !shape_.continuous_usage_stats;
    if (nothing_to_say) return;
    OpenChoice(sequence);
    if (shape_.chat) {
      chunk_.append(text.empty() ? ",\"delta\":{" : ",\"delta\":{\"content\":");
      if (!text.empty()) AppendJsonString(chunk_, text);
      chunk_.push_back('}');
    } else {
      chunk_.append(",\"text\":");
      AppendJsonString(chunk_, text);
    }
    chunk_.append(",\"logprobs\":");
    AppendLogprobs(sequence, event);
    AppendFinish(chunk_, event.reason, event.stop_text, event.stop_token, CallsOf(sequence) > 0);
    if (shape_.return_token_ids) {
      chunk_.append(",\"token_ids\":");
      AppendTokenIds(chunk_, event.tokens);
    }
    chunk_.push_back('}');
    CloseChunk(prompt, sequence.output_tokens);
  }

  void AppendLogprobs(const Sequence& sequence, const TextEvent& event) {
    if (shape_.logprobs < 0 || event.logprobs.empty()) {
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
    if (!started_) return SendCallError(*writer_, info_, error);
    writer_->Write("data: " + OpenAiErrorJson(error) + "\n\n");
    writer_->Write("data: [DONE]\n\n");
    writer_->Finish();
  }

  std::string prefix_, chunk_;
  std::vector<size_t> text_offsets_;
};

}  // namespace

ToolCallFormat ToolCallFormatFor(ToolChoice::Kind choice, ToolCallFormat of_model) {
  switch (choice) {
    case ToolChoice::Kind::kNone: return ToolCallFormat::kText;
    case ToolChoice::Kind::kAuto: return of_model;
    case ToolChoice::Kind::kRequired: return ToolCallFormat::kCallArray;
    case ToolChoice::Kind::kNamed: return ToolCallFormat::kArguments;
  }
  return ToolCallFormat::kText;
}

http::Headers HeadersOf(const OpenAiCallInfo& info, const char* content_type) {
  http::Headers headers = {{"content-type", content_type}, {"x-request-id", info.request_id}};
  headers.insert(headers.end(), info.headers.begin(), info.headers.end());
  return headers;
}

void SendCallError(http::ResponseWriter& writer, const OpenAiCallInfo& info, const Error& error) {
  Answer answer = ErrorAnswer(PathFamily::kOpenAi, error);
  answer.headers.emplace_back("x-request-id", info.request_id);
  writer.Send(answer.status, answer.headers, answer.body);
}

void ShowToolCallTokens(CompletionRequest& request, ToolCallFormat format) {
  if (request.tools.kind != ToolChoice::Kind::kAuto) return;
  if (format != ToolCallFormat::kMistral && format != ToolCallFormat::kLlama3Json) return;
  for (serve::TextRequest& prompt : request.prompts) prompt.skip_special_tokens = false;
}

std::shared_ptr<CompletionCall> MakeOpenAiCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer,
                                               const CompletionRequest& request, OpenAiCallInfo info) {
  if (request.stream) return std::make_shared<StreamCall>(context, std::move(writer), request, std::move(info));
  return std::make_shared<WholeCall>(context, std::move(writer), request, std::move(info));
}

}  // namespace ekiben::api
