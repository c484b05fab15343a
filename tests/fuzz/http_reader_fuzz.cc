// Bytes of a connection -> requests, fed whole and fed in pieces: both must see the same requests, and refuse the same
// streams. The first byte seeds where the pieces are cut.
#include <cstdint>

#include "base/check.h"
#include "http/request_reader.h"

namespace {

using namespace ekiben;
using http::RequestReader;

struct Outcome {
  std::string requests;  // method, target, header count and body of each
  bool failed = false;
};

RequestReader::State Drain(RequestReader& reader, Outcome& out) {
  RequestReader::State state = reader.Advance();
  reader.TakeContinue();
  while (state == RequestReader::State::kComplete) {
    http::Request request = reader.Take();
    CHECK(!request.path.empty() && request.target.size() >= request.path.size());
    out.requests += fmt::format("{}|{}|{}|{}\n", request.method, request.target, request.headers.size(), request.body);
    state = reader.Advance();
  }
  out.failed = state == RequestReader::State::kFailed;
  if (out.failed) CHECK(reader.failure().status >= 400 && !reader.failure().message.empty());
  return state;
}

http::RequestLimits Limits() {
  http::RequestLimits limits;
  limits.header_bytes_max = 1024;
  limits.header_count_max = 16;
  limits.body_bytes_max = 256;
  limits.chunk_count_max = 8;
  limits.chunk_line_bytes_max = 128;
  return limits;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  http::RequestLimits limits = Limits();
  Outcome whole, pieces;
  RequestReader at_once(limits);
  at_once.Append(bytes);
  Drain(at_once, whole);

  RequestReader split(limits);
  uint32_t random = data[0];
  while (!bytes.empty() && !pieces.failed) {
    random = random * 1664525u + 1013904223u;
    size_t count = std::min<size_t>(bytes.size(), (random >> 24) % (data[0] % 32 + 1) + 1);
    split.Append(bytes.substr(0, count));
    bytes.remove_prefix(count);
    Drain(split, pieces);
  }
  // One may wait for a few bytes more before it refuses what the other has refused: then those bytes decide.
  Outcome late;
  RequestReader& waiting = whole.failed ? split : at_once;
  if (whole.failed != pieces.failed) {
    waiting.Append("12345678");
    Drain(waiting, late);
    CHECK(late.failed && late.requests.empty(), "a request after what the other reading refused: {}", late.requests);
  }
  CHECK(whole.requests == pieces.requests, "whole:\n{}pieces:\n{}", whole.requests, pieces.requests);
  return 0;
}
