#include "device/cpu_features.h"

#include <cpuid.h>
#include <sched.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include <fmt/format.h>

#include "base/log.h"

namespace ekiben {
namespace {

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers CpuId(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

bool Bit(uint32_t word, int bit) {
  return ((word >> bit) & 1) != 0;
}

// Which register state the operating system saves (XCR0): a CPU bit alone does not make the registers usable.
uint64_t SavedState(bool has_xgetbv) {
  if (!has_xgetbv) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

CpuFeatures Detect() {
  CpuFeatures f;
  Registers leaf1 = CpuId(1, 0), leaf7 = CpuId(7, 0), leaf7_1 = CpuId(7, 1);
  uint64_t state = SavedState(Bit(leaf1.ecx, 27));
  bool ymm_saved = (state & 0x6) == 0x6;
  bool zmm_saved = (state & 0xe6) == 0xe6;
  f.avx2 = ymm_saved && Bit(leaf7.ebx, 5);
  f.fma = ymm_saved && Bit(leaf1.ecx, 12);
  f.f16c = ymm_saved && Bit(leaf1.ecx, 29);
  f.avx512f = zmm_saved && Bit(leaf7.ebx, 16);
  f.avx512dq = zmm_saved && Bit(leaf7.ebx, 17);
  f.avx512bw = zmm_saved && Bit(leaf7.ebx, 30);
  f.avx512vl = zmm_saved && Bit(leaf7.ebx, 31);
  f.avx512_vbmi = zmm_saved && Bit(leaf7.ecx, 1);
  f.avx512_vnni = zmm_saved && Bit(leaf7.ecx, 11);
  f.avx512_bf16 = zmm_saved && Bit(leaf7_1.eax, 5);
  return f;
}

Isa HardwareIsa() {
  const CpuFeatures& f = DetectCpuFeatures();
  bool has_avx2 = f.avx2 && f.fma && f.f16c;
  if (has_avx2 && f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl && f.avx512_vnni && f.avx512_bf16) {
    return Isa::kAvx512;
  }
  return has_avx2 ? Isa::kAvx2 : Isa::kReference;
}

Isa ChooseIsa() {
  Isa best = HardwareIsa();
  const char* wish = std::getenv("EKIBEN_ISA");
  if (wish == nullptr || *wish == '\0') return best;
  for (Isa isa : {Isa::kReference, Isa::kAvx2, Isa::kAvx512}) {
    if (std::string_view(wish) != Name(isa)) continue;
    if (isa <= best) return isa;
    spdlog::warn("EKIBEN_ISA={}: this CPU has only {}", wish, Name(best));
    return best;
  }
  spdlog::warn("EKIBEN_ISA={}: not one of reference, avx2, avx512; using {}", wish, Name(best));
  return best;
}

std::string BrandName() {
  char brand[49] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    Registers r = CpuId(0x80000002u + i, 0);
    std::memcpy(brand + 16 * i, &r, 16);
  }
  std::string_view text(brand);
  size_t begin = text.find_first_not_of(' ');
  if (begin == std::string_view::npos) return "unknown CPU";
  return std::string(text.substr(begin, text.find_last_not_of(' ') - begin + 1));
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

}  // namespace

const CpuFeatures& DetectCpuFeatures() {
  static const CpuFeatures features = Detect();
  return features;
}

Isa BestIsa() {
  static const Isa isa = ChooseIsa();
  return isa;
}

const char* Name(Isa isa) {
  switch (isa) {
    case Isa::kReference: return "reference";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
  }
  return "?";
}

std::string DescribeCpu() {
  const CpuFeatures& f = DetectCpuFeatures();
  std::string extra;
  for (auto [has, name] : {std::pair{f.avx512_vnni, "vnni"}, {f.avx512_bf16, "bf16"}, {f.avx512_vbmi, "vbmi"}}) {
    if (has) extra += (extra.empty() ? "" : " ") + std::string(name);
  }
  return fmt::format("{}, {} cores, {}{}", BrandName(), UsableCores(), Name(BestIsa()),
                     BestIsa() == Isa::kAvx512 ? " (" + extra + ")" : "");
}

}  // namespace ekiben
