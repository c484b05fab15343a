#include "http/testing/raw_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

#include "http/request.h"

namespace ekiben::http::testing {
namespace {

// The number that `text` begins with; 0 when there is none.
int64_t Number(std::string_view text) {
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace

std::string RawResponse::Header(std::string_view name) const {
  size_t at = 0;
  while (at < head.size()) {
    size_t end = head.find("\r\n", at);
    std::string_view line(head.data() + at, end - at);
    size_t colon = line.find(':');
    if (colon != std::string_view::npos && EqualsIgnoreCase(line.substr(0, colon), name))
      return std::string(line.substr(std::min(line.size(), colon + 2)));
    at = end + 2;
  }
  return {};
}

RawClient::RawClient(uint16_t port, std::chrono::milliseconds timeout) {
  fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
  timeval limit{timeout.count() / 1000, (timeout.count() % 1000) * 1000};
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  int on = 1;
  ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) Close();
}

RawClient::~RawClient() {
  Close();
}

void RawClient::Close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void RawClient::Reset() {
  linger now{1, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  Close();
}

void RawClient::SetReceiveBuffer(int bytes) {
  ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
}

void RawClient::Send(std::string_view bytes) {
  while (!bytes.empty() && fd_ >= 0) {
    ssize_t count = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(count));
  }
}

bool RawClient::ReadMore() {
  char bytes[16384];
  ssize_t count = fd_ < 0 ? 0 : ::recv(fd_, bytes, sizeof bytes, 0);
  if (count <= 0) return false;
  buffer_.append(bytes, static_cast<size_t>(count));
  return true;
}

std::string RawClient::ReadUntil(std::string_view text) {
  while (buffer_.find(text) == std::string::npos && ReadMore()) {
  }
  return buffer_;
}

bool RawClient::ReadToEnd() {
  char bytes[16384];
  for (;;) {
    ssize_t count = ::recv(fd_, bytes, sizeof bytes, 0);
    if (count == 0) return true;
    if (count < 0) return errno == ECONNRESET;
    buffer_.append(bytes, static_cast<size_t>(count));
  }
}

RawResponse RawClient::Read(bool head_only) {
  RawResponse response;
  size_t end = 0;
  do {
    ReadUntil("\r\n\r\n");
    end = buffer_.find("\r\n\r\n");
    if (end == std::string::npos) return response;
    response.head = buffer_.substr(0, end + 2);
    buffer_.erase(0, end + 4);
    response.status = static_cast<int>(Number(std::string_view(response.head).substr(std::min(size_t{9}, end))));
  } while (response.status == 100);
  if (head_only || response.status == 204) {
    response.complete = true;
    return response;
  }
  std::string length = response.Header("content-length");
  if (!length.empty()) {
    auto wanted = static_cast<size_t>(Number(length));
    while (buffer_.size() < wanted && ReadMore()) {
    }
    response.body = buffer_.substr(0, wanted);
    response.complete = response.body.size() == wanted;
    buffer_.erase(0, wanted);
  } else if (response.Header("transfer-encoding") == "chunked") {
    response.complete = ReadChunks(response);
  } else {
    response.complete = ReadToEnd();
    response.body = std::exchange(buffer_, {});
  }
  return response;
}

bool RawClient::ReadChunks(RawResponse& response) {
  for (;;) {
    ReadUntil("\r\n");
    size_t line = buffer_.find("\r\n");
    if (line == std::string::npos) return false;
    size_t size = std::strtoull(buffer_.c_str(), nullptr, 16);
    while (buffer_.size() < line + 2 + size + 2)
      if (!ReadMore()) return false;
    if (size > 0) response.chunks.push_back(buffer_.substr(line + 2, size));
    if (size > 0) response.body += response.chunks.back();
    buffer_.erase(0, line + 2 + size + 2);
    if (size == 0) return true;
  }
}

std::string Format(std::string_view method, std::string_view target, std::string_view body,
                   std::string_view more_headers) {
  std::string out = fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\n{}", method, target, more_headers);
  if (!body.empty()) {
    if (more_headers.find("ontent-") == std::string_view::npos) out += "Content-Type: application/json\r\n";
    out += fmt::format("Content-Length: {}\r\n", body.size());
  } else if (method == "POST") {
    out += "Content-Length: 0\r\n";
  }
  return out + "\r\n" + std::string(body);
}

RawResponse Call(uint16_t port, std::string_view method, std::string_view target, std::string_view body,
                 std::string_view more_headers) {
  RawClient client(port);
  client.Send(Format(method, target, body, more_headers));
  return client.Read(method == "HEAD");
}

}  // namespace ekiben::http::testing
