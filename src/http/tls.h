// TLS without a socket: bytes of a client go in, plain bytes and bytes for the client come out. OpenSSL over memory
// BIOs, so that a connection reads, writes and times out in one way whether it is encrypted or not, and OpenSSL's
// headers stay in tls.cc.
//
// TlsContexts holds what connections begin with (certificate, key, whom to trust) and reads the files again when they
// change: `Current` looks at their modification times at most once a second. Files that do not fit together (a new
// certificate beside the old key, half written) leave the old ones in use, with a warning, until the next change.
// Thread: Current from one (the acceptor's); a TlsSession belongs to its connection's I/O thread.
// Errors: a file that is missing or not PEM names the option.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"

namespace ekiben::http {

struct TlsConfig {
  std::string certfile;  // PEM, the chain after the certificate; empty: no TLS
  std::string keyfile;   // PEM, without a passphrase; empty: in certfile
  std::string ca_certs;  // PEM; not empty: a client must show a certificate signed by one of them (mTLS)
  bool enabled() const { return !certfile.empty(); }
};

// One generation of the files, immutable; sessions keep theirs alive.
class TlsContext;

class TlsContexts {
 public:
  static Result<std::unique_ptr<TlsContexts>> Open(TlsConfig config);
  ~TlsContexts();

  std::shared_ptr<const TlsContext> Current(Nanos now);
  uint64_t reloads() const { return reloads_; }

 private:
  explicit TlsContexts(TlsConfig config) : config_(std::move(config)) {}
  std::string Stamp() const;  // modification times and sizes of the files

  const TlsConfig config_;
  std::shared_ptr<const TlsContext> current_;
  std::string stamp_;  // of the files when they were last read, with or without success
  Nanos checked_{};
  uint64_t reloads_ = 0;
};

class TlsSession {
 public:
  explicit TlsSession(std::shared_ptr<const TlsContext> context);
  ~TlsSession();

  // Takes bytes of the client and appends what they decrypt to. False: the session is broken or ended; send Output()
  // (an alert) and close.
  bool Receive(std::string_view bytes, std::string& plain);
  // Encrypts. REQUIRES: established().
  void Encrypt(std::string_view plain);
  // Says that nothing follows (close_notify).
  void End();
  // What is to be sent; the caller takes it (swap) or leaves it.
  std::string& Output();

  bool established() const;
  // Why Receive said no, for a log; empty after an orderly end.
  const std::string& problem() const { return problem_; }

 private:
  struct State;
  void CollectOutput();
  const std::unique_ptr<State> state_;
  std::string output_, problem_;
};

}  // namespace ekiben::http
