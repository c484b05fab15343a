// A message's bytes as they came off the wire, packed or not, to a message. gRPC's own unpacking has no bound on what a
// message unpacks to (1 KB may become 1 MB), so the server turns it off and unpacks here.
// gzip and deflate tell themselves apart: no message of this service starts with their first two bytes.
// Errors: kInvalid. Thread: pure functions. Source: RFC 1950, RFC 1952.
#pragma once
#include <cstddef>
#include <string_view>

#include "base/result.h"

namespace google::protobuf {
class MessageLite;
}  // namespace google::protobuf

namespace ekiben::rpc {

Result<void> ParseMessage(std::string_view bytes, size_t unpacked_bytes_max, google::protobuf::MessageLite& message);

}  // namespace ekiben::rpc
