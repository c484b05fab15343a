// What every model of this server has done, by its name: the numbers behind KServe's statistics and Triton's nv_*
// metrics. Times are sums over requests, ns inside and us in the metrics, as Triton's are.
//
// One request of the ensemble counts for the ensemble and for the three parts it went through, each with its own share
// of the time:
//
//   arrival    taken       submitted    scheduled       last token    end
//   |--queue---|---input---|---queue----|-----infer-----|---output----|    ensemble, tensorrt_llm_bls
//   |--queue---|---infer---|                                               preprocessing
//                          |---queue----|-----infer-----|                  tensorrt_llm
//                                                       |----infer----|    postprocessing
//
// Thread: any.
#pragma once
#include <array>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "kserve/inference.h"
#include "kserve/model_schema.h"

namespace ekiben::kserve {

struct StageTimes {
  Nanos arrival{}, taken{}, submitted{}, scheduled{}, last_token{}, end{};
};

struct ResponseTimes {
  Nanos infer{}, output{};
  bool empty = false;
};

// Triton's words for why a request failed.
enum class FailureReason : uint8_t { kRejected, kCanceled, kBackend, kOther };
inline constexpr std::array<std::string_view, 4> kFailureNames = {"REJECTED", "CANCELED", "BACKEND", "OTHER"};
FailureReason FailureOf(Code code);

// Triton's buckets for token counts.
inline constexpr std::array<double, 5> kTokenCountBuckets = {10, 50, 100, 500, 1000};
inline constexpr std::array<double, 4> kFirstResponseMillis = {100, 500, 2000, 5000};

template <size_t kBuckets>
struct BucketCounts {
  std::array<uint64_t, kBuckets + 1> counts{};  // the last: over every bound
  double sum = 0;
  void Add(const std::array<double, kBuckets>& bounds, double value) {
    size_t i = 0;
    while (i < kBuckets && value > bounds[i]) ++i;
    ++counts[i];
    sum += value;
  }
};

struct ModelCounters {
  ModelStatistics statistics;
  std::array<uint64_t, kFailureNames.size()> failures{};
  int64_t pending = 0;  // asked for and not yet started
  BucketCounts<kFirstResponseMillis.size()> first_response;
  BucketCounts<kTokenCountBuckets.size()> input_tokens, output_tokens;
};

class Statistics {
 public:
  // A request of `part` under `prefix` ("" or "NAME_") that has ended well.
  struct Success {
    Part part;
    std::string prefix;
    StageTimes times;
    Nanos wall{};  // Clock::WallNow at the end
    uint64_t batch = 1;
    Nanos first_response{};                        // since arrival; only of generating models
    std::vector<ResponseTimes> responses;          // the same
    uint64_t input_tokens = 0, output_tokens = 0;  // the same
  };
  void Succeeded(const Success& success);
  // `cancelled_at`: index of the response that was waited for.
  void Failed(Part part, const std::string& prefix, FailureReason reason, Nanos took, size_t response_index);
  // +1 when a request is taken, -1 when it starts or fails before that.
  void Pending(Part part, const std::string& prefix, int by);

  // Zeros for a model that has done nothing.
  ModelCounters Of(const std::string& model) const;

 private:
  ModelCounters& Counters(Part part, const std::string& prefix);

  mutable std::mutex mutex_;
  std::map<std::string, ModelCounters> models_;
};

}  // namespace ekiben::kserve
