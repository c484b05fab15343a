#include "ops/roofline.h"

#include <algorithm>
#include <ctime>

#include "ops/roofline_kernels.h"

namespace ekiben {
namespace {

// With one thread its own CPU time, so that what else runs on the machine does not count; else time on the wall.
double Now(const ThreadPool& pool) {
  timespec t;
  clock_gettime(pool.size() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Plain loops, for a CPU with neither set: they measure what the compiler makes of them.
double PlainMultiplyAdd(int64_t rounds) {
  volatile float seed = 0.5f;
  float x = seed, acc[8] = {};
  for (int64_t r = 0; r < rounds; ++r) {
    for (float& a : acc) a = a * x + 1.0f;
  }
  float sum = 0;
  for (float a : acc) sum += a;
  seed = sum;
  return static_cast<double>(rounds) * 8 * 2;
}
double PlainRead(const void* data, int64_t bytes) {
  const uint64_t* p = static_cast<const uint64_t*>(data);
  uint64_t sum = 0;
  for (int64_t i = 0; i < bytes / 8; ++i) sum += p[i];
  volatile uint64_t sink = sum;
  (void)sink;
  return static_cast<double>(bytes);
}
const RooflineKernels kRooflineReference = {PlainMultiplyAdd, PlainMultiplyAdd, PlainMultiplyAdd, PlainRead};

const RooflineKernels& KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kReference: return kRooflineReference;
    case Isa::kAvx2: return kRooflineAvx2;
    case Isa::kAvx512: return kRooflineAvx512;
  }
  return kRooflineReference;
}

// The best rate of fork-joins of work(member) -> amount, over `seconds`.
template <class Work>
double BestRate(ThreadPool& pool, double seconds, const Work& work) {
  double best = 0;
  double begin = Now(pool);
  std::vector<double> amounts(static_cast<size_t>(pool.size()) * 16);  // a cache line a member
  do {
    double start = Now(pool);
    pool.Run([&](int member) { amounts[static_cast<size_t>(member) * 16] = work(member); });
    double took = Now(pool) - start, total = 0;
    for (size_t i = 0; i < amounts.size(); i += 16) total += amounts[i];
    best = std::max(best, total / took);
  } while (Now(pool) - begin < seconds);
  return best;
}

constexpr int64_t kReadBytes = int64_t{256} << 20;
constexpr int64_t kPeakRounds = 200'000;  // about half a millisecond

struct Group {
  LinearTiming timing;
  std::vector<double> rounds;  // seconds of all its weights
};

}  // namespace

Roofline MeasureRoofline(ThreadPool& pool, Isa isa, double seconds) {
  const RooflineKernels& kernels = KernelsOf(isa);
  Roofline r;
  r.int8_operations = BestRate(pool, seconds, [&](int) { return kernels.int8(kPeakRounds); });
  r.bf16_operations = BestRate(pool, seconds, [&](int) { return kernels.bf16(kPeakRounds); });
  r.f32_operations = BestRate(pool, seconds, [&](int) { return kernels.f32(kPeakRounds); });
  Buffer memory(static_cast<size_t>(kReadBytes));
  int64_t share = kReadBytes / pool.size() / 1024 * 1024;
  pool.Run([&](int member) {  // real pages, not the shared zero page
    std::fill_n(memory.data() + member * share, share, std::byte{1});
  });
  r.read_bytes =
      BestRate(pool, seconds, [&](int member) { return kernels.read(memory.data() + member * share, share); });
  return r;
}

double PeakOf(const Roofline& roofline, Packing packing) {
  switch (packing) {
    case Packing::kF32: return roofline.f32_operations;
    case Packing::kBF16: return roofline.bf16_operations;
    case Packing::kInt8:
    case Packing::kInt4Block32: return roofline.int8_operations;
  }
  return 0;
}

size_t LinearTimingScratchBytes(std::span<const NamedLinear> linears, int64_t tokens) {
  size_t scratch = 0;
  int64_t in = 0, out = 0;
  for (const NamedLinear& l : linears) {
    in = std::max(in, l.weight.in_features);
    out = std::max(out, l.weight.out_features);
    scratch = std::max(scratch, LinearScratchBytes(tokens, l.weight.in_features, l.weight.out_features));
  }
  return scratch + static_cast<size_t>(tokens * (in + out)) * sizeof(float) + 256;
}

std::vector<LinearTiming> TimeLinears(OpContext& ctx, std::span<const NamedLinear> linears, int64_t tokens,
                                      int rounds) {
  std::vector<Group> groups;
  std::vector<size_t> group_of(linears.size());
  int64_t in = 0, out = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    const LinearWeight& w = linears[i].weight;
    in = std::max(in, w.in_features);
    out = std::max(out, w.out_features);
    auto it =
        std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.timing.name == linears[i].name; });
    if (it == groups.end()) {
      LinearTiming t;
      t.name = linears[i].name;
      t.packing = w.packing;
      t.out_features = w.out_features;
      t.in_features = w.in_features;
      t.tokens = tokens;
      t.operations = 2.0 * static_cast<double>(tokens) * static_cast<double>(w.out_features * w.in_features);
      t.bytes = static_cast<double>(w.bytes) + 4.0 * static_cast<double>(tokens * (w.out_features + w.in_features));
      it = groups.insert(groups.end(), Group{std::move(t), {}});
    }
    ++it->timing.weights;
    group_of[i] = static_cast<size_t>(it - groups.begin());
  }
  size_t mark = ctx.arena->Mark();
  float* x = ctx.arena->Take<float>(tokens * in);
  float* y = ctx.arena->Take<float>(tokens * out);
  for (int64_t i = 0; i < tokens * in; ++i) x[i] = static_cast<float>(i * 7919 % 2003 - 1001) * 1e-3f;
  for (int round = 0; round <= rounds; ++round) {  // the first warms up
    for (Group& g : groups) g.rounds.push_back(0);
    for (size_t i = 0; i < linears.size(); ++i) {
      const LinearWeight& w = linears[i].weight;
      double begin = Now(*ctx.pool);
      Linear(ctx, TensorView(y, DType::kF32, {tokens, w.out_features}),
             TensorView(x, DType::kF32, {tokens, w.in_features}), w);
      groups[group_of[i]].rounds.back() += Now(*ctx.pool) - begin;
    }
  }
  ctx.arena->Rewind(mark);
  std::vector<LinearTiming> timings;
  for (Group& g : groups) {
    auto first = g.rounds.begin() + 1, middle = first + rounds / 2;
    std::nth_element(first, middle, g.rounds.end());
    g.timing.seconds = *middle / static_cast<double>(g.timing.weights);
    timings.push_back(std::move(g.timing));
  }
  return timings;
}

}  // namespace ekiben
