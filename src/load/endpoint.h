// The server a load run aims at: its address, and the few questions asked before the run (model name, token counts),
// each a blocking call on a connection of its own.
// Thread: pure functions of their arguments. Errors name the URL and the status or the system's reason.
#pragma once
#include <sys/socket.h>

#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/json.h"
#include "base/result.h"

namespace ekiben::load {

struct Endpoint {
  std::string host, port, base_path;  // base_path: "" or "/prefix" without a closing slash
  sockaddr_storage address{};
  socklen_t address_bytes = 0;
  std::string authority() const;  // for the Host header
};

// "http://host[:port][/prefix]" or "host:port". Resolves the name. https is refused (kUnsupported).
Result<Endpoint> ResolveEndpoint(std::string_view url);

struct CallResult {
  int status = 0;
  std::string body;  // at most 64 MiB
};
// `headers`: further header lines, each with its line end. `body` empty: no body and no Content-Type.
Result<CallResult> Call(const Endpoint& endpoint, std::string_view method, std::string_view path,
                        std::string_view headers, std::string_view body, Nanos timeout);

// The same, the answer as JSON; a status other than 200 is an error that carries the server's message.
Result<json::value> CallJson(const Endpoint& endpoint, std::string_view method, std::string_view path,
                             std::string_view headers, std::string_view body, Nanos timeout);

// The message inside an error body: error.message, error, message or the body's first line, at most 200 bytes.
std::string ErrorMessageOf(std::string_view body);

}  // namespace ekiben::load
