#include "http/response_head.h"

#include <fmt/format.h>

#include <ctime>
#include <iterator>

namespace ekiben::http {

std::string_view ReasonPhrase(int status) {
  switch (status) {
    case 100: return "Continue";
    case 200: return "OK";
    case 204: return "No Content";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 499: return "Client Closed Request";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "Unknown";
  }
}

void AppendResponseHead(std::string& out, int status, const Headers& headers, BodyFraming framing, size_t length,
                        bool close, std::string_view date, std::string_view more_fields) {
  auto end = std::back_inserter(out);
  fmt::format_to(end, "HTTP/1.1 {} {}\r\ndate: {}\r\n", status, ReasonPhrase(status), date);
  for (const auto& [name, value] : headers) {
    out.append(name).append(": ");
    for (char c : value) out.push_back(c == '\r' || c == '\n' ? ' ' : c);
    out.append("\r\n");
  }
  out.append(more_fields);
  // 204 has no body and must not say how long it is (RFC 9110 8.6).
  if (framing == BodyFraming::kLength && status != 204) fmt::format_to(end, "content-length: {}\r\n", length);
  if (framing == BodyFraming::kChunked) out.append("transfer-encoding: chunked\r\n");
  if (close) out.append("connection: close\r\n");
  out.append("\r\n");
}

void AppendChunk(std::string& out, std::string_view data) {
  if (data.empty()) return;
  char digits[16];
  int count = 0;
  for (size_t rest = data.size(); rest > 0; rest >>= 4) digits[count++] = "0123456789abcdef"[rest & 15];
  while (count > 0) out.push_back(digits[--count]);
  out.append("\r\n").append(data).append("\r\n");
}

std::string HttpDate(int64_t unix_seconds) {
  static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  std::time_t time = unix_seconds;
  std::tm tm{};
  gmtime_r(&time, &tm);
  return fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[tm.tm_wday], tm.tm_mday, kMonths[tm.tm_mon],
                     tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

}  // namespace ekiben::http
