// Ladder 2: our own few-token GEMM (skinny_gemm.cuh) for the Llama-3-8B linear layers: correctness on odd sizes, every
// configuration timed with weights rotated past L2, and whole-model chains of 4 x 32 + 1 layers with and without programmatic
// dependent launch, beside cuBLASLt's best candidates.
//
// Usage: gemm_skinny OUT.json | --check
#include <cstring>
#include <memory>

#include "bench_common.h"
#include "cublaslt_gemm.h"
#include "skinny_gemm.cuh"

namespace {

using namespace bench;

constexpr size_t kWorkspace = 64u << 20;

template <typename T>
struct Traits {
  static constexpr bool kFp8 = sizeof(T) == 1;
  static constexpr const char* kName = kFp8 ? "fp8" : "bf16";
  static constexpr float kWeightDeviation = kFp8 ? 80.0f : 0.02f;
  static constexpr float kTokenDeviation = kFp8 ? 80.0f : 1.0f;
};

std::vector<float> RandomScales(int count, float around, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> factor(0.5f, 1.5f);
  std::vector<float> scales(count);
  for (float& s : scales) s = around * factor(random);
  return scales;
}

// Every output against fp64 on shapes that no tile divides; scales differ in every row and token.
template <typename T>
void CheckOddShapes() {
  struct Odd {
    int m, n, k;
  };
  int checked = 0;
  double worst = 0;
  for (Odd odd : {Odd{1, 8, 128}, Odd{3, 200, 336}, Odd{8, 264, 1040}, Odd{13, 520, 4096}, Odd{33, 136, 2064}, Odd{64, 392, 976},
                  Odd{65, 200, 1040}, Odd{128, 264, 2064}}) {
    Buffer<T> w(static_cast<size_t>(odd.n) * odd.k), x(static_cast<size_t>(odd.m) * odd.k);
    FillNormal(w.data(), w.size(), 11 + odd.n, Traits<T>::kWeightDeviation);
    FillNormal(x.data(), x.size(), 13 + odd.m, Traits<T>::kTokenDeviation);
    std::vector<float> ws = RandomScales(odd.n, 0.02f / 80, 1), xs = RandomScales(odd.m, 1.0f / 80, 2);
    Buffer<float> w_scale(odd.n), x_scale(odd.m);
    w_scale.Upload(ws);
    x_scale.Upload(xs);
    Buffer<__nv_bfloat16> out(static_cast<size_t>(odd.m) * odd.n + 64);
    std::vector<T> w_host = w.Download(), x_host = x.Download();
    std::vector<double> want(static_cast<size_t>(odd.m) * odd.n);
    for (int t = 0; t < odd.m; ++t) {
      for (int r = 0; r < odd.n; ++r) {
        double sum = 0;
        for (int i = 0; i < odd.k; ++i) sum += Decode(w_host[static_cast<size_t>(r) * odd.k + i]) * Decode(x_host[static_cast<size_t>(t) * odd.k + i]);
        want[static_cast<size_t>(t) * odd.n + r] = Traits<T>::kFp8 ? sum * ws[r] * xs[t] : sum;
      }
    }
    for (int groups : {1, 2, 4}) {
      for (int splits : {1, 2, 4, 8, -1, -2}) {  // negative: StreamGemmKernel with that many CTAs an SM
        for (bool half : {false, true}) {
          SkinnyLaunch launch;
          if (!PrepareSkinny<T>(launch, {groups, std::max(splits, 1), half, std::max(-splits, 0)}, w.data(), x.data(), out.data(),
                                Traits<T>::kFp8 ? w_scale.data() : nullptr, x_scale.data(), odd.m, odd.n, odd.k)) {
            continue;
          }
          out.FillBytes(0xFF);
          RunSkinny(launch, nullptr, false);
          CUDA_OK(cudaDeviceSynchronize());
          std::vector<__nv_bfloat16> host = out.Download();
          std::vector<double> got;
          for (size_t i = 0; i < want.size(); ++i) got.push_back(Decode(host[i]));
          double error = RelativeError(got, want);
          Require(error < 4e-3, "skinny %s m=%d n=%d k=%d groups=%d splits=%d half=%d: error %g", Traits<T>::kName, odd.m,
                  odd.n, odd.k, groups, splits, half, error);
          for (size_t i = want.size(); i < host.size(); ++i) Require(std::isnan(Decode(host[i])), "wrote past the end");
          worst = std::max(worst, error);
          ++checked;
        }
      }
    }
  }
  std::printf("check %s: %d shape/configuration pairs against fp64, worst relative error %.2e\n", Traits<T>::kName, checked, worst);
}

// The same token alone and in a batch, same configuration: bit-equal, and twice the same.
template <typename T>
void CheckBatchInvariance(bool stream) {
  int n = 4096, k = 4096;
  Buffer<T> w(static_cast<size_t>(n) * k), x(static_cast<size_t>(64) * k);
  FillNormal(w.data(), w.size(), 3, Traits<T>::kWeightDeviation);
  FillNormal(x.data(), x.size(), 4, Traits<T>::kTokenDeviation);
  Buffer<float> w_scale(n), x_scale(64);
  w_scale.Upload(RandomScales(n, 0.02f / 80, 1));
  x_scale.Upload(RandomScales(64, 1.0f / 80, 2));
  Buffer<__nv_bfloat16> out(static_cast<size_t>(64) * n);
  std::vector<uint16_t> alone;
  int differing = 0;
  for (int m : {1, 1, 7, 16, 32, 64, 64}) {
    SkinnyLaunch launch;
    Require(PrepareSkinny<T>(launch, stream ? SkinnyConfig{2, 1, false, 1} : SkinnyConfig{2, 4, false, 0}, w.data(), x.data(), out.data(), Traits<T>::kFp8 ? w_scale.data() : nullptr,
                             x_scale.data(), m, n, k),
            "configuration");
    RunSkinny(launch, nullptr, false);
    CUDA_OK(cudaDeviceSynchronize());
    std::vector<__nv_bfloat16> row = out.Download(0, n);
    std::vector<uint16_t> bits(n);
    std::memcpy(bits.data(), row.data(), n * 2);
    if (alone.empty()) alone = bits;
    for (int i = 0; i < n; ++i) differing += bits[i] != alone[i];
  }
  std::printf("check %s %s: token 0 in batches of 1, 1, 7, 16, 32, 64, 64: %d of %d outputs differ in any bit\n", Traits<T>::kName,
              stream ? "stream" : "cluster", differing, 7 * n);
  Require(differing == 0, "batch changes results");
}

struct Best {
  SkinnyConfig config;
  double us = 1e30;
};

// The families that compete: the cluster kernel alone on its SM, the even split alone, and the even split with room beside it.
enum Family { kCluster, kStream, kStreamShared, kFamilies };
constexpr const char* kFamilyName[] = {"cluster", "stream", "stream_shared"};

struct Choice {
  Best serial[kFamilies];     // launches wait for each other
  Best dependent[kFamilies];  // programmatic dependent launches, weights requested early
};

template <typename T>
Best Tune(const LinearShape& shape, int m, const std::vector<Buffer<T>>& weights, const Buffer<T>& x,
          Buffer<__nv_bfloat16>& out, const float* w_scale, const float* x_scale, double floor_us, Family family,
          bool dependent, Json& json) {
  Best best;
  auto time = [&](const SkinnyConfig& config, double budget, int replays) {
    std::vector<SkinnyLaunch> launches(weights.size());
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!PrepareSkinny<T>(launches[i], config, weights[i].data(), x.data(), out.data(), w_scale, x_scale, m, shape.n, shape.k)) {
        return 1e30;
      }
    }
    int nodes = std::max<int>(NodesFor(floor_us + 3, budget), static_cast<int>(std::min<size_t>(weights.size(), 24)));
    return TimeGraph(nodes, replays, [&](cudaStream_t stream, int i) { RunSkinny(launches[i % launches.size()], stream, dependent); });
  };
  std::vector<SkinnyConfig> configs;
  for (int groups : {1, 2, 4}) {
    if (family == kCluster) {
      for (int splits : {1, 2, 4, 8}) {
        configs.push_back({groups, splits, false, 0});
        if (!dependent) configs.push_back({groups, splits, true, 0});
      }
    } else if (family == kStream) {
      configs.push_back({groups, 1, false, 1});
      configs.push_back({groups, 1, true, 2});
    } else {
      configs.push_back({groups, 1, true, 1});
    }
  }
  for (const SkinnyConfig& config : configs) {
    double us = time(config, 1500, 3);
    if (us > 1e29) continue;
    json.Row("\"kind\": \"config\", \"type\": \"%s\", \"layer\": \"%s\", \"m\": %d, \"family\": \"%s\", \"dependent\": %d, \"groups\": %d, "
             "\"splits\": %d, \"half\": %d, \"stream\": %d, \"us\": %.2f",
             Traits<T>::kName, shape.name, m, kFamilyName[family], dependent, config.groups, config.splits, config.half, config.stream, us);
    if (us < best.us) best = {config, us};
  }
  if (best.us < 1e29) best.us = time(best.config, 3000, 9);
  return best;
}

