#include "load/endpoint.h"

#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "load/response_parser.h"

namespace ekiben::load {
namespace {

constexpr size_t kBodyMax = size_t{64} << 20;
constexpr size_t kMessageMax = 200;

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

Error CallError(const Endpoint& endpoint, std::string_view path, std::string_view why) {
  return Error(Code::kUnavailable, fmt::format("http://{}{}: {}", endpoint.authority(), path, why), "url");
}

// False: `deadline` passed first.
bool WaitFor(int fd, short events, Nanos deadline) {
  while (true) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - SystemClock::Get().Now()).count();
    if (left <= 0) return false;
    pollfd entry{fd, events, 0};
    int n = poll(&entry, 1, static_cast<int>(std::min<int64_t>(left, 60'000)));
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) return false;
  }
}

Result<void> Connect(const Endpoint& endpoint, std::string_view path, int fd, Nanos deadline) {
  if (connect(fd, reinterpret_cast<const sockaddr*>(&endpoint.address), endpoint.address_bytes) == 0) return {};
  if (errno != EINPROGRESS) return CallError(endpoint, path, std::strerror(errno));
  if (!WaitFor(fd, POLLOUT, deadline)) return CallError(endpoint, path, "no connection in time");
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error != 0) return CallError(endpoint, path, std::strerror(error));
  return {};
}

Result<void> SendAll(const Endpoint& endpoint, std::string_view path, int fd, std::string_view bytes, Nanos deadline) {
  while (!bytes.empty()) {
    ssize_t n = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      if (!WaitFor(fd, POLLOUT, deadline)) return CallError(endpoint, path, "the request was not taken in time");
    } else if (errno != EINTR) {
      return CallError(endpoint, path, std::strerror(errno));
    }
  }
  return {};
}

Result<CallResult> Receive(const Endpoint& endpoint, std::string_view path, int fd, Nanos deadline) {
  CallResult out;
  ResponseParser parser;
  char buffer[16 << 10];
  while (true) {
    ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      if (!WaitFor(fd, POLLIN, deadline)) return CallError(endpoint, path, "no answer in time");
      continue;
    }
    if (n < 0) return CallError(endpoint, path, std::strerror(errno));
    if (n == 0 && !parser.CloseCompletes()) return CallError(endpoint, path, "closed before the answer's end");
    std::string_view input(buffer, static_cast<size_t>(n)), body;
    auto event = ResponseParser::Event::kDone;
    while (n > 0 && (event = parser.Next(input, body)) != ResponseParser::Event::kNeedMore) {
      if (event == ResponseParser::Event::kBody) out.body.append(body);
      if (event == ResponseParser::Event::kError) return CallError(endpoint, path, parser.error());
      if (event == ResponseParser::Event::kDone) break;
      if (out.body.size() > kBodyMax) return CallError(endpoint, path, "an answer over 64 MiB");
    }
    out.status = parser.status();
    if (event == ResponseParser::Event::kDone) return out;
  }
}

}  // namespace

std::string Endpoint::authority() const {
  return host.find(':') == std::string::npos ? host + ":" + port : "[" + host + "]:" + port;
}

Result<Endpoint> ResolveEndpoint(std::string_view url) {
  Endpoint out;
  std::string_view rest = url;
  if (rest.starts_with("https://")) {
    return Error(Code::kUnsupported, fmt::format("url: '{}' is https; only http:// is spoken here", url), "url");
  }
  if (rest.starts_with("http://")) rest.remove_prefix(7);
  size_t slash = std::min(rest.find('/'), rest.size());
  out.base_path = rest.substr(slash);
  while (!out.base_path.empty() && out.base_path.back() == '/') out.base_path.pop_back();
  std::string_view authority = rest.substr(0, slash);
  size_t colon = authority.rfind(':'), bracket = authority.rfind(']');
  if (colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket)) {
    out.port = authority.substr(colon + 1);
    authority = authority.substr(0, colon);
  } else {
    out.port = "80";
  }
  if (authority.starts_with('[') && authority.ends_with(']')) authority = authority.substr(1, authority.size() - 2);
  out.host = authority;
  bool digits = !out.port.empty() && out.port.find_first_not_of("0123456789") == std::string::npos;
  if (out.host.empty() || !digits || out.port.size() > 5 || std::stoi(out.port) > 65535) {
    return Error(Code::kInvalid, fmt::format("url: '{}' is not http://HOST:PORT", url), "url");
  }
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  int rc = getaddrinfo(out.host.c_str(), out.port.c_str(), &hints, &found);
  std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  if (rc != 0) {
    return Error(Code::kNotFound, fmt::format("url: host '{}' not found: {}", out.host, gai_strerror(rc)), "url");
  }
  // IPv4 first: "localhost" of a server that listens on 0.0.0.0 only must not cost a refused connection each.
  const addrinfo* pick = found;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    if (at->ai_family == AF_INET) {
      pick = at;
      break;
    }
  }
  std::memcpy(&out.address, pick->ai_addr, pick->ai_addrlen);
  out.address_bytes = pick->ai_addrlen;
  return out;
}

Result<CallResult> Call(const Endpoint& endpoint, std::string_view method, std::string_view path,
                        std::string_view headers, std::string_view body, Nanos timeout) {
  Nanos deadline = SystemClock::Get().Now() + timeout;
  Socket socket(::socket(endpoint.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (socket.fd() < 0) return CallError(endpoint, path, std::strerror(errno));
  RETURN_IF_ERROR(Connect(endpoint, path, socket.fd(), deadline));
  std::string request = fmt::format("{} {}{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{}", method,
                                    endpoint.base_path, path, endpoint.authority(), headers);
  if (!body.empty()) {
    request += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  }
  request += "\r\n";
  request += body;
  RETURN_IF_ERROR(SendAll(endpoint, path, socket.fd(), request, deadline));
  return Receive(endpoint, path, socket.fd(), deadline);
}

Result<json::value> CallJson(const Endpoint& endpoint, std::string_view method, std::string_view path,
                             std::string_view headers, std::string_view body, Nanos timeout) {
  ASSIGN_OR_RETURN(CallResult answer, Call(endpoint, method, path, headers, body, timeout));
  if (answer.status != 200) {
    return CallError(endpoint, path, fmt::format("status {}: {}", answer.status, ErrorMessageOf(answer.body)));
  }
  auto parsed = ParseJson(answer.body);
  if (!parsed.ok()) return std::move(parsed).error().Within(fmt::format("http://{}{}", endpoint.authority(), path));
  return parsed;
}

std::string ErrorMessageOf(std::string_view body) {
  std::string message(body.substr(0, body.find('\n')));
  auto parsed = ParseJson(body);
  if (parsed.ok() && parsed->is_object()) {
    const json::object* object = &parsed->as_object();
    if (const json::value* error = object->if_contains("error")) {
      if (error->is_string()) message = error->as_string().c_str();
      if (error->is_object()) object = &error->as_object();
    }
    if (const json::value* text = object->if_contains("message"); text && text->is_string()) {
      message = text->as_string().c_str();
    }
  }
  if (message.size() > kMessageMax) message.resize(kMessageMax);
  return message;
}

}  // namespace ekiben::load
