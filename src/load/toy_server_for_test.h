// A server of exactly known delays, to measure the measuring client against: one blocking thread a connection, each
// chunk sent at a planned time after the request's last byte was read. Tests only.
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"

namespace ekiben::load {

struct ToyBehaviour {
  enum class Fault { kNone, kStatus429, kCloseInside, kNoDone, kErrorData, kGarbage, kNotJson, kSilent };
  std::chrono::milliseconds ttft{50}, itl{10};
  int tokens = 8, tokens_per_chunk = 1, prompt_tokens = 100;
  bool role_chunk = false;       // 20 ms before the first token
  bool usage_each_chunk = true;  // else only in a last chunk
  bool usage_at_end = true;
  bool byte_by_byte = false;    // each byte in a packet of its own
  bool close_each = false;      // Connection: close after each answer
  bool close_silently = false;  // closes a kept connection without having said so
  bool raw = false;             // BentoML's raw text
  Fault fault = Fault::kNone;
};

class ToyServer {
 public:
  explicit ToyServer(const ToyBehaviour& behaviour) : behaviour_(behaviour) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    socklen_t size = sizeof address;
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    CHECK(listen(listener_, 128) == 0);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~ToyServer() {
    stopping_ = true;
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    close(listener_);
    std::lock_guard lock(mutex_);
    for (int fd : open_) shutdown(fd, SHUT_RDWR);
    for (std::thread& thread : threads_) thread.join();
    for (int fd : open_) close(fd);
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  int connections() const { return connections_; }
  std::string last_body() {
    std::lock_guard lock(mutex_);
    return last_body_;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void Accept() {
    while (!stopping_) {
      int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      ++connections_;
      int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      std::lock_guard lock(mutex_);
      open_.push_back(fd);
      threads_.emplace_back([this, fd] { Serve(fd); });
    }
  }

  void Serve(int fd) {
    std::string buffer;
    while (true) {
      size_t head;
      while ((head = buffer.find("\r\n\r\n")) == std::string::npos) {
        if (!ReadMore(fd, buffer)) return;
      }
      size_t length = 0, at = buffer.find("Content-Length: ");
      if (at < head) length = std::stoul(buffer.substr(at + 16));
      while (buffer.size() < head + 4 + length) {
        if (!ReadMore(fd, buffer)) return;
      }
      std::string path = buffer.substr(0, buffer.find(" HTTP"));
      std::string body = buffer.substr(head + 4, length);
      buffer.erase(0, head + 4 + length);
      if (!Answer(fd, path, body)) {
        shutdown(fd, SHUT_RDWR);
        return;
      }
    }
  }
  static bool ReadMore(int fd, std::string& buffer) {
    char bytes[4096];
    ssize_t n = recv(fd, bytes, sizeof bytes, 0);
    if (n > 0) buffer.append(bytes, static_cast<size_t>(n));
    return n > 0;
  }

  void Write(int fd, const std::string& bytes) {
    size_t step = behaviour_.byte_by_byte ? 1 : bytes.size();
    for (size_t at = 0; at < bytes.size(); at += step) {
      if (send(fd, bytes.data() + at, step, MSG_NOSIGNAL) < 0) return;
    }
  }
  void WriteChunk(int fd, const std::string& data) {
    char size[32];
    snprintf(size, sizeof size, "%zx\r\n", data.size());
    Write(fd, size + data + "\r\n");
  }
  void WriteJson(int fd, const std::string& status, const std::string& body) {
    Write(fd, "HTTP/1.1 " + status + "\r\nContent-Type: application/json\r\nContent-Length: " +
                  std::to_string(body.size()) + "\r\n\r\n" + body);
  }

  // False: close the connection.
  bool Answer(int fd, const std::string& path, const std::string& body) {
    if (path == "GET /v1/models") {
      WriteJson(fd, "200 OK", R"({"object":"list","data":[{"id":"toy"}]})");
      return true;
    }
    if (path == "POST /tokenize") {  // a token a space, and a begin token
      size_t begin = body.find("\"prompt\":\"") + 10, end = body.find('"', begin);
      auto words =
          1 + std::count(body.begin() + static_cast<ptrdiff_t>(begin), body.begin() + static_cast<ptrdiff_t>(end), ' ');
      WriteJson(fd, "200 OK", "{\"count\":" + std::to_string(words + 1) + "}");
      return true;
    }
    {
      std::lock_guard lock(mutex_);
      last_body_ = body;
    }
    switch (behaviour_.fault) {
      case ToyBehaviour::Fault::kStatus429:
        WriteJson(fd, "429 Too Many Requests", R"({"error":{"message":"queue is full","code":429}})");
        return true;
      case ToyBehaviour::Fault::kGarbage: Write(fd, "220 smtp ready\r\n"); return false;
      case ToyBehaviour::Fault::kSilent:
        while (!stopping_) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        return false;
      default: break;
    }
    Write(fd, std::string("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n") +
                  (behaviour_.close_each ? "Connection: close\r\n" : "") + "\r\n");
    Stream(fd);
    return !behaviour_.close_each && !behaviour_.close_silently &&
           behaviour_.fault != ToyBehaviour::Fault::kCloseInside;
  }

  std::string Usage(int tokens) const {
    return ",\"usage\":{\"prompt_tokens\":" + std::to_string(behaviour_.prompt_tokens) +
           ",\"completion_tokens\":" + std::to_string(tokens) + "}";
  }
  void Stream(int fd) {
    auto begin = Clock::now();
    std::string each = behaviour_.usage_each_chunk ? Usage(0) : "";
    if (behaviour_.role_chunk) {
      std::this_thread::sleep_until(begin + behaviour_.ttft - std::chrono::milliseconds(20));
      WriteChunk(fd, "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]" + each + "}\n\n");
    }
    int sent = 0;
    for (int i = 0; sent < behaviour_.tokens; ++i) {
      std::this_thread::sleep_until(begin + behaviour_.ttft + i * behaviour_.itl);
      sent += std::min(behaviour_.tokens_per_chunk, behaviour_.tokens - sent);
      if (behaviour_.raw) {
        WriteChunk(fd, " word");
        continue;
      }
      if (behaviour_.usage_each_chunk) each = Usage(sent);
      const char* text = behaviour_.role_chunk ? "\"delta\":{\"content\":\" w\"}" : "\"text\":\" w\"";
      WriteChunk(fd, std::string("data: {\"choices\":[{") + text + ",\"finish_reason\":null}]" + each + "}\n\n");
      if (behaviour_.fault == ToyBehaviour::Fault::kCloseInside && i == 2) return;
      if (behaviour_.fault == ToyBehaviour::Fault::kErrorData && i == 2) {
        WriteChunk(fd, "data: {\"error\":{\"message\":\"device lost\"}}\n\n");
      }
      if (behaviour_.fault == ToyBehaviour::Fault::kNotJson && i == 2) WriteChunk(fd, "data: {oops\n\n");
    }
    if (!behaviour_.raw) {
      if (behaviour_.usage_at_end) WriteChunk(fd, "data: {\"choices\":[]" + Usage(sent) + "}\n\n");
      if (behaviour_.fault != ToyBehaviour::Fault::kNoDone) WriteChunk(fd, "data: [DONE]\n\n");
    }
    Write(fd, "0\r\n\r\n");
  }

  const ToyBehaviour behaviour_;
  int listener_ = -1, port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<int> connections_{0};
  std::thread acceptor_;
  std::mutex mutex_;
  std::vector<int> open_;
  std::vector<std::thread> threads_;
  std::string last_body_;
};

}  // namespace ekiben::load
