// One linear layer through cuBLASLt: out[m][n] = x[m][k] * w[n][k]^T, bf16 or e4m3 inputs, bf16 out, with every candidate that
// the heuristic offers kept so that a program can time them all. Row-major throughout (column-major T,N inside).
#pragma once

#include <cublasLt.h>

#include <cstdio>
#include <vector>

#include "bench_common.h"

namespace bench {

enum class LtMode { kBf16, kFp8Tensor, kFp8TensorFast, kFp8Vector };

inline const char* LtModeName(LtMode mode) {
  switch (mode) {
    case LtMode::kBf16: return "bf16";
    case LtMode::kFp8Tensor: return "fp8_tensor";
    case LtMode::kFp8TensorFast: return "fp8_tensor_fast";
    case LtMode::kFp8Vector: return "fp8_vector";
  }
  return "";
}

inline void LtOk(cublasStatus_t status, const char* what) {
  Require(status == CUBLAS_STATUS_SUCCESS, "%s: cuBLAS status %d", what, static_cast<int>(status));
}

class LtGemm {
 public:
  // The scale pointers are one float each in the tensor modes, n and m floats in kFp8Vector, unused in bf16.
  LtGemm(cublasLtHandle_t handle, LtMode mode, int m, int n, int k, const float* w_scale, const float* x_scale,
         void* workspace, size_t workspace_bytes, int wanted)
      : handle_(handle), workspace_(workspace), workspace_bytes_(workspace_bytes) {
    bool fp8 = mode != LtMode::kBf16;
    LtOk(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "desc");
    cublasOperation_t transpose = CUBLAS_OP_T;
    Set(CUBLASLT_MATMUL_DESC_TRANSA, transpose);
    if (fp8) {
      Set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scale);
      Set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scale);
      int8_t fast = mode == LtMode::kFp8TensorFast ? 1 : 0;
      Set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast);
    }
    if (mode == LtMode::kFp8Vector) {
      int32_t outer = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
      Set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, outer);
      Set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, outer);
    }
    cudaDataType_t in = fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    LtOk(cublasLtMatrixLayoutCreate(&w_, in, k, n, k), "w layout");
    LtOk(cublasLtMatrixLayoutCreate(&x_, in, k, m, k), "x layout");
    LtOk(cublasLtMatrixLayoutCreate(&out_, CUDA_R_16BF, n, m, n), "out layout");
    cublasLtMatmulPreference_t preference;
    LtOk(cublasLtMatmulPreferenceCreate(&preference), "preference");
    LtOk(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes_,
                                              sizeof workspace_bytes_),
         "workspace");
    std::vector<cublasLtMatmulHeuristicResult_t> found(wanted);
    int count = 0;
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_, operation_, w_, x_, out_, out_, preference, wanted, found.data(), &count);
    if (status != CUBLAS_STATUS_SUCCESS) count = 0;
    for (int i = 0; i < count; ++i) {
      if (found[i].state == CUBLAS_STATUS_SUCCESS) candidates_.push_back(found[i]);
    }
    cublasLtMatmulPreferenceDestroy(preference);
  }
  LtGemm(const LtGemm&) = delete;
  LtGemm& operator=(const LtGemm&) = delete;
  ~LtGemm() {
    cublasLtMatrixLayoutDestroy(out_);
    cublasLtMatrixLayoutDestroy(x_);
    cublasLtMatrixLayoutDestroy(w_);
    cublasLtMatmulDescDestroy(operation_);
  }

  int candidates() const { return static_cast<int>(candidates_.size()); }

  cublasStatus_t Run(int candidate, const void* w, const void* x, void* out, cudaStream_t stream) const {
    float one = 1, zero = 0;
    return cublasLtMatmul(handle_, operation_, &one, w, w_, x, x_, &zero, out, out_, out, out_,
                          &candidates_[candidate].algo, workspace_, workspace_bytes_, stream);
  }

  // Tile, stages, split-K and reduction of a candidate, as cuBLASLt numbers them.
  std::string Describe(int candidate) const {
    const cublasLtMatmulAlgo_t& algo = candidates_[candidate].algo;
    return "id " + std::to_string(Get(algo, CUBLASLT_ALGO_CONFIG_ID)) + " tile " +
           std::to_string(Get(algo, CUBLASLT_ALGO_CONFIG_TILE_ID)) + " stages " +
           std::to_string(Get(algo, CUBLASLT_ALGO_CONFIG_STAGES_ID)) + " splitk " +
           std::to_string(Get(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM));
  }

 private:
  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    LtOk(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof value), "attribute");
  }
  static int Get(const cublasLtMatmulAlgo_t& algo, cublasLtMatmulAlgoConfigAttributes_t attribute) {
    int32_t value = -1;
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(&algo, attribute, &value, sizeof value, &written) != CUBLAS_STATUS_SUCCESS) {
      return -1;
    }
    return value;
  }

  cublasLtHandle_t handle_;
  void* workspace_;
  size_t workspace_bytes_;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, out_ = nullptr;
  std::vector<cublasLtMatmulHeuristicResult_t> candidates_;
};

}  // namespace bench
