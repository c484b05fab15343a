// A blocking TCP client for tests, which sends exactly the bytes it is given and knows just enough of HTTP to find the
// end of a response. Every read gives up after `timeout`.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ekiben::http::testing {

struct RawResponse {
  int status = 0;
  std::string head;
  std::string body;                 // without chunk framing
  std::vector<std::string> chunks;  // of a chunked body
  bool complete = false;            // its end was seen
  std::string Header(std::string_view name) const;
};

class RawClient {
 public:
  explicit RawClient(uint16_t port, std::chrono::milliseconds timeout = std::chrono::seconds(20));
  ~RawClient();
  RawClient(RawClient&& other) noexcept : fd_(std::exchange(other.fd_, -1)), buffer_(std::move(other.buffer_)) {}

  void Send(std::string_view bytes);
  // One response; `head_only` for the answer to a HEAD.
  RawResponse Read(bool head_only = false);
  // Until `text` has come; everything read so far, or what came before the end or the timeout.
  std::string ReadUntil(std::string_view text);
  // True when the server closes the connection (within the timeout), whatever it sends before.
  bool ReadToEnd();
  void Close();
  void Reset();                      // closes with RST
  void SetReceiveBuffer(int bytes);  // small: the server's socket fills soon
  bool connected() const { return fd_ >= 0; }

 private:
  bool ReadMore();
  bool ReadChunks(RawResponse& response);
  int fd_ = -1;
  std::string buffer_;
};

// A request with Host, Content-Length and, for a body, application/json.
std::string Format(std::string_view method, std::string_view target, std::string_view body = {},
                   std::string_view more_headers = {});
RawResponse Call(uint16_t port, std::string_view method, std::string_view target, std::string_view body = {},
                 std::string_view more_headers = {});

}  // namespace ekiben::http::testing
