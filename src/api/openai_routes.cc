// OpenAI's surface: completions, chat, models.
#include <fmt/format.h>

#include <boost/json.hpp>

#include "api/app_context.h"
#include "api/json_text.h"
#include "api/openai_calls.h"
#include "api/openai_embeddings.h"
#include "api/openai_responses.h"
#include "serve/service.h"
#include "text/tokenizer.h"

namespace ekiben::api {
namespace {

constexpr std::string_view kModels = "/v1/models/";

int64_t WallSeconds(Nanos wall) {
  return std::chrono::duration_cast<std::chrono::seconds>(wall).count();
}

class OpenAi {
 public:
  explicit OpenAi(AppContext& context) : context_(context) {}

  void Complete(const http::Request& request, const Writer& writer, bool chat) const;
  void Embed(const http::Request& request, const Writer& writer) const;
  void Respond(const http::Request& request, const Writer& writer) const;
  void Models(const Writer& writer) const;
  void Model(const http::Request& request, const Writer& writer) const;

 private:
  struct Parsed {
    CompletionRequest request;
    std::shared_ptr<serve::ServedModel> model;
  };
  Result<Parsed> Parse(const http::Request& request, bool chat) const;
  Result<json::object> ReadBody(const http::Request& request) const;
  void Refuse(const Writer& writer, const OpenAiCallInfo& info, const Error& error) const;
  // What every answer says of itself.
  void Describe(OpenAiCallInfo& info, const serve::ServedModel& model, const std::string& asked) const;
  ToolCallFormat ToolCallsOf(serve::ServedModel& model) const;

