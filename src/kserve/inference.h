// KServe v2 without a wire: what the HTTP routes (api/kserve_routes) and the gRPC service (rpc/) both ask for. The
// models are Triton's five names over each engine (ensemble, tensorrt_llm_bls, preprocessing, tensorrt_llm,
// postprocessing; DESIGN section 1 and docs/api.md).
//
// An inference answers zero or more OnResponse and then ends with exactly one of: a response with `final`, or OnError.
// A stream's last response may be empty (no outputs, final): a wire without triton_enable_empty_final_response drops
// it. Thread: any. Sinks are called on a postprocessing thread, in order, one call at a time, and must not block; a
// sink may also be called before Infer returns.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/result.h"
#include "kserve/tensor.h"
#include "serve/model_registry.h"

namespace ekiben::kserve {

class SharedMemory;

using ParameterValue = std::variant<bool, int64_t, uint64_t, double, std::string>;
using Parameters = std::map<std::string, ParameterValue>;

// The shared_memory_* parameters of a tensor. `what`: "input" or "output", for errors.
Result<std::optional<RegionSpan>> RegionSpanOf(std::string_view what, const std::string& tensor,
                                               const Parameters& parameters);

struct RequestedOutput {
  std::string name;
  Parameters parameters;
};

// Whether `outputs` names it, or names none.
bool Wants(const std::vector<RequestedOutput>& outputs, std::string_view name);

struct InferRequest {
  std::string model_name, model_version, id;
  Parameters parameters;
  std::vector<Tensor> inputs;
  std::vector<RequestedOutput> outputs;  // empty: all that the model makes without being asked
  // True on generate_stream and ModelStreamInfer: any number of responses may come. False: one, a decoupled request is
  // refused.
  bool may_stream = false;
};

struct InferResponse {
  std::string model_name, model_version, id;
  Parameters parameters;
  std::vector<Tensor> outputs;
  bool final = false;
};

class InferSink {
 public:
  virtual ~InferSink() = default;
  virtual void OnResponse(InferResponse response) = 0;
  virtual void OnError(const Error& error) = 0;
};

// An inference that is running.
class Inference {
 public:
  virtual ~Inference() = default;
  // Idempotent, also after the end. The sink may still be called; it ends as any other.
  virtual void Cancel() = 0;
};

struct TensorMetadata {
  std::string name;
  DataType type;
  std::vector<int64_t> shape;  // -1: any size
  bool optional = false;
};
struct ModelMetadata {
  std::string name, platform;
  std::vector<std::string> versions;
  std::vector<TensorMetadata> inputs, outputs;
};

// Triton's statistics extension. Times in ns.
struct StatisticDuration {
  uint64_t count = 0, ns = 0;
};
struct ModelStatistics {
  std::string name, version;
  uint64_t last_inference_ms = 0, inference_count = 0, execution_count = 0;
  StatisticDuration success, fail, queue, compute_input, compute_infer, compute_output, cache_hit, cache_miss;
  struct Batch {
    uint64_t batch_size = 0;
    StatisticDuration compute_input, compute_infer, compute_output;
  };
  std::vector<Batch> batches;
  struct Response {
    StatisticDuration compute_infer, compute_output, success, fail, empty_response, cancel;
  };
  std::map<std::string, Response> responses;  // by index of the response in its stream, as text
};

using Setting = std::variant<bool, uint32_t, std::string>;

class InferenceServer {
 public:
  struct Config {
    std::string version = "0.1.0";
    // TensorRT-LLM's names. Each response of tensorrt_llm_bls carries the text so far, not what is new.
    bool accumulate_tokens = false;
    // Keys of system shared memory that clients may register start with it; empty: none may.
    std::string shared_memory_prefix;
    // Where a request does not say: whether an answer in one piece leaves the prompt out.
    bool exclude_input_in_output = true;
  };
  // Both outlive the server; so do its inferences' sinks their inference.
  static std::unique_ptr<InferenceServer> Create(serve::ModelRegistry& registry, const Clock& clock, Config config);
  virtual ~InferenceServer() = default;

  virtual const std::vector<std::string>& extensions() const = 0;  // "classification", "binary_tensor_data", ...
  virtual bool Live() const = 0;
  virtual bool Ready() const = 0;
  virtual void BeginDrain() = 0;  // Ready says no, Infer refuses with kUnavailable

  // An empty version is the newest ("1"). kNotFound names the model.
  virtual Result<bool> ModelReady(const std::string& name, const std::string& version) const = 0;
  virtual Result<ModelMetadata> Metadata(const std::string& name, const std::string& version) const = 0;
  // Triton's ModelConfig in protobuf's JSON form (snake_case names), so that one text serves both wires.
  virtual Result<json::object> ModelConfig(const std::string& name, const std::string& version) const = 0;
  // An empty name is all.
  virtual Result<std::vector<ModelStatistics>> Statistics(const std::string& name,
                                                          const std::string& version) const = 0;

  virtual Result<std::vector<serve::ModelState>> Index(bool ready_only) const = 0;
  virtual Result<void> Load(const std::string& name, const Parameters& parameters) = 0;
  virtual Result<void> Unload(const std::string& name, const Parameters& parameters) = 0;

  // Values replace, an empty list clears; the answer is the full set. An empty model is the server's.
  virtual Result<std::map<std::string, std::vector<std::string>>> TraceSettings(
      const std::string& model, const std::map<std::string, std::vector<std::string>>& changes) = 0;
  virtual Result<std::map<std::string, Setting>> LogSettings(const std::map<std::string, Setting>& changes) = 0;

  virtual SharedMemory& shared_memory() = 0;

  virtual Result<std::shared_ptr<Inference>> Infer(InferRequest request, std::shared_ptr<InferSink> sink) = 0;

  // Prometheus text of the nv_inference_* and nv_trt_llm_* families.
  virtual std::string MetricsText() const = 0;

  // Of the default model: for ORCA's load header. nullopt: no model.
  struct LoadReport {
    double kv_cache_utilization = 0;
    uint64_t max_token_capacity = 0;
  };
  virtual std::optional<LoadReport> CurrentLoad() const = 0;
};

}  // namespace ekiben::kserve
