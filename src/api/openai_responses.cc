#include "api/openai_responses.h"

#include <boost/json.hpp>

#include "api/error_response.h"
#include "text/tokenizer.h"

namespace ekiben::api {
namespace {

// One answer in the making: its items in order, the last of them perhaps still open. `Emit` is told every event; what
// is not a stream tells nobody.
class ResponsesCall final : public CompletionCall {
 public:
  ResponsesCall(const CallContext& context, std::shared_ptr<http::ResponseWriter> writer,
                const ResponsesRequest& request, OpenAiCallInfo info)
      : CompletionCall(context, std::move(writer)),
        stream_(request.chat.stream),
        echoed_(request.echoed),
        info_(std::move(info)),
        parser_(ToolCallFormatFor(request.chat.tools.kind, info_.tool_calls), request.chat.tools.name) {}

 private:
  struct Item {
    bool call = false;
    std::string id, call_id, name;
    std::string text;  // or the arguments
  };

  void PromptKnown(Prompt&) override {
    if (!stream_) return;
    started_ = true;
    http::Headers headers = HeadersOf(info_, "text/event-stream; charset=utf-8");
    headers.emplace_back("cache-control", "no-cache");
    writer_->Start(200, headers);
    Emit("response.created", {{"response", Response("in_progress")}});
    Emit("response.in_progress", {{"response", Response("in_progress")}});
  }

  void Text(Prompt&, Sequence&, const serve::TextEvent& event) override {
    ToolCallParser::Output out;
    parser_.Push(event.text, out);
    if (event.reason != FinishReason::kNone) parser_.Finish(out);
    if (!out.text.empty()) AddText(out.text);
    for (const ToolCallDelta& delta : out.calls) AddCall(delta);
    if (event.reason == FinishReason::kNone) return;
    if (items_.empty()) AddText("");  // an empty answer is a message too
    Close();
    cut_off_ = event.reason == FinishReason::kLength;
  }

  void AddText(const std::string& text) {
    if (open_ && items_.back().call) Close();
    if (!open_) {
      Open({.call = false, .id = NewId("msg_")});
      Emit("response.content_part.added", Place({{"content_index", 0}, {"part", Part("")}}));
    }
    items_.back().text.append(text);
    if (!text.empty())
      Emit("response.output_text.delta", Place({{"content_index", 0}, {"delta", text}, {"logprobs", json::array()}}));
  }

  void AddCall(const ToolCallDelta& delta) {
    if (!delta.name.empty()) {
      if (open_) Close();
      Open({.call = true, .id = NewId("fc_"), .call_id = NewId("call_"), .name = delta.name});
    }
    if (delta.arguments.empty()) return;
    items_.back().text.append(delta.arguments);
    Emit("response.function_call_arguments.delta", Place({{"delta", delta.arguments}}));
  }

  void Open(Item item) {
    items_.push_back(std::move(item));
    open_ = true;
    json::object shown = ItemJson(items_.back(), "in_progress");
    if (!items_.back().call) shown["content"] = json::array();
    Emit("response.output_item.added", {{"output_index", items_.size() - 1}, {"item", std::move(shown)}});
  }

  void Close() {
    const Item& item = items_.back();
    open_ = false;
    if (item.call) {
      Emit("response.function_call_arguments.done", Place({{"name", item.name}, {"arguments", item.text}}));
    } else {
      Emit("response.output_text.done",
           Place({{"content_index", 0}, {"text", item.text}, {"logprobs", json::array()}}));
      Emit("response.content_part.done", Place({{"content_index", 0}, {"part", Part(item.text)}}));
    }
    Emit("response.output_item.done", {{"output_index", items_.size() - 1}, {"item", ItemJson(item, "completed")}});
  }

  void AllEnded() override {
    const char* status = cut_off_ ? "incomplete" : "completed";
    json::object response = Response(status);
    if (!stream_) return writer_->Send(200, HeadersOf(info_, "application/json"), json::serialize(response));
    Emit(cut_off_ ? "response.incomplete" : "response.completed", {{"response", std::move(response)}});
    writer_->Finish();
  }

  void Broken(const Error& error) override {
    if (!started_) return SendCallError(*writer_, info_, error);
    json::object response = Response("failed");
    bool limited = error.code() == Code::kOverloaded;
    response["error"] = {{"code", limited ? "rate_limit_exceeded" : "server_error"}, {"message", error.message()}};
    Emit("response.failed", {{"response", std::move(response)}});
    writer_->Finish();
  }

  json::object Response(std::string_view status) const {
    json::object out = echoed_;
    out["id"] = info_.id;
    out["object"] = "response";
    out["created_at"] = info_.created;
    out["status"] = status;
    out["model"] = info_.model;
    out["error"] = nullptr;
    out["incomplete_details"] = nullptr;
    if (status == "incomplete") out["incomplete_details"] = {{"reason", "max_output_tokens"}};
    json::array items;
    out["usage"] = nullptr;
    if (status != "in_progress") {
      for (const Item& item : items_) items.push_back(ItemJson(item, status == "completed" ? status : "incomplete"));
      out["usage"] = Usage();
    }
    out["output"] = std::move(items);
    return out;
  }

  json::object Usage() const {
    return {{"input_tokens", prompt_tokens()},
            {"input_tokens_details", {{"cached_tokens", cached_tokens()}, {"cache_write_tokens", 0}}},
            {"output_tokens", output_tokens()},
            {"output_tokens_details", {{"reasoning_tokens", 0}}},
            {"total_tokens", prompt_tokens() + output_tokens()}};
  }

  static json::object Part(const std::string& text) {
    return {{"type", "output_text"}, {"text", text}, {"annotations", json::array()}, {"logprobs", json::array()}};
  }

  static json::object ItemJson(const Item& item, std::string_view status) {
    if (item.call)
      return {{"type", "function_call"}, {"id", item.id},          {"call_id", item.call_id},
              {"name", item.name},       {"arguments", item.text}, {"status", status}};
    return {{"type", "message"},
            {"id", item.id},
            {"role", "assistant"},
            {"status", status},
            {"content", json::array{Part(item.text)}}};
  }

  // Of the item at hand.
  json::object Place(json::object event) const {
    event["item_id"] = items_.back().id;
    event["output_index"] = items_.size() - 1;
    return event;
  }

  std::string NewId(const char* prefix) const { return prefix + info_.ids->NextHex(24); }

  void Emit(const char* type, json::object event) {
    if (!stream_) return;
    event["type"] = type;
    event["sequence_number"] = events_++;
    writer_->Write(std::string("event: ") + type + "\ndata: " + json::serialize(event) + "\n\n");
  }

  const bool stream_;
  const json::object echoed_;
  const OpenAiCallInfo info_;
  ToolCallParser parser_;
  std::vector<Item> items_;
  bool open_ = false;  // the last item
  bool cut_off_ = false;
  int64_t events_ = 0;
};

}  // namespace

std::shared_ptr<CompletionCall> MakeResponsesCall(const CallContext& context,
                                                  std::shared_ptr<http::ResponseWriter> writer,
                                                  const ResponsesRequest& request, OpenAiCallInfo info) {
  return std::make_shared<ResponsesCall>(context, std::move(writer), request, std::move(info));
}

}  // namespace ekiben::api
