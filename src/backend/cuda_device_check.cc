// CheckCudaDevice of a build with CUDA.
#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda_backend.h"
#include "device/cuda/cuda_device.h"

namespace ekiben {

Result<void> CheckCudaDevice() {
  Result<CudaDeviceInfo> device = OpenCudaDevice();
  if (device.ok()) return {};
  std::string reason = device.error().message();
  reason.resize(std::min(reason.size(), reason.find(';')));  // after it stands the device's own advice
  return Error(device.error().code(),
               fmt::format("device: cuda cannot run here: {}; it needs a Hopper GPU (compute capability 9.0) with a "
                           "driver for CUDA 13; or use --device cpu",
                           reason),
               "device");
}

}  // namespace ekiben
