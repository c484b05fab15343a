#include "api/error_response.h"

#include "api/json_text.h"
#include "http/response_head.h"

namespace ekiben::api {
namespace {

constexpr std::string_view kBentoServerFault =
    "{\"error\":\"An unexpected error has occurred, please check the server log.\"}";

// OpenAI's words.
std::string_view TypeOf(int status) {
  if (status == 401) return "authentication_error";
  if (status == 429) return "rate_limit_error";
  if (status >= 500) return "server_error";
  return "invalid_request_error";
}

void AddRetryAfter(Answer& answer) {
  if (answer.status == 429 || answer.status == 503) answer.headers.emplace_back("retry-after", "1");
}

Answer BentoError(int status, std::string_view message) {
  if (status == 504) {
    std::string body = "{\"error\":";
    AppendJsonString(body, message);
    return JsonAnswer(body + "}", status);
  }
  if (status == 429) return JsonAnswer("{\"error\":\"Too many requests\"}", status);
  if (status == 401 || status == 403) return JsonAnswer("{\"error\":\"Authorization error\"}", status);
  bool refused = status == 501 || status == 505;  // by the HTTP server: not a fault of ours
  if (status >= 500 && !refused) return JsonAnswer(std::string(kBentoServerFault), status);
  std::string body = "[{\"error\":";
  AppendJsonString(body, message);
  return JsonAnswer(body + "}]", status);
}

int KserveStatusOf(const Error& error) {
  switch (error.code()) {
    case Code::kCancelled: return 400;
    case Code::kUnsupported: return 501;
    case Code::kOverloaded:
    case Code::kDeadline: return 503;
    default: return HttpStatusOf(error.code());
  }
}

Answer KserveError(int status, std::string_view message) {
  std::string body = "{\"error\":";
  AppendJsonString(body, ReplaceInvalidUtf8(message));
  return JsonAnswer(body + "}", status);
}

}  // namespace

PathFamily FamilyOf(std::string_view path) {
  if (path == "/v2" || path.starts_with("/v2/")) return PathFamily::kKserve;
  bool open_ai = path.starts_with("/v1/") || path == "/v1" || path == "/tokenize" || path == "/detokenize" ||
                 path == "/tokenizer_info";
  return open_ai ? PathFamily::kOpenAi : PathFamily::kBento;
}

int HttpStatusOf(Code code) {
  switch (code) {
    case Code::kInvalid: return 400;
    case Code::kNotFound: return 404;
    case Code::kUnsupported: return 400;
    case Code::kOverloaded: return 429;
    case Code::kCancelled: return 499;
    case Code::kDeadline: return 504;
    case Code::kUnavailable: return 503;
    case Code::kInternal: return 500;
  }
  return 500;
}

std::string OpenAiErrorJson(int status, std::string_view message, std::string_view field, std::string_view code) {
  std::string out = "{\"error\":{\"message\":";
  AppendJsonString(out, ReplaceInvalidUtf8(message));
  out.append(",\"type\":");
  AppendJsonString(out, TypeOf(status));
  out.append(",\"param\":");
  if (field.empty())
    out.append("null");
  else
    AppendJsonString(out, ReplaceInvalidUtf8(field));
  out.append(",\"code\":");
  if (code.empty())
    out.append("null");
  else
    AppendJsonString(out, code);
  out.append("}}");
  return out;
}

std::string OpenAiErrorJson(const Error& error) {
  std::string_view code;
  if (error.code() == Code::kNotFound && error.field() == "model") code = "model_not_found";
  if (error.code() == Code::kUnsupported) code = "unsupported_value";
  if (error.code() == Code::kOverloaded) code = "overloaded";
  if (error.code() == Code::kDeadline) code = "timeout";
  return OpenAiErrorJson(HttpStatusOf(error.code()), error.message(), error.field(), code);
}

Answer ErrorAnswer(PathFamily family, const Error& error) {
  if (family == PathFamily::kKserve) {
    Answer answer = KserveError(KserveStatusOf(error), error.message());
    AddRetryAfter(answer);
    return answer;
  }
  int status = HttpStatusOf(error.code());
  Answer answer = family == PathFamily::kOpenAi ? JsonAnswer(OpenAiErrorJson(error), status)
                                                : BentoError(status, ReplaceInvalidUtf8(error.message()));
  if (family == PathFamily::kOpenAi || status != 429) AddRetryAfter(answer);  // BentoML's 429 says no time
  return answer;
}

Answer StatusAnswer(PathFamily family, int status, std::string_view message) {
  if (family == PathFamily::kKserve) {
    bool words_of_its_own = status == 404 || status == 405;  // Triton's
    Answer answer = KserveError(status, words_of_its_own ? http::ReasonPhrase(status) : message);
    AddRetryAfter(answer);
    return answer;
  }
  if (family == PathFamily::kBento && (status == 404 || status == 405))
    return TextAnswer(std::string(http::ReasonPhrase(status)), status);
  std::string_view code = status == 401 ? "invalid_api_key" : "";
  Answer answer = family == PathFamily::kOpenAi ? JsonAnswer(OpenAiErrorJson(status, message, "", code), status)
                                                : BentoError(status, ReplaceInvalidUtf8(message));
  AddRetryAfter(answer);
  return answer;
}

Answer JsonAnswer(std::string body, int status) {
  return {status, {{"content-type", "application/json"}}, std::move(body)};
}

Answer TextAnswer(std::string body, int status) {
  return {status, {{"content-type", "text/plain; charset=utf-8"}}, std::move(body)};
}

}  // namespace ekiben::api
