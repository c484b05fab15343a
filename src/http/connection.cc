#include "http/connection.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <ctime>
#include <exception>

#include "base/check.h"
#include "base/log.h"
#include "http/content_coding.h"

namespace ekiben::http {
namespace {

using boost::system::error_code;

// The Date field, made once a second by each thread that writes heads.
std::string_view DateNow() {
  thread_local int64_t second = 0;
  thread_local std::string text;
  int64_t now = std::time(nullptr);
  if (now != second) {
    second = now;
    text = HttpDate(now);
  }
  return text;
}

// The writer that a handler holds: a name for one exchange of a connection.
class ExchangeWriter final : public ResponseWriter {
 public:
  // `compress_bytes_min`: JSON from that size on is sent in `coding`.
  ExchangeWriter(std::shared_ptr<Connection> connection, uint64_t number, ContentCoding coding,
                 size_t compress_bytes_min)
      : connection_(std::move(connection)), number_(number), coding_(coding), compress_bytes_min_(compress_bytes_min) {}
  ~ExchangeWriter() override { connection_->Abandon(number_); }
  void Send(int status, const Headers& headers, std::string_view body) override {
    if (coding_ == ContentCoding::kIdentity || body.size() < compress_bytes_min_ || !IsJson(headers))
      return connection_->Send(number_, status, headers, body);
    Headers coded = headers;
    coded.emplace_back("content-encoding", ContentCodingName(coding_));
    coded.emplace_back("vary", "accept-encoding");
    connection_->Send(number_, status, coded, EncodeContent(coding_, body));
  }
  void Start(int status, const Headers& headers) override { connection_->Start(number_, status, headers); }
  void Write(std::string_view chunk) override { connection_->Write(number_, chunk); }
  void Finish() override { connection_->Finish(number_); }
  void OnClosed(std::function<void()> callback) override { connection_->OnClosed(number_, std::move(callback)); }
  void OnStartTimeout(Nanos timeout, std::function<void()> callback) override {
    connection_->OnStartTimeout(number_, timeout, std::move(callback));
  }
  bool closed() const override { return connection_->closed(number_); }

 private:
  static bool IsJson(const Headers& headers) {
    for (const auto& [name, value] : headers)
      if (EqualsIgnoreCase(name, "content-type")) return value.starts_with("application/json");
    return false;
  }

  const std::shared_ptr<Connection> connection_;
  const uint64_t number_;
  const ContentCoding coding_;
  const size_t compress_bytes_min_;
};

}  // namespace

void ServerShared::Notify() {
  std::lock_guard lock(mutex);
  changed.notify_all();
}

Connection::Connection(std::shared_ptr<ServerShared> shared, std::shared_ptr<IoThread> io, asio::ip::tcp::socket socket,
                       std::shared_ptr<const TlsContext> tls)
    : shared_(std::move(shared)),
      io_(std::move(io)),
      socket_(std::move(socket)),
      resume_(io_->context),
      reader_(shared_->config.limits),
      tls_(tls != nullptr ? std::make_unique<TlsSession>(std::move(tls)) : nullptr) {}

Connection::~Connection() = default;

// ---- life, on the I/O thread

void Connection::Open() {
  error_code code;
  socket_.set_option(asio::ip::tcp::no_delay(true), code);
  socket_.non_blocking(true, code);
  auto remote = socket_.remote_endpoint(code);
  if (!code) peer_ = remote.address().to_string();
  io_->connections.emplace(this, shared_from_this());
  if (tls_ != nullptr)
    SetPhase(Phase::kHandshake, shared_->config.header_timeout);
  else
    SetPhase(Phase::kIdle, shared_->config.idle_timeout);
  // The frame holds the connection; it ends when the socket closes.
  asio::co_spawn(
      io_->context, [self = shared_from_this()]() { return self->ReadLoop(); }, asio::detached);
}

void Connection::Close() {
  if (phase_ == Phase::kClosed) return;
  phase_ = Phase::kClosed;
  std::function<void()> on_closed, unused;
  bool left = false, exchange_was_open = false, unfinished = false;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    exchange_was_open = exchange_open_;
    exchange_open_ = false;
    unfinished = exchange_was_open && !finished_;
    left = exchange_was_open && !(finished_ && unsent_ == 0);
    on_closed.swap(on_closed_);
    unused.swap(on_start_timeout_);
    pending_ = std::string();
    unsent_ = 0;
  }
  error_code code;
  socket_.close(code);
  resume_.cancel();
  if (left) shared_->left.fetch_add(1, std::memory_order_relaxed);
  if (unfinished && on_closed) on_closed();
  if (exchange_was_open) shared_->exchanges.fetch_sub(1);
  shared_->connections.fetch_sub(1);
  shared_->Notify();
  io_->connections.erase(this);
}

