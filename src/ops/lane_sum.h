// The plain form of the one summation order of ops/ (lanes.h): sixteen partial sums, then a fixed tree.
#pragma once
#include <cstdint>

namespace ekiben {

struct LaneSum {
  float lane[16] = {};

  float Total() const {
    float s[16];
    for (int i = 0; i < 16; ++i) s[i] = lane[i];
    for (int step = 8; step > 0; step /= 2) {
      for (int i = 0; i < step; ++i) s[i] += s[i + step];
    }
    return s[0];
  }
};

}  // namespace ekiben
