// The gRPC service over TLS and mTLS.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/mapped_file.h"
#include "http/testing/certificates.h"
#include "rpc/testing/grpc_fixture.h"

namespace ekiben::rpc {
namespace {

// A CA with a server's and a client's certificate, and another CA with a server's.
class TlsFiles {
 public:
  TlsFiles() : folder_(std::filesystem::temp_directory_path() / fmt::format("ekiben_rpc_test_{}", ::getpid())) {
    std::filesystem::create_directories(folder_);
    for (auto [ca, names] : {std::pair("ca", std::vector{"server", "client"}), {"other", std::vector{"second"}}}) {
      auto authority = http::testing::MakeCa(ca);
      Write(ca, authority);
      for (const char* name : names) Write(name, http::testing::MakeSigned(authority, name));
    }
  }
  ~TlsFiles() { std::filesystem::remove_all(folder_); }
  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::string Read(const std::string& name) const { return *ReadFile(Path(name), 1 << 20); }
  void Replace(const char* name, const char* by) const {
    std::filesystem::rename(Path(by), Path(name));  // whole, never half-written
  }

 private:
  void Write(const std::string& name, const http::testing::Certificate& certificate) const {
    ASSERT_TRUE(WriteFileAtomic(Path(name + ".pem"), certificate.certificate_pem).ok());
    ASSERT_TRUE(WriteFileAtomic(Path(name + ".key"), certificate.key_pem).ok());
  }
  std::filesystem::path folder_;
};

class GrpcTlsTest : public GrpcTest {
 protected:
  bool Answers(const std::string& ca, const std::string& client) {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = files_.Read(ca);
    if (!client.empty()) {
      options.pem_private_key = files_.Read(client + ".key");
      options.pem_cert_chain = files_.Read(client + ".pem");
    }
    grpc::ChannelArguments arguments;
    arguments.SetSslTargetNameOverride("localhost");
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    auto channel = grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", server_->port()),
                                             grpc::SslCredentials(options), arguments);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + 10s);
    inference::ServerLiveResponse live;
    return inference::GRPCInferenceService::NewStub(channel)->ServerLive(&context, {}, &live).ok() && live.live();
  }
  TlsFiles files_;
};

TEST_F(GrpcTlsTest, TlsWithReloadOfTheCertificate) {
  GrpcConfig config;
  config.tls.certfile = files_.Path("server.pem");
  config.tls.keyfile = files_.Path("server.key");
  config.tls_reload_period = 1s;
  Serve(config);
  EXPECT_TRUE(Answers("ca.pem", ""));
  EXPECT_FALSE(Answers("other.pem", ""));
  grpc::ClientContext context;
  inference::ServerLiveResponse live;
  context.set_deadline(std::chrono::system_clock::now() + 5s);
  EXPECT_FALSE(stub_->ServerLive(&context, {}, &live).ok());  // without TLS
  files_.Replace("server.key", "second.key");
  files_.Replace("server.pem", "second.pem");
  EXPECT_TRUE(Soon([&] { return Answers("other.pem", ""); }));
}

TEST_F(GrpcTlsTest, AClientCaAsksForAClientsCertificate) {
  GrpcConfig config;
  config.tls.certfile = files_.Path("server.pem");
  config.tls.keyfile = files_.Path("server.key");
  config.tls.ca_certs = files_.Path("ca.pem");
  Serve(config);
  EXPECT_TRUE(Answers("ca.pem", "client"));
  EXPECT_FALSE(Answers("ca.pem", ""));
  EXPECT_FALSE(Answers("ca.pem", "second"));
}

TEST_F(GrpcTlsTest, FilesAreCheckedBeforeTheServerStarts) {
  GrpcConfig config;
  config.port = 0;
  config.tls.certfile = files_.Path("server.pem");
  config.tls.keyfile = files_.Path("client.key");
  EXPECT_FALSE(GrpcServer::Create(config, core_).ok());
  config.tls.keyfile = files_.Path("none.key");
  EXPECT_FALSE(GrpcServer::Create(config, core_).ok());
  config.tls.keyfile = files_.Path("server.key");
  config.tls.ca_certs = files_.Path("server.key");
  EXPECT_FALSE(GrpcServer::Create(config, core_).ok());
  config.tls.ca_certs.clear();
  EXPECT_TRUE(GrpcServer::Create(config, core_).ok());
}

}  // namespace
}  // namespace ekiben::rpc
