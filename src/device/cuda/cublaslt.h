// out[m][n] = x[m][k] * w[n][k]^T in bf16 through cuBLASLt, which is loaded when a backend starts: a machine without
// the library still runs everything else.
//
// One plan per shape, found at its first use and kept: cuBLASLt's first candidate, or the fastest when Tune timed them
// before. Sums are f32; `out` is bf16 or f32.
// Row-major throughout: column-major T,N inside. Thread: one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <tuple>

#include "base/result.h"
#include "device/cuda/cuda_device.h"

namespace ekiben {

class CublasLt {
 public:
  // Errors: the library is not there, or is of another major version.
  static Result<std::unique_ptr<CublasLt>> Create();
  ~CublasLt();

  // Times every candidate for the shape over `weights` in turn (several, so that they do not come from the L2 cache)
  // and keeps the fastest. Waits for the device. `out` is overwritten. Errors: no candidate for the shape.
  Result<void> Tune(CudaStream& stream, int32_t m, int32_t n, int32_t k, std::span<const void* const> weights,
                    const void* x, void* out, bool out_f32);
  // Queues one product on `stream`. REQUIRES: 16-byte aligned pointers.
  Result<void> Multiply(CUstream_st* stream, int32_t m, int32_t n, int32_t k, const void* w, const void* x, void* out,
                        bool out_f32);

 private:
  struct Library;
  struct Plan;
  using Key = std::tuple<int32_t, int32_t, int32_t, bool>;
  CublasLt();
  Result<Plan*> Find(int32_t m, int32_t n, int32_t k, bool out_f32);
  Result<void> Run(CUstream_st* stream, const Plan& plan, size_t candidate, const void* w, const void* x, void* out);

  std::unique_ptr<Library> library_;
  void* handle_ = nullptr;
  DeviceBuffer workspace_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace ekiben
