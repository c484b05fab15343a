#include "api/app.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <functional>
#include <thread>

#include "api/error_response.h"
#include "api/generate_call.h"
#include "api/json_text.h"
#include "api/metrics.h"
#include "api/openai_calls.h"
#include "api/openai_format.h"
#include "api/request_ids.h"
#include "base/api_keys.h"
#include "base/bounded_queue.h"
#include "base/log.h"
#include "executor/executor.h"
#include "text/tokenizer.h"

namespace ekiben::api {
namespace {

using Writer = std::shared_ptr<http::ResponseWriter>;

void SendAnswer(const Writer& writer, const Answer& answer) {
  writer->Send(answer.status, answer.headers, answer.body);
}

// A client's own request id is echoed when it is short and printable.
bool IsRequestId(std::string_view id) {
  return !id.empty() && id.size() <= 128 &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c <= '~'; });
}

class Routes final : public App {
 public:
  Routes(serve::Service& service, http::Server& server, const Clock& clock, AppConfig config)
      : service_(service),
        server_(server),
        clock_(clock),
        config_(std::move(config)),
        keys_(config_.api_keys),
        metrics_(service, server, config_.model_name),
        tool_calls_(ToolCallFormatOf(config_.tool_call_parser, service.tokenizer().spec().chat_template)
                        .value_or(ToolCallFormat::kHermes)),
        context_{service, metrics_, registry_, clock},
        created_(std::chrono::duration_cast<std::chrono::seconds>(clock.WallNow()).count()) {
    AddRoutes();
    worker_ = std::thread([this] {
      while (auto job = jobs_.Pop()) (*job)();
    });
  }
  ~Routes() override {
    jobs_.Close();
    worker_.join();
  }

  void BeginDrain() override { draining_ = true; }
  bool Drain(Nanos timeout) override;
  size_t calls_running() const override { return registry_.size(); }
  void Handle(http::Request request, const Writer& writer);

 private:
  using Function = void (Routes::*)(const http::Request&, const Writer&);
  struct Route {
    std::string_view path;
    std::string_view method;  // GET also serves HEAD
    bool open;                // needs no API key, is served while draining
    Function function;
    bool slow = false;  // may take long for a large body: never on an I/O thread, which carries other people's streams
  };
  static constexpr size_t kSmallBodyBytes = size_t{64} << 10;  // parsed in well under a millisecond
  static constexpr size_t kJobsMax = 64;

  void AddRoutes();
  void Run(const Route& route, http::Request request, const Writer& writer);
  const Route* FindRoute(std::string_view path) const;

  void ChatCompletions(const http::Request& request, const Writer& writer) { Complete(request, writer, true); }
  void Completions(const http::Request& request, const Writer& writer) { Complete(request, writer, false); }
  void Complete(const http::Request& request, const Writer& writer, bool chat);
  void Generate(const http::Request& request, const Writer& writer);
  void Tokenize(const http::Request& request, const Writer& writer);
  void Detokenize(const http::Request& request, const Writer& writer);
  void Models(const http::Request& request, const Writer& writer);
  void Model(const http::Request& request, const Writer& writer);
  void Live(const http::Request& request, const Writer& writer);
  void Ready(const http::Request& request, const Writer& writer);
  void Health(const http::Request& request, const Writer& writer);
  void Version(const http::Request& request, const Writer& writer);
  void MetricsText(const http::Request& request, const Writer& writer);
  void Schema(const http::Request& request, const Writer& writer);
  void Page(const http::Request& request, const Writer& writer);

  Result<CompletionRequest> ParseCompletion(const http::Request& request, bool chat);
  Result<json::object> ParseJsonBody(const http::Request& request) const;
  Result<void> CheckModel(const std::string& model) const;
  Result<void> CheckRoom() const;
  std::string ModelCard(const std::string& name) const;
  void AddLimits(serve::TextRequest& request) const;

  serve::Service& service_;
  http::Server& server_;
  const Clock& clock_;
  const AppConfig config_;
  const ApiKeys keys_;
  Metrics metrics_;
  CallRegistry registry_;
  RequestIds ids_;
  const ToolCallFormat tool_calls_;
  const CallContext context_;
  const int64_t created_;
  std::vector<Route> routes_;
  std::atomic<bool> draining_{false};
  BoundedQueue<std::function<void()>> jobs_{kJobsMax};
  std::thread worker_;
};

