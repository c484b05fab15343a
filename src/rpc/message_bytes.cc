#include "rpc/message_bytes.h"

#include <google/protobuf/message_lite.h>

#include <climits>
#include <string>

#include "http/content_coding.h"

namespace ekiben::rpc {
namespace {

http::ContentCoding CodingOf(std::string_view bytes) {
  if (bytes.size() < 2) return http::ContentCoding::kIdentity;
  auto first = static_cast<unsigned char>(bytes[0]), second = static_cast<unsigned char>(bytes[1]);
  if (first == 0x1f && second == 0x8b) return http::ContentCoding::kGzip;
  if (first == 0x78 && (first * 256 + second) % 31 == 0) return http::ContentCoding::kDeflate;  // a window of 32 KiB
  return http::ContentCoding::kIdentity;
}

}  // namespace

Result<void> ParseMessage(std::string_view bytes, size_t unpacked_bytes_max, google::protobuf::MessageLite& message) {
  std::string unpacked;
  if (auto coding = CodingOf(bytes); coding != http::ContentCoding::kIdentity) {
    http::DecodeLimits limits;
    limits.bytes_max = unpacked_bytes_max;
    ASSIGN_OR_RETURN(unpacked, http::DecodeContent(coding, bytes, limits));
    bytes = unpacked;
  }
  if (bytes.size() > INT_MAX || !message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return Error(Code::kInvalid,
                 fmt::format("not a {}: {} bytes that do not parse", message.GetTypeName(), bytes.size()));
  return {};
}

}  // namespace ekiben::rpc
