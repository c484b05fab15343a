// OpenCudaBackend of a build without nvcc.
#include "backend/cuda_backend.h"

namespace ekiben {

Result<void> CheckCudaDevice() {
  return Error(Code::kUnsupported,
               "device: this ekiben was built without CUDA; build it where nvcc 13 is, or use --device cpu", "device");
}

Result<CudaBackendParts> OpenCudaBackend(const ModelConfig&, const EngineTensors*, const CudaBackendConfig&) {
  return CheckCudaDevice().error();
}

}  // namespace ekiben
