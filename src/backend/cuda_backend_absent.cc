// OpenCudaBackend of a build without nvcc.
#include "backend/cuda_backend.h"

namespace ekiben {

Result<CudaBackendParts> OpenCudaBackend(const ModelConfig&, const EngineTensors*, const CudaBackendConfig&) {
  return Error(Code::kUnsupported,
               "backend: this ekiben was built without CUDA; build it where nvcc 13 is, or use --backend cpu",
               "backend");
}

}  // namespace ekiben
