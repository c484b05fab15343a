#include "http/tls.h"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/check.h"
#include "base/log.h"

namespace ekiben::http {
namespace {

constexpr Nanos kCheckPeriod = std::chrono::seconds(1);

std::string LastSslError() {
  unsigned long code = ERR_get_error();
  ERR_clear_error();
  if (code == 0) return "no reason given";
  const char* reason = ERR_reason_error_string(code);
  return reason != nullptr ? reason : fmt::format("error {:x}", code);
}

// Only http/1.1 is spoken here; a client that offers nothing of it may try without ALPN.
int ChooseProtocol(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* offered,
                   unsigned offered_size, void*) {
  static constexpr unsigned char kHttp11[] = "\x08http/1.1";
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, out_size, kHttp11, sizeof kHttp11 - 1, offered, offered_size) !=
      OPENSSL_NPN_NEGOTIATED)
    return SSL_TLSEXT_ERR_NOACK;
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

}  // namespace

class TlsContext {
 public:
  explicit TlsContext(SSL_CTX* context) : context_(context) {}
  ~TlsContext() { SSL_CTX_free(context_); }
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;
  SSL_CTX* get() const { return context_; }

 private:
  SSL_CTX* const context_;
};

namespace {

Error FileError(std::string_view option, const std::string& path, std::string_view what) {
  return Error(Code::kInvalid, fmt::format("{}: '{}' {}: {}", option, path, what, LastSslError()), std::string(option));
}

Result<std::shared_ptr<const TlsContext>> ReadContext(const TlsConfig& config) {
  ERR_clear_error();
  auto context = std::make_shared<TlsContext>(SSL_CTX_new(TLS_server_method()));
  SSL_CTX* ctx = context->get();
  CHECK(ctx != nullptr);
  SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
  SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_alpn_select_cb(ctx, ChooseProtocol, nullptr);
  static constexpr unsigned char kSessionIdContext[] = "ekiben";
  SSL_CTX_set_session_id_context(ctx, kSessionIdContext, sizeof kSessionIdContext - 1);
  if (SSL_CTX_use_certificate_chain_file(ctx, config.certfile.c_str()) != 1)
    return FileError("ssl_certfile", config.certfile, "is no PEM certificate that can be read");
  const std::string& key = config.keyfile.empty() ? config.certfile : config.keyfile;
  if (SSL_CTX_use_PrivateKey_file(ctx, key.c_str(), SSL_FILETYPE_PEM) != 1)
    return FileError("ssl_keyfile", key, "is no PEM key of the certificate without a passphrase");
  if (SSL_CTX_check_private_key(ctx) != 1) return FileError("ssl_keyfile", key, "does not belong to the certificate");
  if (!config.ca_certs.empty()) {
    STACK_OF(X509_NAME)* names = SSL_load_client_CA_file(config.ca_certs.c_str());
    if (names == nullptr || SSL_CTX_load_verify_file(ctx, config.ca_certs.c_str()) != 1) {
      sk_X509_NAME_pop_free(names, X509_NAME_free);
      return FileError("ssl_ca_certs", config.ca_certs, "holds no PEM certificates that can be read");
    }
    SSL_CTX_set_client_CA_list(ctx, names);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  }
  return std::shared_ptr<const TlsContext>(std::move(context));
}

}  // namespace

Result<std::unique_ptr<TlsContexts>> TlsContexts::Open(TlsConfig config) {
  std::unique_ptr<TlsContexts> out(new TlsContexts(std::move(config)));
  out->stamp_ = out->Stamp();
  ASSIGN_OR_RETURN(out->current_, ReadContext(out->config_));
  return out;
}

TlsContexts::~TlsContexts() = default;

std::string TlsContexts::Stamp() const {
  std::string out;
  for (const std::string* path : {&config_.certfile, &config_.keyfile, &config_.ca_certs}) {
    struct stat info {};
    if (path->empty() || ::stat(path->c_str(), &info) != 0) {
      out.append("-;");
      continue;
    }
    fmt::format_to(std::back_inserter(out), "{}.{:09}:{}:{};", info.st_mtim.tv_sec, info.st_mtim.tv_nsec, info.st_size,
                   info.st_ino);
  }
  return out;
}

std::shared_ptr<const TlsContext> TlsContexts::Current(Nanos now) {
  if (now - checked_ < kCheckPeriod && checked_ != Nanos(0)) return current_;
  checked_ = now;
  std::string stamp = Stamp();
  if (stamp == stamp_) return current_;
  stamp_ = std::move(stamp);
  auto read = ReadContext(config_);
  if (!read.ok()) {
    LOG_WARNING("tls: the certificate files changed and cannot be used, the old ones stay: {}", read.error().message());
    return current_;
  }
  current_ = *std::move(read);
  ++reloads_;
  LOG_INFO("tls: certificate files read again");
  return current_;
}

// ---- a session

struct TlsSession::State {
  std::shared_ptr<const TlsContext> context;
  SSL* ssl = nullptr;
  BIO* in = nullptr;   // owned by ssl
  BIO* out = nullptr;  // owned by ssl
};

TlsSession::TlsSession(std::shared_ptr<const TlsContext> context) : state_(std::make_unique<State>()) {
  state_->context = std::move(context);
  state_->ssl = SSL_new(state_->context->get());
  state_->in = BIO_new(BIO_s_mem());
  state_->out = BIO_new(BIO_s_mem());
  CHECK(state_->ssl != nullptr && state_->in != nullptr && state_->out != nullptr);
  SSL_set_bio(state_->ssl, state_->in, state_->out);
  SSL_set_accept_state(state_->ssl);
}

TlsSession::~TlsSession() {
  SSL_free(state_->ssl);
}

bool TlsSession::established() const {
  return SSL_is_init_finished(state_->ssl) == 1;
}

bool TlsSession::Receive(std::string_view bytes, std::string& plain) {
  ERR_clear_error();
  CHECK(BIO_write(state_->in, bytes.data(), static_cast<int>(bytes.size())) == static_cast<int>(bytes.size()));
  bool more = true;
  while (more) {
    char block[16'384];  // one record
    int count = SSL_read(state_->ssl, block, sizeof block);
    if (count > 0) {
      plain.append(block, static_cast<size_t>(count));
      continue;
    }
    int why = SSL_get_error(state_->ssl, count);
    more = false;
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) continue;
    if (why != SSL_ERROR_ZERO_RETURN) problem_ = LastSslError();
    CollectOutput();
    return false;
  }
  CollectOutput();
  return true;
}

void TlsSession::Encrypt(std::string_view plain) {
  while (!plain.empty()) {
    int piece = static_cast<int>(std::min(plain.size(), size_t{1} << 24));
    // Into memory, never blocked: it takes all or the session is broken, which the next Receive tells.
    if (SSL_write(state_->ssl, plain.data(), piece) != piece) break;
    plain.remove_prefix(static_cast<size_t>(piece));
  }
  ERR_clear_error();
  CollectOutput();
}

void TlsSession::End() {
  if (established()) SSL_shutdown(state_->ssl);
  ERR_clear_error();
  CollectOutput();
}

std::string& TlsSession::Output() {
  return output_;
}

void TlsSession::CollectOutput() {
  char* data = nullptr;
  long size = BIO_get_mem_data(state_->out, &data);
  if (size <= 0) return;
  output_.append(data, static_cast<size_t>(size));
  BIO_reset(state_->out);
}

}  // namespace ekiben::http