void Routes::AddRoutes() {
  routes_ = {
      {"/v1/chat/completions", "POST", false, &Routes::ChatCompletions},
      {"/v1/completions", "POST", false, &Routes::Completions},
      {"/v1/models", "GET", false, &Routes::Models},
      {"/v1/models/", "GET", false, &Routes::Model},
      {"/tokenize", "POST", false, &Routes::Tokenize, true},
      {"/detokenize", "POST", false, &Routes::Detokenize, true},
      {"/generate", "POST", false, &Routes::Generate},
      {"/schema.json", "GET", true, &Routes::Schema},
      {"/healthz", "GET", true, &Routes::Live},
      {"/livez", "GET", true, &Routes::Live},
      {"/readyz", "GET", true, &Routes::Ready},
      {"/health", "GET", true, &Routes::Health},
      {"/ping", "GET", true, &Routes::Health},
      {"/version", "GET", true, &Routes::Version},
      {"/metrics", "GET", true, &Routes::MetricsText},
      {"/", "GET", true, &Routes::Page},
  };
}

const Routes::Route* Routes::FindRoute(std::string_view path) const {
  static constexpr std::string_view kModels = "/v1/models/";
  for (const Route& route : routes_) {
    bool prefix = route.path == kModels && path.size() > kModels.size() && path.starts_with(kModels);
    if (prefix || (route.path == path && route.path != kModels)) return &route;
  }
  return nullptr;
}

void Routes::Handle(http::Request request, const Writer& writer) {
  PathFamily family = FamilyOf(request.path);
  const Route* route = FindRoute(request.path);
  if (route == nullptr || (route->path == "/" && config_.web_page.empty()))
    return SendAnswer(writer, StatusAnswer(family, 404, fmt::format("no such route: {}", request.path)));
  bool get = route->method == "GET";
  if (request.method != route->method && !(get && request.method == "HEAD")) {
    Answer answer =
        StatusAnswer(family, 405, fmt::format("{}: {} is wanted, not {}", route->path, route->method, request.method));
    answer.headers.emplace_back("allow", get ? "GET, HEAD" : "POST");
    return SendAnswer(writer, answer);
  }
  // The key is checked on the very route that is about to run: no second reading of the path can disagree.
  if (!route->open && !keys_.Allows(request.Header("authorization")))
    return SendAnswer(writer, StatusAnswer(family, 401, "authorization: a valid API key is wanted as 'Bearer KEY'"));
  if (!route->open && draining_)
    return SendAnswer(writer, ErrorAnswer(family, Error(Code::kUnavailable, "the server is shutting down")));
  Run(*route, std::move(request), writer);
}

void Routes::Run(const Route& route, http::Request request, const Writer& writer) {
  if (!route.slow && request.body.size() <= kSmallBodyBytes) return (this->*route.function)(request, writer);
  PathFamily family = FamilyOf(request.path);
  auto job = [this, &route, request = std::make_shared<http::Request>(std::move(request)), writer, family] {
    try {
      (this->*route.function)(*request, writer);
    } catch (const std::exception& e) {  // a library ran out of memory: this request fails, the server goes on
      LOG_ERROR("{}: {}", route.path, e.what());
      SendAnswer(writer, ErrorAnswer(family, Error(Code::kInternal, "the request could not be handled")));
    }
  };
  if (jobs_.TryPush(std::move(job))) return;
  SendAnswer(writer, ErrorAnswer(family, Error(Code::kOverloaded, fmt::format("{} large requests are being read "
                                                                              "already; try again",
                                                                              kJobsMax))));
}

bool Routes::Drain(Nanos timeout) {
  BeginDrain();
  if (server_.Drain(timeout)) return true;
  registry_.FailAll(Error(Code::kUnavailable, "the server is shutting down and the time to finish is over"));
  server_.Drain(std::chrono::seconds(1));
  return false;
}

// ---- generation

