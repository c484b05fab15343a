#include "http/server.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <optional>

#include "base/check.h"
#include "base/log.h"
#include "http/connection.h"

namespace ekiben::http {
namespace {

using asio::ip::tcp;
using boost::system::error_code;

class AsioServer final : public Server {
 public:
  explicit AsioServer(const ServerConfig& config) : shared_(std::make_shared<ServerShared>()) {
    shared_->config = config;
    for (int i = 0; i < config.io_threads; ++i) io_.push_back(std::make_shared<IoThread>());
    acceptor_.emplace(io_[0]->context);
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

  asio::awaitable<void> AcceptLoop();
  static asio::awaitable<void> SweepLoop(std::shared_ptr<IoThread> io, std::shared_ptr<ServerShared> shared);
  void Adopt(tcp::socket socket, const std::shared_ptr<IoThread>& io);
  void CloseAcceptor();

  const std::shared_ptr<ServerShared> shared_;
  std::vector<std::shared_ptr<IoThread>> io_;
  std::vector<WorkGuard> guards_;
  std::optional<tcp::acceptor> acceptor_;
  uint16_t port_ = 0;
  bool started_ = false, stopped_ = false;
};

Error ListenError(const ServerConfig& config, std::string_view what, const error_code& code) {
  if (code == asio::error::address_in_use)
    return Error(Code::kUnavailable,
                 fmt::format("port: {} on {} is in use by another process; stop it or choose another --port",
                             config.port, config.host),
                 "port");
  if (code == asio::error::access_denied)
    return Error(
        Code::kInvalid,
        fmt::format("port: {} on {} is not allowed to this user; use one from 1024 up", config.port, config.host),
        "port");
  return Error(Code::kUnavailable, fmt::format("{} on {} port {}: {}", what, config.host, config.port, code.message()),
               "port");
}

Result<void> AsioServer::Listen() {
  const ServerConfig& config = shared_->config;
  error_code code;
  auto address = asio::ip::make_address(config.host == "localhost" ? "127.0.0.1" : config.host, code);
  if (code)
    return Error(Code::kInvalid, fmt::format("host: '{}' is no IP address to listen on, e.g. 0.0.0.0", config.host),
                 "host");
  tcp::endpoint endpoint(address, config.port);
  acceptor_->open(endpoint.protocol(), code);
  if (code) return ListenError(config, "open", code);
  acceptor_->set_option(asio::socket_base::reuse_address(true), code);
  acceptor_->bind(endpoint, code);
  if (code) return ListenError(config, "bind", code);
  acceptor_->listen(config.listen_backlog, code);
  if (code) return ListenError(config, "listen", code);
  port_ = acceptor_->local_endpoint().port();
  return {};
}

void AsioServer::Start() {
  CHECK(!started_ && shared_->handler != nullptr);
  started_ = true;
  asio::co_spawn(
      io_[0]->context, [this] { return AcceptLoop(); }, asio::detached);
  for (auto& io : io_) {
    guards_.emplace_back(io->context.get_executor());
    asio::co_spawn(
        io->context, [io, shared = shared_] { return SweepLoop(io, shared); }, asio::detached);
    io->thread = std::thread([io] { io->context.run(); });
  }
}

asio::awaitable<void> AsioServer::AcceptLoop() {
  for (size_t next = 0;; next = (next + 1) % io_.size()) {
    std::shared_ptr<IoThread> io = io_[next];
    auto [code, socket] = co_await acceptor_->async_accept(io->context, asio::as_tuple(asio::use_awaitable));
    if (!acceptor_->is_open()) co_return;
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
  asio::post(io->context, [shared = shared_, io, socket = std::move(socket)]() mutable {
    auto connection = std::make_shared<Connection>(shared, io, std::move(socket));
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

void AsioServer::CloseAcceptor() {
  asio::post(io_[0]->context, [this] {
    error_code code;
    acceptor_->close(code);
  });
}

bool AsioServer::Drain(Nanos timeout) {
  auto deadline = std::chrono::steady_clock::now() + timeout;
  shared_->draining = true;
  if (!started_ || stopped_) return true;
  CloseAcceptor();
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
  CloseAcceptor();
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
