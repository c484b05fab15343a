// What one op of a step costs, timed at the served shapes: a row of `ekiben kernels`, of either device.
// Thread: plain values.
#pragma once
#include <cstdint>
#include <string>

namespace ekiben {

struct OpTiming {
  std::string op;     // "qkv", "paged_attention context", ...
  std::string shape;  // "int4_block32 960x576", "9/3 heads of 64, 150 before"
  int64_t tokens = 0;
  int64_t calls_per_step = 0;
  double seconds = 0, operations = 0, bytes = 0;  // of one call
  double peak_operations = 0;                     // per second; 0: the op is bound by bytes only
  std::string kernel;                             // the one chosen, where there is a choice
};

}  // namespace ekiben
