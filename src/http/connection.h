// One client connection, owned by one I/O thread. Internal to http/.
//
// Reading: a coroutine waits for bytes for as long as the connection lives and hands them to the RequestReader. While a
// response is in flight they are only kept, up to pipeline_bytes_max; past that reading pauses.
// Writing: any thread appends to `pending_` under the mutex and posts one Flush; the I/O thread swaps it out and sends.
// Invariant: at most one exchange (request with its response) is open; exchange_number_ names it, and a writer of an
// earlier one is ignored.
// With TLS both pass through tls_, on the I/O thread: what was read is decrypted before the reader sees it, and what is
// swapped out is encrypted before it is sent; unsent_ counts the encrypted bytes from then on.
// Thread: members without a note belong to the I/O thread; those under `mutex_` to whoever holds it.
#pragma once
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "http/cors.h"
#include "http/request_reader.h"
#include "http/response_head.h"
#include "http/server.h"
#include "http/tls.h"

namespace ekiben::http {

namespace asio = boost::asio;
using SteadyTime = std::chrono::steady_clock::time_point;

// What all connections of a server share. Outlives the server for as long as a writer is held somewhere.
struct ServerShared {
  explicit ServerShared(const ServerConfig& server_config) : config(server_config), cors(config.allowed_origins) {}
  const ServerConfig config;
  const CorsPolicy cors;
  Handler handler;
  ErrorBodyFunction error_body;
  std::atomic<bool> draining{false};
  std::mutex mutex;
  std::condition_variable changed;  // connections or exchanges went down
  std::atomic<size_t> connections{0}, exchanges{0};
  std::atomic<uint64_t> accepted{0}, refused{0}, requests{0}, malformed{0}, left{0}, slow{0}, bytes_sent{0}, sends{0};
  std::atomic<uint64_t> tls_handshakes{0}, tls_failures{0}, tls_reloads{0};
  void Notify();
};

class Connection;

struct IoThread {
  IoThread() : context(1), sweep_timer(context), read_buffer(size_t{64} << 10) {}
  asio::io_context context;
  asio::steady_timer sweep_timer;
  std::vector<char> read_buffer;  // one read is done with before the next begins: shared by the thread's connections
  std::string plain;              // what it decrypts to; shared in the same way
  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections;
  bool stopping = false;
  std::thread thread;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  // `tls` may be null.
  Connection(std::shared_ptr<ServerShared> shared, std::shared_ptr<IoThread> io, asio::ip::tcp::socket socket,
             std::shared_ptr<const TlsContext> tls);
  ~Connection();

  // On the I/O thread.
  void Open();
  void Close();
  void CheckDeadlines(SteadyTime now);
  void CloseIfIdle();

  // From a writer, on any thread.
  void Send(uint64_t number, int status, const Headers& headers, std::string_view body);
  void Start(uint64_t number, int status, const Headers& headers);
  void Write(uint64_t number, std::string_view chunk);
  void Finish(uint64_t number);
  void OnClosed(uint64_t number, std::function<void()> callback);
  void OnStartTimeout(uint64_t number, Nanos timeout, std::function<void()> callback);
  void Abandon(uint64_t number);
  bool closed(uint64_t number) const;

 private:
  enum class Phase { kHandshake, kIdle, kHeader, kBody, kExchange, kLinger, kClosed };

  asio::awaitable<void> ReadLoop();
  void ReadSome(bool& end);
  void Take(std::string_view bytes);
  bool Decrypt(std::string_view bytes);
  void Process();
  void SetPhase(Phase phase, Nanos timeout);
  void Dispatch(Request request);
  void Refuse(int status, const std::string& message, const std::string& target);
  void FinishExchange();
  void BeginLinger();
  void Flush();
  bool SendPending(boost::system::error_code& code);
  bool FillSending();
  void WaitWritable();
  void TooSlow();

  // REQUIRES: mutex_ held.
  bool OpenLocked(uint64_t number) const { return number == exchange_number_ && !finished_ && !closed_; }
  void AppendHeadLocked(int status, const Headers& headers, BodyFraming framing, size_t length);
  void ScheduleFlushLocked();

  const std::shared_ptr<ServerShared> shared_;
  const std::shared_ptr<IoThread> io_;
  asio::ip::tcp::socket socket_;
  asio::steady_timer resume_;  // wakes a paused ReadLoop
  RequestReader reader_;
  const std::unique_ptr<TlsSession> tls_;  // null: plain
  std::string peer_;
  Phase phase_ = Phase::kIdle;
  SteadyTime deadline_{}, write_deadline_{};
  bool waiting_writable_ = false, reading_paused_ = false;
  std::string sending_;
  size_t sent_ = 0;  // of sending_

  mutable std::mutex mutex_;
  std::string pending_;
  size_t unsent_ = 0;  // pending_ and the rest of sending_
  size_t largest_write_ = 0;
  uint64_t exchange_number_ = 0;
  bool exchange_open_ = false;  // between Dispatch and the last byte handed to the socket
  bool started_ = false, finished_ = false, closed_ = false, flush_scheduled_ = false;
  bool head_only_ = false, http_1_0_ = false, close_after_ = false;
  bool overflowed_ = false, abandoned_ = false;
  BodyFraming framing_ = BodyFraming::kLength;
  std::string more_fields_;  // of the exchange's head
  std::function<void()> on_closed_, on_start_timeout_;
  SteadyTime start_deadline_{};
};

}  // namespace ekiben::http
