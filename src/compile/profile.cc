#include "compile/profile.h"

#include <algorithm>
#include <boost/json.hpp>
#include <random>
#include <set>
#include <thread>
#include <tuple>

#include "base/clock.h"
#include "compile/engine_file.h"
#include "device/cpu_features.h"
#include "ops/linear.h"

namespace ekiben {
namespace {

// One walk takes at least the first and, all weights seen or not, little more than the second.
constexpr Nanos kWalkMin = std::chrono::milliseconds(2);
constexpr Nanos kWalkMax = std::chrono::milliseconds(5);
// Walks of a variant that stays in the race, and of every one that enters it: a single walk may meet a disturbance.
constexpr int kRounds = 5, kRoundsOfAll = 2;
// Slower than the best by this after those, it is out of this bucket's race, and by more, of the next bucket's too:
// what a variant costs changes little from one bucket to the next. Only where a walk passes many weights: one weight
// (the head) is a call or few, a slow moment at one token put all but one variant out for good.
constexpr double kContender = 1.06, kContenderNext = 1.3;
constexpr int64_t kWeightsOfALongWalk = 8;
// A call of this length averages disturbances by itself: one walk decides.
constexpr double kLongCallUs = 15'000;
// A variant must be this much faster than the built-in one to replace it: less is noise.
constexpr double kGainMin = 1.03;

using Shape = std::tuple<Packing, int64_t, int64_t>;

// All weights of one shape, in the order of the layers: timing walks over them as a step does, so that each call finds
// the caches as a step leaves them.
std::map<Shape, std::vector<LinearWeight>> ShapesOf(const EngineTensors& tensors) {
  std::map<Shape, std::vector<LinearWeight>> shapes;
  for (const auto& [name, tensor] : tensors)
    if (tensor.kind == PackRule::Kind::kLinear)
      shapes[{tensor.packing, tensor.rows, tensor.columns}].push_back(
          {tensor.packing, tensor.rows, tensor.columns, tensor.data, tensor.bytes});
  return shapes;
}

class Timer {
 public:
  Timer(const std::map<Shape, std::vector<LinearWeight>>& shapes, int32_t tokens_max)
      : pool_(static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))) {
    size_t scratch = 0, in = 0, out = 0;
    for (const auto& [shape, weights] : shapes) {
      auto [packing, rows, columns] = shape;
      scratch = std::max(scratch, LinearScratchBytes(tokens_max, columns, rows));
      in = std::max(in, static_cast<size_t>(columns));
      out = std::max(out, static_cast<size_t>(rows));
    }
    arena_ = Arena(scratch);
    x_ = Buffer(in * static_cast<size_t>(tokens_max) * sizeof(float));
    y_ = Buffer(out * static_cast<size_t>(tokens_max) * sizeof(float));
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < x_.size() / sizeof(float); ++i) x_.as<float>()[i] = normal(rng);
  }

  // Microseconds of one call, over one walk along the weights.
  double Walk(const std::vector<LinearWeight>& weights, int32_t tokens, const LinearTuning& tuning) {
    OpContext ctx{.pool = &pool_, .arena = &arena_, .isa = BestIsa(), .tuning = &tuning};
    TensorView x(x_.data(), DType::kF32, {tokens, weights.front().in_features});
    TensorView y(y_.data(), DType::kF32, {tokens, weights.front().out_features});
    const Clock& clock = SystemClock::Get();
    Nanos begin = clock.Now(), spent{};
    int64_t calls = 0;
    while ((calls < std::ssize(weights) || spent < kWalkMin) && spent < kWalkMax) {
      Linear(ctx, y, x, weights[static_cast<size_t>(calls++ % std::ssize(weights))]);
      spent = clock.Now() - begin;
    }
    return static_cast<double>(spent.count()) * 1e-3 / static_cast<double>(calls);
  }

 private:
  ThreadPool pool_;
  Arena arena_;
  Buffer x_, y_;
};

// The variants of one shape, timed bucket by bucket.
class Race {
 public:
  explicit Race(const std::vector<LinearWeight>& weights)
      : weights_(weights), us_(LinearVariants().size()), runs_(us_.size(), true) {}

  // Times those that the bucket before left in; the fastest wins, the built-in one on a near tie. A variant's time is
  // its best walk, because interruptions only ever add; walks take turns, so that a slow moment hits all alike.
  json::object Run(Timer& timer, int32_t tokens, int32_t bucket) {
    const LinearWeight& w = weights_.front();
    size_t standard = IndexOf(LinearTuning::BuiltIn(w, tokens).name);
    runs_[standard] = true;
    std::vector<bool> contends = runs_;
    for (size_t i = 0; i < us_.size(); ++i) us_[i] = kNotTimed;
    int32_t at_bucket = LinearBucketOf(tokens);
    for (int round = 0; round < kRounds; ++round) {
      for (size_t i = 0; i < us_.size(); ++i) {
        if (!contends[i]) continue;
        LinearTuning tuning;
        tuning.Set(w.packing, w.out_features, w.in_features, at_bucket, static_cast<int32_t>(i));
        us_[i] = std::min(us_[i], timer.Walk(weights_, tokens, tuning));
      }
      double best = *std::min_element(us_.begin(), us_.end());
      if (best > kLongCallUs) break;
      if (round + 1 < kRoundsOfAll) continue;
      for (size_t i = 0; i < us_.size(); ++i) contends[i] = i == standard || us_[i] < best * kContender;
    }
    size_t best = static_cast<size_t>(std::min_element(us_.begin(), us_.end()) - us_.begin());
    bool certain = std::ssize(weights_) >= kWeightsOfALongWalk;
    for (size_t i = 0; i < us_.size(); ++i) runs_[i] = !certain || us_[i] < us_[best] * kContenderNext;
    if (us_[standard] < us_[best] * kGainMin) best = standard;
    return Describe(best, tokens, bucket);
  }

