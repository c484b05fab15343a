#include "ops/rms_norm_body.h"

void ekiben::avx2::RunRmsNormRow(const RmsNormRow& row) {
  RmsNormRowInLanes(row);
}
