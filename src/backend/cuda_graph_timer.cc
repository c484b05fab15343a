#include "backend/cuda_graph_timer.h"

#include <algorithm>
#include <vector>

#include "base/arithmetic.h"
#include "base/check.h"
#include "device/cuda/cublaslt.h"

namespace ekiben {
namespace {

constexpr int kRounds = 9;

}  // namespace

Result<void> GraphTimer::Open(bool emulated) {
  emulated_ = emulated;
  ASSIGN_OR_RETURN(stream_, CudaStream::Create());
  queue_.stream = stream_.get();
  ASSIGN_OR_RETURN(begin_, CudaEvent::Create());
  ASSIGN_OR_RETURN(end_, CudaEvent::Create());
  return {};
}

Result<double> GraphTimer::Time(int64_t calls, const std::function<Result<void>(int)>& body) {
  const auto bodies = emulated_ ? 1 : static_cast<int>(CeilDiv<int64_t>(kCallsMin, calls));
  auto all = [&]() -> Result<void> {
    for (int i = 0; i < bodies; ++i) RETURN_IF_ERROR(body(i));
    return {};
  };
  RETURN_IF_ERROR(all());  // loads kernels and finds cuBLASLt's plans
  RETURN_IF_ERROR(stream_.Wait());
  ASSIGN_OR_RETURN(CudaGraph graph, stream_.Capture(all));
  RETURN_IF_ERROR(Replay(graph));
  std::vector<Nanos> times(emulated_ ? 1 : kRounds);
  for (Nanos& time : times) {
    ASSIGN_OR_RETURN(time, Replay(graph));
  }
  RETURN_IF_ERROR(CudaStatus(queue_.error, "timing an op"));
  std::ranges::sort(times);
  return Seconds(times[times.size() / 2]) / static_cast<double>(bodies * calls);
}

Result<Nanos> GraphTimer::Replay(const CudaGraph& graph) {
  RETURN_IF_ERROR(stream_.Record(begin_));
  RETURN_IF_ERROR(stream_.Launch(graph));
  RETURN_IF_ERROR(stream_.Record(end_));
  RETURN_IF_ERROR(end_.Wait());
  return end_.Since(begin_);
}

Result<CudaLimits> MeasureCudaLimits(GraphTimer& timer, bool emulated) {
  CudaLimits out;
  const int32_t side = emulated ? 64 : 8192;
  const size_t bytes = emulated ? size_t{1} << 20 : size_t{2} << 30;
  const auto elements = int64_t{side} * side;
  ASSIGN_OR_RETURN(DeviceBuffer memory, DeviceBuffer::Create(bytes));
  ASSIGN_OR_RETURN(DeviceBuffer sum, DeviceBuffer::Create(16));
  RETURN_IF_ERROR(timer.stream().Clear(sum.data(), sum.size()));
  cuda::FillNormal(timer.queue(), memory.as<cuda::Bf16>(), static_cast<int64_t>(bytes / 2), 1, 1);
  ASSIGN_OR_RETURN(double seconds, timer.Time(1, [&](int) -> Result<void> {
    cuda::ReadAll(timer.queue(), sum.as<uint32_t>(), memory.data(), bytes);
    return {};
  }));
  out.read_bytes = static_cast<double>(bytes) / seconds;

  ASSIGN_OR_RETURN(auto cublaslt, CublasLt::Create());
  // Of the memory just read: two operands, a result, and both operands in e4m3 with their factors.
  const size_t part = static_cast<size_t>(elements) * sizeof(cuda::Bf16), row_factors = static_cast<size_t>(side) * 4;
  std::byte *w = memory.data(), *x = w + part, *result = x + part, *codes = result + part;
  auto* factors = reinterpret_cast<float*>(codes + part);
  CHECK_LE(4 * part + 2 * row_factors, bytes);
  for (bool fp8 : {false, true}) {
    LtOperands operands{.w = w, .x = x, .out = result};
    if (fp8) {
      auto* code = reinterpret_cast<cuda::Fp8*>(codes);
      cuda::Quantize(timer.queue(), {.fp8 = code, .scales = factors}, reinterpret_cast<cuda::Bf16*>(w), side, side);
      cuda::Quantize(timer.queue(), {.fp8 = code + elements, .scales = factors + side},
                     reinterpret_cast<cuda::Bf16*>(x), side, side);
      operands.w = code;
      operands.x = code + elements;
    }
    const LtShape shape{side, side, side, fp8, false};
    const void* const weights[] = {operands.w};
    ASSIGN_OR_RETURN(std::vector<LtCandidate> candidates,
                     cublaslt->TimeCandidates(timer.stream(), shape, weights, operands));
    const LtAlgorithm best = std::ranges::min_element(candidates, {}, &LtCandidate::time)->algorithm;
    ASSIGN_OR_RETURN(double product, timer.Time(1, [&](int) {
      return cublaslt->Multiply(timer.stream().get(), shape, operands, best);
    }));
    (fp8 ? out.fp8_operations : out.bf16_operations) = 2.0 * static_cast<double>(elements) * side / product;
  }
  return out;
}

}  // namespace ekiben
