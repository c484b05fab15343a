#include "kserve/metrics_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>

namespace ekiben::kserve {
namespace {

class Writer {
 public:
  explicit Writer(const std::vector<ModelReading>& readings) : readings_(readings) {}

  void Begin(const char* name, const char* type, const char* help) {
    name_ = name;
    fmt::format_to(std::back_inserter(out_), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  // `label` goes before the model's: "" or `reason="OTHER",`.
  template <class T>
  void Line(const ModelReading& reading, const std::string& label, T value, const char* suffix = "") {
    fmt::format_to(std::back_inserter(out_), "{}{}{{{}model=\"{}\",version=\"1\"}} {}\n", name_, suffix, label,
                   Escaped(reading.named.canonical()), value);
  }
  template <class Value>
  void Family(const char* name, const char* type, const char* help, Value value) {
    Begin(name, type, help);
    for (const ModelReading& reading : readings_) Line(reading, "", value(reading));
  }
  template <size_t kBuckets>
  void Histogram(const ModelReading& reading, const std::string& label, const BucketCounts<kBuckets>& counts,
                 const std::array<double, kBuckets>& bounds) {
    uint64_t sum = 0;
    for (size_t i = 0; i <= kBuckets; ++i) {
      sum += counts.counts[i];
      std::string bound = i == kBuckets ? "+Inf" : fmt::format("{:g}", bounds[i]);
      Line(reading, fmt::format("{}le=\"{}\",", label, bound), sum, "_bucket");
    }
    Line(reading, label, counts.sum, "_sum");
    Line(reading, label, sum, "_count");
  }
  std::string Take() { return std::move(out_); }

 private:
  static std::string Escaped(std::string_view text) {
    std::string out;
    for (char c : text) {
      if (c == '\\' || c == '"') out.push_back('\\');
      out += c == '\n' ? std::string("\\n") : std::string(1, c);
    }
    return out;
  }

  const std::vector<ModelReading>& readings_;
  std::string out_, name_;
};

void AddInference(Writer& writer, const std::vector<ModelReading>& readings) {
  writer.Family("nv_inference_request_success", "counter", "Number of successful inference requests, all batch sizes",
                [](const ModelReading& r) { return r.counters.statistics.success.count; });
  writer.Begin("nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes");
  for (const ModelReading& r : readings)
    for (size_t i = 0; i < kFailureNames.size(); ++i)
      writer.Line(r, fmt::format("reason=\"{}\",", kFailureNames[i]), r.counters.failures[i]);
  writer.Family("nv_inference_count", "counter", "Number of inferences performed (does not include cached requests)",
                [](const ModelReading& r) { return r.counters.statistics.inference_count; });
  writer.Family("nv_inference_exec_count", "counter",
                "Number of model executions performed (does not include cached requests)",
                [](const ModelReading& r) { return r.counters.statistics.execution_count; });
  struct {
    const char *name, *help;
    StatisticDuration ModelStatistics::*duration;
  } const durations[] = {
      {"nv_inference_request_duration_us", "Cumulative inference request duration in microseconds",
       &ModelStatistics::success},
      {"nv_inference_queue_duration_us", "Cumulative inference queuing duration in microseconds",
       &ModelStatistics::queue},
      {"nv_inference_compute_input_duration_us", "Cumulative compute input duration in microseconds",
       &ModelStatistics::compute_input},
      {"nv_inference_compute_infer_duration_us", "Cumulative compute inference duration in microseconds",
       &ModelStatistics::compute_infer},
      {"nv_inference_compute_output_duration_us", "Cumulative inference compute output duration in microseconds",
       &ModelStatistics::compute_output}};
  for (const auto& d : durations)
    writer.Family(d.name, "counter", d.help,
                  [&](const ModelReading& r) { return (r.counters.statistics.*d.duration).ns / 1000; });
  writer.Family("nv_inference_pending_request_count", "gauge",
                "Instantaneous number of pending requests awaiting execution per-model",
                [](const ModelReading& r) { return r.counters.pending; });
  writer.Begin("nv_inference_first_response_histogram_ms", "histogram",
               "Duration from request to first response in milliseconds");
  for (const ModelReading& r : readings)
    if (SchemaOf(r.named.part).decoupled) writer.Histogram(r, "", r.counters.first_response, kFirstResponseMillis);
}

struct Series {
  const char* label;
  std::function<double(const ModelReading&)> value;
};

void AddFamily(Writer& writer, const std::vector<ModelReading>& engines, const char* name, const char* help,
               const char* label, const std::vector<Series>& series) {
  writer.Begin(name, "gauge", help);
  for (const ModelReading& r : engines)
    for (const Series& one : series) writer.Line(r, fmt::format("{}=\"{}\",", label, one.label), one.value(r));
}

void AddEngines(Writer& writer, const std::vector<ModelReading>& engines, Nanos wall) {
  using R = const ModelReading&;
  AddFamily(writer, engines, "nv_trt_llm_request_metrics", "TRT LLM request metrics", "request_type",
            {{"active", [](R r) { return r.executor.waiting + r.executor.running + r.executor.paused; }},
             {"max", [](R r) { return r.named.model->facts().max_batch_size; }},
             {"scheduled", [](R r) { return r.executor.running; }},
             {"context", [](R r) { return r.executor.last_step_context_rows; }},
             {"waiting", [](R r) { return r.executor.waiting + r.executor.paused; }}});
  auto tokens_per = [](R r) { return std::max(r.named.model->facts().tokens_per_block, 1); };
  AddFamily(
      writer, engines, "nv_trt_llm_kv_cache_block_metrics", "TRT LLM KV cache block metrics", "kv_cache_block_type",
      {{"max", [](R r) { return r.executor.blocks_total; }},
       {"free", [](R r) { return r.executor.blocks_total - r.executor.blocks_used; }},
       {"used", [](R r) { return r.executor.blocks_used; }},
       {"tokens_per", [=](R r) { return tokens_per(r); }},
       {"reused",
        [=](R r) {
          uint64_t blocks = r.executor.prefix_tokens_reused / static_cast<uint64_t>(tokens_per(r));
          return static_cast<double>(blocks);
        }},
       {"fraction", [](R r) {
          return r.executor.blocks_total > 0 ? static_cast<double>(r.executor.blocks_used) / r.executor.blocks_total
                                             : 0.0;
        }}});
  AddFamily(writer, engines, "nv_trt_llm_inflight_batcher_metrics", "TRT LLM inflight_batcher-specific metrics",
            "inflight_batcher_specific_metric",
            {{"total_context_tokens", [](R r) { return r.executor.last_step_context_tokens; }},
             {"generation_requests", [](R r) { return r.executor.last_step_generation_rows; }},
             {"micro_batch_id", [](R) { return 0; }},
             {"paused_requests", [](R r) { return r.executor.paused; }}});
  AddFamily(writer, engines, "nv_trt_llm_general_metrics", "General TRT LLM metrics", "general_type",
            {{"timestamp",
              [=](R) { return static_cast<double>(std::chrono::duration_cast<std::chrono::seconds>(wall).count()); }},
             {"iteration_counter", [](R r) { return static_cast<double>(r.executor.steps); }}});
  writer.Begin("nv_llm_input_token_len", "histogram", "TRT LLM response metrics");
  for (R r : engines)
    writer.Histogram(r, "response_metric_type=\"total_input_tokens\",", r.counters.input_tokens, kTokenCountBuckets);
  writer.Begin("nv_llm_output_token_len", "histogram", "TRT LLM response metrics");
  for (R r : engines)
    writer.Histogram(r, "response_metric_type=\"total_output_tokens\",", r.counters.output_tokens, kTokenCountBuckets);
}

}  // namespace

std::string MetricsTextOf(const std::vector<ModelReading>& readings, Nanos wall) {
  Writer writer(readings);
  AddInference(writer, readings);
  std::vector<ModelReading> engines;
  for (const ModelReading& reading : readings)
    if (reading.named.part == Part::kTensorRtLlm) engines.push_back(reading);
  AddEngines(writer, engines, wall);
  return writer.Take();
}

}  // namespace ekiben::kserve