void Connection::SetPhase(Phase phase, Nanos timeout) {
  phase_ = phase;
  deadline_ = timeout == Nanos::max() ? SteadyTime::max() : std::chrono::steady_clock::now() + timeout;
}

void Connection::CloseIfIdle() {
  if (phase_ == Phase::kIdle || phase_ == Phase::kHandshake) Close();
}

void Connection::CheckDeadlines(SteadyTime now) {
  if (waiting_writable_ && now >= write_deadline_) return TooSlow();
  if (phase_ == Phase::kExchange) {
    std::function<void()> callback;
    {
      std::lock_guard lock(mutex_);
      if (on_start_timeout_ && !started_ && now >= start_deadline_) {
        callback.swap(on_start_timeout_);
      }
    }
    if (callback) callback();
    return;
  }
  if (now < deadline_) return;
  switch (phase_) {
    case Phase::kHeader: return Refuse(408, "header: not complete within the time limit", "");
    case Phase::kBody: return Refuse(408, "body: not complete within the time limit", "");
    default: return Close();
  }
}

void Connection::TooSlow() {
  shared_->slow.fetch_add(1, std::memory_order_relaxed);
  Close();
}

// ---- reading, on the I/O thread

asio::awaitable<void> Connection::ReadLoop() {
  while (phase_ != Phase::kClosed) {
    if (phase_ == Phase::kExchange && reader_.buffered() >= shared_->config.pipeline_bytes_max) {
      reading_paused_ = true;
      resume_.expires_at(SteadyTime::max());
      co_await resume_.async_wait(asio::as_tuple(asio::use_awaitable));
      reading_paused_ = false;
      continue;
    }
    auto [code] = co_await socket_.async_wait(asio::ip::tcp::socket::wait_read, asio::as_tuple(asio::use_awaitable));
    if (phase_ == Phase::kClosed) co_return;
    bool end = static_cast<bool>(code);
    if (!end) ReadSome(end);
    if (end) Close();
  }
}

void Connection::ReadSome(bool& end) {
  error_code code;
  size_t count = socket_.read_some(asio::buffer(io_->read_buffer), code);
  if (code == asio::error::would_block || code == asio::error::interrupted) return;
  end = static_cast<bool>(code);
  if (end || phase_ == Phase::kLinger) return;
  std::string_view bytes(io_->read_buffer.data(), count);
  if (tls_ == nullptr) return Take(bytes);
  end = !Decrypt(bytes);
}

void Connection::Take(std::string_view bytes) {
  reader_.Append(bytes);
  if (phase_ != Phase::kExchange) Process();
}

// False when the session has ended or is broken.
bool Connection::Decrypt(std::string_view bytes) {
  io_->plain.clear();
  bool alive = tls_->Receive(bytes, io_->plain);
  if (phase_ == Phase::kHandshake && tls_->established()) {
    shared_->tls_handshakes.fetch_add(1, std::memory_order_relaxed);
    SetPhase(Phase::kIdle, shared_->config.idle_timeout);
  }
  if (!alive && !tls_->problem().empty()) {
    shared_->tls_failures.fetch_add(1, std::memory_order_relaxed);
    LOG_DEBUG("tls: {}: {}", peer_, tls_->problem());
  }
  if (!io_->plain.empty()) Take(io_->plain);
  if (phase_ != Phase::kClosed && !tls_->Output().empty()) Flush();
  return alive;
}

void Connection::Process() {
  RequestReader::State state = reader_.Advance();
  if (reader_.TakeContinue()) {
    std::lock_guard lock(mutex_);
    static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    pending_.append(kContinue);
    unsent_ += kContinue.size();
    ScheduleFlushLocked();
  }
  const ServerConfig& config = shared_->config;
  switch (state) {
    case RequestReader::State::kIdle:
      if (phase_ != Phase::kIdle) SetPhase(Phase::kIdle, config.idle_timeout);
      return;
    case RequestReader::State::kHeader:
      if (phase_ != Phase::kHeader) SetPhase(Phase::kHeader, config.header_timeout);
      return;
    case RequestReader::State::kBody:
      if (phase_ != Phase::kBody) SetPhase(Phase::kBody, config.body_timeout);
      return;
    case RequestReader::State::kComplete: return Dispatch(reader_.Take());
    case RequestReader::State::kFailed: {
      const auto& failure = reader_.failure();
      return Refuse(failure.status, failure.message, failure.target);
    }
  }
}

