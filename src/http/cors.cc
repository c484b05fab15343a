#include "http/cors.h"

#include <algorithm>

namespace ekiben::http {
namespace {

// What came from a client and goes back as a field's value: printable ASCII only, so that it ends no line.
bool IsPlain(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

}  // namespace

std::string CorsPolicy::AnswerFields(const Request& request) const {
  if (origins_.empty()) return {};
  std::string_view origin = request.Header("origin");
  if (origin.empty() || origin.size() > 512 || !IsPlain(origin)) return {};
  bool any = std::find(origins_.begin(), origins_.end(), "*") != origins_.end();
  if (!any && std::find(origins_.begin(), origins_.end(), origin) == origins_.end()) return {};
  std::string out = "access-control-allow-origin: ";
  out.append(any ? std::string_view("*") : origin);
  if (!any) out.append("\r\nvary: origin");
  out.append("\r\naccess-control-expose-headers: x-request-id, retry-after, inference-header-content-length\r\n");
  return out;
}

bool CorsPolicy::IsPreflight(const Request& request) {
  return request.method == "OPTIONS" && !request.Header("access-control-request-method").empty();
}

std::string CorsPolicy::PreflightFields(const Request& request) {
  std::string out = "access-control-allow-methods: GET, HEAD, POST, OPTIONS\r\naccess-control-max-age: 600\r\n";
  std::string_view asked = request.Header("access-control-request-headers");
  if (!asked.empty() && asked.size() <= 1024 && IsPlain(asked))
    out.append("access-control-allow-headers: ").append(asked).append("\r\n");
  return out;
}

}  // namespace ekiben::http
