// CudaLlama::Tune: which kernel each linear runs on, for each bucket of token counts. A kernel timed alone misleads
// (docs/gpu.md, ladder 2): the library's candidates of one kind of linear are compared alone, over several layers'
// weights, because they differ in their own time only; the own kernel and the library are compared by all linears of
// some layers one after the other, as one graph, because a change between them costs what dependent launches gain.
#include <algorithm>

#include "model/cuda_llama.h"

namespace ekiben {
namespace {

constexpr int kRounds = 4;  // of a chain; the first warms up
// Layers whose weights a measurement goes through. With many tokens what the L2 cache holds no longer matters.
constexpr size_t kLayersFew = 6, kLayersMany = 2;
constexpr int32_t kManyTokens = 512;
// What must be gained for something else than what runs unmeasured: less is noise.
constexpr double kGainMin = 0.98;
constexpr auto kLayerKinds = {CudaLinearKind::kQkv, CudaLinearKind::kO, CudaLinearKind::kGateUp, CudaLinearKind::kDown};

double Us(Nanos time) {
  return static_cast<double>(time.count()) * 1e-3;
}

}  // namespace

class CudaLlama::Tuner {
 public:
  Tuner(CudaLlama& model, const CudaTuneOptions& options) : model_(model), options_(options) {}

  Result<void> Open() {
    ASSIGN_OR_RETURN(stream_, CudaStream::Create());
    ASSIGN_OR_RETURN(begin_, CudaEvent::Create());
    ASSIGN_OR_RETURN(end_, CudaEvent::Create());
    queue_.stream = stream_.get();
    for (const Layer& layer : model_.layers_)  // an engine in fp8 keeps some linears in bf16
      if (model_.HasUsualType(layer.qkv) && model_.HasUsualType(layer.o) && model_.HasUsualType(layer.gate_up) &&
          model_.HasUsualType(layer.down))
        like_.push_back(&layer);
    // Zeros would be multiplied faster than what a step brings.
    for (CudaLinearKind kind : kLayerKinds) {
      const DeviceBuffer& x = *PlaceOf(kind).x;
      cuda::FillNormal(queue_, x.as<cuda::Bf16>(), static_cast<int64_t>(x.size() / sizeof(cuda::Bf16)), 1, 1);
    }
    return CudaStatus(queue_.error, "timing linears");
  }

  // Rows of padding must stay numbers.
  Result<void> Close() {
    for (CudaLinearKind kind : kLayerKinds) {
      RETURN_IF_ERROR(stream_.Clear(PlaceOf(kind).x->data(), PlaceOf(kind).x->size()));
      RETURN_IF_ERROR(stream_.Clear(PlaceOf(kind).out->data(), PlaceOf(kind).out->size()));
    }
    RETURN_IF_ERROR(stream_.Wait());
    return CudaStatus(queue_.error, "timing linears");
  }

  Result<CudaLinearBucket> Measure(int32_t first, int32_t tokens) {
    tokens_ = tokens;
    layers_ = std::min(like_.size(), tokens > kManyTokens ? kLayersMany : kLayersFew);
    CudaLinearBucket out{.first = first, .tokens = tokens};
    Ways unmeasured, library;
    for (CudaLinearKind kind : kLayerKinds) {
      auto at = static_cast<size_t>(kind);
      unmeasured[at].own = options_.gemm != GemmPlugin::kLibrary && HasOwn(LinearOf(kind));
      if (options_.gemm != GemmPlugin::kOwn) {
        ASSIGN_OR_RETURN(library[at], Library(kind));
      }
    }
    ASSIGN_OR_RETURN(out.us_unmeasured, Chain(unmeasured));
    out.ways = unmeasured;
    out.us_a_layer = out.us_unmeasured;
    if (options_.gemm != GemmPlugin::kOwn) {
      ASSIGN_OR_RETURN(double us, Chain(library));
      if (us < out.us_unmeasured * kGainMin) {
        out.us_a_layer = us;
        out.ways = library;
      } else {  // with both times of the library
        for (size_t i = 0; i < out.ways.size(); ++i)
          out.ways[i].us = library[i].us, out.ways[i].us_first = library[i].us_first;
      }
    }
    ASSIGN_OR_RETURN(out.ways[static_cast<size_t>(CudaLinearKind::kHead)], Head());
    return out;
  }