Result<json::object> Routes::ParseJsonBody(const http::Request& request) const {
  std::string_view type = request.Header("content-type");
  std::string_view media = type.substr(0, type.find(';'));
  while (!media.empty() && media.back() == ' ') media.remove_suffix(1);
  if (!media.empty() && !http::EqualsIgnoreCase(media, "application/json"))
    return Error(Code::kUnsupported,
                 fmt::format("content-type: '{}' is not read here; send application/json", media.substr(0, 100)),
                 "content-type");
  std::string_view coding = request.Header("content-encoding");
  if (!coding.empty() && !http::EqualsIgnoreCase(coding, "identity"))
    return Error(Code::kUnsupported,
                 fmt::format("content-encoding: '{}' is not read here; send the body as it is", coding.substr(0, 100)),
                 "content-encoding");
  return ParseBody(request.body, config_.body_bytes_max);
}

Result<void> Routes::CheckModel(const std::string& model) const {
  const auto& aliases = config_.model_aliases;
  if (model.empty() || model == config_.model_name || std::find(aliases.begin(), aliases.end(), model) != aliases.end())
    return {};
  return Error(Code::kNotFound,
               fmt::format("model: '{}' is not served here; '{}' is", model.substr(0, 200), config_.model_name),
               "model");
}

Result<void> Routes::CheckRoom() const {
  if (config_.max_concurrency > 0 && registry_.size() >= static_cast<size_t>(config_.max_concurrency))
    return Error(
        Code::kOverloaded,
        fmt::format("traffic.max_concurrency: {} calls are running already; try again later", config_.max_concurrency));
  return {};
}

void Routes::AddLimits(serve::TextRequest& request) const {
  if (config_.request_timeout > Nanos(0)) request.timeout = config_.request_timeout;
}

Result<CompletionRequest> Routes::ParseCompletion(const http::Request& request, bool chat) {
  RETURN_IF_ERROR(CheckRoom());
  ASSIGN_OR_RETURN(json::object body, ParseJsonBody(request));
  uint64_t seed = ids_.NextSeed();
  ASSIGN_OR_RETURN(CompletionRequest out, chat ? ParseChatRequest(body, seed, config_.limits)
                                               : ParseCompletionRequest(body, seed, config_.limits));
  RETURN_IF_ERROR(CheckModel(out.model));
  return out;
}

void Routes::Complete(const http::Request& request, const Writer& writer, bool chat) {
  std::string_view given = request.Header("x-request-id");
  OpenAiCallInfo info;
  info.request_id = IsRequestId(given) ? std::string(given) : ids_.NextHex(32);
  auto parsed = ParseCompletion(request, chat);
  if (!parsed.ok()) {
    const Error& error = parsed.error();
    Answer answer = ErrorAnswer(PathFamily::kOpenAi, error);
    if (error.field().starts_with("content-")) answer.status = 415;
    answer.headers.emplace_back("x-request-id", info.request_id);
    metrics_.RequestFails(error.code());
    return SendAnswer(writer, answer);
  }
  const std::string& id = IsRequestId(parsed->request_id) ? parsed->request_id : info.request_id;
  info.id = (chat ? "chatcmpl-" : "cmpl-") + id;
  info.model = parsed->model.empty() ? config_.model_name : parsed->model;
  info.created = std::chrono::duration_cast<std::chrono::seconds>(clock_.WallNow()).count();
  info.ids = &ids_;
  info.tool_calls = tool_calls_;
  ShowToolCallTokens(*parsed, tool_calls_);
  auto call = MakeOpenAiCall(context_, writer, *parsed, std::move(info));
  for (serve::TextRequest& prompt : parsed->prompts) AddLimits(prompt);
  call->Begin(std::move(parsed->prompts), config_.first_byte_timeout);
}

