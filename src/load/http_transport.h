// The load client's HTTP side: one epoll set a thread, one keep-alive connection a user, streaming POST requests.
// After the first request of a connection nothing is allocated: the request's bytes are built in a kept buffer, the
// answer is parsed in place.
// Thread: each instance belongs to one thread.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "load/endpoint.h"
#include "load/transport.h"

namespace ekiben::load {

enum class Api : uint8_t {
  kCompletions,  // POST /v1/completions
  kChat,         // POST /v1/chat/completions
  kGenerate,     // POST /generate, BentoML's raw text stream: one HTTP chunk per piece, no usage, no end mark
};
std::string_view ApiPath(Api api);

// What all requests of a run share.
struct RequestShape {
  Api api = Api::kCompletions;
  std::string model;
  bool ignore_eos = false;  // also sets min_tokens to max_tokens
  double temperature = 0;
  std::string extra_json;  // further members: "\"cache_prompt\":false"; empty: none
  std::string headers;     // further header lines, each with its line end
};

class HttpTransport final : public Transport {
 public:
  // Users are numbered 0..users-1. `endpoint`, `shape` and `clock` outlive the transport.
  static Result<std::unique_ptr<HttpTransport>> Create(const Endpoint& endpoint, const RequestShape& shape,
                                                       int32_t users, const Clock& clock);
  ~HttpTransport() override;

  void Send(int32_t user, const Prompt& prompt, StreamEventSink& sink) override;
  void Abort(int32_t user) override;
  void Poll(Nanos until, StreamEventSink& sink) override;

 private:
  struct Connection;
  HttpTransport(const Endpoint& endpoint, const RequestShape& shape, const Clock& clock);
  void BuildRequest(const Prompt& prompt, std::string& out);
  bool Open(Connection& connection, StreamEventSink& sink);
  void Write(Connection& connection, StreamEventSink& sink);
  void Read(Connection& connection, StreamEventSink& sink);
  void OnBytes(Connection& connection, std::string_view input, Nanos when, StreamEventSink& sink);
  bool OnBody(Connection& connection, std::string_view body, Nanos when, StreamEventSink& sink);
  bool OnSseData(Connection& connection, std::string_view data, Nanos when, StreamEventSink& sink);
  void OnAnswerEnd(Connection& connection, Nanos when, StreamEventSink& sink);
  void OnPeerClosed(Connection& connection, int error, Nanos when, StreamEventSink& sink);
  void Fail(Connection& connection, Failure failure, std::string_view message, Nanos when, StreamEventSink& sink);
  void Close(Connection& connection);
  void Watch(Connection& connection, bool writable);

  const Endpoint& endpoint_;
  const RequestShape& shape_;
  const Clock& clock_;
  int epoll_ = -1;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::string body_;                // scratch of BuildRequest
  std::unique_ptr<char[]> buffer_;  // what one read returns
};

}  // namespace ekiben::load
