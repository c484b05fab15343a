#include "load/machine.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>
#include <thread>

namespace ekiben::load {

CpuTimes ReadCpuTimes() {
  CpuTimes out;
  std::ifstream file("/proc/stat");
  std::string line;
  if (!std::getline(file, line)) return out;
  std::istringstream fields(line);
  std::string name;
  fields >> name;
  // user nice system idle iowait irq softirq steal; what follows is contained in user and nice.
  uint64_t ticks = 0;
  for (int i = 0; i < 8 && fields >> ticks; ++i) {
    out.total += ticks;
    if (i != 3 && i != 4) out.busy += ticks;
  }
  return out;
}

double BusyShare(const CpuTimes& begin, const CpuTimes& end) {
  if (end.total <= begin.total) return -1;
  return static_cast<double>(end.busy - begin.busy) / static_cast<double>(end.total - begin.total);
}

json::object DescribeMachine() {
  json::object out;
  std::ifstream cpu("/proc/cpuinfo");
  for (std::string line; std::getline(cpu, line);) {
    if (!line.starts_with("model name")) continue;
    size_t colon = line.find(": ");
    if (colon != std::string::npos) out["cpu"] = line.substr(colon + 2);
    break;
  }
  out["cores"] = std::thread::hardware_concurrency();
  out["memory_bytes"] = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (utsname name; uname(&name) == 0) {
    out["kernel"] = std::string(name.sysname) + " " + name.release;
    out["host"] = name.nodename;
  }
  return out;
}

}  // namespace ekiben::load