  AppContext& context_;
};

Result<OpenAi::Parsed> OpenAi::Parse(const http::Request& request, bool chat) const {
  ASSIGN_OR_RETURN(json::object body, ReadBody(request));
  uint64_t seed = context_.ids.NextSeed();
  const OpenAiLimits& limits = context_.config.limits;
  Parsed out;
  ASSIGN_OR_RETURN(out.request,
                   chat ? ParseChatRequest(body, seed, limits) : ParseCompletionRequest(body, seed, limits));
  ASSIGN_OR_RETURN(out.model, FindModel(context_, out.request.model));
  return out;
}

Result<json::object> OpenAi::ReadBody(const http::Request& request) const {
  RETURN_IF_ERROR(CheckRoom(context_));
  return ReadJsonBody(context_, request);
}

void OpenAi::Refuse(const Writer& writer, const OpenAiCallInfo& info, const Error& error) const {
  Answer answer = ErrorAnswer(PathFamily::kOpenAi, error);
  if (error.field().starts_with("content-")) answer.status = 415;
  answer.headers.emplace_back("x-request-id", info.request_id);
  context_.metrics.RequestRefused(error.code());
  SendAnswer(writer, answer);
}

void OpenAi::Describe(OpenAiCallInfo& info, const serve::ServedModel& model, const std::string& asked) const {
  info.model = asked.empty() ? model.name() : asked;
  info.created = WallSeconds(context_.clock.WallNow());
  info.ids = &context_.ids;
}

ToolCallFormat OpenAi::ToolCallsOf(serve::ServedModel& model) const {
  return ToolCallFormatOf(context_.config.tool_call_parser, model.service().tokenizer().spec().chat_template)
      .value_or(ToolCallFormat::kHermes);
}

void OpenAi::Complete(const http::Request& request, const Writer& writer, bool chat) const {
  OpenAiCallInfo info;
  info.request_id = RequestIdOf(context_, request);
  auto parsed = Parse(request, chat);
  if (!parsed.ok()) return Refuse(writer, info, parsed.error());
  CompletionRequest& wanted = parsed->request;
  const std::string& id = IsRequestId(wanted.request_id) ? wanted.request_id : info.request_id;
  info.id = (chat ? "chatcmpl-" : "cmpl-") + id;
  Describe(info, *parsed->model, wanted.model);
  info.tool_calls = ToolCallsOf(*parsed->model);
  ShowToolCallTokens(wanted, info.tool_calls);
  auto call = MakeOpenAiCall(ContextOf(context_, std::move(parsed->model)), writer, wanted, std::move(info));
  for (serve::TextRequest& prompt : wanted.prompts) AddLimits(context_, prompt);
  call->Begin(std::move(wanted.prompts), context_.config.first_byte_timeout);
}

void OpenAi::Embed(const http::Request& request, const Writer& writer) const {
  OpenAiCallInfo info;
  info.request_id = RequestIdOf(context_, request);
  std::shared_ptr<serve::ServedModel> model;
  auto parsed = [&]() -> Result<EmbeddingsRequest> {
    ASSIGN_OR_RETURN(json::object body, ReadBody(request));
    ASSIGN_OR_RETURN(EmbeddingsRequest out, ParseEmbeddingsRequest(body, context_.config.limits));
    ASSIGN_OR_RETURN(model, FindModel(context_, out.model));
    int32_t width = model->facts().hidden_size;
    if (width > 0 && out.dimensions > width)
      return Error(Code::kInvalid, fmt::format("dimensions: {} is outside [1, {}]", out.dimensions, width),
                   "dimensions");
    return out;
  }();
  if (!parsed.ok()) return Refuse(writer, info, parsed.error());
  Describe(info, *model, parsed->model);
  auto call = MakeEmbeddingsCall(ContextOf(context_, std::move(model)), writer, *parsed, std::move(info));
  for (serve::TextRequest& input : parsed->inputs) AddLimits(context_, input);
  call->Begin(std::move(parsed->inputs), context_.config.first_byte_timeout);
}

void OpenAi::Respond(const http::Request& request, const Writer& writer) const {
  OpenAiCallInfo info;
  info.request_id = RequestIdOf(context_, request);
  std::shared_ptr<serve::ServedModel> model;
  auto parsed = [&]() -> Result<ResponsesRequest> {
    ASSIGN_OR_RETURN(json::object body, ReadBody(request));
    ASSIGN_OR_RETURN(ResponsesRequest out,
                     ParseResponsesRequest(body, context_.ids.NextSeed(), context_.config.limits));
    ASSIGN_OR_RETURN(model, FindModel(context_, out.chat.model));
    return out;
  }();
  if (!parsed.ok()) return Refuse(writer, info, parsed.error());
  info.id = "resp_" + context_.ids.NextHex(32);
  Describe(info, *model, parsed->chat.model);
  info.tool_calls = ToolCallsOf(*model);
  ShowToolCallTokens(parsed->chat, info.tool_calls);
  auto call = MakeResponsesCall(ContextOf(context_, std::move(model)), writer, *parsed, std::move(info));
  for (serve::TextRequest& prompt : parsed->chat.prompts) AddLimits(context_, prompt);
  call->Begin(std::move(parsed->chat.prompts), context_.config.first_byte_timeout);
}

std::string ModelCard(serve::ServedModel& model, const std::string& name) {
  std::string out = "{\"id\":";
  AppendJsonString(out, name);
  fmt::format_to(std::back_inserter(out), ",\"object\":\"model\",\"created\":{},\"owned_by\":\"ekiben\",\"root\":",
                 WallSeconds(model.loaded_at()));
  AppendJsonString(out, model.name());
  fmt::format_to(std::back_inserter(out), ",\"parent\":null,\"max_model_len\":{}}}",
                 model.service().config().max_seq_len);
  return out;
}

void OpenAi::Models(const Writer& writer) const {
  std::string out = "{\"object\":\"list\",\"data\":[";
  const char* comma = "";
  for (const auto& model : context_.models.Models()) {
    out.append(std::exchange(comma, ",")).append(ModelCard(*model, model->name()));
    for (const std::string& alias : model->aliases()) out.append(",").append(ModelCard(*model, alias));
  }
  SendAnswer(writer, JsonAnswer(out + "]}"));
}

void OpenAi::Model(const http::Request& request, const Writer& writer) const {
  // Ids hold '/' and ':'; clients send them plain or percent-encoded.
  std::string name = http::DecodePercent(std::string_view(request.path).substr(kModels.size()));
  auto model = FindModel(context_, name);
  SendAnswer(writer,
             model.ok() ? JsonAnswer(ModelCard(**model, name)) : ErrorAnswer(PathFamily::kOpenAi, model.error()));
}

}  // namespace

std::vector<Route> OpenAiRoutes(AppContext& context) {
  auto surface = std::make_shared<OpenAi>(context);
  auto completions = [surface](bool chat) {
    return [surface, chat](const http::Request& request, const Writer& writer) {
      surface->Complete(request, writer, chat);
    };
  };
  return {
      {"/v1/chat/completions", "POST", completions(true)},
      {"/v1/completions", "POST", completions(false)},
      {"/v1/embeddings", "POST",
       [surface](const http::Request& request, const Writer& writer) { surface->Embed(request, writer); }},
      {"/v1/responses", "POST",
       [surface](const http::Request& request, const Writer& writer) { surface->Respond(request, writer); }},
      {"/v1/models", "GET", [surface](const http::Request&, const Writer& writer) { surface->Models(writer); }},
      {.path = std::string(kModels),
       .method = "GET",
       .answer = [surface](const http::Request& request, const Writer& writer) { surface->Model(request, writer); },
       .prefix = true},
  };
}

}  // namespace ekiben::api
