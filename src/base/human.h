// Numbers as people read them: "92.9 MiB", "1.24 s", "18,432". For terminals, logs and reports.
#pragma once
#include <cstdint>
#include <string>

#include "base/clock.h"

namespace ekiben {

std::string HumanBytes(uint64_t bytes);     // binary units
std::string HumanCount(double count);       // thousands separators below a million, then "1.3 M"
std::string HumanDuration(Nanos duration);  // "850 us", "1.24 s", "3 min 05 s"

}  // namespace ekiben
