// A stream on a CUDA device that times what is queued on it, and with it what the device can do at best.
// Errors: a device fault. Thread: one.
#pragma once
#include <functional>

#include "backend/cuda_op_timing.h"
#include "device/cuda/cuda_device.h"
#include "ops/cuda_ops.h"

namespace ekiben {

class GraphTimer {
 public:
  // At least so many calls are one graph, so that its launch does not count; on the emulated device one body.
  static constexpr int kCallsMin = 32;

  Result<void> Open(bool emulated);
  CudaStream& stream() { return stream_; }
  cuda::Queue& queue() { return queue_; }
  // `body(i)` queues `calls` calls, for i from 0 to under kCallsMin. Seconds of one call: the median over replays.
  Result<double> Time(int64_t calls, const std::function<Result<void>(int)>& body);

 private:
  Result<Nanos> Replay(const CudaGraph& graph);

  bool emulated_ = false;
  CudaStream stream_;
  cuda::Queue queue_;
  CudaEvent begin_, end_;
};

// Takes 2 GiB of the device's memory while it runs.
Result<CudaLimits> MeasureCudaLimits(GraphTimer& timer, bool emulated);

}  // namespace ekiben
