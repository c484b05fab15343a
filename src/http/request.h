// A parsed HTTP/1.x request, and the limits under which one is read.
// Thread: plain values.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ekiben::http {

using Headers = std::vector<std::pair<std::string, std::string>>;

// What one request may cost before it is understood. Over a limit is 431 (header) or 413 (body), and the connection
// closes: what follows on it cannot be trusted.
struct RequestLimits {
  size_t header_bytes_max = size_t{32} << 10;  // request line and header fields together
  size_t header_count_max = 100;
  size_t body_bytes_max = size_t{16} << 20;  // after the chunk framing is taken off
  size_t chunk_count_max = 16'384;           // of a chunked body
  size_t chunk_line_bytes_max = 4'096;       // size line with extensions; trailer
};

struct Request {
  std::string method;  // as sent: "GET", "POST", ...
  std::string target;  // as sent
  std::string path;    // the target's path, not decoded; begins with '/' (or is "*")
  std::string query;   // after '?', without it
  Headers headers;     // in order; names as sent; those of a trailer are dropped
  std::string body;
  std::string peer;  // remote address
  bool http_1_0 = false;
  bool keep_alive = true;

  // The first field of that name (any case); empty when absent.
  std::string_view Header(std::string_view name) const;
};

// %XX becomes its byte; a '%' without two hex digits stays.
std::string DecodePercent(std::string_view text);

// ASCII only, as header names are.
bool EqualsIgnoreCase(std::string_view a, std::string_view b);

}  // namespace ekiben::http
