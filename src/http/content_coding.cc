#include "http/content_coding.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <charconv>

#include "base/check.h"
#include "http/request.h"

namespace ekiben::http {
namespace {

constexpr int kGzipWindow = 15 + 16, kZlibWindow = 15, kRawWindow = -15;

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Of ";q=0.5"; a weight that cannot be read counts as none given.
double WeightOf(std::string_view parameters) {
  size_t at = parameters.find("q=");
  if (at == std::string_view::npos) return 1;
  std::string_view digits = Trim(parameters.substr(at + 2));
  double weight = 1;
  std::from_chars(digits.data(), digits.data() + digits.size(), weight);
  return weight;
}

// An inflate stream that frees itself.
struct Inflater {
  explicit Inflater(int window) { CHECK(inflateInit2(&stream, window) == Z_OK); }
  ~Inflater() { inflateEnd(&stream); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  z_stream stream{};
};

bool LooksLikeZlib(std::string_view body) {
  if (body.size() < 2) return false;
  auto first = static_cast<unsigned char>(body[0]), second = static_cast<unsigned char>(body[1]);
  return (first & 0x0f) == Z_DEFLATED && (first * 256u + second) % 31 == 0;
}

Error TooLarge(const DecodeLimits& limits, bool ratio) {
  if (ratio)
    return Error(Code::kInvalid,
                 fmt::format("body: it grows over {} times when decoded; send it as it is", limits.ratio_max), "body");
  return Error(Code::kInvalid, fmt::format("body: more than the limit of {} bytes when decoded", limits.bytes_max),
               "body");
}

}  // namespace

Result<ContentCoding> ParseContentCoding(std::string_view value) {
  value = Trim(value);
  if (value.empty() || EqualsIgnoreCase(value, "identity")) return ContentCoding::kIdentity;
  if (EqualsIgnoreCase(value, "gzip") || EqualsIgnoreCase(value, "x-gzip")) return ContentCoding::kGzip;
  if (EqualsIgnoreCase(value, "deflate")) return ContentCoding::kDeflate;
  return Error(
      Code::kUnsupported,
      fmt::format("content-encoding: '{}' is not read here; gzip, deflate and identity are", value.substr(0, 100)),
      "content-encoding");
}

std::string_view ContentCodingName(ContentCoding coding) {
  switch (coding) {
    case ContentCoding::kGzip: return "gzip";
    case ContentCoding::kDeflate: return "deflate";
    default: return "identity";
  }
}

ContentCoding ChooseContentCoding(std::string_view accept_encoding) {
  double gzip = -1, deflate = -1, identity = -1, any = -1;
  while (!accept_encoding.empty()) {
    size_t comma = accept_encoding.find(',');
    std::string_view entry = accept_encoding.substr(0, comma);
    accept_encoding.remove_prefix(comma == std::string_view::npos ? accept_encoding.size() : comma + 1);
    size_t semicolon = entry.find(';');
    std::string_view name = Trim(entry.substr(0, semicolon));
    double weight = semicolon == std::string_view::npos ? 1 : WeightOf(entry.substr(semicolon + 1));
    if (EqualsIgnoreCase(name, "gzip") || EqualsIgnoreCase(name, "x-gzip")) gzip = weight;
    if (EqualsIgnoreCase(name, "deflate")) deflate = weight;
    if (EqualsIgnoreCase(name, "identity")) identity = weight;
    if (name == "*") any = weight;
  }
  if (gzip < 0) gzip = any;
  if (deflate < 0) deflate = any;
  if (gzip > 0 && gzip >= deflate && gzip >= identity) return ContentCoding::kGzip;
  if (deflate > 0 && deflate >= identity) return ContentCoding::kDeflate;
  return ContentCoding::kIdentity;
}

Result<std::string> DecodeContent(ContentCoding coding, std::string_view body, const DecodeLimits& limits) {
  if (coding == ContentCoding::kIdentity) return std::string(body);
  int window = coding == ContentCoding::kGzip ? kGzipWindow : LooksLikeZlib(body) ? kZlibWindow : kRawWindow;
  Inflater inflater(window);
  z_stream& stream = inflater.stream;
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(body.data()));
  stream.avail_in = static_cast<uInt>(std::min(body.size(), size_t{0xFFFFFFFF}));
  std::string out;
  char block[size_t{32} << 10];
  int code = Z_OK;
  while (code != Z_STREAM_END) {
    stream.next_out = reinterpret_cast<Bytef*>(block);
    stream.avail_out = sizeof block;
    code = inflate(&stream, Z_NO_FLUSH);
    if (code != Z_OK && code != Z_STREAM_END)
      return Error(Code::kInvalid, fmt::format("body: it is not whole or not {}", ContentCodingName(coding)));
    out.append(block, sizeof block - stream.avail_out);
    if (out.size() > limits.bytes_max) return TooLarge(limits, false);
    if (out.size() > limits.ratio_from_bytes && out.size() / limits.ratio_max > body.size())
      return TooLarge(limits, true);
  }
  if (stream.avail_in != 0) return Error(Code::kInvalid, "body: bytes follow the end of its compressed form");
  return out;
}

std::string EncodeContent(ContentCoding coding, std::string_view body) {
  CHECK(coding != ContentCoding::kIdentity);
  z_stream stream{};
  int window = coding == ContentCoding::kGzip ? kGzipWindow : kZlibWindow;
  CHECK(deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string out(deflateBound(&stream, body.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(body.data()));
  stream.avail_in = static_cast<uInt>(body.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace ekiben::http
