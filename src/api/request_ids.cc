#include "api/request_ids.h"

#include <random>

namespace ekiben::api {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): a bijection, so distinct counts give distinct values.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t SystemEntropy() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

RequestIds::RequestIds() : origin_(SystemEntropy()) {}

uint64_t RequestIds::NextSeed() {
  return Mix(origin_ + count_.fetch_add(1, std::memory_order_relaxed));
}

std::string RequestIds::NextHex(int digits) {
  std::string out;
  uint64_t value = NextSeed();
  for (int i = 0; i < digits; ++i) {
    if (i == 16) value = Mix(value ^ origin_);
    out.push_back("0123456789abcdef"[(value >> (4 * (i % 16))) & 15]);
  }
  return out;
}

}  // namespace ekiben::api
