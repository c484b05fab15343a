// out[m][n] = x[m][k] * w[n][k]^T in bf16 or e4m3 through cuBLASLt, which is loaded when a backend starts: a machine
// without the library still runs everything else.
//
// One plan per shape and algorithm, made at its first use and kept. Sums are f32; `out` is bf16 or f32. Of e4m3
// operands it is the product of the codes, with the tensor cores' fast accumulation: the mode that takes a factor per
// row of w and of x costs up to 1.9 times as much with few rows (docs/gpu.md, ladder 1) and does not write f32.
// Row-major throughout: column-major T,N inside. Thread: one.
#pragma once
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "device/cuda/cuda_device.h"

namespace ekiben {

struct LtShape {
  int32_t m = 0, n = 0, k = 0;
  bool fp8 = false, out_f32 = false;
  // NOLINTNEXTLINE(modernize-use-nullptr): as in request/ids.h
  auto operator<=>(const LtShape&) const = default;
};

// Device addresses, 16-byte aligned.
struct LtOperands {
  const void *w = nullptr, *x = nullptr;
  void* out = nullptr;
};

// The library's own words for one of its algorithms, good for its version alone; all zero stands for its first
// candidate.
using LtAlgorithm = std::array<uint64_t, 8>;

struct LtCandidate {
  LtAlgorithm algorithm{};
  Nanos time{};  // of one product
};

class CublasLt {
 public:
  // Errors: the library is not there, or is of another major version.
  static Result<std::unique_ptr<CublasLt>> Create();
  ~CublasLt();

  std::string Version() const;  // "130100"
  // The library's candidates for the shape in its order, each timed over `weights` in turn (several, so that they do
  // not come from the L2 cache). Waits for the device. operands.out is overwritten. Errors: no candidate.
  Result<std::vector<LtCandidate>> TimeCandidates(CudaStream& stream, const LtShape& shape,
                                                  std::span<const void* const> weights, LtOperands operands);
  // Queues one product on `stream`, by the library's first candidate where `algorithm` is none for this shape.
  Result<void> Multiply(CUstream_st* stream, const LtShape& shape, const LtOperands& operands,
                        const LtAlgorithm& algorithm = {});

 private:
  struct Library;
  struct Plan;
  CublasLt();
  Result<Plan*> Find(const LtShape& shape, const LtAlgorithm& algorithm);
  Result<void> Describe(const LtShape& shape, Plan& plan);
  Result<void> Offer(const LtShape& shape, Plan& plan);
  Result<void> Run(CUstream_st* stream, const Plan& plan, size_t candidate, const LtOperands& operands);

  std::unique_ptr<Library> library_;
  void* handle_ = nullptr;
  DeviceBuffer workspace_;
  std::map<std::pair<LtShape, LtAlgorithm>, std::unique_ptr<Plan>> plans_;
};

}  // namespace ekiben
