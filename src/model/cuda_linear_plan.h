// How the linears of a model run on a CUDA device, for each bucket of token counts: what `ekiben build` finds by time
// and stores in the engine's profile (compile/cuda_profile.h), and CudaLlama::Tune finds at start where there is none.
// Plain data, known without CUDA. Thread: immutable once made.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ekiben {

// Who multiplies. kOwn: own kernels as far as they reach (64 tokens), then cuBLASLt's first candidate, not timed.
// kLibrary: cuBLASLt's candidates at every count. kAuto: whichever is faster.
enum class GemmPlugin : uint8_t { kAuto, kOwn, kLibrary };

// As far as a start has time to choose: beyond, steps are bound by arithmetic and candidates differ less.
inline constexpr int32_t kCudaStartTokensMax = 512;

struct CudaTuneOptions {
  GemmPlugin gemm = GemmPlugin::kAuto;
  // Off: one choice, made at opt_num_tokens, serves every count that it can.
  bool multiple_profiles = true;
  int32_t opt_num_tokens = 0;
};

enum class CudaLinearKind : uint8_t { kQkv, kO, kGateUp, kDown, kHead };
inline constexpr std::array<std::string_view, 5> kCudaLinearNames = {"qkv", "o", "gate_up", "down", "lm_head"};

struct CudaLinearWay {
  bool own = false;
  int32_t candidate = 0;                   // its place in cuBLASLt's list
  std::array<uint64_t, 8> algorithm = {};  // LtAlgorithm of device/cuda/cublaslt.h
  // Of one product over several layers' weights in turn; 0: not timed. The library's are of its best candidate and of
  // its first, the own kernel's of the own kernel.
  double us = 0, us_first = 0, us_own = 0;
};

// Serves the token counts [first, tokens]; measured at `tokens`.
struct CudaLinearBucket {
  int32_t first = 0, tokens = 0;
  std::array<CudaLinearWay, kCudaLinearNames.size()> ways;
  // Of the linears of a layer, one after the other as in a step: as chosen, and as they would run unmeasured.
  double us_a_layer = 0, us_unmeasured = 0;
};

struct CudaLinearPlan {
  std::string device, library;  // what it was measured on
  bool fp8 = false;
  bool for_all = false;  // one bucket, which serves every count
  std::vector<CudaLinearBucket> buckets;

  // The way of a kind for a count; null: not measured.
  const CudaLinearWay* Find(CudaLinearKind kind, int32_t tokens) const {
    for (const CudaLinearBucket& bucket : buckets)
      if (for_all || (bucket.first <= tokens && tokens <= bucket.tokens))
        return &bucket.ways[static_cast<size_t>(kind)];
    return nullptr;
  }
};

}  // namespace ekiben
