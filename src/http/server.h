// The HTTP/1.1 server: a listener, a few I/O threads that each own their connections, and a thread-safe writer for a
// response. Generic: it knows no route and no JSON. Keep-alive, pipelining (one request of a connection at a time, so
// answers keep their order), chunked bodies, Expect: 100-continue, HEAD, HTTP/1.0; TLS, cross-origin answers, and JSON
// answers compressed for clients that ask.
//
// A connection always has a read pending, so a client that leaves is noticed at once, also while its answer is being
// made: OnClosed runs. An end of stream from the client counts as leaving (no half-open connections).
// A slow client is the connection's problem: what it does not read is buffered up to send_buffer_bytes_max, and past
// that, or after write_timeout without progress, the connection closes and OnClosed runs. No writer ever blocks.
// Thread: each type says its own.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "http/request.h"
#include "http/tls.h"

namespace ekiben::http {

struct ServerConfig {
  std::string host = "0.0.0.0";
  uint16_t port = 3000;                      // 0: the kernel picks one, see Server::port
  std::vector<uint16_t> more_ports;          // same host, handler and TLS
  TlsConfig tls;                             // of every port
  std::vector<std::string> allowed_origins;  // of pages that may read answers (CORS); "*": any
  size_t compress_bytes_min = 1024;          // a shorter JSON answer is never compressed, nor is a stream
  std::function<bool(std::string_view path)> may_compress;  // null: answers to any path
  int io_threads = 1;
  int listen_backlog = 2048;
  RequestLimits limits;
  size_t connections_max = 4096;                       // one more is answered 503
  size_t send_buffer_bytes_max = size_t{256} << 10;    // unread by the client, of one connection
  size_t send_buffer_writes_min = 64;                  // but so many writes of the answer's largest wait always
  size_t pipeline_bytes_max = size_t{64} << 10;        // read ahead while a response is in flight
  Nanos header_timeout = std::chrono::seconds(10);     // from a request's first byte to its empty line: 408
  Nanos body_timeout = std::chrono::seconds(60);       // from there to the end of the body: 408
  Nanos idle_timeout = std::chrono::seconds(75);       // between requests
  Nanos write_timeout = std::chrono::seconds(30);      // without progress while bytes wait
  Nanos linger_timeout = std::chrono::seconds(2);      // for a closing connection's last bytes to be read
  Nanos sweep_period = std::chrono::milliseconds(50);  // how exact the timeouts are
};

// One response. Thread: any; calls of one response must not overlap. Calls after the connection closed do nothing.
// Dropped without Finish: 500 when nothing was sent, else the connection is cut so that the client sees the break.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;
  // The whole response at once, with Content-Length. JSON may be compressed here, on the caller's thread.
  virtual void Send(int status, const Headers& headers, std::string_view body) = 0;
  // A response of unknown length: Start, any number of Write, Finish. Each Write is exactly one HTTP chunk, handed to
  // the socket in one piece; when the socket is behind, several whole chunks go in one send.
  virtual void Start(int status, const Headers& headers) = 0;
  virtual void Write(std::string_view chunk) = 0;
  virtual void Finish() = 0;

  // Runs once, on any thread, if the connection closes before the response is finished (at once if it has already).
  // Dropped, not run, when the response finishes.
  virtual void OnClosed(std::function<void()> callback) = 0;
  // Runs once, on an I/O thread, if nothing of the response was sent within `timeout` from now.
  virtual void OnStartTimeout(Nanos timeout, std::function<void()> callback) = 0;
  virtual bool closed() const = 0;
};

// Called on an I/O thread, which serves other connections too: must not block.
using Handler = std::function<void(Request request, std::shared_ptr<ResponseWriter> writer)>;

struct ErrorBody {
  std::string content_type;
  std::string body;
};
// Words the answer to a request that never reached the handler (bad header, too large, too slow). `target` may be
// empty.
using ErrorBodyFunction = std::function<ErrorBody(int status, std::string_view message, std::string_view target)>;

struct ServerStats {
  uint64_t connections_accepted = 0, connections_refused = 0, requests = 0;
  uint64_t requests_malformed = 0;     // answered by the server itself: 400, 408, 413, 431, 501, 505
  uint64_t clients_left = 0;           // closed before their response was finished
  uint64_t clients_too_slow = 0;       // of these: over the send buffer or the write timeout
  uint64_t bytes_sent = 0, sends = 0;  // sends: system calls
  uint64_t tls_handshakes = 0, tls_failures = 0, tls_reloads = 0;
  size_t connections = 0;
};

class Server {
 public:
  // Binds and listens. A port in use is an Error that names it; its field() is "port".
  static Result<std::unique_ptr<Server>> Create(const ServerConfig& config);
  virtual ~Server() = default;  // as Stop()

  // Before Start.
  virtual void SetHandler(Handler handler) = 0;
  virtual void SetErrorBody(ErrorBodyFunction function) = 0;
  virtual void Start() = 0;

  // Accepts no more, closes idle connections, says "Connection: close" on every further response, and waits until all
  // responses are finished or `timeout` has passed. True when none was left unfinished. The rest go on until Stop.
  virtual bool Drain(Nanos timeout) = 0;
  // Closes everything and joins the I/O threads. Idempotent. Not from a handler.
  virtual void Stop() = 0;

  virtual uint16_t port() const = 0;  // the first one
  virtual ServerStats stats() const = 0;
};

}  // namespace ekiben::http