template <typename T>
void RunLadder(Json& json, std::vector<std::vector<Choice>>& bests, const std::vector<int>& tokens) {
  for (const LinearShape& shape : kLlama8b) {
    size_t count = static_cast<size_t>(shape.n) * shape.k;
    size_t copies = std::max<size_t>(1, (kRotateBytes + count * sizeof(T) - 1) / (count * sizeof(T)));
    std::vector<Buffer<T>> weights;
    for (size_t i = 0; i < copies; ++i) {
      weights.emplace_back(count);
      FillNormal(weights.back().data(), count, 100 + i, Traits<T>::kWeightDeviation);
    }
    Buffer<T> x(static_cast<size_t>(128) * shape.k);
    FillNormal(x.data(), x.size(), 7, Traits<T>::kTokenDeviation);
    Buffer<__nv_bfloat16> out(static_cast<size_t>(128) * shape.n);
    Buffer<float> w_scale(shape.n), x_scale(128);
    w_scale.Upload(std::vector<float>(shape.n, 0.02f / 80));
    x_scale.Upload(std::vector<float>(128, 1.0f / 80));
    const float* ws = Traits<T>::kFp8 ? w_scale.data() : nullptr;
    bests.emplace_back();
    for (int m : tokens) {
      double bytes = count * sizeof(T) + static_cast<double>(m) * (shape.k * sizeof(T) + shape.n * 2.0);
      double floor_us = bytes / kReadLimit * 1e6;
      Choice choice;
      std::printf("own %-4s %-8s M=%-4d", Traits<T>::kName, shape.name, m);
      for (bool dependent : {false, true}) {
        std::printf(dependent ? " | dependent" : " serial");
        for (int family = 0; family < kFamilies; ++family) {
          Best best = Tune<T>(shape, m, weights, x, out, ws, x_scale.data(), floor_us, static_cast<Family>(family), dependent, json);
          (dependent ? choice.dependent : choice.serial)[family] = best;
          if (best.us > 1e29) continue;
          SkinnyLaunch launch;
          PrepareSkinny<T>(launch, best.config, weights[0].data(), x.data(), out.data(), ws, x_scale.data(), m, shape.n, shape.k);
          out.FillBytes(0xFF);
          RunSkinny(launch, nullptr, false);
          CUDA_OK(cudaDeviceSynchronize());
          double scale = Traits<T>::kFp8 ? 0.02 / 80 / 80 : 1.0;
          double error = SampledGemmError(weights[0], x, out, m, shape.n, shape.k, scale, 12, 99 + m);
          Require(error < 4e-3, "%s %s m=%d error %g", Traits<T>::kName, shape.name, m, error);
          Require(CountNan(out.data(), static_cast<size_t>(m) * shape.n) == 0, "unwritten outputs");
          std::printf(" %s %.1f (g%d s%d%s c%d)", kFamilyName[family], best.us, best.config.groups, best.config.splits,
                      best.config.half ? " half" : "", best.config.stream);
          json.Row("\"kind\": \"best\", \"type\": \"%s\", \"layer\": \"%s\", \"n\": %d, \"k\": %d, \"m\": %d, \"family\": \"%s\", "
                   "\"dependent\": %d, \"groups\": %d, \"splits\": %d, \"half\": %d, \"stream\": %d, \"best_us\": %.2f, \"floor_us\": %.2f, "
                   "\"tb_per_s\": %.3f, \"relative_error\": %.2e",
                   Traits<T>::kName, shape.name, shape.n, shape.k, m, kFamilyName[family], dependent, best.config.groups,
                   best.config.splits, best.config.half, best.config.stream, best.us, floor_us, bytes / best.us * 1e-6, error);
        }
      }
      double top = 1e30;
      for (const Best& best : choice.dependent) top = std::min(top, best.us);
      std::printf(" | floor %.1f, dependent best at %.0f%%\n", floor_us, floor_us / top * 100);
      bests.back().push_back(choice);
    }
  }
}

