// ProfileCudaEngine of a build without CUDA.
#include "compile/cuda_profile.h"

namespace ekiben {

Result<std::string> ProfileCudaEngine(const std::filesystem::path&, const ProgressFunction&) {
  return std::string("linears are not timed, a start on a GPU will: this ekiben was built without CUDA");
}

}  // namespace ekiben
