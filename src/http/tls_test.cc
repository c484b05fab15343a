// TLS on the HTTP server: a client over OpenSSL's own blocking sockets against certificates made on the spot.
#include "http/tls.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "http/server.h"
#include "http/testing/certificates.h"
#include "http/testing/raw_client.h"

namespace ekiben::http {
namespace {

using namespace std::chrono_literals;
using testing::Certificate;
using testing::Format;
using testing::RawClient;

// Trusts one CA, verifies the server against it, and may show a certificate of its own.
class TlsClient {
 public:
  struct Options {
    std::string ca_file, cert_file, key_file;
    int version_max = TLS1_3_VERSION;
  };
  TlsClient(uint16_t port, const Options& options) {
    context_ = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context_, 0);
    SSL_CTX_set_max_proto_version(context_, options.version_max);
    SSL_CTX_set_verify(context_, SSL_VERIFY_PEER, nullptr);
    EXPECT_EQ(SSL_CTX_load_verify_file(context_, options.ca_file.c_str()), 1);
    if (!options.cert_file.empty()) {
      EXPECT_EQ(SSL_CTX_use_certificate_chain_file(context_, options.cert_file.c_str()), 1);
      EXPECT_EQ(SSL_CTX_use_PrivateKey_file(context_, options.key_file.c_str(), SSL_FILETYPE_PEM), 1);
    }
    fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
    timeval limit{20, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ssl_ = SSL_new(context_);
    SSL_set_fd(ssl_, fd_);
    SSL_set1_host(ssl_, "localhost");
    connected_ = SSL_connect(ssl_) == 1;
  }
  ~TlsClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
    ::close(fd_);
  }
  bool connected() const { return connected_; }
  int version() const { return SSL_version(ssl_); }
  std::string server_name() const {
    X509* certificate = SSL_get1_peer_certificate(ssl_);
    char name[64] = {};
    X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, name, sizeof name);
    X509_free(certificate);
    return name;
  }
  bool Send(std::string_view bytes) {
    return SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size())) == static_cast<int>(bytes.size());
  }
  // What came up to and with `text`, or before the end.
  std::string ReadUntil(std::string_view text) {
    std::string out;
    char block[4096];
    while (out.find(text) == std::string::npos) {
      int count = SSL_read(ssl_, block, sizeof block);
      if (count <= 0) {
        ended_orderly_ = SSL_get_error(ssl_, count) == SSL_ERROR_ZERO_RETURN;
        break;
      }
      out.append(block, static_cast<size_t>(count));
    }
    return out;
  }
  bool ended_orderly() const { return ended_orderly_; }

 private:
  SSL_CTX* context_ = nullptr;
  SSL* ssl_ = nullptr;
  int fd_ = -1;
  bool connected_ = false, ended_orderly_ = false;
};

class HttpTls : public ::testing::Test {
 protected:
  void SetUp() override {
    folder = std::filesystem::temp_directory_path() / fmt::format("ekiben_tls_{}", ::getpid());
    std::filesystem::create_directories(folder);
    ca = testing::MakeCa("the ca");
    Write("ca.pem", ca.certificate_pem);
    Install("first");
  }
  void TearDown() override {
    if (server != nullptr) server->Stop();
    std::filesystem::remove_all(folder);
  }
  std::string Path(const std::string& name) const { return (folder / name).string(); }
  void Write(const std::string& name, const std::string& text) const { std::ofstream(folder / name) << text; }
  void Install(const std::string& name) const {
    Certificate made = testing::MakeSigned(ca, name);
    Write("cert.pem", made.certificate_pem);
    Write("key.pem", made.key_pem);
  }

  void Start(ServerConfig config = {}) {
    config.host = "127.0.0.1";
    config.port = 0;
    config.sweep_period = 5ms;
    config.tls.certfile = Path("cert.pem");
    config.tls.keyfile = Path("key.pem");
    auto created = Server::Create(config);
    ASSERT_TRUE(created.ok()) << created.error().message();
    server = *std::move(created);
    server->SetHandler([](const Request& request, const std::shared_ptr<ResponseWriter>& writer) {
      if (request.path == "/stream") {
        writer->Start(200, {{"content-type", "text/plain"}});
        for (int i = 0; i < 1000; ++i) writer->Write(fmt::format("piece {}\n", i));
        return writer->Finish();
      }
      writer->Send(200, {{"content-type", "text/plain"}}, fmt::format("{} bytes\n", request.body.size()));
    });
    server->Start();
    port = server->port();
  }
  TlsClient::Options Trusting() const { return {.ca_file = Path("ca.pem")}; }

  std::filesystem::path folder;
  Certificate ca;
  std::unique_ptr<Server> server;
  uint16_t port = 0;
};

TEST_F(HttpTls, RequestsStreamsAndLargeBodies) {
  Start();
  TlsClient client(port, Trusting());
  ASSERT_TRUE(client.connected());
  EXPECT_EQ(client.version(), TLS1_3_VERSION);
  std::string body(3'000'000, 'x');
  ASSERT_TRUE(client.Send(Format("POST", "/a", body)));
  EXPECT_NE(client.ReadUntil("bytes\n").find("3000000 bytes"), std::string::npos);
  ASSERT_TRUE(client.Send(Format("GET", "/stream")));
  EXPECT_NE(client.ReadUntil("0\r\n\r\n").find("piece 999"), std::string::npos);
  ASSERT_TRUE(client.Send(Format("GET", "/", "", "Connection: close\r\n")));
  client.ReadUntil("never sent");
  EXPECT_TRUE(client.ended_orderly());  // close_notify: the answer was not cut
  EXPECT_EQ(server->stats().tls_handshakes, 1u);
}