// All linear layers of one decode step in order, each with its own weights (so nothing is in L2 twice), as one graph.
template <typename T>
void RunChains(cublasLtHandle_t handle, void* workspace, Json& json, const std::vector<std::vector<Choice>>& bests,
               const std::vector<int>& tokens) {
  constexpr int kLayers = 32;
  Buffer<float> w_scale(kLlama8b[4].n), x_scale(128);
  w_scale.Upload(std::vector<float>(kLlama8b[4].n, 0.02f / 80));
  x_scale.Upload(std::vector<float>(128, 1.0f / 80));
  const float* ws = Traits<T>::kFp8 ? w_scale.data() : nullptr;
  std::vector<Buffer<T>> weights;
  std::vector<int> which;
  double weight_bytes = 0;
  for (int layer = 0; layer < kLayers; ++layer) {
    for (int s = 0; s < 4; ++s) which.push_back(s);
  }
  which.push_back(4);
  for (int s : which) {
    size_t count = static_cast<size_t>(kLlama8b[s].n) * kLlama8b[s].k;
    weights.emplace_back(count);
    FillNormal(weights.back().data(), count, 1000 + weights.size(), Traits<T>::kWeightDeviation);
    weight_bytes += count * sizeof(T);
  }
  // Inputs are fixed: the chain has the dependencies and traffic of a model, not its values.
  Buffer<T> x(static_cast<size_t>(128) * 14336);
  FillNormal(x.data(), x.size(), 7, Traits<T>::kTokenDeviation);
  Buffer<__nv_bfloat16> out(static_cast<size_t>(128) * kLlama8b[4].n);
  for (size_t t = 0; t < tokens.size(); ++t) {
    int m = tokens[t];
    auto chain = [&](bool dependent, int family) {
      std::vector<SkinnyLaunch> launches(which.size());
      for (size_t i = 0; i < which.size(); ++i) {
        const LinearShape& shape = kLlama8b[which[i]];
        const Best* candidates = dependent ? bests[which[i]][t].dependent : bests[which[i]][t].serial;
        const Best* best = candidates;
        if (family >= 0) best = candidates + family;
        for (int f = 0; family < 0 && f < kFamilies; ++f) best = candidates[f].us < best->us ? candidates + f : best;
        if (best->us > 1e29) return 0.0;
        Require(PrepareSkinny<T>(launches[i], best->config, weights[i].data(), x.data(), out.data(), ws, x_scale.data(), m, shape.n, shape.k),
                "chain configuration");
      }
      return TimeGraph(1, 9, [&](cudaStream_t stream, int) {
        for (const SkinnyLaunch& launch : launches) RunSkinny(launch, stream, dependent);
      });
    };
    double serial = chain(false, -1), mixed = chain(true, -1), cluster = chain(true, kCluster), stream_alone = chain(true, kStream),
           shared = chain(true, kStreamShared);
    std::vector<std::unique_ptr<LtGemm>> gemms;
    std::vector<int> picks;
    for (const LinearShape& shape : kLlama8b) {
      LtMode mode = Traits<T>::kFp8 ? LtMode::kFp8TensorFast : LtMode::kBf16;
      gemms.push_back(std::make_unique<LtGemm>(handle, mode, m, shape.n, shape.k, w_scale.data(), x_scale.data(), workspace, kWorkspace, 16));
      const LtGemm& gemm = *gemms.back();
      int s = static_cast<int>(gemms.size()) - 1;
      int pick = 0;
      double pick_us = 1e30;
      for (int c = 0; c < gemm.candidates(); ++c) {
        if (gemm.Run(c, weights[s == 4 ? 128 : s].data(), x.data(), out.data(), nullptr) != CUBLAS_STATUS_SUCCESS) continue;
        CUDA_OK(cudaDeviceSynchronize());
        double us = TimeGraph(s == 4 ? 1 : 32, 3, [&](cudaStream_t stream, int i) {
          gemm.Run(c, weights[s == 4 ? 128 : 4 * i + s].data(), x.data(), out.data(), stream);
        });
        if (us < pick_us) {
          pick_us = us;
          pick = c;
        }
      }
      picks.push_back(pick);
    }
    double cublas = TimeGraph(1, 9, [&](cudaStream_t stream, int) {
      for (size_t i = 0; i < which.size(); ++i) {
        gemms[which[i]]->Run(picks[which[i]], weights[i].data(), x.data(), out.data(), stream);
      }
    });
    double floor_us = weight_bytes / kReadLimit * 1e6;
    double best = serial;
    for (double us : {mixed, cluster, stream_alone, shared}) best = us > 0 ? std::min(best, us) : best;
    std::printf("chain %-4s M=%-4d cublaslt %5.0f | own serial %5.0f  dependent: each layer's best %5.0f  cluster %5.0f  stream %5.0f  "
                "stream shared %5.0f us | weight floor %5.0f us (%.0f%%)\n",
                Traits<T>::kName, m, cublas, serial, mixed, cluster, stream_alone, shared, floor_us, 100 * floor_us / best);
    json.Row("\"kind\": \"chain\", \"type\": \"%s\", \"m\": %d, \"cublaslt_us\": %.1f, \"serial_us\": %.1f, \"dependent_mixed_us\": %.1f, "
             "\"dependent_cluster_us\": %.1f, \"dependent_stream_us\": %.1f, \"dependent_stream_shared_us\": %.1f, \"floor_us\": %.1f",
             Traits<T>::kName, m, cublas, serial, mixed, cluster, stream_alone, shared, floor_us);
  }
}

template <typename T>
void RunType(cublasLtHandle_t handle, void* workspace, Json& json) {
  const std::vector<int> tokens = {1, 8, 16, 32, 64, 128};
  CheckOddShapes<T>();
  CheckBatchInvariance<T>(false);
  CheckBatchInvariance<T>(true);
  std::vector<std::vector<Choice>> bests;
  RunLadder<T>(json, bests, tokens);
  RunChains<T>(handle, workspace, json, bests, tokens);
}

}  // namespace

int main(int argc, char** argv) {
  Require(argc == 2, "usage: gemm_skinny OUT.json");
  if (std::strcmp(argv[1], "--check") == 0) {
    CheckOddShapes<__nv_bfloat16>();
    CheckOddShapes<__nv_fp8_e4m3>();
    return 0;
  }
  Json json(argv[1], CommandLine(argc, argv));
  cublasLtHandle_t handle;
  LtOk(cublasLtCreate(&handle), "create");
  Buffer<uint8_t> workspace(kWorkspace);
  RunType<__nv_bfloat16>(handle, workspace.data(), json);
  json.Write();
  RunType<__nv_fp8_e4m3>(handle, workspace.data(), json);
  json.Write();
  cublasLtDestroy(handle);
  return 0;
}
