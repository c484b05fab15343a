// Content codings of HTTP bodies: gzip and deflate (RFC 1950, and the raw form that some clients send under that name),
// both ways. Decoding is bounded in bytes and in growth, so that a small body cannot become a large one.
// Thread: any; no state. Errors, by field: "content-encoding" for a coding that is not known (415), "body" for one over
// its limits (413), none for bytes that are not what they say (400).
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

#include "base/result.h"

namespace ekiben::http {

enum class ContentCoding { kIdentity, kGzip, kDeflate };

// The value of a Content-Encoding field; empty is identity. Several codings over each other are not understood.
Result<ContentCoding> ParseContentCoding(std::string_view value);
std::string_view ContentCodingName(ContentCoding coding);

// What of an Accept-Encoding field is done: the coding with the best weight, gzip before deflate before identity where
// weights are equal. Codings that are not named are not used, except through "*".
ContentCoding ChooseContentCoding(std::string_view accept_encoding);

struct DecodeLimits {
  size_t bytes_max = size_t{16} << 20;        // decoded
  size_t ratio_max = 200;                     // decoded over encoded bytes (one letter repeated: about 1,000) ...
  size_t ratio_from_bytes = size_t{1} << 20;  // ... of what is larger than this
};
Result<std::string> DecodeContent(ContentCoding coding, std::string_view body, const DecodeLimits& limits);

// REQUIRES: not kIdentity. At the fastest level: answers are made while others stream.
std::string EncodeContent(ContentCoding coding, std::string_view body);

}  // namespace ekiben::http
