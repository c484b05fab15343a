// device/cuda/cublaslt.h as plain loops: sums in f32, in the order of columns.
#include "device/cuda/cublaslt.h"

#include <cuda_runtime.h>

#include <vector>

#include "ops/ptx.cuh"

namespace ekiben {

struct CublasLt::Library {};
struct CublasLt::Plan {};

namespace {

std::vector<float> Widen(const void* from, size_t count, bool fp8) {
  std::vector<float> out(count);
  for (size_t i = 0; i < count; ++i)
    out[i] = fp8 ? cuda::FromFp8(static_cast<const uint8_t*>(from)[i])
                 : cuda::FromBf16(static_cast<const uint16_t*>(from)[i]);
  return out;
}

// Compiled for what the machine has: a model's prompt is 10^10 of these.
__attribute__((target_clones("arch=haswell", "default"))) float Dot(const float* a, const float* b, size_t count) {
  float lanes[32] = {};
  size_t i = 0;
  for (; i + 32 <= count; i += 32)
    for (size_t l = 0; l < 32; ++l) lanes[l] += a[i + l] * b[i + l];
  float sum = 0;
  for (; i < count; ++i) sum += a[i] * b[i];
  for (float lane : lanes) sum += lane;
  return sum;
}

void Product(const LtShape& s, const LtOperands& o) {
  auto n = static_cast<size_t>(s.n), k = static_cast<size_t>(s.k), m = static_cast<size_t>(s.m);
  std::vector<float> w = Widen(o.w, n * k, s.fp8), x = Widen(o.x, m * k, s.fp8);
  for (size_t r = 0; r < n; ++r) {
    for (size_t t = 0; t < m; ++t) {
      float sum = Dot(w.data() + r * k, x.data() + t * k, k);
      if (s.out_f32) {
        static_cast<float*>(o.out)[t * n + r] = sum;
      } else {
        static_cast<uint16_t*>(o.out)[t * n + r] = static_cast<uint16_t>(cuda::RoundedBf16(sum));
      }
    }
  }
}

}  // namespace

CublasLt::CublasLt() = default;
CublasLt::~CublasLt() = default;

Result<std::unique_ptr<CublasLt>> CublasLt::Create() {
  return std::unique_ptr<CublasLt>(new CublasLt());
}

std::string CublasLt::Version() const {
  return "emulated";
}

// Three that do the same; the second is said to be the fastest.
Result<std::vector<LtCandidate>> CublasLt::TimeCandidates(CudaStream&, const LtShape& shape,
                                                          std::span<const void* const>, LtOperands) {
  return std::vector<LtCandidate>{{{1, static_cast<uint64_t>(shape.m)}, Nanos(3000)},
                                  {{2, static_cast<uint64_t>(shape.m)}, Nanos(2000)},
                                  {{3, static_cast<uint64_t>(shape.m)}, Nanos(4000)}};
}

Result<void> CublasLt::Multiply(CUstream_st* stream, const LtShape& shape, const LtOperands& operands,
                                const LtAlgorithm&) {
  if (shape.fp8 && (shape.n % 16 != 0 || shape.k % 16 != 0))
    return Error(Code::kUnsupported, "e4m3 needs multiples of 16");
  return CudaStatus(emulation::Submit(stream, [=] { Product(shape, operands); }), "product");
}

}  // namespace ekiben
