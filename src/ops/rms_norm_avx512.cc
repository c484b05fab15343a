#include "ops/rms_norm_body.h"

void ekiben::avx512::RunRmsNormRow(const RmsNormRow& row) {
  RmsNormRowInLanes(row);
}
