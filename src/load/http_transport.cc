#include "load/http_transport.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "base/check.h"
#include "load/response_parser.h"
#include "load/stream_chunk.h"

namespace ekiben::load {
namespace {

constexpr size_t kReadMax = 256 << 10;
constexpr size_t kErrorBodyMax = 4 << 10;

void AppendJsonString(std::string_view text, std::string& out) {
  out += '"';
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<int>(c));
    } else {
      out += c;
    }
  }
  out += '"';
}

// The kernel's receive time of what `message` returned (SO_TIMESTAMPNS), as an age.
bool AgeOf(msghdr& message, Nanos& age) {
  for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at)) {
    if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SO_TIMESTAMPNS) continue;
    timespec stamp;
    std::memcpy(&stamp, CMSG_DATA(at), sizeof stamp);
    Nanos arrived = std::chrono::seconds(stamp.tv_sec) + Nanos(stamp.tv_nsec);
    age = SystemClock::Get().WallNow() - arrived;
    return true;
  }
  return false;
}

}  // namespace

std::string_view ApiPath(Api api) {
  switch (api) {
    case Api::kCompletions: return "/v1/completions";
    case Api::kChat: return "/v1/chat/completions";
    case Api::kGenerate: return "/generate";
  }
  return {};
}

std::string_view FailureName(Failure failure) {
  static constexpr std::string_view kNames[] = {"connect", "status", "closed", "protocol", "stream error", "timeout"};
  return kNames[static_cast<size_t>(failure)];
}

struct HttpTransport::Connection {
  enum class State : uint8_t { kClosed, kConnecting, kSending, kReading, kIdle };
  int32_t user = 0;
  int fd = -1;
  State state = State::kClosed;
  bool reused = false;    // the request in flight went out on a connection that had served another
  bool saw_done = false;  // data: [DONE]
  bool watching_writable = false;
  int32_t piece_bytes = 0;  // of an HTTP chunk that is not yet complete (/generate)
  Nanos connect_begin{};
  std::string out;
  size_t out_sent = 0;
  std::string error_body;
  ResponseParser parser;
  SseParser sse;

  // Ready for the answer to `out`.
  void Reset() {
    out_sent = 0;
    saw_done = false;
    piece_bytes = 0;
    error_body.clear();
    parser.Reset();
    sse.Reset();
  }
};

HttpTransport::HttpTransport(const Endpoint& endpoint, const RequestShape& shape, const Clock& clock)
    : endpoint_(endpoint), shape_(shape), clock_(clock), buffer_(new char[kReadMax]) {}

Result<std::unique_ptr<HttpTransport>> HttpTransport::Create(const Endpoint& endpoint, const RequestShape& shape,
                                                             int32_t users, const Clock& clock) {
  std::unique_ptr<HttpTransport> out(new HttpTransport(endpoint, shape, clock));
  out->epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (out->epoll_ < 0) return Error(Code::kInternal, fmt::format("epoll_create1: {}", std::strerror(errno)));
  for (int32_t user = 0; user < users; ++user) {
    out->connections_.push_back(std::make_unique<Connection>());
    out->connections_.back()->user = user;
  }
  return out;
}

HttpTransport::~HttpTransport() {
  for (auto& connection : connections_) Close(*connection);
  if (epoll_ >= 0) close(epoll_);
}

