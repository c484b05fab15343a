// Ids and seeds for requests: unique in a process, unguessable enough not to collide across processes.
// Thread: any.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

namespace ekiben::api {

class RequestIds {
 public:
  RequestIds();
  uint64_t NextSeed();
  std::string NextHex(int digits);  // at most 32

 private:
  const uint64_t origin_;  // from the system's entropy, once
  std::atomic<uint64_t> count_{0};
};

}  // namespace ekiben::api
