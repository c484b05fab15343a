#include "http/server.h"

#include <fmt/format.h>
#include <pthread.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <list>

#include "base/check.h"
#include "base/log.h"
#include "http/connection.h"

namespace ekiben::http {
namespace {

using asio::ip::tcp;
using boost::system::error_code;

class AsioServer final : public Server {
 public:
  explicit AsioServer(const ServerConfig& config) : shared_(std::make_shared<ServerShared>(config)) {
    for (int i = 0; i < config.io_threads; ++i) io_.push_back(std::make_shared<IoThread>());
  }
  ~AsioServer() override { Stop(); }

  Result<void> Listen();
  void SetHandler(Handler handler) override { shared_->handler = std::move(handler); }
  void SetErrorBody(ErrorBodyFunction function) override { shared_->error_body = std::move(function); }
  void Start() override;
  bool Drain(Nanos timeout) override;
  void Stop() override;
  uint16_t port() const override { return port_; }
  ServerStats stats() const override;

 private:
  using WorkGuard = asio::executor_work_guard<asio::io_context::executor_type>;

  Result<void> ListenOn(uint16_t port);
  asio::awaitable<void> AcceptLoop(tcp::acceptor& acceptor);
  static asio::awaitable<void> SweepLoop(std::shared_ptr<IoThread> io, std::shared_ptr<ServerShared> shared);
  void Adopt(tcp::socket socket, const std::shared_ptr<IoThread>& io);
  void CloseAcceptors();