void HttpTransport::BuildRequest(const Prompt& prompt, std::string& out) {
  body_.clear();
  auto body = std::back_inserter(body_);
  body_ += '{';
  if (!shape_.model.empty()) {
    body_ += "\"model\":";
    AppendJsonString(shape_.model, body_);
    body_ += ',';
  }
  if (shape_.api == Api::kChat) {
    body_ += "\"messages\":";
    if (prompt.messages != nullptr) {
      body_ += prompt.messages_json;
    } else {
      body_ += "[{\"role\":\"user\",\"content\":";
      AppendJsonString(prompt.text, body_);
      body_ += "}]";
    }
  } else {
    body_ += "\"prompt\":";
    AppendJsonString(prompt.text, body_);
    if (shape_.api == Api::kGenerate) body_ += ",\"system_prompt\":\"\"";
  }
  fmt::format_to(body, ",\"max_tokens\":{}", prompt.max_tokens);
  if (shape_.api != Api::kGenerate) {
    fmt::format_to(body,
                   ",\"temperature\":{},\"stream\":true,"
                   "\"stream_options\":{{\"include_usage\":true,\"continuous_usage_stats\":true}}",
                   shape_.temperature);
  }
  if (shape_.ignore_eos) fmt::format_to(body, ",\"ignore_eos\":true,\"min_tokens\":{}", prompt.max_tokens);
  if (!shape_.extra_json.empty()) {
    body_ += ',';
    body_ += shape_.extra_json;
  }
  body_ += '}';
  out.clear();
  fmt::format_to(std::back_inserter(out),
                 "POST {}{} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n"
                 "Content-Length: {}\r\n{}\r\n",
                 endpoint_.base_path, ApiPath(shape_.api), endpoint_.authority(), body_.size(), shape_.headers);
  out += body_;
}

void HttpTransport::Send(int32_t user, const Prompt& prompt, StreamEventSink& sink) {
  Connection& connection = *connections_[static_cast<size_t>(user)];
  CHECK(connection.state == Connection::State::kClosed || connection.state == Connection::State::kIdle);
  BuildRequest(prompt, connection.out);
  connection.Reset();
  connection.reused = connection.state == Connection::State::kIdle;
  if (connection.reused) {
    connection.state = Connection::State::kSending;
  } else if (!Open(connection, sink)) {
    return;
  }
  if (connection.state == Connection::State::kSending) Write(connection, sink);
}

