#include "http/testing/certificates.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <atomic>

#include "base/check.h"

namespace ekiben::http::testing {
namespace {

std::string Text(BIO* bio) {
  char* data = nullptr;
  long size = BIO_get_mem_data(bio, &data);
  std::string out(data, static_cast<size_t>(size));
  BIO_free(bio);
  return out;
}

X509* Blank(const std::string& name, EVP_PKEY* key) {
  static std::atomic<long> serial{1};
  X509* out = X509_new();
  X509_set_version(out, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(out), serial++);
  X509_gmtime_adj(X509_getm_notBefore(out), -3600);
  X509_gmtime_adj(X509_getm_notAfter(out), 86'400);
  X509_set_pubkey(out, key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(out), "CN", MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return out;
}

void AddExtension(X509* certificate, int kind, const char* value) {
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, kind, value);
  CHECK(extension != nullptr);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

Certificate Sign(X509* certificate, EVP_PKEY* key, X509* issuer, EVP_PKEY* issuer_key) {
  X509_set_issuer_name(certificate, X509_get_subject_name(issuer));
  CHECK(X509_sign(certificate, issuer_key, EVP_sha256()) > 0);
  BIO* certificate_bio = BIO_new(BIO_s_mem());
  BIO* key_bio = BIO_new(BIO_s_mem());
  CHECK(PEM_write_bio_X509(certificate_bio, certificate) == 1);
  CHECK(PEM_write_bio_PrivateKey(key_bio, key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  return {Text(certificate_bio), Text(key_bio)};
}

}  // namespace

Certificate MakeCa(const std::string& name) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  CHECK(key != nullptr);
  X509* certificate = Blank(name, key);
  AddExtension(certificate, NID_basic_constraints, "critical,CA:TRUE");
  Certificate out = Sign(certificate, key, certificate, key);
  X509_free(certificate);
  EVP_PKEY_free(key);
  return out;
}

Certificate MakeSigned(const Certificate& ca, const std::string& name) {
  BIO* ca_bio = BIO_new_mem_buf(ca.certificate_pem.data(), static_cast<int>(ca.certificate_pem.size()));
  BIO* ca_key_bio = BIO_new_mem_buf(ca.key_pem.data(), static_cast<int>(ca.key_pem.size()));
  X509* issuer = PEM_read_bio_X509(ca_bio, nullptr, nullptr, nullptr);
  EVP_PKEY* issuer_key = PEM_read_bio_PrivateKey(ca_key_bio, nullptr, nullptr, nullptr);
  EVP_PKEY* key = EVP_EC_gen("P-256");
  CHECK(issuer != nullptr && issuer_key != nullptr && key != nullptr);
  X509* certificate = Blank(name, key);
  AddExtension(certificate, NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
  Certificate out = Sign(certificate, key, issuer, issuer_key);
  X509_free(certificate);
  X509_free(issuer);
  EVP_PKEY_free(key);
  EVP_PKEY_free(issuer_key);
  BIO_free(ca_bio);
  BIO_free(ca_key_bio);
  return out;
}

}  // namespace ekiben::http::testing
