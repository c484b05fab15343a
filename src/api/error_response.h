// The one table from errors to HTTP: status by code, body by path family.
//   OpenAI (/v1/*, /tokenize, /detokenize, /tokenizer_info): {"error":{"message","type","param","code"}}, all four keys
//   always there.
//   KServe (/v2/*): {"error": "..."}, with Triton's statuses: 501 for what is not offered, 503 for overload.
//   BentoML (/generate): {"error": "..."}; a client's fault is an array of that, as BentoML sends it; what never
//   reached the API (no route, wrong method) is plain text.
// Thread: pure functions.
#pragma once
#include <string>
#include <string_view>

#include "base/result.h"
#include "http/request.h"

namespace ekiben::api {

enum class PathFamily : uint8_t { kOpenAi, kBento, kKserve };
PathFamily FamilyOf(std::string_view path);

struct Answer {
  int status = 200;
  http::Headers headers;  // content-type included
  std::string body;
};

int HttpStatusOf(Code code);

std::string OpenAiErrorJson(const Error& error);
std::string OpenAiErrorJson(int status, std::string_view message, std::string_view field, std::string_view code);
// Overload and a draining server also say when to come back (Retry-After).
Answer ErrorAnswer(PathFamily family, const Error& error);
// For what has no Code of its own: 401, 404 of a route, 405, 413, ...
Answer StatusAnswer(PathFamily family, int status, std::string_view message);

Answer JsonAnswer(std::string body, int status = 200);
Answer TextAnswer(std::string body, int status = 200);

}  // namespace ekiben::api
