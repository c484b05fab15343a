#include "ops/e4m3_rounding_body.h"

void ekiben::avx512::RunRoundingGains(const RoundingGains& work) {
  RoundingGainsInLanes(work);
}

void ekiben::avx512::RunRoundingGroup(const RoundingGroup& group) {
  RoundingGroupInLanes(group);
}
