#include "ops/e4m3_rounding_body.h"

void ekiben::avx2::RunRoundingGains(const RoundingGains& work) {
  RoundingGainsInLanes(work);
}

void ekiben::avx2::RunRoundingGroup(const RoundingGroup& group) {
  RoundingGroupInLanes(group);
}
