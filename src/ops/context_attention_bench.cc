// Context attention of one layer of Llama-3-8B's shape, both kernels, on random keys, values and queries.
//
//   context_attention_bench OUT.json
//
// Each case is a step's rows of context: so many rows of `tokens` tokens from `position` on. A launch is one of a graph
// over as many layers as do not fit the L2 cache together; the median of some graphs, divided. FLOP are counted for the
// pairs of a query and a key that it sees. The kernels' outputs are compared. Exit code 1 on the first error.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "device/cuda/cuda_device.h"
#include "ops/cuda_attention_items.h"
#include "ops/cuda_ops.h"

namespace ekiben {
namespace {

constexpr int32_t kQueryHeads = 32, kKvHeads = 8, kHeadDim = 128, kPage = 64, kLayers = 4, kRounds = 9;

struct Case {
  int32_t rows, tokens, position;
};

class Bench {
 public:
  Result<void> Prepare(bool fp8);
  Result<void> Measure(const Case& c, std::string& json);
  const std::string& device() const { return device_; }
  int32_t clusters() const { return cluster_.clusters(); }

 private:
  struct Measured {
    double us = 0;
    std::vector<cuda::Bf16> out;
  };
  Result<Measured> Time(const Case& c, bool clusters);

  std::string device_;
  CudaStream stream_;
  cuda::Queue queue_;
  cuda::KvLayout kv_;
  cuda::ClusterAttention cluster_;
  DeviceBuffer keys_, values_, wide_, factors_, tables_, queries_, out_;
  static constexpr int32_t kSlots = 16, kTokensMax = 2048, kKeysMax = 8192,
                           kStride = (kQueryHeads + 2 * kKvHeads) * kHeadDim, kWidth = kQueryHeads * kHeadDim;
};

Result<void> Bench::Prepare(bool fp8) {
  ASSIGN_OR_RETURN(CudaDeviceInfo device, OpenCudaDevice());
  device_ = device.name;
  ASSIGN_OR_RETURN(stream_, CudaStream::Create());
  queue_.stream = stream_.get();
  kv_ = {.fp8 = fp8,
         .layers = kLayers,
         .blocks = kSlots * kKeysMax / kPage / 4,
         .kv_heads = kKvHeads,
         .tokens_per_block = kPage,
         .head_dim = kHeadDim,
         .head_stride = kHeadDim,
         .table_pitch = kKeysMax / kPage};
  size_t elements = kv_.layer_elements() * kLayers;
  auto rows = static_cast<int32_t>(elements / kHeadDim);
  uint64_t seed = 1;
  for (DeviceBuffer* pool : {&keys_, &values_}) {
    ASSIGN_OR_RETURN(*pool, DeviceBuffer::Create(elements * kv_.element_bytes()));
    ASSIGN_OR_RETURN(wide_, DeviceBuffer::Create(elements * 2));
    ASSIGN_OR_RETURN(factors_, DeviceBuffer::Create(static_cast<size_t>(rows) * 4));
    cuda::FillNormal(queue_, wide_.as<cuda::Bf16>(), static_cast<int64_t>(elements), seed++, 1);
    if (fp8) {
      cuda::Quantize(queue_, {.fp8 = pool->as<cuda::Fp8>(), .scales = factors_.as<float>()}, wide_.as<cuda::Bf16>(),
                     rows, kHeadDim);
    } else {
      RETURN_IF_ERROR(stream_.Copy(pool->data(), wide_.data(), elements * 2));
    }
    RETURN_IF_ERROR(stream_.Wait());
  }
  kv_.keys = keys_.data();
  kv_.values = values_.data();
  kv_.key_scale = fp8 ? 0.005f : 1;  // codes up to 448: scores as in bf16
  // Scattered blocks; slots share them, which the L2 cache sees only within a layer.
  std::vector<int32_t> tables(static_cast<size_t>(kSlots * kv_.table_pitch));
  for (size_t i = 0; i < tables.size(); ++i)
    tables[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(kv_.blocks));
  ASSIGN_OR_RETURN(tables_, DeviceBuffer::Create(tables.size() * 4));
  RETURN_IF_ERROR(stream_.Copy(tables_.data(), tables.data(), tables_.size()));
  kv_.tables = tables_.as<int32_t>();
  ASSIGN_OR_RETURN(queries_, DeviceBuffer::Create(size_t{kTokensMax} * kStride * 2));
  cuda::FillNormal(queue_, queries_.as<cuda::Bf16>(), int64_t{kTokensMax} * kStride, seed, 1);
  ASSIGN_OR_RETURN(out_, DeviceBuffer::Create(size_t{kTokensMax} * kWidth * 2));
  RETURN_IF_ERROR(stream_.Wait());
  return CudaStatus(cluster_.Prepare(kv_), "preparing attention");
}

Result<Bench::Measured> Bench::Time(const Case& c, bool clusters) {
  cuda::AttentionItemShape shape{kKvHeads, kQueryHeads / kKvHeads, 1024, clusters ? cluster_.clusters() : 0};
  std::vector<cuda::AttentionItem> items, scratch;
  for (int32_t row = 0; row < c.rows; ++row)
    cuda::AddContextItems(shape, row * c.tokens, row, c.position, c.tokens, items);
  cuda::BalanceContextItems(items, shape, scratch);
  auto count = static_cast<int32_t>(items.size());
  ASSIGN_OR_RETURN(DeviceBuffer d_items, DeviceBuffer::Create(items.size() * sizeof(items[0])));
  ASSIGN_OR_RETURN(DeviceBuffer d_count, DeviceBuffer::Create(sizeof(count)));
  RETURN_IF_ERROR(stream_.Copy(d_items.data(), items.data(), d_items.size()));
  RETURN_IF_ERROR(stream_.Copy(d_count.data(), &count, sizeof(count)));
  cuda::AttentionArguments a;
  a.q = queries_.as<cuda::Bf16>();
  a.out = out_.as<cuda::Bf16>();
  a.q_stride = kStride;
  a.query_heads = kQueryHeads;
  a.items = d_items.as<cuda::AttentionItem>();
  a.item_count = d_count.as<int32_t>();
  a.items_max = count;
  auto all_layers = [&]() -> Result<void> {
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      if (clusters) {
        cluster_.Run(queue_, a, kv_, layer);
      } else {
        cuda::ContextAttention(queue_, a, kv_, layer);
      }
    }
    return CudaStatus(queue_.error, "attention");
  };
  RETURN_IF_ERROR(all_layers());
  RETURN_IF_ERROR(stream_.Wait());
  ASSIGN_OR_RETURN(CudaGraph graph, stream_.Capture(all_layers));
  ASSIGN_OR_RETURN(CudaEvent begin, CudaEvent::Create());
  ASSIGN_OR_RETURN(CudaEvent end, CudaEvent::Create());
  std::vector<double> us;
  for (int round = 0; round < kRounds; ++round) {
    RETURN_IF_ERROR(stream_.Record(begin));
    RETURN_IF_ERROR(stream_.Launch(graph));
    RETURN_IF_ERROR(stream_.Record(end));
    RETURN_IF_ERROR(end.Wait());
    ASSIGN_OR_RETURN(Nanos time, end.Since(begin));
    us.push_back(static_cast<double>(time.count()) * 1e-3 / kLayers);
  }
  std::ranges::sort(us);
  Measured out{us[us.size() / 2], std::vector<cuda::Bf16>(static_cast<size_t>(c.rows * c.tokens) * kWidth)};
  RETURN_IF_ERROR(stream_.Copy(out.out.data(), out_.data(), out.out.size() * 2));
  RETURN_IF_ERROR(stream_.Wait());
  return out;
}

Result<void> Bench::Measure(const Case& c, std::string& json) {
  ASSIGN_OR_RETURN(Measured general, Time(c, false));
  ASSIGN_OR_RETURN(Measured cluster, Time(c, true));
  double difference = 0, norm = 0;
  for (size_t i = 0; i < general.out.size(); ++i) {
    double want = BF16ToF32(general.out[i]), got = BF16ToF32(cluster.out[i]);
    difference += (got - want) * (got - want);
    norm += want * want;
  }
  double flop = 4.0 * kWidth * c.rows * c.tokens * (c.position + (c.tokens + 1) / 2.0);
  auto tflops = [&](double us) { return flop / us * 1e-6; };
  double relative = std::sqrt(difference / norm);
  fmt::print(
      "{:4} {:2} x {:5} at {:5}: general {:7.1f} us {:4.0f} TFLOP/s, clusters {:7.1f} us {:4.0f} TFLOP/s, "
      "differ by {:.1e}\n",
      kv_.fp8 ? "fp8" : "bf16", c.rows, c.tokens, c.position, general.us, tflops(general.us), cluster.us,
      tflops(cluster.us), relative);
  std::fflush(stdout);
  json += fmt::format(
      "{}  {{\"cache\": \"{}\", \"rows\": {}, \"tokens\": {}, \"position\": {}, \"general_us\": {:.2f}, "
      "\"clusters_us\": {:.2f}, \"general_tflops\": {:.1f}, \"clusters_tflops\": {:.1f}, \"difference\": {:.2e}}}",
      json.empty() ? "" : ",\n", kv_.fp8 ? "fp8" : "bf16", c.rows, c.tokens, c.position, general.us, cluster.us,
      tflops(general.us), tflops(cluster.us), relative);
  if (!(relative < 1e-2)) return Error(Code::kInternal, fmt::format("the kernels differ by {}", relative));
  return {};
}

Result<void> Main(const std::string& path) {
  std::string json, device;
  for (bool fp8 : {false, true}) {
    Bench bench;
    RETURN_IF_ERROR(bench.Prepare(fp8));
    device = bench.device();
    fmt::print("{} clusters at once\n", bench.clusters());
    for (const Case& c : {Case{2, 1024, 0}, Case{16, 128, 0}, Case{1, 2048, 0}, Case{1, 2048, 6144}, Case{1, 512, 7680},
                          Case{1, 256, 7936}, Case{1, 128, 8064}, Case{1, 110, 8000}, Case{1, 32, 8160},
                          Case{1, 110, 3000}, Case{1, 110, 1000}, Case{8, 110, 4000}})
      RETURN_IF_ERROR(bench.Measure(c, json));
  }
  std::ofstream file(path);
  file << fmt::format(
      "{{\"command\": \"context_attention_bench OUT.json\", \"device\": \"{}\", \"results\": [\n{}\n]}}\n", device,
      json);
  if (!file) return Error(Code::kInternal, fmt::format("cannot write '{}'", path));
  return {};
}

}  // namespace
}  // namespace ekiben

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: context_attention_bench OUT.json\n");
    return 2;
  }
  auto done = ekiben::Main(argv[1]);
  if (done.ok()) return 0;
  std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return 1;
}
