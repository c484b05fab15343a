// Which table of bodies an instruction set means.
#pragma once
#include "device/cpu_features.h"
#include "ops/linear_kernels.h"

namespace ekiben {

const LinearKernels& LinearKernelsOf(Isa isa);

}  // namespace ekiben
