// Status line and header fields as bytes. Thread: any; `date` is the caller's.
#pragma once
#include <string>
#include <string_view>

#include "http/request.h"

namespace ekiben::http {

std::string_view ReasonPhrase(int status);

enum class BodyFraming {
  kLength,   // Content-Length
  kChunked,  // Transfer-Encoding: chunked
  kClose,    // up to the end of the connection (HTTP/1.0)
};

// Appends to `out`. CR and LF inside a value become spaces: a value can end no line. `more_fields` is appended as it
// is: whole lines with their CRLF.
void AppendResponseHead(std::string& out, int status, const Headers& headers, BodyFraming framing, size_t length,
                        bool close, std::string_view date, std::string_view more_fields = {});
// Appends one chunk: size line, data, CRLF. Nothing for empty data (an empty chunk would end the body).
void AppendChunk(std::string& out, std::string_view data);

// IMF-fixdate (RFC 9110 5.6.7) of a Unix time, e.g. "Sun, 06 Nov 1994 08:49:37 GMT".
std::string HttpDate(int64_t unix_seconds);

}  // namespace ekiben::http