void Routes::Generate(const http::Request& request, const Writer& writer) {
  auto room = CheckRoom();
  if (!room.ok()) return SendAnswer(writer, ErrorAnswer(PathFamily::kBento, room.error()));
  http::Headers headers = {{"server", "BentoML Service/" + config_.service_name},
                           {"x-bentoml-request-id", ids_.NextHex(16)}};
  auto send = [&](Answer answer) {
    answer.headers.insert(answer.headers.end(), headers.begin(), headers.end());
    SendAnswer(writer, answer);
  };
  std::string_view type = request.Header("content-type");
  if (type.starts_with("application/vnd.bentoml+pickle"))
    return send(StatusAnswer(PathFamily::kBento, 415, "content-type: pickles are not read; send application/json"));
  GenerateParse parsed = ParseGenerateBody(request.body, type, config_.generate);
  if (!parsed.problems.empty()) {
    metrics_.RequestFails(Code::kInvalid);
    return send(JsonAnswer(ProblemsJson(parsed.problems), 400));
  }
  serve::TextRequest text;
  json::array messages;
  messages.push_back(json::object{{"role", "system"}, {"content", parsed.input.system_prompt}});
  messages.push_back(json::object{{"role", "user"}, {"content", parsed.input.prompt}});
  text.input = serve::ChatInput{{{"messages", std::move(messages)}, {"add_generation_prompt", true}}};
  text.max_tokens = parsed.input.max_tokens;
  text.clamp_max_tokens = true;
  text.sampling.temperature = 0;
  AddLimits(text);
  std::vector<serve::TextRequest> prompts;
  prompts.push_back(std::move(text));
  MakeGenerateCall(context_, writer, std::move(headers))->Begin(std::move(prompts), config_.first_byte_timeout);
}

// ---- text

void Routes::Tokenize(const http::Request& request, const Writer& writer) {
  auto answer = [&]() -> Result<std::string> {
    ASSIGN_OR_RETURN(json::object body, ParseJsonBody(request));
    ASSIGN_OR_RETURN(TokenizeRequest parsed, ParseTokenizeRequest(body, config_.limits));
    RETURN_IF_ERROR(CheckModel(parsed.model));
    ASSIGN_OR_RETURN(std::vector<TokenId> tokens, service_.Tokenize(parsed.input));
    std::string out =
        fmt::format("{{\"count\":{},\"max_model_len\":{},\"tokens\":", tokens.size(), service_.config().max_seq_len);
    AppendTokenIds(out, tokens);
    if (parsed.return_token_strs) {
      out.append(",\"token_strs\":[");
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (i > 0) out.push_back(',');
        AppendJsonString(out, ReplaceInvalidUtf8(service_.tokenizer().Bytes(tokens[i])));
      }
      out.push_back(']');
    } else {
      out.append(",\"token_strs\":null");
    }
    return out + "}";
  }();
  SendAnswer(writer, answer.ok() ? JsonAnswer(*std::move(answer)) : ErrorAnswer(PathFamily::kOpenAi, answer.error()));
}

void Routes::Detokenize(const http::Request& request, const Writer& writer) {
  auto answer = [&]() -> Result<std::string> {
    ASSIGN_OR_RETURN(json::object body, ParseJsonBody(request));
    ASSIGN_OR_RETURN(auto tokens, ParseDetokenizeRequest(body, service_.config().vocab_size, config_.limits));
    std::string out = "{\"prompt\":";
    AppendJsonString(out, service_.tokenizer().Decode(tokens, {.skip_special = false}));
    return out + "}";
  }();
  SendAnswer(writer, answer.ok() ? JsonAnswer(*std::move(answer)) : ErrorAnswer(PathFamily::kOpenAi, answer.error()));
}

// ---- what is served, and how it is

std::string Routes::ModelCard(const std::string& name) const {
  std::string out = "{\"id\":";
  AppendJsonString(out, name);
  fmt::format_to(std::back_inserter(out),
                 ",\"object\":\"model\",\"created\":{},\"owned_by\":\"ekiben\",\"root\":", created_);
  AppendJsonString(out, config_.model_name);
  fmt::format_to(std::back_inserter(out), ",\"parent\":null,\"max_model_len\":{}}}", service_.config().max_seq_len);
  return out;
}

void Routes::Models(const http::Request&, const Writer& writer) {
  std::string out = "{\"object\":\"list\",\"data\":[" + ModelCard(config_.model_name);
  for (const std::string& alias : config_.model_aliases) out.append(",").append(ModelCard(alias));
  SendAnswer(writer, JsonAnswer(out + "]}"));
}

