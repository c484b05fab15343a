// How a simulated user reaches the server: over HTTP (http_transport.h) or inside this process (service_transport.h).
// The loop above (user_loop.h) is the same for both, so the difference between two runs is the transport's cost.
//
// A user has at most one request in flight. Every Send is answered by events of that user, in order:
// kSent (again after OnReconnect), any number of kChunk, then exactly one of kEnd and kFailed. kFailed may come alone.
// After Abort nothing more is heard of the request.
// Thread: one transport belongs to one thread; sinks are called inside Poll or Send on that thread.
#pragma once
#include <cstdint>
#include <string_view>

#include "base/clock.h"
#include "base/json.h"

namespace ekiben::load {

// What one request asks. Views and pointers stay valid until Send returns.
struct Prompt {
  std::string_view text;                  // a plain prompt, or the one user message of a chat
  const json::array* messages = nullptr;  // a whole conversation instead of `text`
  std::string_view messages_json;         // the same, written out; set exactly when `messages` is
  int32_t max_tokens = 0;
  int32_t tokens = 0;  // of random words
};

// Where a request failed; the report counts errors by this and by `status`.
enum class Failure : uint8_t {
  kConnect,   // refused, unreachable, no address
  kStatus,    // an answer other than 200
  kClosed,    // the connection ended inside an answer
  kProtocol,  // bytes that are no HTTP, or a chunk that is no JSON
  kStream,    // the server reported an error inside a 200 stream
  kTimeout,   // no end within the request's time
  kCount,
};
std::string_view FailureName(Failure failure);

struct StreamEvent {
  enum class Kind : uint8_t { kSent, kChunk, kEnd, kFailed };
  Kind kind{};
  int32_t user = 0;
  Nanos when{};  // kSent: the last bytes are being handed over; kChunk, kEnd: its bytes were read, before any parsing
  // kChunk. A total of -1: the chunk does not say.
  int32_t output_tokens_total = -1, prompt_tokens = -1;
  int32_t text_bytes = 0;
  // kFailed. `message` is valid during the call.
  Failure failure{};
  int32_t status = 0;
  std::string_view message;
};

class StreamEventSink {
 public:
  virtual ~StreamEventSink() = default;
  virtual void OnEvent(const StreamEvent& event) = 0;
  // How long a new connection took.
  virtual void OnConnected(Nanos) {}
  // How long after the kernel had the bytes this process read them: what the client itself adds to latencies.
  virtual void OnReadLag(Nanos) {}
  // An idle connection was found closed on use; the request went out again on a new one.
  virtual void OnReconnect() {}
};

class Transport {
 public:
  virtual ~Transport() = default;
  // REQUIRES: no request of `user` in flight. Never blocks.
  virtual void Send(int32_t user, const Prompt& prompt, StreamEventSink& sink) = 0;
  // Gives the request up, as a client that leaves. Idempotent.
  virtual void Abort(int32_t user) = 0;
  // Delivers what has happened; waits for the first event, but not past `until` (Clock::Now()).
  virtual void Poll(Nanos until, StreamEventSink& sink) = 0;
};

}  // namespace ekiben::load
