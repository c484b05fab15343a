// Compressed bodies -> bodies, within their limits. The first byte picks the coding; what decodes is encoded again and
// must come back. The same bytes as an Accept-Encoding field must choose something.
#include <cstdint>
#include <cstdlib>

#include "base/check.h"
#include "http/content_coding.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ekiben::http;
  if (size == 0) return 0;
  ContentCoding coding = data[0] % 2 == 0 ? ContentCoding::kGzip : ContentCoding::kDeflate;
  std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  DecodeLimits limits{.bytes_max = size_t{1} << 20, .ratio_max = 50, .ratio_from_bytes = size_t{1} << 16};
  auto decoded = DecodeContent(coding, body, limits);
  if (decoded.ok()) {
    CHECK(decoded->size() <= limits.bytes_max);
    CHECK(decoded->size() <= limits.ratio_from_bytes || decoded->size() / limits.ratio_max <= body.size());
    auto again = DecodeContent(coding, EncodeContent(coding, *decoded),
                               {.bytes_max = limits.bytes_max, .ratio_from_bytes = limits.bytes_max});
    CHECK(again.ok() && *again == *decoded);
  } else {
    CHECK(!decoded.error().message().empty());
  }
  ChooseContentCoding(body);
  (void)ParseContentCoding(body);
  return 0;
}
