// The CUDA backend's entries in a build without nvcc.
#include "backend/cuda_backend.h"
#include "backend/cuda_logits.h"
#include "backend/cuda_op_timing.h"

namespace ekiben {

Result<void> CheckCudaDevice() {
  return Error(Code::kUnsupported,
               "device: this ekiben was built without CUDA; build it where nvcc 13 is, or use --device cpu", "device");
}

Result<CudaBackendParts> OpenCudaBackend(const ModelConfig&, const EngineTensors*, const CudaBackendConfig&) {
  return CheckCudaDevice().error();
}

Result<SequenceLogits> OpenCudaLogits(const ModelConfig&, const EngineTensors&, const CudaLogitsConfig&) {
  return CheckCudaDevice().error();
}

Result<CudaOpTimings> TimeCudaOps(const ModelConfig&, const EngineTensors*, const CudaOpTimingConfig&) {
  return CheckCudaDevice().error();
}

}  // namespace ekiben
