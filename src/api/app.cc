#include "api/app.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <thread>

#include "api/app_context.h"
#include "api/json_text.h"
#include "api/tool_calls.h"
#include "api/turn_writer.h"
#include "base/bounded_queue.h"
#include "base/log.h"
#include "http/content_coding.h"

namespace ekiben::api {
namespace {

class Router final : public App {
 public:
  Router(serve::ModelRegistry& models, http::Server& server, const Clock& clock, AppConfig config)
      : context_(models, server, clock, std::move(config)) {
    for (auto surface : {OpenAiRoutes, BentoRoutes, TextRoutes, KserveRoutes, StatusRoutes}) {
      std::vector<Route> routes = surface(context_);
      std::move(routes.begin(), routes.end(), std::back_inserter(routes_));
    }
    worker_ = std::thread([this] {
      while (auto job = jobs_.Pop()) (*job)();
    });
  }
  ~Router() override {
    jobs_.Close();
    worker_.join();
  }

  void BeginDrain() override {
    context_.draining = true;
    if (context_.config.kserve != nullptr) context_.config.kserve->BeginDrain();
  }
  bool Drain(Nanos timeout) override;
  size_t calls_running() const override { return context_.calls.size(); }
  void Handle(http::Request request, const Writer& writer);

 private:
  static constexpr size_t kSmallBodyBytes = size_t{64} << 10;  // parsed in well under a millisecond
  static constexpr size_t kJobsMax = 64;
  static constexpr size_t kLoggedBodyBytes = 4096;

  // Of a path: the route for the method, or what other methods it has.
  struct Found {
    const Route* route = nullptr;
    std::string allow;  // empty: no such path
  };
  Found Find(const http::Request& request) const;
  void HandleKnown(const Route& route, http::Request request, Writer writer);
  void Run(const Route& route, http::Request request, const Writer& writer);
  void Serve(const Route& route, http::Request& request, const Writer& writer) const;

