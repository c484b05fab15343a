// out[m][n] = x[m][k] * w[n][k]^T in bf16 through cuBLASLt, which is loaded when a backend starts: a machine without
// the library still runs everything else.
//
// One plan (cuBLASLt's first candidate) per shape, found at its first use and kept. Sums are f32; `out` is bf16 or f32.
// Row-major throughout: column-major T,N inside. Thread: one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "base/result.h"
#include "device/cuda/cuda_device.h"

namespace ekiben {

class CublasLt {
 public:
  // Errors: the library is not there, or is of another major version.
  static Result<std::unique_ptr<CublasLt>> Create();
  ~CublasLt();

  // Errors: no candidate for the shape.
  Result<void> Prepare(int32_t m, int32_t n, int32_t k, bool out_f32);
  // Queues one product on `stream`. REQUIRES: 16-byte aligned pointers.
  Result<void> Multiply(CUstream_st* stream, int32_t m, int32_t n, int32_t k, const void* w, const void* x, void* out,
                        bool out_f32);

 private:
  struct Library;
  struct Plan;
  using Key = std::tuple<int32_t, int32_t, int32_t, bool>;
  CublasLt();
  Result<Plan*> Find(int32_t m, int32_t n, int32_t k, bool out_f32);

  std::unique_ptr<Library> library_;
  void* handle_ = nullptr;
  DeviceBuffer workspace_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace ekiben
