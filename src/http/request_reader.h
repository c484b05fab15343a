// Bytes in, requests out: one incremental HTTP/1.x request parser for a connection, over Boost.Beast's, with the rules
// that keep two parsers from disagreeing (request smuggling) laid on top. Refused with 400: Content-Length beside
// Transfer-Encoding, a repeated or list-valued Content-Length, any transfer coding but "chunked", folded header lines,
// NUL, bare CR or LF, a missing or repeated Host. RFC 9112 sections 2.2, 5.2, 6.1, 6.3, 7.1.
// Bytes are kept until used, so requests may arrive split anywhere or several at once.
// Thread: one.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "http/request.h"

namespace ekiben::http {

class RequestReader {
 public:
  enum class State {
    kIdle,      // not a byte of the next request yet
    kHeader,    // inside request line or header
    kBody,      // header complete, body not
    kComplete,  // Take() has a request
    kFailed,    // failure() says why; the connection must close
  };
  struct Failure {
    int status = 400;
    std::string message;  // one line: what, the value, the limit
    std::string target;   // when already known
  };

  explicit RequestReader(const RequestLimits& limits);
  ~RequestReader();

  void Append(std::string_view bytes);
  // Parses as far as the bytes reach, at most to the end of one request.
  State Advance();
  // REQUIRES: Advance() said kComplete. The next Advance begins the next request.
  Request Take();
  // True once for a request whose client waits for "100 Continue" before it sends the body.
  bool TakeContinue();

  const Failure& failure() const { return failure_; }
  size_t buffered() const { return buffer_.size() - used_; }

 private:
  struct Parser;
  State Fail(int status, std::string message);
  State AdvanceHeader();
  State AdvanceBody();
  bool CheckHeaderBlock(std::string_view block, size_t begin);
  bool CheckFields();
  bool SplitTarget();

  const RequestLimits limits_;
  std::string buffer_;
  size_t used_ = 0;      // bytes of buffer_ already parsed
  size_t scanned_ = 0;   // no end of header before this offset of buffer_
  int empty_lines_ = 0;  // skipped before this request
  State state_ = State::kIdle;
  bool wants_continue_ = false;
  Request request_;
  Failure failure_;
  std::unique_ptr<Parser> parser_;
};

}  // namespace ekiben::http
