// The load client inside the server's process: the same users over serve::Service, no HTTP. The difference to
// HttpTransport at the same load is what the wire costs. Events are stamped on the postprocessing thread that calls the
// sink, before they cross to the load thread.
// Thread: each instance belongs to one thread; its sinks are called by the service's threads.
#pragma once
#include <memory>
#include <vector>

#include "base/clock.h"
#include "load/http_transport.h"
#include "load/transport.h"
#include "serve/service.h"

namespace ekiben::load {

class ServiceTransport final : public Transport {
 public:
  // `service` and `clock` outlive the transport. Of `shape` only api, ignore_eos and temperature are used.
  ServiceTransport(serve::Service& service, const RequestShape& shape, int32_t users, const Clock& clock);
  ~ServiceTransport() override;

  void Send(int32_t user, const Prompt& prompt, StreamEventSink& sink) override;
  void Abort(int32_t user) override;
  void Poll(Nanos until, StreamEventSink& sink) override;

 private:
  struct Mailbox;
  class Sink;
  struct User {
    uint64_t generation = 0;  // of the request in flight; events of older ones are dropped
    RequestId id{};
    bool busy = false, submitted = false;
  };
  serve::TextRequest BuildRequest(const Prompt& prompt) const;

  serve::Service& service_;
  const RequestShape& shape_;
  const Clock& clock_;
  std::vector<User> users_;
  std::shared_ptr<Mailbox> mailbox_;  // shared with sinks that may outlive the transport
};

// The service's own count of a prompt, for PromptSource.
Result<int32_t> CountPromptTokens(const serve::Service& service, Api api, std::string_view text);

}  // namespace ekiben::load