  AppContext context_;
  std::vector<Route> routes_;
  BoundedQueue<std::function<void()>> jobs_{kJobsMax};
  std::thread worker_;
};

Router::Found Router::Find(const http::Request& request) const {
  for (bool prefix : {false, true}) {
    Found found;
    for (const Route& route : routes_) {
      bool fits = prefix
                      ? route.prefix && request.path.size() > route.path.size() && request.path.starts_with(route.path)
                      : !route.prefix && request.path == route.path;
      if (!fits) continue;
      bool get = route.method == "GET";
      if (route.method == "*" || request.method == route.method || (get && request.method == "HEAD")) {
        found.route = &route;
        return found;
      }
      found.allow.append(found.allow.empty() ? "" : ", ").append(get ? "GET, HEAD" : route.method);
    }
    if (!found.allow.empty()) return found;
  }
  return {};
}

void Router::Handle(http::Request request, const Writer& writer) {
  PathFamily family = FamilyOf(request.path);
  Found found = Find(request);
  if (found.route == nullptr && found.allow.empty())
    return SendAnswer(writer, StatusAnswer(family, 404, fmt::format("no such route: {}", request.path)));
  // What a path offers is no secret; browsers and proxies ask without a key.
  if (request.method == "OPTIONS" && !found.allow.empty())
    return writer->Send(204, {{"allow", found.allow + ", OPTIONS"}}, "");
  if (found.route == nullptr) {
    Answer answer =
        StatusAnswer(family, 405, fmt::format("{}: {} is wanted, not {}", request.path, found.allow, request.method));
    answer.headers.emplace_back("allow", found.allow);
    return SendAnswer(writer, answer);
  }
  HandleKnown(*found.route, std::move(request), writer);
}

void Router::HandleKnown(const Route& route, http::Request request, Writer writer) {
  PathFamily family = FamilyOf(request.path);
  const AppConfig& config = context_.config;
  // The key is checked on the very route that is about to run: no second reading of the path can disagree.
  ApiClient* client = config.api_keys.Find(request.Header("authorization"));
  if (!route.open && config.api_keys.required() && client == nullptr)
    return SendAnswer(writer, StatusAnswer(family, 401, "authorization: a valid API key is wanted as 'Bearer KEY'"));
  if (route.admin && !config.admin_routes && (client == nullptr || !client->admin()))
    return SendAnswer(writer, StatusAnswer(family, 403,
                                           fmt::format("{}: wants the key of an admin; without one, start the server "
                                                       "with --enable_admin_routes",
                                                       request.path)));
  if (!route.open && context_.draining)
    return SendAnswer(writer, ErrorAnswer(family, Error(Code::kUnavailable, "the server is shutting down")));
  if (!route.open && client != nullptr && request.method == "POST") {
    ApiClient::Admission admission = client->Admit(context_.clock.Now());
    if (admission.turn == nullptr) {
      Answer answer = StatusAnswer(family, 429, admission.refusal + "; try again later");
      std::erase_if(answer.headers, [](const auto& header) { return header.first == "retry-after"; });
      answer.headers.emplace_back("retry-after", std::to_string(admission.retry_after_s));
      context_.metrics.RequestRefused(Code::kOverloaded);
      return SendAnswer(writer, answer);
    }
    writer = std::make_shared<TurnWriter>(std::move(writer), std::move(admission.turn));
  }
  Run(route, std::move(request), writer);
}

void Router::Run(const Route& route, http::Request request, const Writer& writer) {
  bool coded = !request.Header("content-encoding").empty();
  if (!route.slow && !coded && request.body.size() <= kSmallBodyBytes) return Serve(route, request, writer);
  PathFamily family = FamilyOf(request.path);
  auto job = [this, &route, request = std::make_shared<http::Request>(std::move(request)), writer, family] {
    try {
      Serve(route, *request, writer);
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

// The surfaces see bodies as they were before a client compressed them.
void Router::Serve(const Route& route, http::Request& request, const Writer& writer) const {
  PathFamily family = FamilyOf(request.path);
  if (!request.Header("content-encoding").empty()) {
    auto refuse = [&](const Error& error, int status) {
      Answer answer = ErrorAnswer(family, error);
      answer.status = status;
      SendAnswer(writer, answer);
    };
    auto coding = http::ParseContentCoding(request.Header("content-encoding"));
    if (!coding.ok()) return refuse(coding.error(), 415);
    auto body = http::DecodeContent(*coding, request.body, {.bytes_max = context_.config.body_bytes_max});
    if (!body.ok()) return refuse(body.error(), body.error().field() == "body" ? 413 : 400);
    request.body = *std::move(body);
    std::erase_if(request.headers,
                  [](const auto& field) { return http::EqualsIgnoreCase(field.first, "content-encoding"); });
  }
  if (context_.config.log_requests) {
    std::string body;
    AppendJsonString(body, ReplaceInvalidUtf8(std::string_view(request.body).substr(0, kLoggedBodyBytes)));
    LOG_INFO("{} {} from {}: {} bytes {}", request.method, request.path, request.peer, request.body.size(), body);
  }
  route.answer(request, writer);
}

bool Router::Drain(Nanos timeout) {
  BeginDrain();
  if (context_.server.Drain(timeout)) return true;
  context_.calls.FailAll(Error(Code::kUnavailable, "the server is shutting down and the time to finish is over"));
  context_.server.Drain(std::chrono::seconds(1));
  return false;
}

// What the server refuses on its own speaks the language of the path too.
http::ErrorBody WordRefusal(int status, std::string_view message, std::string_view target) {
  Answer answer = StatusAnswer(FamilyOf(target.substr(0, target.find('?'))), status, message);
  return {answer.headers.front().second, answer.body};
}

}  // namespace

bool MayCompress(std::string_view path) {
  return FamilyOf(path) != PathFamily::kKserve || path.ends_with("/infer");
}

Result<std::unique_ptr<App>> CreateApp(serve::ModelRegistry& models, http::Server& server, const Clock& clock,
                                       AppConfig config) {
  if (!ToolCallFormatOf(config.tool_call_parser, ""))
    return Error(Code::kInvalid,
                 fmt::format("tool_call_parser: '{}' is not one of auto, hermes, llama3_json, mistral, none",
                             config.tool_call_parser),
                 "tool_call_parser");
  if (config.api_keys.Find("Bearer ") != nullptr)
    return Error(Code::kInvalid, "api_keys: an empty key would let everyone in", "api_keys");
  auto app = std::make_unique<Router>(models, server, clock, std::move(config));
  server.SetHandler([router = app.get()](http::Request request, const Writer& writer) {
    router->Handle(std::move(request), writer);
  });
  server.SetErrorBody(WordRefusal);
  return std::unique_ptr<App>(std::move(app));
}

}  // namespace ekiben::api
