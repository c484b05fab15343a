#include "kserve/statistics.h"

#include <algorithm>

namespace ekiben::kserve {
namespace {

// How many responses of a stream are told apart; later ones count with the last of these.
constexpr size_t kResponsesMax = 64;

struct Shares {
  Nanos queue{}, input{}, infer{}, output{}, whole{};
};

Nanos Between(Nanos from, Nanos to) {
  return std::max(to - from, Nanos(0));
}

Shares SharesOf(Part part, const StageTimes& t) {
  switch (part) {
    case Part::kEnsemble:
    case Part::kBls:
      return {Between(t.arrival, t.taken) + Between(t.submitted, t.scheduled), Between(t.taken, t.submitted),
              Between(t.scheduled, t.last_token), Between(t.last_token, t.end), Between(t.arrival, t.end)};
    case Part::kPreprocessing:
      return {Between(t.arrival, t.taken), {}, Between(t.taken, t.submitted), {}, Between(t.arrival, t.submitted)};
    case Part::kTensorRtLlm:
      return {Between(t.submitted, t.scheduled),
              {},
              Between(t.scheduled, t.last_token),
              {},
              Between(t.submitted, t.last_token)};
    case Part::kPostprocessing: return {{}, {}, Between(t.last_token, t.end), {}, Between(t.last_token, t.end)};
  }
  return {};
}

void Add(StatisticDuration& to, Nanos time, uint64_t count = 1) {
  to.count += count;
  to.ns += static_cast<uint64_t>(std::max<int64_t>(time.count(), 0));
}

ModelStatistics::Batch& BatchOf(ModelStatistics& s, uint64_t size) {
  auto found = std::find_if(s.batches.begin(), s.batches.end(),
                            [&](const ModelStatistics::Batch& b) { return b.batch_size == size; });
  if (found != s.batches.end()) return *found;
  s.batches.push_back({size, {}, {}, {}});
  return s.batches.back();
}

std::string ResponseKey(size_t index) {
  return std::to_string(std::min(index, kResponsesMax - 1));
}

void AddSuccess(ModelCounters& counters, const Shares& shares, const Statistics::Success& success) {
  ModelStatistics& s = counters.statistics;
  Add(s.success, shares.whole);
  Add(s.queue, shares.queue);
  Add(s.compute_input, shares.input);
  Add(s.compute_infer, shares.infer);
  Add(s.compute_output, shares.output);
  s.inference_count += success.batch;
  s.execution_count += 1;
  s.last_inference_ms = static_cast<uint64_t>(success.wall.count() / 1'000'000);
  auto& batch = BatchOf(s, success.batch);
  Add(batch.compute_input, shares.input);
  Add(batch.compute_infer, shares.infer);
  Add(batch.compute_output, shares.output);
}

void AddResponses(ModelCounters& counters, const Statistics::Success& success) {
  for (size_t i = 0; i < success.responses.size(); ++i) {
    const ResponseTimes& response = success.responses[i];
    ModelStatistics::Response& own = counters.statistics.responses[ResponseKey(i)];
    if (response.empty) {
      Add(own.empty_response, response.infer);
      continue;
    }
    Add(own.compute_infer, response.infer);
    Add(own.compute_output, response.output);
    Add(own.success, response.infer + response.output);
  }
  counters.first_response.Add(kFirstResponseMillis, Millis(success.first_response));
}

}  // namespace

FailureReason FailureOf(Code code) {
  switch (code) {
    case Code::kOverloaded:
    case Code::kUnavailable:
    case Code::kDeadline: return FailureReason::kRejected;
    case Code::kCancelled: return FailureReason::kCanceled;
    case Code::kInternal: return FailureReason::kBackend;
    default: return FailureReason::kOther;
  }
}

ModelCounters& Statistics::Counters(Part part, const std::string& prefix) {
  std::string name = prefix + std::string(SchemaOf(part).name);
  ModelCounters& counters = models_[name];
  counters.statistics.name = std::move(name);
  return counters;
}

void Statistics::Succeeded(const Success& success) {
  std::lock_guard lock(mutex_);
  bool whole = success.part == Part::kEnsemble || success.part == Part::kBls;
  ModelCounters& own = Counters(success.part, success.prefix);
  AddSuccess(own, SharesOf(success.part, success.times), success);
  if (!success.responses.empty()) AddResponses(own, success);
  if (whole)
    for (Part part : {Part::kPreprocessing, Part::kTensorRtLlm, Part::kPostprocessing})
      AddSuccess(Counters(part, success.prefix), SharesOf(part, success.times), success);
  if (!whole && success.part != Part::kTensorRtLlm) return;
  ModelCounters& engine = Counters(Part::kTensorRtLlm, success.prefix);
  engine.input_tokens.Add(kTokenCountBuckets, static_cast<double>(success.input_tokens));
  engine.output_tokens.Add(kTokenCountBuckets, static_cast<double>(success.output_tokens));
}

void Statistics::Failed(Part part, const std::string& prefix, FailureReason reason, Nanos took, size_t response_index) {
  std::lock_guard lock(mutex_);
  ModelCounters& counters = Counters(part, prefix);
  Add(counters.statistics.fail, took);
  ++counters.failures[static_cast<size_t>(reason)];
  if (!SchemaOf(part).decoupled) return;
  ModelStatistics::Response& response = counters.statistics.responses[ResponseKey(response_index)];
  Add(reason == FailureReason::kCanceled ? response.cancel : response.fail, took);
}

void Statistics::Pending(Part part, const std::string& prefix, int by) {
  std::lock_guard lock(mutex_);
  Counters(part, prefix).pending += by;
}

ModelCounters Statistics::Of(const std::string& model) const {
  std::lock_guard lock(mutex_);
  auto found = models_.find(model);
  ModelCounters out;
  if (found != models_.end()) out = found->second;
  out.statistics.name = model;
  out.statistics.version = "1";
  return out;
}

}  // namespace ekiben::kserve
