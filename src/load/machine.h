// The machine that a result was measured on, and how busy it was.
// Thread: pure functions. A /proc file that cannot be read leaves its field out.
#pragma once
#include <cstdint>

#include "base/json.h"

namespace ekiben::load {

// Since boot, all cores, in clock ticks.
struct CpuTimes {
  uint64_t busy = 0, total = 0;
};
CpuTimes ReadCpuTimes();
// 0..1; -1 when the times say nothing.
double BusyShare(const CpuTimes& begin, const CpuTimes& end);

// CPU model, cores, memory, kernel, host name.
json::object DescribeMachine();

}  // namespace ekiben::load