void Routes::Model(const http::Request& request, const Writer& writer) {
  // Ids hold '/' and ':'; clients send them plain or percent-encoded.
  std::string name = http::DecodePercent(std::string_view(request.path).substr(std::string_view("/v1/models/").size()));
  auto known = CheckModel(name);
  SendAnswer(writer, known.ok() ? JsonAnswer(ModelCard(name)) : ErrorAnswer(PathFamily::kOpenAi, known.error()));
}

void Routes::Live(const http::Request&, const Writer& writer) {
  SendAnswer(writer, TextAnswer("\n", service_.executor().healthy() ? 200 : 503));
}

void Routes::Ready(const http::Request&, const Writer& writer) {
  SendAnswer(writer, TextAnswer("\n", service_.executor().healthy() && !draining_ ? 200 : 503));
}

void Routes::Health(const http::Request&, const Writer& writer) {
  writer->Send(service_.executor().healthy() ? 200 : 503, {}, "");
}

void Routes::Version(const http::Request&, const Writer& writer) {
  std::string out = "{\"version\":";
  AppendJsonString(out, config_.version);
  SendAnswer(writer, JsonAnswer(out + "}"));
}

void Routes::MetricsText(const http::Request&, const Writer& writer) {
  writer->Send(200, {{"content-type", "text/plain; version=0.0.4; charset=utf-8"}}, metrics_.Text());
}

// What BentoML's Python client reads to find the API and its parameters.
void Routes::Schema(const http::Request&, const Writer& writer) {
  const GenerateDefaults& defaults = config_.generate;
  json::object properties;
  properties["prompt"] = {{"default", defaults.prompt}, {"title", "Prompt"}, {"type", "string"}};
  properties["system_prompt"] = {{"anyOf", json::array{{{"type", "string"}}, {{"type", "null"}}}},
                                 {"default", defaults.system_prompt},
                                 {"title", "System Prompt"}};
  properties["max_tokens"] = {{"default", defaults.max_tokens},
                              {"maximum", defaults.max_tokens_max},
                              {"minimum", defaults.max_tokens_min},
                              {"title", "Max Tokens"},
                              {"type", "integer"}};
  json::object route = {{"name", "generate"},
                        {"route", "/generate"},
                        {"batchable", false},
                        {"input", {{"properties", properties}, {"title", "Input"}, {"type", "object"}}},
                        {"output", {{"type", "string"}, {"is_stream", true}, {"media_type", "text/event-stream"}}},
                        {"is_task", false}};
  json::object document = {{"name", config_.service_name},
                           {"type", "service"},
                           {"routes", json::array{route}},
                           {"paths", {{"/generate", {{"mounted", false}}}}}};
  SendAnswer(writer, JsonAnswer(json::serialize(document)));
}

void Routes::Page(const http::Request&, const Writer& writer) {
  writer->Send(200, {{"content-type", "text/html; charset=utf-8"}, {"cache-control", "no-cache"}}, config_.web_page);
}

// What the server refuses on its own speaks the language of the path too.
http::ErrorBody WordRefusal(int status, std::string_view message, std::string_view target) {
  Answer answer = StatusAnswer(FamilyOf(target.substr(0, target.find('?'))), status, message);
  return {answer.headers.front().second, answer.body};
}

}  // namespace

Result<std::unique_ptr<App>> CreateApp(serve::Service& service, http::Server& server, const Clock& clock,
                                       AppConfig config) {
  if (config.model_name.empty())
    return Error(Code::kInvalid, "model_name: empty; name the model that is served", "model_name");
  if (!ToolCallFormatOf(config.tool_call_parser, ""))
    return Error(Code::kInvalid,
                 fmt::format("tool_call_parser: '{}' is not one of auto, hermes, llama3_json, mistral, none",
                             config.tool_call_parser),
                 "tool_call_parser");
  for (const std::string& key : config.api_keys)
    if (key.empty()) return Error(Code::kInvalid, "api_keys: an empty key would let everyone in", "api_keys");
  auto app = std::make_unique<Routes>(service, server, clock, std::move(config));
  server.SetHandler([routes = app.get()](http::Request request, const Writer& writer) {
    routes->Handle(std::move(request), writer);
  });
  server.SetErrorBody(WordRefusal);
  return std::unique_ptr<App>(std::move(app));
}

}  // namespace ekiben::api
