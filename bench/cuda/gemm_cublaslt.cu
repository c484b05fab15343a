// Ladder 1: every cuBLASLt candidate (first 16 of the heuristic) for the Llama-3-8B linear layers, timed inside a captured graph
// with weights rotated past L2. Prints one line per (type, layer, tokens): first candidate, best candidate, shares of the limits.
//
// Usage: gemm_cublaslt OUT.json
#include <cstring>
#include <memory>

#include "bench_common.h"
#include "cublaslt_gemm.h"

namespace {

using namespace bench;

constexpr int kTokens[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};
constexpr size_t kWorkspace = 64u << 20;
constexpr int kCandidates = 16;

struct Result {
  int first = -1, best = -1;
  double first_us = 0, best_us = 1e30;
};

template <typename T>
Result TimeCandidates(const LtGemm& gemm, const std::vector<Buffer<T>>& weights, const Buffer<T>& x,
                      Buffer<__nv_bfloat16>& out, double estimate_us) {
  Result result;
  auto time = [&](int candidate, double budget_us, int replays) {
    int nodes = std::max<int>(NodesFor(estimate_us, budget_us), static_cast<int>(std::min<size_t>(weights.size(), 12)));
    return TimeGraph(nodes, replays, [&](cudaStream_t stream, int i) {
      LtOk(gemm.Run(candidate, weights[i % weights.size()].data(), x.data(), out.data(), stream), "matmul");
    });
  };
  for (int c = 0; c < gemm.candidates(); ++c) {
    // A candidate that the heuristic offers may still refuse the call: those are skipped, not timed.
    if (gemm.Run(c, weights[0].data(), x.data(), out.data(), nullptr) != CUBLAS_STATUS_SUCCESS) continue;
    CUDA_OK(cudaDeviceSynchronize());
    double us = time(c, 1500, 3);
    if (result.first < 0) {
      result.first = c;
      result.first_us = us;
    }
    if (us < result.best_us) {
      result.best = c;
      result.best_us = us;
    }
  }
  if (result.best >= 0) {
    result.first_us = time(result.first, 3000, 7);
    result.best_us = result.best == result.first ? result.first_us : time(result.best, 3000, 7);
  }
  return result;
}

template <typename T>
void RunShape(cublasLtHandle_t handle, const LinearShape& shape, const std::vector<LtMode>& modes, void* workspace,
              Json& json) {
  size_t weight_count = static_cast<size_t>(shape.n) * shape.k;
  int copies = static_cast<int>(std::max<size_t>(1, (kRotateBytes + weight_count * sizeof(T) - 1) / (weight_count * sizeof(T))));
  std::vector<Buffer<T>> weights;
  bool fp8 = sizeof(T) == 1;
  for (int i = 0; i < copies; ++i) {
    weights.emplace_back(weight_count);
    FillNormal(weights.back().data(), weight_count, 100 + i, fp8 ? 80.0f : 0.02f);
  }
  Buffer<T> x(static_cast<size_t>(2048) * shape.k);
  FillNormal(x.data(), x.size(), 7, fp8 ? 80.0f : 1.0f);
  Buffer<__nv_bfloat16> out(static_cast<size_t>(2048) * shape.n);
  // Constant scales: 0.02 / 80 for weights, 1 / 80 for tokens; vectors are long enough for every mode.
  std::vector<float> w_scales(shape.n, 0.02f / 80), x_scales(2048, 1.0f / 80);
  Buffer<float> w_scale(w_scales.size()), x_scale(x_scales.size());
  w_scale.Upload(w_scales);
  x_scale.Upload(x_scales);
  double scale = fp8 ? static_cast<double>(w_scales[0]) * x_scales[0] : 1.0;
  for (LtMode mode : modes) {
    for (int m : kTokens) {
      LtGemm gemm(handle, mode, m, shape.n, shape.k, w_scale.data(), x_scale.data(), workspace, kWorkspace, kCandidates);
      double bytes = weight_count * sizeof(T) + static_cast<double>(m) * (shape.k * sizeof(T) + shape.n * 2.0);
      double flops = 2.0 * m * weight_count;
      double limit = fp8 ? kFp8Limit : kBf16Limit;
      double floor_us = std::max(bytes / kReadLimit, flops / limit) * 1e6;
      Result result = TimeCandidates(gemm, weights, x, out, floor_us + 4);
      if (result.best < 0) {
        std::printf("%-15s %-8s M=%-5d not supported\n", LtModeName(mode), shape.name, m);
        json.Row("\"type\": \"%s\", \"layer\": \"%s\", \"m\": %d, \"supported\": false", LtModeName(mode), shape.name, m);
        continue;
      }
      out.FillBytes(0xFF);
      LtOk(gemm.Run(result.best, weights[0].data(), x.data(), out.data(), nullptr), "matmul");
      CUDA_OK(cudaDeviceSynchronize());
      double error = SampledGemmError(weights[0], x, out, m, shape.n, shape.k, scale, 24, 1234 + m);
      // bf16 output rounding is 2^-9; the fast fp8 accumulator keeps about 14 bits over thousands of terms.
      Require(error < (fp8 ? 2e-2 : 5e-3), "%s %s M=%d error %g", LtModeName(mode), shape.name, m, error);
      Require(CountNan(out.data(), static_cast<size_t>(m) * shape.n) == 0, "unwritten outputs");
      double tb = bytes / result.best_us * 1e-6, tf = flops / result.best_us * 1e-6;
      std::printf("%-15s %-8s M=%-5d first %8.1f us  best %8.1f us (cand %2d of %2d)  %5.2f TB/s %4.0f%%  %6.0f TF %4.0f%%  of floor %4.0f%%\n",
                  LtModeName(mode), shape.name, m, result.first_us, result.best_us, result.best, gemm.candidates(), tb,
                  tb * 1e14 / kReadLimit, tf, tf * 1e14 / limit, floor_us / result.best_us * 100);
      json.Row("\"type\": \"%s\", \"layer\": \"%s\", \"n\": %d, \"k\": %d, \"m\": %d, \"first_us\": %.2f, \"best_us\": %.2f, "
               "\"best_candidate\": %d, \"candidates\": %d, \"algo\": \"%s\", \"floor_us\": %.2f, \"tb_per_s\": %.3f, "
               "\"tflops\": %.1f, \"relative_error\": %.2e",
               LtModeName(mode), shape.name, shape.n, shape.k, m, result.first_us, result.best_us, result.best,
               gemm.candidates(), gemm.Describe(result.best).c_str(), floor_us, tb, tf, error);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Require(argc == 2, "usage: gemm_cublaslt OUT.json");
  Json json(argv[1], CommandLine(argc, argv));
  cublasLtHandle_t handle;
  LtOk(cublasLtCreate(&handle), "create");
  std::printf("cuBLASLt %zu\n", cublasLtGetVersion());
  Buffer<uint8_t> workspace(kWorkspace);
  for (const LinearShape& shape : kLlama8b) {
    RunShape<__nv_bfloat16>(handle, shape, {LtMode::kBf16}, workspace.data(), json);
    RunShape<__nv_fp8_e4m3>(handle, shape, {LtMode::kFp8Tensor, LtMode::kFp8TensorFast, LtMode::kFp8Vector},
                            workspace.data(), json);
    json.Write();
  }
  cublasLtDestroy(handle);
  return 0;
}
