// Rounding of a linear's bf16 rows so that e4m3 holds them, with the errors of a row made to cancel on inputs that the
// model has seen.
//
// A row keeps its largest value, and with it the factor (largest / 448) by which the GPU rounds while it loads
// (ops/cuda_ops.h); every other value becomes a code times that factor, stored as bf16, whose rounding is too small to
// move it to another code. So the rows stay bf16 rows and their codes on the GPU are the ones chosen here.
//
// Which code: columns are taken in order of their inputs' energy; each is first moved by what makes up best for the
// error that the columns before it left on the sample inputs, then rounded to nearest. With A the inputs
// [samples, columns] times sqrt(1 / (2 samples)), E = A (rounded - exact) over the columns done, D_j = the energy that
// A leaves out of column j plus kRidge of the mean, and F the columns to do, the best answer of F to E is -D_F^-1 A_F^T
// (I + A_F D_F^-1 A_F^T)^-1 E. This is GPTQ (arXiv 2210.17323) with second moments shrunk half way to their diagonal,
// held as the samples themselves: with a few hundred of them for thousands of columns the moments are poor, shrinking
// less measured worse on other text (tools/fp8_study.py), and nothing of columns^2 is needed. Cost: 4 samples^2 flops a
// column, then 4 samples a weight. All bodies give the same bits, on any number of threads. Thread: caller's, forks
// over the pool.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "device/buffer.h"
#include "device/cpu_features.h"
#include "device/tensor_view.h"
#include "device/thread_pool.h"

namespace ekiben {

// Whether the GPU's kernels take a linear of this shape in e4m3.
inline constexpr int64_t kE4m3ColumnsMax = 32768;
inline bool HoldsE4m3(int64_t rows, int64_t columns) {
  return rows % 16 == 0 && columns % 16 == 0 && columns <= kE4m3ColumnsMax;
}

// The nearest e4m3 value; beyond 448 the largest.
float RoundToE4m3(float value);

// What rounding needs of the inputs of a linear; serves every weight with these inputs.
class RoundingPlan {
 public:
  // inputs: f32 [samples, columns].
  RoundingPlan(Isa isa, TensorView inputs);
  // packed: [rows, columns] in the packing kBF16, rounded in place. REQUIRES: HoldsE4m3(rows, columns).
  void Round(ThreadPool& pool, int64_t rows, std::span<std::byte> packed) const;

 private:
  Isa isa_;
  int64_t columns_, samples_;   // samples: padded to whole lanes
  std::vector<int32_t> order_;  // columns by falling energy
  Buffer inputs_, gains_;       // f32 [columns, samples] in that order; gains: one more row, of zeros
};

// M^-1 of the columns from the last to the first, and with it each column's gain.
struct RoundingGains {
  const float* inputs;    // [columns][samples]
  const double* ridge;    // [columns]
  float* gains;           // [columns][samples]
  float* inverse;         // [samples][samples], at first one
  float *last, *current;  // [samples], scratch; `last` at first zero
  int64_t columns, samples;
};
// Sixteen rows.
struct RoundingGroup {
  float* values;         // [columns][16], in place
  const float* factors;  // [16]
  const int32_t* tops;   // [16] the column that stays
  const int32_t* order;  // [columns]
  const float *inputs, *gains;
  float* error;  // [samples][16], zero
  int64_t columns, samples;
};
namespace reference {
void RunRoundingGains(const RoundingGains& work);
void RunRoundingGroup(const RoundingGroup& group);
}  // namespace reference
namespace avx2 {
void RunRoundingGains(const RoundingGains& work);
void RunRoundingGroup(const RoundingGroup& group);
}  // namespace avx2
namespace avx512 {
void RunRoundingGains(const RoundingGains& work);
void RunRoundingGroup(const RoundingGroup& group);
}  // namespace avx512

}  // namespace ekiben