  const std::shared_ptr<ServerShared> shared_;
  std::vector<std::shared_ptr<IoThread>> io_;
  std::vector<WorkGuard> guards_;
  std::list<tcp::acceptor> acceptors_;  // one for each port, all on the first I/O thread
  std::unique_ptr<TlsContexts> tls_;    // null: plain
  size_t next_io_ = 0;                  // the thread that the next connection goes to
  uint16_t port_ = 0;
  bool started_ = false, stopped_ = false;
};

Error ListenError(const std::string& host, uint16_t port, std::string_view what, const error_code& code) {
  if (code == asio::error::address_in_use)
    return Error(
        Code::kUnavailable,
        fmt::format("port: {} on {} is in use by another process; stop it or choose another --port", port, host),
        "port");
  if (code == asio::error::access_denied)
    return Error(Code::kInvalid,
                 fmt::format("port: {} on {} is not allowed to this user; use one from 1024 up", port, host), "port");
  return Error(Code::kUnavailable, fmt::format("{} on {} port {}: {}", what, host, port, code.message()), "port");
}

Result<void> AsioServer::Listen() {
  const ServerConfig& config = shared_->config;
  if (config.tls.enabled()) {
    ASSIGN_OR_RETURN(tls_, TlsContexts::Open(config.tls));
  } else if (!config.tls.keyfile.empty() || !config.tls.ca_certs.empty()) {
    return Error(Code::kInvalid, "ssl_certfile: wanted beside ssl_keyfile and ssl_ca_certs", "ssl_certfile");
  }
  RETURN_IF_ERROR(ListenOn(config.port));
  port_ = acceptors_.front().local_endpoint().port();
  for (uint16_t port : config.more_ports) RETURN_IF_ERROR(ListenOn(port));
  return {};
}

Result<void> AsioServer::ListenOn(uint16_t port) {
  const ServerConfig& config = shared_->config;
  error_code code;
  auto address = asio::ip::make_address(config.host == "localhost" ? "127.0.0.1" : config.host, code);
  if (code)
    return Error(Code::kInvalid, fmt::format("host: '{}' is no IP address to listen on, e.g. 0.0.0.0", config.host),
                 "host");
  tcp::endpoint endpoint(address, port);
  tcp::acceptor& acceptor = acceptors_.emplace_back(io_[0]->context);
  acceptor.open(endpoint.protocol(), code);
  if (code) return ListenError(config.host, port, "open", code);
  acceptor.set_option(asio::socket_base::reuse_address(true), code);
  acceptor.bind(endpoint, code);
  if (code) return ListenError(config.host, port, "bind", code);
  acceptor.listen(config.listen_backlog, code);
  if (code) return ListenError(config.host, port, "listen", code);
  return {};
}

void AsioServer::Start() {
  CHECK(!started_ && shared_->handler != nullptr);
  started_ = true;
  for (tcp::acceptor& acceptor : acceptors_)
    asio::co_spawn(
        io_[0]->context, [this, &acceptor] { return AcceptLoop(acceptor); }, asio::detached);
  for (auto& io : io_) {
    guards_.emplace_back(io->context.get_executor());
    asio::co_spawn(
        io->context, [io, shared = shared_] { return SweepLoop(io, shared); }, asio::detached);
    io->thread = std::thread([io] {
      pthread_setname_np(pthread_self(), "http io");
      io->context.run();
    });
  }
}

asio::awaitable<void> AsioServer::AcceptLoop(tcp::acceptor& acceptor) {
  for (;;) {
    std::shared_ptr<IoThread> io = io_[next_io_++ % io_.size()];
    auto [code, socket] = co_await acceptor.async_accept(io->context, asio::as_tuple(asio::use_awaitable));
    if (!acceptor.is_open()) co_return;
    if (code) {
      // Out of descriptors, or the client left already: the listener stays up.
      LOG_WARNING("http: accept: {}", code.message());
      asio::steady_timer pause(io_[0]->context, std::chrono::milliseconds(50));
      co_await pause.async_wait(asio::as_tuple(asio::use_awaitable));
      continue;
    }
    Adopt(std::move(socket), io);
  }
}

void AsioServer::Adopt(tcp::socket socket, const std::shared_ptr<IoThread>& io) {
  shared_->accepted.fetch_add(1, std::memory_order_relaxed);
  if (shared_->connections.load() >= shared_->config.connections_max) {
    shared_->refused.fetch_add(1, std::memory_order_relaxed);
    static constexpr std::string_view kFull =
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n";
    error_code code;
    socket.non_blocking(true, code);
    socket.write_some(asio::buffer(kFull), code);
    socket.shutdown(tcp::socket::shutdown_send, code);
    return;
  }
  shared_->connections.fetch_add(1);
  std::shared_ptr<const TlsContext> tls;
  if (tls_ != nullptr) {
    tls = tls_->Current(std::chrono::steady_clock::now().time_since_epoch());
    shared_->tls_reloads.store(tls_->reloads(), std::memory_order_relaxed);
  }
  asio::post(io->context, [shared = shared_, io, socket = std::move(socket), tls = std::move(tls)]() mutable {
    auto connection = std::make_shared<Connection>(shared, io, std::move(socket), std::move(tls));
    connection->Open();
    if (io->stopping) connection->Close();
  });
}

asio::awaitable<void> AsioServer::SweepLoop(std::shared_ptr<IoThread> io, std::shared_ptr<ServerShared> shared) {
  std::vector<std::shared_ptr<Connection>> snapshot;  // closing one takes it out of the map
  while (!io->stopping) {
    io->sweep_timer.expires_after(shared->config.sweep_period);
    co_await io->sweep_timer.async_wait(asio::as_tuple(asio::use_awaitable));
    auto now = std::chrono::steady_clock::now();
    for (const auto& [key, connection] : io->connections) snapshot.push_back(connection);
    for (const auto& connection : snapshot) connection->CheckDeadlines(now);
    snapshot.clear();
  }
}

void AsioServer::CloseAcceptors() {
  asio::post(io_[0]->context, [this] {
    error_code code;
    for (tcp::acceptor& acceptor : acceptors_) acceptor.close(code);
  });
}

bool AsioServer::Drain(Nanos timeout) {
  auto deadline = std::chrono::steady_clock::now() + timeout;
  shared_->draining = true;
  if (!started_ || stopped_) return true;
  CloseAcceptors();
  for (auto& io : io_) {
    asio::post(io->context, [io] {
      std::vector<std::shared_ptr<Connection>> snapshot;
      for (const auto& [key, connection] : io->connections) snapshot.push_back(connection);
      for (const auto& connection : snapshot) connection->CloseIfIdle();
    });
  }
  std::unique_lock lock(shared_->mutex);
  return shared_->changed.wait_until(lock, deadline, [&] { return shared_->exchanges.load() == 0; });
}

void AsioServer::Stop() {
  if (!started_ || stopped_) return;
  stopped_ = true;
  CloseAcceptors();
  for (auto& io : io_) {
    asio::post(io->context, [io] {
      io->stopping = true;
      io->sweep_timer.cancel();
      std::vector<std::shared_ptr<Connection>> snapshot;
      for (const auto& [key, connection] : io->connections) snapshot.push_back(connection);
      for (const auto& connection : snapshot) connection->Close();
    });
  }
  // The contexts run out of work once every coroutine has seen its socket closed: nothing is left that holds them.
  guards_.clear();
  for (auto& io : io_) io->thread.join();
}

ServerStats AsioServer::stats() const {
  ServerStats stats;
  stats.connections_accepted = shared_->accepted;
  stats.connections_refused = shared_->refused;
  stats.requests = shared_->requests;
  stats.requests_malformed = shared_->malformed;
  stats.clients_left = shared_->left;
  stats.clients_too_slow = shared_->slow;
  stats.bytes_sent = shared_->bytes_sent;
  stats.sends = shared_->sends;
  stats.tls_handshakes = shared_->tls_handshakes;
  stats.tls_failures = shared_->tls_failures;
  stats.tls_reloads = shared_->tls_reloads;
  stats.connections = shared_->connections;
  return stats;
}

}  // namespace

Result<std::unique_ptr<Server>> Server::Create(const ServerConfig& config) {
  if (config.io_threads < 1 || config.io_threads > 64)
    return Error(Code::kInvalid, fmt::format("io_threads: {} is outside [1, 64]", config.io_threads), "io_threads");
  auto server = std::make_unique<AsioServer>(config);
  RETURN_IF_ERROR(server->Listen());
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace ekiben::http