 private:
  LinearPlace PlaceOf(CudaLinearKind kind) const {
    const CudaLlama& m = model_;
    switch (kind) {
      case CudaLinearKind::kQkv: return {&Layer::qkv, &m.h_.values, &m.qkv_};
      case CudaLinearKind::kO:
        return {&Layer::o, m.usual_layer().o.fp8 ? &m.attention_codes_.values : &m.attention_, &m.delta_};
      case CudaLinearKind::kGateUp: return {&Layer::gate_up, &m.h_.values, &m.gate_up_};
      default: return {&Layer::down, &m.mlp_.values, &m.delta_};
    }
  }
  const Linear& LinearOf(CudaLinearKind kind) const { return model_.usual_layer().*PlaceOf(kind).linear; }
  bool HasOwn(const Linear& w) const { return RunsOwn(w, tokens_); }

  // The library's fastest candidate for one kind of linear.
  Result<CudaLinearWay> Library(CudaLinearKind kind) {
    LinearPlace place = PlaceOf(kind);
    std::vector<const void*> weights;
    for (size_t i = 0; i < layers_; ++i) weights.push_back((like_[i]->*place.linear).weights.data());
    return Fastest(LinearOf(kind), weights, false, {.x = place.x->data(), .out = place.out->data()});
  }

  Result<CudaLinearWay> Fastest(const Linear& w, std::span<const void* const> weights, bool out_f32,
                                const LtOperands& operands) {
    LtShape shape{tokens_, w.out_features, w.in_features, w.fp8, out_f32};
    ASSIGN_OR_RETURN(std::vector<LtCandidate> candidates,
                     model_.cublaslt_->TimeCandidates(stream_, shape, weights, operands));
    auto best = std::ranges::min_element(candidates, {}, &LtCandidate::time);
    if (Us(best->time) > kGainMin * Us(candidates.front().time)) best = candidates.begin();
    return CudaLinearWay{.candidate = static_cast<int32_t>(best - candidates.begin()),
                         .algorithm = best->algorithm,
                         .us = Us(best->time),
                         .us_first = Us(candidates.front().time)};
  }

  // us a layer of the linears of some layers, as one graph.
  Result<double> Chain(const Ways& ways) {
    auto run = [&]() -> Result<void> {
      for (size_t i = 0; i < layers_; ++i) {
        for (CudaLinearKind kind : kLayerKinds) {
          LinearPlace place = PlaceOf(kind);
          const Linear& w = like_[i]->*place.linear;
          RETURN_IF_ERROR(model_.Product(queue_, w, ways[static_cast<size_t>(kind)],
                                         View(w.fp8, place.x->data(), model_.h_.scales), tokens_, place.out->data(),
                                         false));
        }
      }
      return {};
    };
    return Time(run, layers_);
  }

  // Once as it is, which loads its kernels, then as a graph.
  Result<double> Time(const std::function<Result<void>()>& run, size_t parts) {
    RETURN_IF_ERROR(run());
    ASSIGN_OR_RETURN(CudaGraph graph, stream_.Capture(run));
    Nanos best = Nanos::max();
    for (int round = 0; round < kRounds; ++round) {
      RETURN_IF_ERROR(stream_.Record(begin_));
      RETURN_IF_ERROR(stream_.Launch(graph));
      RETURN_IF_ERROR(stream_.Record(end_));
      RETURN_IF_ERROR(end_.Wait());
      ASSIGN_OR_RETURN(Nanos time, end_.Since(begin_));
      if (round > 0) best = std::min(best, time);
    }
    return Us(best) / static_cast<double>(parts);
  }

