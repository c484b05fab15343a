// Times the linears of a SmolLM2-135M-shaped model of random weights: linear_bench [--tokens N]... [--rounds R]
// [--threads T] [--variant V] [--layers L] [--pages small]. A development tool; `ekiben kernels` prints the same for a
// real engine.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include <sys/mman.h>

#include "ops/linear_tuning.h"
#include "ops/roofline.h"

namespace ekiben {
namespace {

// All weights in one allocation, as in an engine.
struct Weights {
  Buffer memory;
  size_t used = 0;
  std::vector<NamedLinear> linears;

  Weights(size_t bytes, bool small_pages) : memory(bytes) {
    if (small_pages) (void)madvise(memory.data(), bytes, MADV_NOHUGEPAGE);  // before the first touch
  }
  // One group of rows, repeated: speed does not depend on the values.
  void Add(const char* name, Packing packing, int64_t out, int64_t in) {
    size_t bytes = PackedBytes(packing, out, in), group = PackedBytes(packing, 16, in);
    std::byte* data = memory.data() + used;
    used += (bytes + 4095) / 4096 * 4096;
    CHECK_LE(used, memory.size());
    std::vector<float> source(static_cast<size_t>(16 * in));
    std::minstd_rand rng(1);
    for (float& v : source) v = static_cast<float>(rng() % 2001) * 1e-3f - 1.0f;
    LinearSource piece{DType::kF32, reinterpret_cast<std::byte*>(source.data()), 16};
    auto result = PackLinear(packing, in, {&piece, 1}, {data, group});
    CHECK(result.ok(), "{}", result.error().message());
    for (size_t at = group; at + group <= bytes; at += group) std::memcpy(data + at, data, group);
    linears.push_back({name, {packing, out, in, data, bytes, nullptr}});
  }
};

int Main(int argc, char** argv) {
  std::vector<int64_t> tokens;
  bool small_pages = false;
  int rounds = 15, threads = 2, layers = 30, variant = -1;
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string_view key = argv[i];
    int value = std::atoi(argv[i + 1]);
    if (key == "--tokens") tokens.push_back(value);
    if (key == "--rounds") rounds = value;
    if (key == "--threads") threads = value;
    if (key == "--layers") layers = value;
    if (key == "--pages") small_pages = std::string_view(argv[i + 1]) == "small";
    if (key == "--variant") variant = *LinearVariantIndex(argv[i + 1]);
  }
  if (tokens.empty()) tokens = {1, 2, 4, 8, 10, 16, 32, 50, 64, 128, 256, 512};
  ThreadPool pool(threads);
  Roofline peak = MeasureRoofline(pool, BestIsa());
  std::printf("%s\nint8 %.0f GOP/s, bf16 %.0f, f32 %.0f, read %.1f GB/s\n", DescribeCpu().c_str(),
              peak.int8_operations * 1e-9, peak.bf16_operations * 1e-9, peak.f32_operations * 1e-9,
              peak.read_bytes * 1e-9);
  Weights model(static_cast<size_t>(layers + 20) * 2400000, small_pages);
  for (int i = 0; i < layers; ++i) {
    model.Add("qkv", Packing::kInt4Block32, 960, 576);
    model.Add("o", Packing::kInt4Block32, 576, 576);
    model.Add("gate_up", Packing::kInt4Block32, 3072, 576);
    model.Add("down", Packing::kInt4Block32, 576, 1536);
  }
  model.Add("lm_head", Packing::kInt8, 49152, 576);
  LinearTuning tuning;
  for (const NamedLinear& l : model.linears) {
    for (int b = 0; variant >= 0 && b < static_cast<int>(kLinearBuckets.size()); ++b) {
      tuning.Set(l.weight.packing, l.weight.out_features, l.weight.in_features, b, variant);
    }
  }
  for (int64_t m : tokens) {
    Arena arena(LinearTimingScratchBytes(model.linears, m));
    OpContext ctx{.pool = &pool, .arena = &arena, .isa = BestIsa(), .tuning = &tuning};
    double total = 0, layers_seconds = 0, operations = 0;
    for (const LinearTiming& t : TimeLinears(ctx, model.linears, m, rounds)) {
      double all = t.seconds * static_cast<double>(t.weights);
      total += all;
      if (t.name != "lm_head") {
        layers_seconds += all;
        operations += t.operations * static_cast<double>(t.weights);
      }
      std::printf("%4ld %-8s %8.1f us %6.0f GOP/s %4.0f %% of peak %6.1f GB/s %4.0f %% of read\n", m, t.name.c_str(),
                  t.seconds * 1e6, t.operations / t.seconds * 1e-9,
                  100 * t.operations / t.seconds / peak.int8_operations, t.bytes / t.seconds * 1e-9,
                  100 * t.bytes / t.seconds / peak.read_bytes);
    }
    std::printf(
        "%4ld layers %.2f ms, %.0f %% of int8 peak; with head %.2f ms = %.0f tok/s, 98.4 MB/step %.0f %% of read\n", m,
        layers_seconds * 1e3, 100 * operations / layers_seconds / peak.int8_operations, total * 1e3,
        static_cast<double>(m) / total, 100 * 98.36e6 / total / peak.read_bytes);
  }
  return 0;
}

}  // namespace
}  // namespace ekiben

int main(int argc, char** argv) {
  return ekiben::Main(argc, argv);
}
