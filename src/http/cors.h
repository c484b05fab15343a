// Cross-origin requests from browsers: which pages may read the answers (the Fetch standard's CORS protocol).
// Thread: immutable values.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "http/request.h"

namespace ekiben::http {

class CorsPolicy {
 public:
  // Origins as a browser sends them ("https://app.example"); "*" is any. None: no page of another origin may read.
  explicit CorsPolicy(std::vector<std::string> allowed_origins) : origins_(std::move(allowed_origins)) {}

  // Field lines for the answer, each with its CRLF; empty when the request names no origin or one that may not read.
  std::string AnswerFields(const Request& request) const;
  // The browser's question before the request itself; it carries no key. REQUIRES: AnswerFields was not empty.
  static bool IsPreflight(const Request& request);
  static std::string PreflightFields(const Request& request);

 private:
  std::vector<std::string> origins_;
};

}  // namespace ekiben::http