  // The head runs once a step: alone is as in the step. Rows of logits are at most outputs_max; what they would
  // overwrite is not here yet, so it is timed into scratch of its own.
  Result<CudaLinearWay> Head() {
    const Linear& w = model_.lm_head_;
    CudaLinearWay out{.own = options_.gemm != GemmPlugin::kLibrary && HasOwn(w)};
    if (options_.gemm == GemmPlugin::kOwn || tokens_ > model_.limits_.outputs_max) return out;
    size_t bytes = static_cast<size_t>(tokens_) * static_cast<size_t>(w.out_features) * sizeof(float);
    if (logits_.size() < bytes) {
      ASSIGN_OR_RETURN(logits_, DeviceBuffer::Create(bytes));
    }
    const void* weights[] = {w.weights.data()};
    ASSIGN_OR_RETURN(CudaLinearWay library,
                     Fastest(w, weights, true, {.x = model_.h_.values.data(), .out = logits_.data()}));
    if (!out.own) return library;
    ASSIGN_OR_RETURN(
        out.us_own,
        Time([&] { return model_.Product(queue_, w, out, model_.h_.rows(false), tokens_, logits_.data(), true); }, 1));
    library.us_own = out.us_own;
    if (library.us < kGainMin * out.us_own) return library;
    out.us = library.us, out.us_first = library.us_first;
    return out;
  }

  CudaLlama& model_;
  CudaTuneOptions options_;
  CudaStream stream_;
  CudaEvent begin_, end_;
  cuda::Queue queue_;
  DeviceBuffer logits_;
  int32_t tokens_ = 0;
  std::vector<const Layer*> like_;  // the usual one in their types; it is one of them
  size_t layers_ = 0;
};

std::vector<int32_t> CudaLlama::TuneBuckets(int32_t tokens_max) {
  std::vector<int32_t> out;
  for (int32_t tokens : {8, 16, 32, 64})
    if (tokens < tokens_max) out.push_back(tokens);
  // Eight an octave, as the sizes of steps.
  for (int32_t octave = 64; octave < tokens_max; octave *= 2)
    for (int32_t i = 1; i <= 8 && octave + i * octave / 8 <= tokens_max; ++i) out.push_back(octave + i * octave / 8);
  if (out.empty() || out.back() < tokens_max) out.push_back(tokens_max);
  return out;
}

Result<void> CudaLlama::Tune(const CudaTuneOptions& options, int32_t tokens_min, int32_t tokens_max,
                             const std::function<void(const CudaLinearBucket&)>& done) {
  ASSIGN_OR_RETURN(CudaDeviceInfo device, OpenCudaDevice());
  plan_ = {.device = device.name, .library = cublaslt_->Version(), .fp8 = precision_.fp8_linears};
  tokens_max = std::min(tokens_max, limits_.tokens_max);
  std::vector<std::pair<int32_t, int32_t>> buckets;
  if (options.multiple_profiles) {
    int32_t first = 1;
    for (int32_t tokens : TuneBuckets(tokens_max)) {
      if (tokens >= tokens_min) buckets.emplace_back(first, tokens);
      first = tokens + 1;
    }
  } else {
    buckets.emplace_back(1, std::clamp(options.opt_num_tokens, 1, limits_.tokens_max));
  }
  CudaLinearPlan plan = plan_;
  plan.for_all = !options.multiple_profiles;
  Tuner tuner(*this, options);
  RETURN_IF_ERROR(tuner.Open());
  for (auto [first, tokens] : buckets) {
    ASSIGN_OR_RETURN(CudaLinearBucket bucket, tuner.Measure(first, tokens));
    plan.buckets.push_back(bucket);
    done(bucket);
  }
  RETURN_IF_ERROR(tuner.Close());
  plan_ = std::move(plan);
  return {};
}

Result<bool> CudaLlama::UseOrTune(const std::optional<CudaLinearPlan>& plan, const CudaTuneOptions& options,
                                  int32_t tokens_max) {
  if (plan && Use(*plan)) return true;
  const int32_t first = options.gemm == GemmPlugin::kLibrary ? 1 : cuda::kSkinnyTokensMax + 1;
  RETURN_IF_ERROR(Tune(options, first, tokens_max, [](const CudaLinearBucket&) {}));
  return false;
}

bool CudaLlama::Use(const CudaLinearPlan& plan) {
  auto device = OpenCudaDevice();
  if (!device.ok() || device->name != plan.device || plan.library != cublaslt_->Version() ||
      plan.fp8 != precision_.fp8_linears || plan.buckets.empty())
    return false;
  plan_ = plan;
  return true;
}

}  // namespace ekiben
