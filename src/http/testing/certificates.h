// Certificates made on the spot, for tests of TLS: a CA, and what it signs. P-256, valid for a day from an hour ago.
// Thread: plain values. Errors: none; a failure is a CHECK.
#pragma once
#include <string>

namespace ekiben::http::testing {

struct Certificate {
  std::string certificate_pem, key_pem;
};

// Signed by itself. The name is its common name.
Certificate MakeCa(const std::string& name);
// Signed by `ca`, for localhost and 127.0.0.1.
Certificate MakeSigned(const Certificate& ca, const std::string& name);

}  // namespace ekiben::http::testing
