#include "compile/profile.h"

#include <algorithm>
#include <boost/json.hpp>
#include <random>
#include <thread>

#include "base/clock.h"
#include "device/cpu_features.h"
#include "ops/linear.h"

namespace ekiben {
namespace {

constexpr Nanos kTimePerPoint = std::chrono::milliseconds(8);

std::vector<int32_t> Buckets(const BuildConfig& build) {
  if (!build.multiple_profiles) return {build.opt_num_tokens};
  std::vector<int32_t> out;
  for (int32_t tokens = 1; tokens < build.max_num_tokens; tokens *= 2) out.push_back(tokens);
  out.push_back(build.max_num_tokens);
  return out;
}

// The best of several runs, in microseconds: interruptions only ever add time.
double TimeLinear(OpContext& ctx, const LinearWeight& w, int32_t tokens) {
  Buffer x(static_cast<size_t>(tokens * w.in_features) * sizeof(float));
  Buffer y(static_cast<size_t>(tokens * w.out_features) * sizeof(float));
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < tokens * w.in_features; ++i) x.as<float>()[i] = normal(rng);
  TensorView x_view(x.data(), DType::kF32, {tokens, w.in_features});
  TensorView y_view(y.data(), DType::kF32, {tokens, w.out_features});
  const Clock& clock = SystemClock::Get();
  Nanos best = Nanos::max(), begin = clock.Now();
  for (int run = 0; run < 3 || clock.Now() - begin < kTimePerPoint; ++run) {
    Nanos start = clock.Now();
    Linear(ctx, y_view, x_view, w);
    best = std::min(best, clock.Now() - start);
  }
  return static_cast<double>(best.count()) * 1e-3;
}

}  // namespace

Result<json::object> ProfileLinears(const EngineTensors& tensors, const BuildConfig& build,
                                    const ProgressFunction& progress) {
  // One tensor stands for all of its packing and shape: layers repeat.
  std::map<std::string, LinearWeight> shapes;
  for (const auto& [name, tensor] : tensors)
    if (tensor.kind == PackRule::Kind::kLinear)
      shapes.try_emplace(fmt::format("{} {}x{}", Name(tensor.packing), tensor.rows, tensor.columns),
                         LinearWeight{tensor.packing, tensor.rows, tensor.columns, tensor.data, tensor.bytes});
  ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  size_t scratch = 0;
  for (const auto& [key, w] : shapes)
    scratch = std::max(scratch, LinearScratchBytes(build.max_num_tokens, w.in_features, w.out_features));
  Arena arena(scratch);
  OpContext ctx{.pool = &pool, .arena = &arena, .isa = BestIsa()};
  std::vector<int32_t> buckets = Buckets(build);
  json::object linears;
  int64_t done = 0, total = static_cast<int64_t>(shapes.size() * buckets.size());
  for (const auto& [key, w] : shapes) {
    json::object times;
    for (int32_t tokens : buckets) {
      progress({"profile " + key, done++, total});
      times[std::to_string(tokens)] = json::object{{"us", TimeLinear(ctx, w, tokens)}};
    }
    linears[key] = std::move(times);
  }
  progress({"profile", total, total});
  return json::object{{"device", DescribeCpu()}, {"linears", std::move(linears)}};
}

}  // namespace ekiben