void Connection::Dispatch(Request request) {
  SetPhase(Phase::kExchange, Nanos::max());
  shared_->requests.fetch_add(1, std::memory_order_relaxed);
  shared_->exchanges.fetch_add(1);
  request.peer = peer_;
  uint64_t number;
  std::string more_fields = shared_->cors.AnswerFields(request);
  bool preflight = !more_fields.empty() && CorsPolicy::IsPreflight(request);
  if (preflight) more_fields.append(CorsPolicy::PreflightFields(request));
  {
    std::lock_guard lock(mutex_);
    number = ++exchange_number_;
    exchange_open_ = true;
    started_ = finished_ = false;
    head_only_ = request.method == "HEAD";
    http_1_0_ = request.http_1_0;
    close_after_ = !request.keep_alive;
    more_fields_ = std::move(more_fields);
  }
  const ServerConfig& config = shared_->config;
  bool may_compress = !config.may_compress || config.may_compress(request.path);
  ContentCoding coding =
      may_compress ? ChooseContentCoding(request.Header("accept-encoding")) : ContentCoding::kIdentity;
  auto writer = std::make_shared<ExchangeWriter>(shared_from_this(), number, coding, config.compress_bytes_min);
  if (preflight) return writer->Send(204, {}, "");
  try {
    shared_->handler(std::move(request), writer);
  } catch (const std::exception& e) {
    // A library ran out of memory or found what it could not take: this request fails, the server goes on.
    LOG_ERROR("http: a handler threw: {}", e.what());
    writer->Send(500, {{"content-type", "text/plain; charset=utf-8"}}, "Internal Server Error\n");
  }
}

// Answers what never reached the handler, then closes: the rest of the stream cannot be trusted.
void Connection::Refuse(int status, const std::string& message, const std::string& target) {
  shared_->malformed.fetch_add(1, std::memory_order_relaxed);
  ErrorBody error{"text/plain; charset=utf-8", message + "\n"};
  if (shared_->error_body) error = shared_->error_body(status, message, target);
  shared_->exchanges.fetch_add(1);
  SetPhase(Phase::kExchange, Nanos::max());
  uint64_t number;
  {
    std::lock_guard lock(mutex_);
    number = ++exchange_number_;
    exchange_open_ = true;
    started_ = finished_ = head_only_ = http_1_0_ = false;
    close_after_ = true;
    more_fields_.clear();
  }
  Send(number, status, {{"content-type", error.content_type}}, error.body);
}

void Connection::FinishExchange() {
  bool close = false;
  std::function<void()> unused;
  {
    std::lock_guard lock(mutex_);
    exchange_open_ = false;
    close = close_after_ || framing_ == BodyFraming::kClose;
    unused.swap(on_start_timeout_);
  }
  shared_->exchanges.fetch_sub(1);
  if (shared_->draining) {
    shared_->Notify();
    close = true;
  }
  if (close) return BeginLinger();
  SetPhase(Phase::kIdle, shared_->config.idle_timeout);
  if (reading_paused_) resume_.cancel();
  if (reader_.buffered() > 0) Process();
}

// Says "no more" and reads on until the client has closed too: closing with unread bytes would reset the connection
// and could take the response with it.
void Connection::BeginLinger() {
  error_code code;
  if (tls_ != nullptr) {
    tls_->End();
    SendPending(code);
  }
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, code);
  if (code) return Close();
  SetPhase(Phase::kLinger, shared_->config.linger_timeout);
  if (reading_paused_) resume_.cancel();
}

// ---- writing

void Connection::ScheduleFlushLocked() {
  if (flush_scheduled_ || closed_) return;
  flush_scheduled_ = true;
  asio::post(io_->context, [self = shared_from_this()] { self->Flush(); });
}

void Connection::Flush() {
  bool overflowed = false;
  {
    std::lock_guard lock(mutex_);
    flush_scheduled_ = false;
    overflowed = overflowed_;
  }
  if (phase_ == Phase::kClosed) return;
  if (overflowed) return TooSlow();
  if (waiting_writable_) return;
  error_code code;
  bool all = SendPending(code);
  if (code) return Close();
  if (!all) return WaitWritable();
  bool finished, abandoned;
  {
    std::lock_guard lock(mutex_);
    finished = exchange_open_ && finished_ && pending_.empty();
    abandoned = abandoned_;
  }
  if (abandoned) return Close();
  if (finished && phase_ == Phase::kExchange) FinishExchange();
}

// False when the socket takes no more now.
bool Connection::SendPending(error_code& code) {
  for (;;) {
    if (sent_ == sending_.size()) {
      sending_.clear();
      sent_ = 0;
      if (!FillSending()) return true;
    }
    size_t count = socket_.write_some(asio::buffer(sending_.data() + sent_, sending_.size() - sent_), code);
    if (code == asio::error::would_block || code == asio::error::interrupted) {
      code = {};
      return false;
    }
    if (code) return false;
    sent_ += count;
    shared_->sends.fetch_add(1, std::memory_order_relaxed);
    shared_->bytes_sent.fetch_add(count, std::memory_order_relaxed);
    write_deadline_ = std::chrono::steady_clock::now() + shared_->config.write_timeout;
    std::lock_guard lock(mutex_);
    unsent_ -= count;
  }
}