 private:
  static constexpr double kNotTimed = 1e30;
  static size_t IndexOf(std::string_view name) {
    std::span<const LinearVariant> variants = LinearVariants();
    auto it = std::find_if(variants.begin(), variants.end(), [&](const auto& v) { return v.name == name; });
    return static_cast<size_t>(it - variants.begin());
  }
  json::object Describe(size_t best, int32_t tokens, int32_t bucket) const {
    std::span<const LinearVariant> variants = LinearVariants();
    json::object others;
    for (size_t i = 0; i < us_.size(); ++i)
      if (i != best && us_[i] < kNotTimed) others[variants[i].name] = us_[i];
    json::value at = "all";
    if (bucket >= 0) at = kLinearBuckets[static_cast<size_t>(bucket)];
    return {{"bucket", at},
            {"tokens", tokens},
            {"variant", variants[best].name},
            {"us", us_[best]},
            {"us_of_others", std::move(others)}};
  }

  const std::vector<LinearWeight>& weights_;
  std::vector<double> us_;
  std::vector<bool> runs_;  // in the next bucket
};

Result<void> ReadChoice(const json::object& choice, Packing packing, int64_t rows, int64_t columns, LinearTuning& out) {
  ASSIGN_OR_RETURN(auto name, GetString(choice, "variant"));
  ASSIGN_OR_RETURN(int32_t variant, LinearVariantIndex(name.value_or("")));
  const json::value* bucket = choice.if_contains("bucket");
  for (size_t i = 0; i < kLinearBuckets.size(); ++i) {
    bool here = bucket != nullptr && ((bucket->is_string() && bucket->get_string() == "all") ||
                                      (bucket->is_int64() && bucket->get_int64() == kLinearBuckets[i]));
    if (here) out.Set(packing, rows, columns, static_cast<int32_t>(i), variant);
  }
  return {};
}

}  // namespace

Result<json::object> ProfileLinears(const EngineTensors& tensors, const BuildConfig& build,
                                    const ProgressFunction& progress) {
  auto shapes = ShapesOf(tensors);
  std::vector<std::pair<int32_t, int32_t>> points;  // tokens, bucket; bucket -1: the one choice of all
  if (build.multiple_profiles) {
    for (size_t i = 0; i < kLinearBuckets.size(); ++i)
      if (kLinearBuckets[i] <= build.max_num_tokens) points.emplace_back(kLinearBuckets[i], static_cast<int32_t>(i));
  } else {
    points.emplace_back(build.opt_num_tokens, -1);
  }
  Timer timer(shapes, points.back().first);
  json::array linears;
  int64_t done = 0, total = static_cast<int64_t>(shapes.size() * points.size());
  for (const auto& [shape, weights] : shapes) {
    auto [packing, rows, columns] = shape;
    json::array choices;
    Race race(weights);
    for (auto [tokens, bucket] : points) {
      progress({fmt::format("profile {} {}x{}, {} tokens", Name(packing), rows, columns, tokens), done++, total});
      choices.push_back(race.Run(timer, tokens, bucket));
    }
    linears.push_back({{"packing", Name(packing)},
                       {"out_features", rows},
                       {"in_features", columns},
                       {"choices", std::move(choices)}});
  }
  progress({"profile", total, total});
  return json::object{{"device", DescribeCpu()}, {"linears", std::move(linears)}};
}

Result<LinearTuning> ReadProfiles(const json::object& profiles) {
  LinearTuning out;
  ASSIGN_OR_RETURN(const json::array* linears, GetArray(profiles, "linears"));
  if (linears == nullptr || profiles.contains("library")) return out;  // a GPU's are compile/cuda_profile.h
  for (const json::value& entry : *linears) {
    if (!entry.is_object())
      return Error(Code::kInvalid, "profiles.json: linears: an entry is not an object", "linears");
    const json::object& linear = entry.get_object();
    ASSIGN_OR_RETURN(auto name, GetString(linear, "packing"));
    ASSIGN_OR_RETURN(Packing packing, PackingNamed(name.value_or("")));
    ASSIGN_OR_RETURN(auto rows, GetInt(linear, "out_features", 1, INT64_MAX));
    ASSIGN_OR_RETURN(auto columns, GetInt(linear, "in_features", 1, INT64_MAX));
    ASSIGN_OR_RETURN(const json::array* choices, GetArray(linear, "choices"));
    if (choices == nullptr) continue;
    for (const json::value& choice : *choices)
      if (choice.is_object())
        RETURN_IF_ERROR(ReadChoice(choice.get_object(), packing, rows.value_or(1), columns.value_or(1), out));
  }
  return out;
}

}  // namespace ekiben