// Starts a new connection for connection.out. False: it failed and the sink knows.
bool HttpTransport::Open(Connection& connection, StreamEventSink& sink) {
  connection.connect_begin = clock_.Now();
  connection.reused = false;
  connection.fd = socket(endpoint_.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int rc = -1;
  if (connection.fd >= 0) {
    int on = 1;
    setsockopt(connection.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(connection.fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    rc = connect(connection.fd, reinterpret_cast<const sockaddr*>(&endpoint_.address), endpoint_.address_bytes);
  }
  if (rc != 0 && errno != EINPROGRESS) {
    Fail(connection, Failure::kConnect, std::strerror(errno), clock_.Now(), sink);
    return false;
  }
  epoll_event event{};
  event.data.u32 = static_cast<uint32_t>(connection.user);
  connection.watching_writable = rc != 0;
  event.events = EPOLLIN | (rc != 0 ? EPOLLOUT : 0u);
  epoll_ctl(epoll_, EPOLL_CTL_ADD, connection.fd, &event);
  connection.state = rc != 0 ? Connection::State::kConnecting : Connection::State::kSending;
  if (rc == 0) sink.OnConnected(clock_.Now() - connection.connect_begin);
  return true;
}

void HttpTransport::Watch(Connection& connection, bool writable) {
  if (connection.watching_writable == writable) return;
  connection.watching_writable = writable;
  epoll_event event{};
  event.data.u32 = static_cast<uint32_t>(connection.user);
  event.events = EPOLLIN | (writable ? EPOLLOUT : 0u);
  epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event);
}

void HttpTransport::Write(Connection& connection, StreamEventSink& sink) {
  // Stamped before the call that takes the last byte: a busy machine may run the server before send() returns, and a
  // later stamp would hide that time.
  Nanos when{};
  while (connection.out_sent < connection.out.size()) {
    when = clock_.Now();
    ssize_t n = send(connection.fd, connection.out.data() + connection.out_sent,
                     connection.out.size() - connection.out_sent, MSG_NOSIGNAL);
    if (n > 0) {
      connection.out_sent += static_cast<size_t>(n);
    } else if (errno == EAGAIN) {
      Watch(connection, true);
      return;
    } else if (errno != EINTR) {
      OnPeerClosed(connection, errno, clock_.Now(), sink);
      return;
    }
  }
  Watch(connection, false);
  connection.state = Connection::State::kReading;
  StreamEvent event;
  event.kind = StreamEvent::Kind::kSent;
  event.user = connection.user;
  event.when = when;
  sink.OnEvent(event);
}

void HttpTransport::Read(Connection& connection, StreamEventSink& sink) {
  iovec piece{buffer_.get(), kReadMax};
  alignas(cmsghdr) char control[128];
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n = recvmsg(connection.fd, &message, 0);
  Nanos when = clock_.Now();
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    OnPeerClosed(connection, n < 0 ? errno : 0, when, sink);
    return;
  }
  if (Nanos age{}; AgeOf(message, age)) sink.OnReadLag(age);
  OnBytes(connection, {buffer_.get(), static_cast<size_t>(n)}, when, sink);
}

void HttpTransport::OnBytes(Connection& connection, std::string_view input, Nanos when, StreamEventSink& sink) {
  if (connection.state == Connection::State::kIdle) {  // bytes that nobody asked for: 408 before a close, usually
    Close(connection);
    return;
  }
  std::string_view body;
  while (true) {
    switch (connection.parser.Next(input, body)) {
      case ResponseParser::Event::kNeedMore: return;
      case ResponseParser::Event::kHeaders: break;
      case ResponseParser::Event::kBody:
        if (!OnBody(connection, body, when, sink)) return;
        break;
      case ResponseParser::Event::kDone: OnAnswerEnd(connection, when, sink); return;
      case ResponseParser::Event::kError:
        Fail(connection, Failure::kProtocol, connection.parser.error(), when, sink);
        return;
    }
  }
}

// False: the request has failed and the connection is gone.
bool HttpTransport::OnBody(Connection& connection, std::string_view body, Nanos when, StreamEventSink& sink) {
  if (connection.parser.status() != 200) {
    size_t room = kErrorBodyMax - std::min(kErrorBodyMax, connection.error_body.size());
    connection.error_body.append(body.substr(0, room));
    return true;
  }
  if (shape_.api == Api::kGenerate) {
    connection.piece_bytes += static_cast<int32_t>(body.size());
    if (!connection.parser.piece_complete()) return true;
    StreamEvent event;
    event.kind = StreamEvent::Kind::kChunk;
    event.user = connection.user;
    event.when = when;
    event.text_bytes = std::exchange(connection.piece_bytes, 0);
    sink.OnEvent(event);
    return true;
  }
  std::string_view data;
  while (connection.sse.Next(body, data)) {
    if (!OnSseData(connection, data, when, sink)) return false;
  }
  if (connection.sse.overflow()) {
    Fail(connection, Failure::kProtocol, "an event over 16 MiB", when, sink);
    return false;
  }
  return true;
}

bool HttpTransport::OnSseData(Connection& connection, std::string_view data, Nanos when, StreamEventSink& sink) {
  if (data == "[DONE]") {
    connection.saw_done = true;
    return true;
  }
  StreamChunk chunk = ScanStreamChunk(data);
  if (chunk.error || connection.sse.error_event()) {
    std::string_view text = chunk.error_text.empty() ? data.substr(0, 200) : chunk.error_text;
    Fail(connection, Failure::kStream, text, when, sink);
    return false;
  }
  if (!chunk.valid) {
    Fail(connection, Failure::kProtocol, "an event that is no JSON object", when, sink);
    return false;
  }
  StreamEvent event;
  event.kind = StreamEvent::Kind::kChunk;
  event.user = connection.user;
  event.when = when;
  event.output_tokens_total = chunk.output_tokens;
  event.prompt_tokens = chunk.prompt_tokens;
  event.text_bytes = chunk.text_bytes;
  sink.OnEvent(event);
  return true;
}

void HttpTransport::OnAnswerEnd(Connection& connection, Nanos when, StreamEventSink& sink) {
  if (connection.parser.status() != 200) {
    Fail(connection, Failure::kStatus, ErrorMessageOf(connection.error_body), when, sink);
    return;
  }
  if (shape_.api != Api::kGenerate && !connection.saw_done) {
    Fail(connection, Failure::kClosed, "the stream ended without [DONE]", when, sink);
    return;
  }
  if (connection.parser.keep_alive() && connection.state == Connection::State::kReading) {
    connection.state = Connection::State::kIdle;
  } else {
    Close(connection);
  }
  StreamEvent event;
  event.kind = StreamEvent::Kind::kEnd;
  event.user = connection.user;
  event.when = when;
  sink.OnEvent(event);
}

void HttpTransport::OnPeerClosed(Connection& connection, int error, Nanos when, StreamEventSink& sink) {
  switch (connection.state) {
    case Connection::State::kIdle: Close(connection); return;
    case Connection::State::kConnecting: Fail(connection, Failure::kConnect, std::strerror(error), when, sink); return;
    default: break;
  }
  if (error == 0 && connection.parser.CloseCompletes()) {
    OnAnswerEnd(connection, when, sink);
    return;
  }
  // RFC 9112 9.3.1: a kept connection may close just as the next request leaves; no byte of an answer was seen.
  if (connection.reused && !connection.parser.started()) {
    Close(connection);
    connection.Reset();
    sink.OnReconnect();
    if (Open(connection, sink) && connection.state == Connection::State::kSending) Write(connection, sink);
    return;
  }
  Fail(connection, Failure::kClosed, error != 0 ? std::strerror(error) : "closed inside the answer", when, sink);
}

// Ends the request and the connection. The message may lie in the connection's own buffers.
void HttpTransport::Fail(Connection& connection, Failure failure, std::string_view message, Nanos when,
                         StreamEventSink& sink) {
  StreamEvent event;
  event.kind = StreamEvent::Kind::kFailed;
  event.user = connection.user;
  event.when = when;
  event.failure = failure;
  event.status = failure == Failure::kStatus ? connection.parser.status() : 0;
  event.message = message;
  // A refused request (429, 400) leaves the connection in order.
  bool keep =
      failure == Failure::kStatus && connection.parser.keep_alive() && connection.state == Connection::State::kReading;
  connection.state = Connection::State::kIdle;
  if (!keep) Close(connection);
  sink.OnEvent(event);
}

void HttpTransport::Close(Connection& connection) {
  if (connection.fd >= 0) close(connection.fd);  // also leaves the epoll set
  connection.fd = -1;
  connection.state = Connection::State::kClosed;
}

void HttpTransport::Abort(int32_t user) {
  Connection& connection = *connections_[static_cast<size_t>(user)];
  if (connection.state != Connection::State::kIdle) Close(connection);
}

void HttpTransport::Poll(Nanos until, StreamEventSink& sink) {
  Nanos wait = std::max(until - clock_.Now(), Nanos(0));
  timespec timeout{static_cast<time_t>(wait.count() / 1'000'000'000), static_cast<long>(wait.count() % 1'000'000'000)};
  epoll_event events[256];
  int n = epoll_pwait2(epoll_, events, 256, &timeout, nullptr);
  for (int i = 0; i < n; ++i) {
    Connection& connection = *connections_[events[i].data.u32];
    if (connection.state == Connection::State::kConnecting && (events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
      int error = 0;
      socklen_t size = sizeof error;
      getsockopt(connection.fd, SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) {
        OnPeerClosed(connection, error, clock_.Now(), sink);
        continue;
      }
      sink.OnConnected(clock_.Now() - connection.connect_begin);
      connection.state = Connection::State::kSending;
      Write(connection, sink);
      continue;
    }
    if ((events[i].events & EPOLLOUT) && connection.state == Connection::State::kSending) Write(connection, sink);
    if ((events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) && connection.fd >= 0) Read(connection, sink);
  }
}

}  // namespace ekiben::load