TEST_F(HttpTls, VersionsFrom12) {
  Start();
  TlsClient modern(port, {.ca_file = Path("ca.pem"), .version_max = TLS1_2_VERSION});
  ASSERT_TRUE(modern.connected());
  ASSERT_TRUE(modern.Send(Format("GET", "/")));
  EXPECT_NE(modern.ReadUntil("bytes\n").find("200 OK"), std::string::npos);
  TlsClient old(port, {.ca_file = Path("ca.pem"), .version_max = TLS1_1_VERSION});
  EXPECT_FALSE(old.connected());
}

TEST_F(HttpTls, PlainBytesAndGarbageAreCutAndTheServerLivesOn) {
  Start();
  for (const std::string& bytes :
       {Format("GET", "/"), std::string(5000, '\0'), std::string("\x16\x03\x01\x02\x00\x01junk", 10)}) {
    RawClient plain(port, 500ms);
    plain.Send(bytes);
    plain.ReadUntil("HTTP/1.1");
  }
  TlsClient client(port, Trusting());
  ASSERT_TRUE(client.connected());
  ASSERT_TRUE(client.Send(Format("GET", "/")));
  EXPECT_NE(client.ReadUntil("bytes\n").find("200 OK"), std::string::npos);
  EXPECT_GE(server->stats().tls_failures, 1u);
  EXPECT_EQ(server->stats().requests, 1u);
}

TEST_F(HttpTls, AHandshakeThatDoesNotEndIsCut) {
  ServerConfig config;
  config.header_timeout = 50ms;
  Start(config);
  RawClient silent(port);
  EXPECT_TRUE(silent.ReadToEnd());
}

TEST_F(HttpTls, ClientsMustShowACertificateWhereACaIsNamed) {
  ServerConfig config;
  config.tls.ca_certs = Path("ca.pem");
  Start(config);
  Certificate own = testing::MakeSigned(ca, "a client");
  Write("client.pem", own.certificate_pem);
  Write("client.key", own.key_pem);
  TlsClient known(port, {.ca_file = Path("ca.pem"), .cert_file = Path("client.pem"), .key_file = Path("client.key")});
  ASSERT_TRUE(known.connected());
  ASSERT_TRUE(known.Send(Format("GET", "/")));
  EXPECT_NE(known.ReadUntil("bytes\n").find("200 OK"), std::string::npos);

  Certificate other_ca = testing::MakeCa("another ca");
  Certificate stranger = testing::MakeSigned(other_ca, "a stranger");
  Write("stranger.pem", stranger.certificate_pem);
  Write("stranger.key", stranger.key_pem);
  for (const auto& options : {Trusting(), TlsClient::Options{.ca_file = Path("ca.pem"),
                                          .cert_file = Path("stranger.pem"),
                                          .key_file = Path("stranger.key")}}) {
    TlsClient refused(port, options);  // in TLS 1.3 the client hears of it with its first read
    if (refused.connected()) refused.Send(Format("GET", "/"));
    EXPECT_EQ(refused.ReadUntil("bytes\n"), "");
  }
  EXPECT_EQ(server->stats().requests, 1u);
}

TEST_F(HttpTls, CertificatesAreReadAgainWhenTheyChange) {
  auto opened = TlsContexts::Open({.certfile = Path("cert.pem"), .keyfile = Path("key.pem")});
  ASSERT_TRUE(opened.ok()) << opened.error().message();
  TlsContexts& contexts = **opened;
  auto first = contexts.Current(1s);
  EXPECT_EQ(contexts.Current(3s), first);
  Write("key.pem", "half of a ke");
  EXPECT_EQ(contexts.Current(5s), first);  // kept, with a warning
  EXPECT_EQ(contexts.reloads(), 0u);
  Install("second");
  EXPECT_EQ(contexts.Current(5500ms), first);  // looked at once a second
  EXPECT_NE(contexts.Current(7s), first);
  EXPECT_EQ(contexts.reloads(), 1u);

  Start();
  TlsClient before(port, Trusting());
  EXPECT_EQ(before.server_name(), "second");
  Install("third");
  std::this_thread::sleep_for(1100ms);
  TlsClient after(port, Trusting());
  EXPECT_EQ(after.server_name(), "third");
  ASSERT_TRUE(before.Send(Format("GET", "/")));  // an open connection goes on
  EXPECT_NE(before.ReadUntil("bytes\n").find("200 OK"), std::string::npos);
  EXPECT_EQ(server->stats().tls_reloads, 1u);
}

TEST_F(HttpTls, FilesThatCannotBeUsedNameTheOption) {
  Certificate other = testing::MakeSigned(ca, "other");
  Write("other.key", other.key_pem);
  ServerConfig config;
  config.host = "127.0.0.1";
  config.port = 0;
  config.tls = {.certfile = Path("absent.pem")};
  EXPECT_EQ(Server::Create(config).error().field(), "ssl_certfile");
  config.tls = {.certfile = Path("cert.pem"), .keyfile = Path("other.key")};
  EXPECT_EQ(Server::Create(config).error().field(), "ssl_keyfile");
  config.tls = {.certfile = Path("cert.pem"), .keyfile = Path("key.pem"), .ca_certs = Path("key.pem")};
  EXPECT_EQ(Server::Create(config).error().field(), "ssl_ca_certs");
  config.tls = {.keyfile = Path("key.pem")};
  EXPECT_EQ(Server::Create(config).error().field(), "ssl_certfile");
}

}  // namespace
}  // namespace ekiben::http
