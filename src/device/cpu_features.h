// Which instruction set the CPU bodies may use. Detected once, printed at start (a silent fall-back to AVX2 halves the
// speed), overridable for tests with EKIBEN_ISA=reference|avx2|avx512.
#pragma once
#include <string>

namespace ekiben {

enum class Isa : int { kReference = 0, kAvx2 = 1, kAvx512 = 2 };  // kAvx512: F BW DQ VL VNNI BF16

struct CpuFeatures {
  bool avx2 = false, fma = false, f16c = false;
  bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false, avx512_vnni = false, avx512_bf16 = false,
       avx512_vbmi = false;
};

const CpuFeatures& DetectCpuFeatures();
// The best set this CPU has, or what EKIBEN_ISA asks for (never more than the CPU has).
Isa BestIsa();
const char* Name(Isa isa);  // "reference", "avx2", "avx512"
std::string DescribeCpu();  // "AMD EPYC ..., 2 cores, avx512 (vnni bf16 vbmi)"

}  // namespace ekiben