// Takes what waits into sending_, which is empty; false when nothing does.
bool Connection::FillSending() {
  if (tls_ == nullptr) {
    std::lock_guard lock(mutex_);
    std::swap(sending_, pending_);
    return !sending_.empty();
  }
  std::string plain;
  {
    std::lock_guard lock(mutex_);
    std::swap(plain, pending_);
  }
  if (!plain.empty()) tls_->Encrypt(plain);
  std::swap(sending_, tls_->Output());
  std::lock_guard lock(mutex_);
  unsent_ += sending_.size();
  unsent_ -= plain.size();
  return !sending_.empty();
}

void Connection::WaitWritable() {
  waiting_writable_ = true;
  write_deadline_ = std::chrono::steady_clock::now() + shared_->config.write_timeout;
  socket_.async_wait(asio::ip::tcp::socket::wait_write, [self = shared_from_this()](error_code code) {
    self->waiting_writable_ = false;
    if (self->phase_ == Phase::kClosed) return;
    if (code) return self->Close();
    self->Flush();
  });
}

void Connection::AppendHeadLocked(int status, const Headers& headers, BodyFraming framing, size_t length) {
  started_ = true;
  framing_ = framing;
  if (shared_->draining) close_after_ = true;
  size_t before = pending_.size();
  AppendResponseHead(pending_, status, headers, framing, length, close_after_ || framing == BodyFraming::kClose,
                     DateNow(), more_fields_);
  unsent_ += pending_.size() - before;
}

void Connection::Send(uint64_t number, int status, const Headers& headers, std::string_view body) {
  std::function<void()> unused;
  std::lock_guard lock(mutex_);
  if (!OpenLocked(number) || started_) return;
  AppendHeadLocked(status, headers, BodyFraming::kLength, body.size());
  if (!head_only_) {
    pending_.append(body);
    unsent_ += body.size();
  }
  finished_ = true;
  unused.swap(on_closed_);
  ScheduleFlushLocked();
}

void Connection::Start(uint64_t number, int status, const Headers& headers) {
  std::lock_guard lock(mutex_);
  if (!OpenLocked(number) || started_) return;
  AppendHeadLocked(status, headers, http_1_0_ ? BodyFraming::kClose : BodyFraming::kChunked, 0);
  largest_write_ = 0;
  ScheduleFlushLocked();
}

void Connection::Write(uint64_t number, std::string_view chunk) {
  std::lock_guard lock(mutex_);
  if (!OpenLocked(number) || !started_ || head_only_ || overflowed_) return;
  const ServerConfig& config = shared_->config;
  largest_write_ = std::max(largest_write_, chunk.size());
  if (unsent_ > std::max(config.send_buffer_bytes_max, config.send_buffer_writes_min * largest_write_)) {
    overflowed_ = true;
    return ScheduleFlushLocked();
  }
  size_t before = pending_.size();
  if (framing_ == BodyFraming::kChunked)
    AppendChunk(pending_, chunk);
  else
    pending_.append(chunk);
  unsent_ += pending_.size() - before;
  ScheduleFlushLocked();
}

void Connection::Finish(uint64_t number) {
  std::function<void()> unused;
  std::lock_guard lock(mutex_);
  if (!OpenLocked(number) || !started_) return;
  if (framing_ == BodyFraming::kChunked && !head_only_) {
    pending_.append("0\r\n\r\n");
    unsent_ += 5;
  }
  finished_ = true;
  unused.swap(on_closed_);
  ScheduleFlushLocked();
}

void Connection::OnClosed(uint64_t number, std::function<void()> callback) {
  {
    std::lock_guard lock(mutex_);
    if (OpenLocked(number)) {
      on_closed_ = std::move(callback);
      return;
    }
    if (number != exchange_number_ || finished_) return;
  }
  callback();  // closed before it was finished
}

void Connection::OnStartTimeout(uint64_t number, Nanos timeout, std::function<void()> callback) {
  std::lock_guard lock(mutex_);
  if (!OpenLocked(number) || started_) return;
  start_deadline_ = std::chrono::steady_clock::now() + timeout;
  on_start_timeout_ = std::move(callback);
}

void Connection::Abandon(uint64_t number) {
  {
    std::lock_guard lock(mutex_);
    if (!OpenLocked(number)) return;
    if (started_) {
      abandoned_ = true;
      return ScheduleFlushLocked();
    }
  }
  Send(number, 500, {{"content-type", "text/plain; charset=utf-8"}}, "Internal Server Error\n");
}

bool Connection::closed(uint64_t number) const {
  std::lock_guard lock(mutex_);
  return number != exchange_number_ || closed_;
}

}  // namespace ekiben::http
